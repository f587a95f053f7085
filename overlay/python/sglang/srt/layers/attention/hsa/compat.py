# SPDX-License-Identifier: Apache-2.0
"""What differs between the SGLang releases that HSA stands on, chosen by what is present.

Each seam names the releases that it is for and goes when the last of them does. Imports are inside the functions:
server arguments load this module before most of SGLang can be imported.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Callable, Optional, Tuple

from sglang.srt.environ import envs

if TYPE_CHECKING:
    import torch

    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
    from sglang.srt.server_args import ServerArgs


# Server arguments


def arguments(args: ServerArgs) -> ServerArgs:
    """What has been decided so far, whoever did: since 0.5.21 arguments are what the user gave, and decisions stand beside."""
    if _hold_decisions():
        return args
    from sglang.srt.arg_groups.model_override_base import resolving_view

    return resolving_view(args)


def _hold_decisions() -> bool:
    """Whether decisions are written into the arguments: until 0.5.18."""
    from sglang.srt.server_args import ServerArgs

    return hasattr(ServerArgs, "get_model_config")


def declare(args: ServerArgs, **decided: Any) -> None:
    """Decide the values of options."""
    if _hold_decisions():
        for name, value in decided.items():
            setattr(args, name, value)
        return
    from sglang.srt.arg_groups.overrides import declare_resolution

    declare_resolution(args, "hsa", **decided)


def serving_arguments() -> ServerArgs:
    """Those of the server that this process belongs to.

    Raises:
        ValueError: outside of a server.
    """
    try:  # since 0.5.16
        from sglang.srt.runtime_context import get_context
    except ModuleNotFoundError:  # until 0.5.15
        from sglang.srt.server_args import get_global_server_args

        return get_global_server_args()
    return arguments(get_context().server_args)


def model_config(args: ServerArgs) -> ModelConfig:
    if hasattr(args, "get_model_config"):  # until 0.5.18
        return args.get_model_config()
    from sglang.srt.arg_groups.model_override_base import model_config_of

    return model_config_of(args)


def attention_backends(args: ServerArgs) -> Tuple[str, str]:
    """(of prefill, of decode)"""
    if hasattr(args, "get_attention_backends"):  # until 0.5.18
        return args.get_attention_backends()
    from sglang.srt.arg_groups.model_override_base import attention_backends_of

    return attention_backends_of(args)


def default_backend(args: ServerArgs) -> str:
    """The attention backend that the server would choose."""
    if hasattr(args, "_get_default_attn_backend"):  # until 0.5.18
        mla = args.use_mla_backend()
        return args._get_default_attn_backend(mla, args.get_model_config())
    from sglang.srt.arg_groups import model_override_base

    mla = model_override_base.use_mla_backend(args)
    return model_override_base.get_default_attn_backend(args, mla, model_config(args))


def asked(args: ServerArgs, name: str, default: Any = False) -> Any:
    """The value of an option that not every release has; a release without it cannot be asked for it."""
    return getattr(args, name, default)


def attention_dp_size(args: ServerArgs) -> int:
    """Ranks that the requests of one model are split over; 1 without data-parallel attention."""
    # Until 0.5.22; then another way to ask for what follows.
    if args.enable_dp_attention:
        return args.dp_size
    return asked(args, "attn_dp_size", 1)


def variable(name: str) -> bool:
    """Whether an environment variable that not every release reads is set to true."""
    known = getattr(envs, name, None)
    return known is not None and known.get()


def is_deterministic(args: ServerArgs) -> bool:
    """Whether inference is to be deterministic, which in 0.5.10 another option asks for once HSA has checked."""
    on_policy = asked(args, "rl_on_policy_target", None)
    return args.enable_deterministic_inference or on_policy is not None


def auto_choose_speculative_params(args: ServerArgs) -> Tuple[int, int, int]:
    """(steps, branches per step, tokens per verification) that the server would choose."""
    try:  # until 0.5.13
        from sglang.srt.server_args import auto_choose_speculative_params as choose
    except ImportError:  # since 0.5.14
        from sglang.srt.arg_groups.speculative_hook import (
            _auto_choose_speculative_params,
        )

        architecture = model_config(args).hf_config.architectures[0]
        return _auto_choose_speculative_params(args, architecture)
    return choose(args)


def prefill_graphs_are_forced(args: ServerArgs) -> bool:
    """Whether the user asks for CUDA graphs of prefill, whatever the backend says."""
    if hasattr(args, "enforce_piecewise_cuda_graph"):  # until 0.5.12
        return args.enforce_piecewise_cuda_graph
    # Since 0.5.13 they have a kind, and whoever gave it means it.
    given = getattr(args, "_cuda_graph_config_locked", ())
    return has_graphs(args, "prefill") and ("prefill", "backend") in given


# The options of each phase until 0.5.12; since 0.5.13 one option has all phases.
_WITHOUT_GRAPHS = {
    "prefill": "disable_piecewise_cuda_graph",
    "decode": "disable_cuda_graph",
}


def has_graphs(args: ServerArgs, phase: str) -> bool:
    """Whether a phase, prefill or decode, would run in CUDA graphs."""
    if hasattr(args, "disable_piecewise_cuda_graph"):  # until 0.5.12
        return not getattr(args, _WITHOUT_GRAPHS[phase])
    return getattr(args.cuda_graph_config, phase).backend != "disabled"  # since 0.5.13


def disable_graphs(args: ServerArgs, phase: str) -> None:
    """Let a phase, prefill or decode, run without CUDA graphs."""
    if hasattr(args, "disable_piecewise_cuda_graph"):  # until 0.5.12
        declare(args, **{_WITHOUT_GRAPHS[phase]: True})
        return
    config = copy.deepcopy(asked(arguments(args), "cuda_graph_config"))
    getattr(config, phase).backend = "disabled"
    declare(args, cuda_graph_config=config)


# Forward passes


def is_draft_extend(mode: ForwardMode) -> bool:
    """Whether a pass writes the draft model's keys of verified tokens: all of them, or until 0.5.13 the accepted ones alone."""
    ragged = getattr(mode, "is_draft_extend", None)
    return mode.is_draft_extend_v2() or (ragged is not None and ragged())


def real_requests(batch: ForwardBatch) -> int:
    """Requests of an eager batch, without those that fill it up to the sizes of other ranks."""
    filled_up = getattr(batch, "_original_batch_size", None)
    return batch.batch_size if filled_up is None else filled_up


def backend_of(batch: ForwardBatch) -> Any:
    """The backend that attends a batch."""
    if hasattr(batch, "attn_backend"):  # until 0.5.15
        return batch.attn_backend
    from sglang.srt.model_executor.forward_context import get_attn_backend

    return get_attn_backend()


def unread_tree_mask(requests: int, tokens: int, device: str) -> Optional[Any]:
    """Room for the trees of so many requests with so many draft tokens; None where each batch makes its own, until 0.5.16."""
    try:
        from sglang.srt.layers.attention.verify_mask import maybe_create_verify_mask
    except ModuleNotFoundError:
        return None
    return maybe_create_verify_mask(
        is_draft_runner=False,
        skip_prefill=False,
        max_bs=requests,
        max_context_len=0,
        num_draft_tokens=tokens,
        device=device,
        is_read=False,
    )


def graphs_hold_metadata() -> bool:
    """Whether CUDA graphs hold what a backend launches in ``init_forward_metadata_in_graph``, since 0.5.13, or layers alone."""
    from sglang.srt.layers.attention.base_attn_backend import AttentionBackend

    return hasattr(AttentionBackend, "init_forward_metadata_in_graph")


def jit_tools() -> Tuple[Callable, Callable]:
    """(cache_once, load_jit) of SGLang's just-in-time kernels."""
    try:  # until 0.5.16
        from sglang.jit_kernel.utils import cache_once, load_jit
    except ModuleNotFoundError:  # since 0.5.17
        from sglang.kernels.jit.utils import cache_once, load_jit
    return cache_once, load_jit


# Pools


def swa_allocator_class() -> type:
    """The allocator of models whose sliding-window layers have a pool of their own."""
    try:  # since 0.5.13
        from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator
    except ModuleNotFoundError:  # until 0.5.12
        from sglang.srt.mem_cache.swa_memory_pool import SWATokenToKVPoolAllocator
    return SWATokenToKVPoolAllocator


def cpu_has_fp8_caches() -> bool:
    """Whether any backend may keep fp8 on a CPU: in 0.5.23 that is intel_amx alone."""
    try:  # since 0.5.16
        from sglang.srt.mem_cache.kv_cache_configurator import KVCacheConfigurator
    except ModuleNotFoundError:
        return True
    return not hasattr(KVCacheConfigurator, "_build_mha_quant_method")


def let_canary_watch(pool_class: type) -> None:
    """Let ``--kv-canary`` check the keys and values of a pool class as those of an ordinary pool."""
    try:  # since 0.5.13
        from sglang.srt.kv_canary.pool_patcher import api
        from sglang.srt.kv_canary.pool_patcher.adapters import mha
    except ModuleNotFoundError:  # until 0.5.12 there is no such option
        return
    api.register_pool_attacher(pool_class, mha.attach_mha)


def attention_tp() -> Tuple[int, int]:
    """(this rank, ranks) that the heads of attention are split over."""
    try:  # since 0.5.16
        from sglang.srt.runtime_context import get_parallel
    except ModuleNotFoundError:  # until 0.5.15
        from sglang.srt.layers import dp_attention as groups

        return groups.get_attention_tp_rank(), groups.get_attention_tp_size()
    return get_parallel().attn_tp_rank, get_parallel().attn_tp_size


def model_dtype(owner: Any) -> torch.dtype:
    """Dtype of the model, from what builds its pools: a ModelRunner, or since 0.5.16 a KVCacheConfigurator."""
    return owner.model_dtype if hasattr(owner, "model_dtype") else owner.dtype
