# SPDX-License-Identifier: Apache-2.0
"""What ModelRunner asks when it sizes and builds its pools: unchanged answers unless HSA is chosen."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Callable, Optional, Tuple, Type

import torch

from sglang.srt.layers.attention.hsa.compat import (
    arguments,
    asked,
    attention_tp,
    let_canary_watch,
    model_dtype,
    swa_allocator_class,
)
from sglang.srt.layers.attention.hsa.config import HSAConfig
from sglang.srt.layers.attention.hsa.model_layers import (
    attention_names,
    check_cache,
    choose_layers,
    serves_with_hsa,
)
from sglang.srt.layers.attention.hsa.page_repr import kind_named
from sglang.srt.layers.attention.hsa.rotary_channels import layer_channels
from sglang.srt.mem_cache.allocator import (
    BaseTokenToKVPoolAllocator,
    PagedTokenToKVPoolAllocator,
)
from sglang.srt.mem_cache.memory_pool import KVCache, MHATokenToKVPool
from sglang.srt.mem_cache.page_repr_allocator import (
    HSAPagedTokenToKVPoolAllocator,
    HSASWATokenToKVPoolAllocator,
)
from sglang.srt.mem_cache.page_repr_pool import HSASWAKVPool, HSATokenToKVPool
from sglang.srt.mem_cache.page_versions import PageVersions
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

if TYPE_CHECKING:
    from sglang.srt.model_executor.model_runner import ModelRunner
    from sglang.srt.server_args import ServerArgs

VERSION_BYTES = 8
BIAS_BYTES = 4

_HSA_POOLS = {MHATokenToKVPool: HSATokenToKVPool, SWAKVPool: HSASWAKVPool}
_HSA_ALLOCATORS = {
    PagedTokenToKVPoolAllocator: HSAPagedTokenToKVPoolAllocator,
    swa_allocator_class(): HSASWATokenToKVPoolAllocator,
}


def kv_pool_class(
    runner: ModelRunner, default: Type[KVCache]
) -> Callable[..., KVCache]:
    """Constructor of the key-value pool: ``default`` unless HSA is chosen.

    Raises:
        ValueError: for a cache that HSA cannot read, and for other layouts; start-up asked before weights, with what was
            known then.
    """
    if not _uses_hsa(runner):
        return default
    if default not in _HSA_POOLS:
        raise ValueError(
            f"--attention-backend hsa does not support the {default.__name__} that the options ask for; "
            "drop what changes the layout of the KV cache."
        )
    layer_ids = hsa_layer_ids(runner)
    dense_layers = len(layer_ids) < runner.model_config.num_hidden_layers
    check_cache(runner.kv_cache_dtype, runner.device, dense_layers)
    kind = _arguments(runner).hsa_chunk_repr
    if asked(_arguments(runner), "kv_canary", "none") != "none":
        let_canary_watch(HSATokenToKVPool)
    return functools.partial(
        _HSA_POOLS[default],
        hsa_layer_ids=layer_ids,
        repr_kind=kind,
        repr_dtype=_repr_dtype(runner),
        page_versions=_shared_page_versions(runner),
        repr_channels=_channels(runner, layer_ids) if kind_named(kind).slow else None,
        repr_group=_group(runner, kind),
    )


def paged_allocator_class(
    runner: ModelRunner,
    default: Type[BaseTokenToKVPoolAllocator] = PagedTokenToKVPoolAllocator,
) -> Callable[..., BaseTokenToKVPoolAllocator]:
    """Constructor of the paged allocator: ``default`` unless HSA is chosen."""
    return _HSA_ALLOCATORS[default] if _uses_hsa(runner) else default


def page_repr_bytes_per_token(runner: ModelRunner, layers: int = 1) -> float:
    """Bytes of page representations and versions that each token of the pool costs, rounded up, split over layers."""
    if not _uses_hsa(runner):
        return 0
    config = HSAConfig.from_server_args(_arguments(runner))
    bytes_per_page = repr_bytes_per_page(
        num_layers=len(hsa_layer_ids(runner)),
        num_kv_heads=runner.model_config.get_num_kv_heads(attention_tp()[1]),
        head_dim=runner.model_config.head_dim,
        page_size=config.page_size,
        kind=config.chunk_repr,
        dtype=_repr_dtype(runner),
        group=_group(runner, config.chunk_repr),
    )
    price = -(-bytes_per_page // config.page_size)
    return price if layers == 1 else price / layers


def repr_bytes_per_page(
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int,
    kind: str,
    dtype: torch.dtype,
    group: int = 1,
) -> int:
    """Bytes of one page's representations over all HSA layers, versions included.

    Args:
        num_layers: layers that use HSA.
        num_kv_heads: KV heads on this rank.
        head_dim: dimensions of a key.
        page_size: tokens per page.
        kind: value of ``--hsa-chunk-repr``.
        dtype: of the keys, or of the model if the keys are quantised to 8 bits.
        group: query heads per KV head.
    """
    entry = kind_named(kind)
    if not entry.stored:
        return VERSION_BYTES
    itemsize = entry.storage_dtype(dtype).itemsize
    per_head = entry.repr_dim(head_dim, page_size, group) * itemsize
    if entry.biased:
        per_head += BIAS_BYTES * group
    per_layer = num_kv_heads * per_head + VERSION_BYTES
    return num_layers * per_layer + VERSION_BYTES


def hsa_layer_ids(runner: ModelRunner) -> Tuple[int, ...]:
    """Layers of the loaded model that use HSA, ascending."""
    return choose_layers(
        runner.model, runner.model_config, _arguments(runner), runner.is_draft_worker
    )


def _group(runner: ModelRunner, kind: str) -> int:
    """Query heads per KV head, for a kind that represents pages for each of them."""
    if not kind_named(kind).biased:
        return 1
    model = runner.model_config
    return model.num_attention_heads // model.get_total_num_kv_heads()


def _channels(runner: ModelRunner, layer_ids: Tuple[int, ...]) -> torch.Tensor:
    """Channels that each HSA layer keeps of its keys ``[L, R]`` int32."""
    names = attention_names(runner.model, layer_ids)
    return layer_channels(runner.model, names, runner.model_config.head_dim)


def _shared_page_versions(runner: ModelRunner) -> Optional[PageVersions]:
    """Versions of the target model's pool for a draft model: one allocator hands out the pages of both."""
    if not runner.is_draft_worker:
        return None
    return runner.token_to_kv_pool_allocator.get_kvcache().page_versions


def _repr_dtype(runner: ModelRunner) -> torch.dtype:
    """Dtype of the representations: that of the keys, or of the model if the keys are quantised to 8 bits."""
    quantised = runner.kv_cache_dtype.itemsize == 1
    return model_dtype(runner) if quantised else runner.kv_cache_dtype


def _arguments(runner: ModelRunner) -> ServerArgs:
    return arguments(runner.server_args)


def _uses_hsa(runner: ModelRunner) -> bool:
    return serves_with_hsa(_arguments(runner), runner.is_draft_worker)
