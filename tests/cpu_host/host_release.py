# SPDX-License-Identifier: Apache-2.0
"""What the tests of a host without a GPU need that differs between SGLang releases, chosen by what is present."""

from types import SimpleNamespace

try:  # since 0.5.16
    from sglang.kernels.ops.attention.position import compute_position_triton
    from sglang.kernels.ops.memory.allocator import alloc_decode_kernel, alloc_extend_kernel
    from sglang.kernels.ops.memory.common import get_last_loc_triton, write_req_to_token_pool_triton
    from sglang.srt.mem_cache import allocation
except ModuleNotFoundError:
    from sglang.srt.mem_cache import common as allocation
    from sglang.srt.mem_cache.allocator import alloc_decode_kernel, alloc_extend_kernel
    from sglang.srt.mem_cache.common import get_last_loc_triton, write_req_to_token_pool_triton
    from sglang.srt.model_executor.forward_batch_info import compute_position_triton

__all__ = [
    "alloc_decode_kernel", "alloc_extend_kernel", "allocation", "choose_backend", "compute_position_triton",
    "get_last_loc_triton", "last_locations_on_a_cpu", "write_req_to_token_pool_triton",
]  # fmt: skip


def choose_backend(monkeypatch, name: str) -> None:
    """Let ``allocation`` see an attention backend of this name."""
    args = SimpleNamespace(attention_backend=name)
    if hasattr(allocation, "get_exec"):
        monkeypatch.setattr(allocation, "get_exec", lambda: SimpleNamespace(kernel=args))
    else:  # until 0.5.15
        monkeypatch.setattr(allocation, "get_global_server_args", lambda: args)


def last_locations_on_a_cpu() -> bool:
    """Whether they are looked up on a CPU: later releases do so for speculative decoding alone, which needs a GPU."""
    return not hasattr(allocation, "get_exec")
