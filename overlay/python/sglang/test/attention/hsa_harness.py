# SPDX-License-Identifier: Apache-2.0
"""HSAAttnBackend on a real pool, allocator and ForwardBatch, without a model or a scheduler.

The harness feeds random q, k and v through one attention layer at a time, keeps every sequence's keys and values
in logical order, and so can ask the oracle for the answer of every row.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Dict, List, Sequence
from unittest import mock

import numpy as np
import torch

from sglang.srt.layers.attention.hsa.backend import HSAAttnBackend
from sglang.srt.layers.attention.hsa.config import FIELD_PREFIX, HSAConfig
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache import memory_pool
from sglang.srt.mem_cache.allocator import BaseTokenToKVPoolAllocator
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.mem_cache.page_repr_allocator import HSAPagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.page_repr_pool import HSATokenToKVPool, PageReprMixin
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.test.attention import hsa_oracle as oracle
from sglang.test.attention.hsa_fixtures import rotary_channels
from sglang.test.attention.hsa_release import forward_with, make_forward_batch


@dataclasses.dataclass
class Sequence_:
    """One request: its row in the request pool and what it has in the cache."""

    row: int
    length: int = 0
    k: List[np.ndarray] = dataclasses.field(default_factory=list)
    v: List[np.ndarray] = dataclasses.field(default_factory=list)


def store_on_cpu(pool: PageReprMixin, allocator: BaseTokenToKVPoolAllocator) -> None:
    """Let a pool on the CPU be one on a host with a GPU: it asks what the host has, not where it is itself."""
    allocator.use_triton_kernels = False  # what it asks since 0.5.23
    store = pool.set_kv_buffer

    def set_kv_buffer(*args, **kwargs):
        with mock.patch.object(memory_pool, "_is_cuda", False):
            store(*args, **kwargs)

    pool.set_kv_buffer = set_kv_buffer


class Harness:
    """A backend with its pool; ``step`` runs one forward pass over some sequences.

    Args:
        num_pages: pages of the pool.
        layers: number of attention layers; all use HSA unless ``hsa_layer_ids`` names fewer.
        decode_kernels, extend_kernels: run these passes on the Triton kernels on any device; a CUDA device runs both.
        dtype: of the activations; ``kv_cache_dtype``, by default the same, of the cache.
        kv_scales: scales of the cached keys and values, as a checkpoint brings them.
        num_draft_tokens: of speculative decoding; None without it.
        batch_invariant: as ``--enable-deterministic-inference`` asks for.
        mask_last_slot: every layer passes ``hsa_mask_last_slot=True`` to its attention.
        pool, allocator: used instead of those that the harness makes.
        options: fields of HSAConfig.
    """

    def __init__(
        self,
        *,
        num_pages: int = 64,
        layers: int = 1,
        num_heads: int = 4,
        num_kv_heads: int = 2,
        head_dim: int = 16,
        logit_cap: float = 0.0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        kv_cache_dtype: torch.dtype | None = None,
        kv_scales: tuple[float, float] | None = None,
        hsa_layer_ids: Sequence[int] | None = None,
        seed: int = 0,
        decode_kernels: bool = False,
        extend_kernels: bool = False,
        num_draft_tokens: int | None = None,
        batch_invariant: bool = False,
        mask_last_slot: bool = False,
        pool: PageReprMixin | None = None,
        allocator: BaseTokenToKVPoolAllocator | None = None,
        **options,
    ):
        options = {"page_size": 16, "window_size": 40, "topk": 3, **options}
        if "score" in options.values() or "softmax_head" in options.values():
            # slow_keys weighs no pages.
            options.setdefault("chunk_repr", "mean_std")
        self.config = HSAConfig(**{"dense_backend": "torch_native", **options})
        self.device, self.dtype = device, dtype
        self.kv_cache_dtype, self.kv_scales = kv_cache_dtype or dtype, kv_scales
        self.num_heads, self.num_kv_heads, self.head_dim = (
            num_heads,
            num_kv_heads,
            head_dim,
        )
        page_size = self.config.page_size
        if pool is None:
            pool = HSATokenToKVPool(
                num_pages * page_size,
                page_size=page_size,
                dtype=self.kv_cache_dtype,
                head_num=num_kv_heads,
                head_dim=head_dim,
                layer_num=layers,
                device=device,
                enable_memory_saver=False,
                hsa_layer_ids=range(layers) if hsa_layer_ids is None else hsa_layer_ids,
                repr_kind=self.config.chunk_repr,
                repr_dtype=dtype,
                repr_channels=self._channels(layers, hsa_layer_ids),
            )
            for buffer in (*pool.k_buffer, *pool.v_buffer):
                buffer.copy_(
                    torch.full_like(buffer, float("nan"), dtype=dtype)
                    .to(self.kv_cache_dtype)
                    .view(buffer.dtype)
                )
            allocator = HSAPagedTokenToKVPoolAllocator(
                num_pages * page_size,
                page_size,
                self.kv_cache_dtype,
                device,
                pool,
                need_sort=False,
            )
        if device == "cpu":
            store_on_cpu(pool, allocator)
        self.pool, self.allocator = pool, allocator
        self.req_to_token_pool = ReqToTokenPool(
            size=16,
            max_context_len=num_pages * page_size,
            device=device,
            enable_memory_saver=False,
        )
        fields = {
            FIELD_PREFIX + f.name: getattr(self.config, f.name)
            for f in dataclasses.fields(HSAConfig)
        }
        self.layers = [
            RadixAttention(
                num_heads,
                head_dim,
                head_dim**-0.5,
                num_kv_heads,
                layer_id=i,
                logit_cap=logit_cap,
            )
            for i in range(layers)
        ]
        if kv_scales is not None:
            for layer in self.layers:
                layer.k_scale_float, layer.v_scale_float = kv_scales
                layer.k_scale, layer.v_scale = map(torch.tensor, kv_scales)
        self.runner = SimpleNamespace(
            model=torch.nn.ModuleList(self.layers),
            token_to_kv_pool=self.pool,
            req_to_token_pool=self.req_to_token_pool,
            server_args=SimpleNamespace(
                speculative_algorithm=num_draft_tokens and "EAGLE",
                speculative_num_draft_tokens=num_draft_tokens,
                chunked_prefill_size=64,
                enable_deterministic_inference=batch_invariant,
                **fields,
            ),
            device=device,
            dtype=dtype,
            is_draft_worker=False,
        )
        kernels = None  # all on a CUDA device; interpreted, those that a test is about
        if device == "cpu":
            asked = {"decode": decode_kernels, "extend": extend_kernels}
            kernels = frozenset(name for name in asked if asked[name])
        self.backend = HSAAttnBackend(self.runner, kernels=kernels)
        self.oracle = oracle.Options(
            page_size=page_size,
            window_size=self.config.effective_window,
            sink_pages=self.config.sink_pages,
            topk=self.config.topk,
            kind=self.config.chunk_repr,
            strategy=self.config.selection_strategy,
            mode=self.config.weight_mode,
            scale=head_dim**-0.5,
            cap=logit_cap,
            mask_last=mask_last_slot,
            channels=tuple(rotary_channels(head_dim).tolist()),
        )
        self.layer_inputs = {"hsa_mask_last_slot": True} if mask_last_slot else {}
        self.rng = torch.Generator().manual_seed(seed)
        self.rows = list(range(16))

    def _channels(self, layers: int, hsa_layer_ids) -> torch.Tensor | None:
        if self.config.chunk_repr != "slow_keys":
            return None
        rows = layers if hsa_layer_ids is None else len(hsa_layer_ids)
        return rotary_channels(self.head_dim).repeat(rows, 1)

    def new_sequence(self) -> Sequence_:
        return Sequence_(self.rows.pop(0))

    def fork(self, parent: Sequence_, pages: int) -> Sequence_:
        """A sequence that shares the parent's first pages, as after a radix hit."""
        length = pages * self.config.page_size
        child = self.new_sequence()
        table = self.req_to_token_pool.req_to_token
        table[child.row, :length] = table[parent.row, :length]
        child.length = length
        child.k, child.v = list(parent.k[:length]), list(parent.v[:length])
        return child

    def free(self, sequence: Sequence_, from_page: int = 0) -> None:
        """Give the sequence's pages back, poisoned, and forget it."""
        begin = from_page * self.config.page_size
        slots = self.req_to_token_pool.req_to_token[
            sequence.row, begin : sequence.length
        ].long()
        for buffer in (*self.pool.k_buffer, *self.pool.v_buffer):
            buffer[slots] = float("nan")
        self.allocator.free(slots)
        self.rows.insert(0, sequence.row)

    def poison_last_slots(self, sequences: List[Sequence_]) -> None:
        """NaN as the value of the last token of every complete page: what masks it must not read it."""
        size = self.config.page_size
        for s in sequences:
            last = self.pages_of(s)[: s.length // size].long() * size + size - 1
            for buffer in self.pool.v_buffer:
                buffer[last] = float("nan")

    def pages_of(self, sequence: Sequence_) -> torch.Tensor:
        """Physical pages ``[ceil(length / page_size)]``."""
        size = self.config.page_size
        slots = self.req_to_token_pool.req_to_token[
            sequence.row, : sequence.length : size
        ]
        return slots // size

    def batch(
        self, new: Dict[int, int], sequences: List[Sequence_], decode: bool
    ) -> ForwardBatch:
        """Allocate ``new[i]`` tokens for sequence i and build the ForwardBatch."""
        table = self.req_to_token_pool.req_to_token
        prefix = torch.tensor([s.length for s in sequences])
        lens = prefix + torch.tensor([new[i] for i in range(len(sequences))])
        last = torch.tensor(
            [int(table[s.row, s.length - 1]) if s.length else -1 for s in sequences]
        )
        if decode:
            slots = self.allocator.alloc_decode(
                lens.to(self.device), lens, last.to(self.device)
            )
        else:
            slots = self.allocator.alloc_extend(
                prefix.to(self.device), prefix, lens.to(self.device), lens, last.to(self.device),
                int((lens - prefix).sum()),
            )  # fmt: skip
        assert slots is not None, "the harness's pool is full"
        for s, part in zip(sequences, slots.split((lens - prefix).tolist())):
            table[s.row, s.length : s.length + len(part)] = part.int()
            s.length += len(part)
        extend = dict(
            extend_prefix_lens=prefix.int().to(self.device),
            extend_seq_lens=(lens - prefix).int().to(self.device),
            extend_prefix_lens_cpu=prefix.tolist(),
            extend_seq_lens_cpu=(lens - prefix).tolist(),
            extend_num_tokens=len(slots),
        )
        return make_forward_batch(
            forward_mode=ForwardMode.DECODE if decode else ForwardMode.EXTEND,
            batch_size=len(sequences),
            input_ids=torch.zeros(len(slots), dtype=torch.int64, device=self.device),
            req_pool_indices=torch.tensor(
                [s.row for s in sequences], device=self.device
            ),
            seq_lens=lens.to(self.device),
            seq_lens_cpu=lens,
            out_cache_loc=slots,
            seq_lens_sum=int(lens.sum()),
            req_to_token_pool=self.req_to_token_pool,
            token_to_kv_pool=self.pool,
            attn_backend=self.backend,
            page_handouts=self.allocator.page_handouts,
            **({} if decode else extend),
        )

    def step(
        self,
        sequences: List[Sequence_],
        new: Sequence[int],
        *,
        decode: bool = False,
        layer: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One forward pass through one layer; returns (q, o) ``[T, H_q, D]``, sequences packed."""
        batch = self.batch(dict(enumerate(new)), sequences, decode)
        self.backend.init_forward_metadata(batch)
        q, k, v = self.inputs(sequences, new)
        return q.cpu(), self.forward(batch, q, k, v, layer)

    def prepare(self, sequences: List[Sequence_], new: Sequence[int]) -> None:
        """A pass of which a test only wants what it leaves in the cache: not on interpreted kernels, which are slow."""
        kernels = self.backend.kernels
        if self.device == "cpu":
            self.backend.kernels = frozenset()
        self.step(sequences, new)
        self.backend.kernels = kernels

    def inputs(
        self, sequences: List[Sequence_], new: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Random q, k, v of new tokens ``[T, H, D]``, packed; the sequences remember k and v."""
        q, k, v = (
            torch.randn(sum(new), heads, self.head_dim, generator=self.rng)
            for heads in (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        )
        row = 0
        for s, count in zip(sequences, new):
            # Keys drift from page to page, so that pages differ as those of real text do.
            page = (len(s.k) + torch.arange(count)) // self.config.page_size
            k[row : row + count] += torch.sin(page.float() * 2.3 + s.row)[:, None, None]
            s.k += list(self.as_cached(k[row : row + count], 0))
            s.v += list(self.as_cached(v[row : row + count], 1))
            row += count
        return tuple(x.to(self.device, self.dtype) for x in (q, k, v))

    def forward(
        self,
        batch: ForwardBatch,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: int = 0,
        backend: HSAAttnBackend | None = None,
    ) -> torch.Tensor:
        """One layer of a prepared batch, on the harness's backend if no other is given: o ``[T, H_q, D]``."""
        q_, k_, v_ = (x.flatten(1) for x in (q, k, v))
        o = self.run_layer(layer, q_, k_, v_, batch, backend)
        return o.view(len(q), self.num_heads, -1).cpu()

    def run_layer(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        batch: ForwardBatch,
        backend: HSAAttnBackend | None = None,
    ) -> torch.Tensor:
        """The attention of one layer: ``[T, H * D]`` each, as a model passes them."""
        backend = backend or self.backend
        batch.attn_backend = backend  # where layers found it until 0.5.12
        with forward_with(backend):
            return self.layers[layer](q, k, v, batch, **self.layer_inputs)

    def as_cached(self, x: torch.Tensor, which: int) -> np.ndarray:
        """Keys (0) or values (1) as attention reads them from the cache, float64."""
        scale = self.kv_scales[which] if self.kv_scales else 1.0
        stored = (x.to(self.dtype) / scale).to(self.kv_cache_dtype)
        return stored.double().numpy() * scale

    def expected(
        self, q: torch.Tensor, sequences: List[Sequence_], new: Sequence[int]
    ) -> np.ndarray:
        """The oracle's outputs for the rows of the last step ``[T, H_q, D]``."""
        rows, row = [], 0
        for s, count in zip(sequences, new):
            k, v = np.stack(s.k), np.stack(s.v)
            for i in range(s.length - count, s.length):
                rows.append(
                    oracle.attend(q[row].double().numpy(), k, v, i, self.oracle)
                )
                row += 1
        return np.stack(rows)
