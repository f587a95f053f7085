# SPDX-License-Identifier: Apache-2.0
"""Page representations next to the KV cache, and the page versions that say which of them to believe.

A representation belongs to a physical page, so requests that share a prefix share it. Freed memory is never
cleared: a page's version is bumped whenever the allocator hands the page out, a writer stamps the version it
wrote for, and a reader takes any other stamp as "no representation".

Versions are serial numbers of hand-outs, which the host counts. A forward pass knows the count that its batch was
built with and leaves alone every page with a later version: with the overlap scheduler the allocator may already
have given that page to the next batch. docs/storage.md has the proof.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Optional, Sequence

import torch

from sglang.srt.constants import GPU_MEMORY_TYPE_KV_CACHE
from sglang.srt.layers.attention.hsa.ops.gather import take
from sglang.srt.layers.attention.hsa.page_repr import kind_named
from sglang.srt.layers.attention.hsa.params import NO_VERSION, LayerCache
from sglang.srt.mem_cache.memory_pool import GB, MHATokenToKVPool
from sglang.srt.mem_cache.page_versions import PageVersions
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

logger = logging.getLogger(__name__)


class PageReprMixin:
    """Representation storage for a paged key-value pool; mixed in before the pool class.

    Attributes:
        hsa_layer_ids: layers that keep representations, ascending; a layer's place in it is its ordinal.
        hsa_layers: the same as a set.
        repr_kind: kind of representation.
        repr_buffers: per ordinal ``[num_pages, H_kv, repr_dim]`` in the kind's storage dtype; empty for a kind
            that is read from the keys.
        repr_biases: per ordinal ``[num_pages, H_kv, G]`` float32; empty for a kind whose scores have none.
        repr_stamps: per ordinal ``[num_pages]`` int64, the page version each representation was written for.
        page_versions: which hand-out each page belongs to.
        all_repr_channels: channels that representations are taken from, by ordinal ``[L, R]`` int32; None for a kind
            that takes all.
    """

    def __init__(
        self,
        *args,
        hsa_layer_ids: Sequence[int],
        repr_kind: str,
        repr_dtype: Optional[torch.dtype] = None,
        page_versions: Optional[PageVersions] = None,
        repr_channels: Optional[torch.Tensor] = None,
        repr_group: int = 1,
        **kwargs,
    ):
        """
        Args:
            repr_dtype: dtype of the representations; None for the keys' dtype, which must not be an 8-bit one.
            page_versions: of the pool whose allocator hands out this pool's pages as well; None if it has its own.
            repr_channels: channels that representations are taken from, by ordinal ``[L, R]`` int32; needed by a kind
                that keeps some of them.
            repr_group: query heads per KV head, which a kind may represent one by one.
        """
        self.hsa_layer_ids = tuple(hsa_layer_ids)
        self.hsa_layers = frozenset(hsa_layer_ids)
        self.repr_kind, self.repr_group = kind_named(repr_kind), repr_group
        self.repr_dtype = repr_dtype
        self.page_versions = page_versions
        self.all_repr_channels = repr_channels
        self._ordinal = {layer: i for i, layer in enumerate(self.hsa_layer_ids)}
        super().__init__(*args, **kwargs)

    def _create_repr_buffers(self) -> None:
        num_pages = self.size // self.page_size + 1  # page 0 takes the padding
        stored = self.hsa_layer_ids if self.repr_kind.stored else ()
        kind = self.repr_kind
        repr_dim = kind.repr_dim(self.head_dim, self.page_size, self.repr_group)
        if self.all_repr_channels is not None:
            self.all_repr_channels = self.all_repr_channels.to(self.device)
        with self._repr_region():
            self.repr_buffers = [
                torch.zeros(
                    (num_pages, self.head_num, repr_dim),
                    dtype=kind.storage_dtype(self.repr_dtype or self.dtype),
                    device=self.device,
                )
                for _ in stored
            ]
            self.repr_biases = [
                torch.zeros(
                    (num_pages, self.head_num, self.repr_group), device=self.device
                )
                for _ in (stored if kind.biased else ())
            ]
        # Outside the region: what is released and resumed there comes back with any bytes.
        self.repr_stamps = [
            torch.zeros(num_pages, dtype=torch.int64, device=self.device)
            for _ in stored
        ]
        # Until a page is handed out nothing is valid: stamps start at 0 and versions at 1.
        if self.page_versions is None:
            self.page_versions = PageVersions(num_pages, self.device)

    @property
    def page_version(self) -> torch.Tensor:
        """Number of the hand-out that each page belongs to ``[num_pages]`` int64."""
        return self.page_versions.version

    @property
    def page_handouts(self) -> int:
        """Hand-outs so far, counted on the host."""
        return self.page_versions.handouts

    def built_at(self, forward_batch: ForwardBatch) -> int:
        """Hand-outs when the batch was built.

        A batch that does not say so has just been built: the thread that builds it begins its pass before it hands
        out more.
        """
        handouts = getattr(forward_batch, "page_handouts", None)
        return self.page_handouts if handouts is None else handouts

    def versions_at(
        self, built_at: int | torch.Tensor, out: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """A copy of the page versions, NO_VERSION for pages handed out after ``built_at`` ``[num_pages]`` int64.

        Args:
            built_at: an int, or one int64 on the device.
            out: written and returned; None for a new tensor.
        """
        # One read: the allocator may change them meanwhile.
        current = self.page_version
        versions = current.clone() if out is None else out.copy_(current)
        return versions.masked_fill_(versions > built_at, NO_VERSION)

    # Whether layers with a sliding window have slots and pages of their own.
    windows_apart = False
    # Slot in those of each slot of the layers with HSA ``[num_slots]`` int64, where they have some.
    window_map: Optional[torch.Tensor] = None

    def window_slots(self, slots: torch.Tensor) -> torch.Tensor:
        """Slots ``[N]`` of the layers with a sliding window, of those of the layers with HSA."""
        return slots

    def window_pages(self, pages: torch.Tensor) -> torch.Tensor:
        """As ``window_slots``, pages ``[...]`` int32; what is no page may become any."""
        return pages

    def set_window_buffer(
        self,
        layer: RadixAttention,
        slots: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *scales: Optional[torch.Tensor],
    ) -> None:
        """As ``set_kv_buffer``, of a layer with a sliding window, into its slots."""
        self.set_kv_buffer(layer, slots, k, v, *scales)

    def _repr_region(self):
        """Where the representations are allocated: memory that is released and resumed with the keys."""
        return nullcontext()

    def _account_reprs(self) -> None:
        """Log the representations and count them in the pool's memory usage."""
        size_gb = self.page_repr_bytes() / GB
        logger.info(
            f"Page representations are allocated. #pages: {self.size // self.page_size}, "
            f"kind: {self.repr_kind.name}, layers: {len(self.hsa_layer_ids)}, size: {size_gb:.2f} GB"
        )
        self.mem_usage += size_gb

    def page_repr_bytes(self) -> int:
        """Bytes of representations and versions on the device."""
        tensors = [
            *self.repr_buffers,
            *self.repr_biases,
            *self.repr_stamps,
            self.page_version,
        ]
        return sum(t.numel() * t.element_size() for t in tensors)

    def has_page_repr(self, layer_id: int) -> bool:
        """Whether the layer keeps representations."""
        return layer_id in self._ordinal

    def repr_pages(self, layer_id: int) -> torch.Tensor:
        """Representations by physical page ``[num_pages, H_kv, repr_dim]``, whatever their validity.

        A kind that is read from the keys gives them as they are stored: quantised ones lack their scale.
        """
        if self.repr_kind.stored:
            return self.repr_buffers[self._ordinal[layer_id]]
        keys = self.get_key_buffer(layer_id)
        return keys.view(-1, self.page_size, *keys.shape[1:])[:, -1]

    def repr_channels_of(self, layer_id: int) -> Optional[torch.Tensor]:
        """Channels of a layer that representations are taken from ``[R]`` int32; None for a kind that takes all."""
        if self.all_repr_channels is None:
            return None
        return self.all_repr_channels[self._ordinal[layer_id]]

    def repr_biases_of(self, layer_id: int) -> Optional[torch.Tensor]:
        """Biases of a layer's scores by physical page ``[num_pages, H_kv, G]`` float32; None for a kind that has none."""
        return self.repr_biases[self._ordinal[layer_id]] if self.repr_biases else None

    def layer_cache(
        self, layer_id: int, versions: Optional[torch.Tensor] = None
    ) -> LayerCache:
        """The cache of a layer as the ops read it, with the page versions that were read before the page table.

        Of a layer that keeps no representations, the keys and values alone.
        """
        keys, values = self.get_kv_buffer(layer_id)
        if not self.has_page_repr(layer_id):
            return LayerCache(keys, values, None)
        stamps = None
        if self.repr_kind.stored:
            stamps = self.repr_stamps[self._ordinal[layer_id]]
        return LayerCache(
            keys,
            values,
            self.repr_pages(layer_id),
            stamps,
            versions,
            self.repr_channels_of(layer_id),
            self.repr_biases_of(layer_id),
        )

    def save_chunk_repr(
        self,
        layer_id: int,
        page_ids: torch.Tensor,
        repr: torch.Tensor,
        page_version: Optional[torch.Tensor] = None,
        bias: Optional[torch.Tensor] = None,
    ) -> None:
        """Write representations and stamp their versions.

        Args:
            layer_id: a layer in ``hsa_layer_ids``.
            page_ids: physical pages ``[N]``, distinct.
            repr: ``[N, H_kv, repr_dim]``, cast to the buffer's dtype.
            page_version: versions the representations were made for ``[N]``; None for the current ones.
            bias: ``[N, H_kv, G]``, of a kind that has one.
        """
        ordinal = self._ordinal[layer_id]
        page_ids = page_ids.long()
        if page_version is None:
            page_version = self.page_version[page_ids]
        buffer = self.repr_buffers[ordinal]
        buffer[page_ids] = repr.to(buffer.dtype)
        if bias is not None:
            self.repr_biases[ordinal][page_ids] = bias
        self.repr_stamps[ordinal][page_ids] = page_version

    def get_chunk_repr(
        self,
        layer_id: int,
        page_ids: torch.Tensor,
        page_version: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """Representations of physical pages, NaN (of bytes: 255) where a page has none for that version.

        Args:
            page_ids: physical pages ``[...]``.
            page_version: versions to accept ``[...]``; None for the current ones.

        Returns:
            ``[..., H_kv, repr_dim]`` in the representations' dtype.
        """
        valid = self.repr_valid(layer_id, page_ids, page_version)
        found = take(self.repr_pages(layer_id), page_ids.long())
        found = found.to(self.repr_kind.storage_dtype(self.repr_dtype or self.dtype))
        nothing = float("nan") if found.is_floating_point() else 255
        return found.masked_fill(~valid[..., None, None], nothing)

    def repr_valid(
        self,
        layer_id: int,
        page_ids: torch.Tensor,
        page_version: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """Whether pages have a representation for the given (default: current) versions ``[...]`` bool."""
        if not self.repr_kind.stored:
            return torch.ones_like(page_ids, dtype=torch.bool)
        if page_version is None:
            page_version = self.get_page_version(page_ids)
        stamp = self.repr_stamps[self._ordinal[layer_id]]
        return stamp[page_ids.long()] == page_version

    def get_page_version(self, page_ids: torch.Tensor) -> torch.Tensor:
        """Current versions of physical pages ``[...]`` int64."""
        return self.page_version[page_ids.long()]

    def bump_page_version(self, slots: torch.Tensor) -> None:
        """Invalidate the pages whose first slot is among ``slots`` ``[N]``: they were just handed out.

        No host sync; a page that was open already keeps its version.
        """
        self.page_versions.open(slots, self.page_size)

    def invalidate_pages_of(self, slots: torch.Tensor) -> None:
        """Invalidate the pages of ``slots`` ``[N]``: their keys were replaced behind the attention backend."""
        self.page_versions.renew(slots.long() // self.page_size)

    def invalidate_all_pages(self) -> None:
        """Invalidate every page: the allocator was reset."""
        self.page_versions.renew()

    def load_cpu_copy(self, kv_cache_cpu, indices, **kwargs):
        super().load_cpu_copy(kv_cache_cpu, indices, **kwargs)
        self.invalidate_pages_of(indices)

    def move_kv_cache(self, tgt_loc: torch.Tensor, src_loc: torch.Tensor):
        super().move_kv_cache(tgt_loc, src_loc)
        self.invalidate_pages_of(tgt_loc)


class HSATokenToKVPool(PageReprMixin, MHATokenToKVPool):
    """MHATokenToKVPool that keeps page representations."""

    def _create_buffers(self):
        super()._create_buffers()
        self._create_repr_buffers()

    def _repr_region(self):
        return self.memory_saver_adapter.region(GPU_MEMORY_TYPE_KV_CACHE)

    def _clear_buffers(self):
        super()._clear_buffers()
        del self.repr_buffers, self.repr_biases
        del self.repr_stamps, self.page_versions

    def _finalize_allocation_log(self, num_tokens: int):
        super()._finalize_allocation_log(num_tokens)
        self._account_reprs()


class HSASWAKVPool(PageReprMixin, SWAKVPool):
    """SWAKVPool that keeps page representations of its full-attention layers, by pages of the full pool.

    Sliding-window layers keep none, so the mapping from full to sliding-window slots does not concern them.
    """

    windows_apart = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._create_repr_buffers()
        self._account_reprs()

    @property
    def window_map(self) -> torch.Tensor:
        return self.full_to_swa_index_mapping

    def window_slots(self, slots: torch.Tensor) -> torch.Tensor:
        return self.translate_loc_from_full_to_swa(slots)

    def window_pages(self, pages: torch.Tensor) -> torch.Tensor:
        # A page lies as a whole in either pool, or not at all any more: then it maps to the page that takes padding.
        last = self.size // self.page_size
        first_slots = pages.long().clamp(0, last) * self.page_size
        return (self.window_slots(first_slots) // self.page_size).int()

    def set_window_buffer(
        self,
        layer: RadixAttention,
        slots: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *scales: Optional[torch.Tensor],
    ) -> None:
        number, _ = self.layers_mapping[layer.layer_id]
        self.swa_kv_pool.set_kv_buffer(
            None, slots, k, v, *scales, layer_id_override=number
        )
