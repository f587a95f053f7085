# SPDX-License-Identifier: Apache-2.0
"""Random inputs for fused_metadata_precompute_and_broadcast, and what it must make of them, in plain NumPy loops."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Callable, Dict, List, Optional, Tuple

import numpy as np
import torch

from sglang.jit_kernel.fused_metadata_checks import (
    DECODE,
    DRAFT_EXTEND,
    FIELDS,
    TARGET_VERIFY,
)

POISON = -858993460
MODES = (DECODE, TARGET_VERIFY, DRAFT_EXTEND)


@dataclass
class Case:
    """Sizes and options of one call. ``draw`` chooses all of them, tests override some."""

    batch: int
    steps: int
    lengths: np.ndarray  # [batch], of the sequences
    mode: int = DECODE
    draft_tokens: int = 1
    extend: Optional[np.ndarray] = None  # [batch], in DRAFT_EXTEND
    page_size: int = 64
    topk: int = 2048
    max_len: Optional[int] = None  # default: the longest cache length
    ragged: bool = False
    offsets: Optional[List[int]] = None
    fields: tuple = FIELDS
    dtypes: tuple = (torch.int64, torch.int64, torch.int32, torch.int64)
    pitch: int = 8  # columns of the tables in excess
    shift: int = 4  # elements before each destination
    seed: int = 0

    slots: np.ndarray = field(init=False)
    requests: np.ndarray = field(init=False)

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        if self.max_len is None:
            longest = int(self.cache_lengths().max(initial=0))
            self.max_len = max(0, longest + max(self.offsets or [0]))
        self.requests = rng.permutation(self.batch + 3)[: self.batch]
        self.slots = rng.integers(
            0, 1 << 30, (self.batch + 3, self.max_len + self.pitch)
        )

    @property
    def rows(self) -> int:
        """Rows that destinations hold; DRAFT_EXTEND may use fewer."""
        return self.batch * self.draft_tokens

    def cache_lengths(self) -> np.ndarray:
        """Without the steps' offsets, [batch]."""
        return self.lengths + (self.draft_tokens if self.mode == TARGET_VERIFY else 0)

    def _shape(self, name: str):
        table = self.rows + (2 if self.mode == DRAFT_EXTEND else 0)
        return {
            "cache_seqlens_list": (self.batch,),
            "cu_seqlens_k_list": (self.batch + 1,),
            "page_indices_list": (table, self.max_len + self.pitch),
            "nsa_cache_seqlens_list": (self.rows,),
            "nsa_cu_seqlens_k_list": (self.rows + 1,),
            "seqlens_expanded_list": (self.rows,),
            "real_page_table_list": (
                table,
                -(-self.max_len // self.page_size) + self.pitch,
            ),
        }[name]

    def buffers(self, device="cpu") -> Dict[str, List[torch.Tensor]]:
        """Poisoned memory of each destination, with some to spare before and behind it."""
        size = {n: int(np.prod(self._shape(n))) + 2 * self.shift for n in self.fields}
        return {
            name: [
                torch.full((size[name],), POISON, dtype=torch.int32, device=device)
                for _ in range(self.steps)
            ]
            for name in self.fields
        }

    def views(self, buffers):
        """The destinations in ``buffers``, by name."""
        return {
            name: [
                b[self.shift : len(b) - self.shift].view(self._shape(name))
                for b in steps
            ]
            for name, steps in buffers.items()
        }

    def arguments(self, buffers, device="cpu") -> dict:
        """Keyword arguments of the op."""
        seq, req, table, extend = self.dtypes

        def tensor(values, dtype):
            return torch.from_numpy(np.ascontiguousarray(values)).to(device, dtype)

        views = self.views(buffers)
        return dict(
            seq_lens=tensor(self.lengths, seq),
            req_pool_indices=tensor(self.requests, req),
            req_to_token=tensor(self.slots, table),
            max_len=self.max_len,
            nsa_index_topk=self.topk,
            real_page_size=self.page_size,
            forward_mode=self.mode,
            num_draft_tokens=self.draft_tokens,
            extend_seq_lens=(
                None if self.extend is None else tensor(self.extend, extend)
            ),
            seq_len_offsets=self.offsets,
            ragged=self.ragged,
            **{name: views.get(name) for name in FIELDS},
        )

    def run(self, op, device="cpu") -> Dict[str, List[torch.Tensor]]:
        """All memory around the destinations, on the CPU, after ``op``."""
        buffers = self.buffers(device)
        op(**self.arguments(buffers, device))
        return {n: [b.cpu() for b in steps] for n, steps in buffers.items()}

    def expected(self) -> Dict[str, List[torch.Tensor]]:
        """The same, written by loops over requests and rows."""
        buffers = self.buffers()
        out = {n: [v.numpy() for v in s] for n, s in self.views(buffers).items()}
        counts = (
            np.full(self.batch, self.draft_tokens)
            if self.extend is None
            else self.extend
        )
        topk = self.topk or 0  # None without NSA destinations
        for step in range(self.steps):
            of = {name: steps[step] for name, steps in out.items()}

            def put(name, at, value):
                if name in of:
                    of[name][at] = value

            lengths = self.cache_lengths() + (self.offsets or [0] * self.steps)[step]
            put("cu_seqlens_k_list", 0, 0)
            put("nsa_cu_seqlens_k_list", 0, 0)
            row, total, clipped = 0, 0, 0
            for b, length in enumerate(lengths.tolist()):
                total += length
                put("cache_seqlens_list", b, length)
                put("cu_seqlens_k_list", b + 1, total)
                columns = min(self.max_len, max(length, 0))
                columns = columns if self.ragged else self.max_len
                slots = self.slots[self.requests[b], :columns]
                pages = slots[:: self.page_size] // self.page_size
                for j in range(counts[b]):
                    expanded = length - counts[b] + 1 + j
                    clipped += min(expanded, topk)
                    put("seqlens_expanded_list", row, expanded)
                    put("nsa_cache_seqlens_list", row, min(expanded, topk))
                    put("nsa_cu_seqlens_k_list", row + 1, clipped)
                    put("page_indices_list", (row, slice(0, columns)), slots)
                    put("real_page_table_list", (row, slice(0, len(pages))), pages)
                    row += 1
        return buffers


def draw(
    rng: np.random.Generator,
    max_batch: int = 1024,
    max_steps: int = 16,
    max_length: int = 131072,
    budget: int = 1 << 21,
) -> Case:
    """Any combination of sizes and options; all page tables together have at most about ``budget`` elements."""
    mode = int(rng.choice(MODES))
    draft_tokens = 1 if mode == DECODE else int(rng.integers(1, 9))
    steps = int(rng.integers(1, max_steps + 1))
    batch = int(2 ** rng.uniform(0, np.log2(max_batch + 1)))
    longest = max(1, min(max_length, budget // (batch * draft_tokens * steps)))
    longest = int(2 ** rng.uniform(0, np.log2(longest + 1)))
    lengths = rng.integers(1, longest + 1, batch)
    if rng.random() < 0.5:
        lengths[rng.integers(batch)] = longest
    extend = rng.integers(0, draft_tokens + 1, batch) if mode == DRAFT_EXTEND else None
    index = (torch.int32, torch.int64)
    fields = tuple(n for n in FIELDS if rng.random() < 0.9) or FIELDS
    return Case(
        batch=batch,
        steps=steps,
        lengths=lengths,
        mode=mode,
        draft_tokens=draft_tokens,
        extend=extend,
        page_size=int(rng.choice([1, 3, 32, 64])),
        topk=int(rng.choice([1, 64, 2048])),
        max_len=(
            None if rng.random() < 0.7 else longest + int(rng.integers(0, 70)) + 8
        ),
        ragged=bool(rng.random() < 0.4),
        offsets=None if rng.random() < 0.6 else rng.integers(0, 9, steps).tolist(),
        fields=fields,
        dtypes=tuple(index[i] for i in rng.integers(0, 2, 4)),
        pitch=int(rng.choice([0, 1, 4, 8])),
        shift=int(rng.choice([1, 4])),
        seed=int(rng.integers(1 << 31)),
    )


def differences(got, expected) -> List[str]:
    """Names of the destinations whose memory differs, with the first place."""
    found = []
    for name, steps in expected.items():
        for step, wanted in enumerate(steps):
            wrong = (got[name][step] != wanted).nonzero()
            if len(wrong):
                at = int(wrong[0])
                found.append(
                    f"{name}[{step}] element {at}: {got[name][step][at]} != {wanted[at]}"
                )
    return found


def capture(function: Callable[[], None]) -> Tuple[torch.cuda.CUDAGraph, int]:
    """A CUDA graph of what ``function`` launches, and the number of its nodes: kernels, copies and fills."""
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        function()
    count = ctypes.c_size_t()
    status = ctypes.CDLL("libcuda.so.1").cuGraphGetNodes(
        ctypes.c_void_p(graph.raw_cuda_graph()), None, ctypes.byref(count)
    )
    if status != 0:
        raise RuntimeError(f"cuGraphGetNodes failed with CUresult {status}")
    graph.instantiate()
    return graph, count.value
