# SPDX-License-Identifier: Apache-2.0
"""A small serving system around real storage: radix cache, paged allocator, pool, HSA metadata and writers.

There is no model. After every forward pass each request of the batch is compared with the dictionary that the world
keeps beside the storage, a ``Request`` each. Free pages hold NaN.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Dict, List, Optional, Tuple

import torch

from sglang.srt.layers.attention.hsa.backend import HSAAttnBackend
from sglang.srt.layers.attention.hsa.config import FIELD_PREFIX, HSAConfig
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.mem_cache.page_repr_allocator import HSAPagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.page_repr_pool import HSATokenToKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.test.attention.hsa_radix_tree import Tree
from sglang.test.attention.hsa_release import make_forward_batch
from sglang.test.attention.hsa_storage_request import (
    MODULUS,
    PAGE,
    Request,
    key_of,
    page_means,
)

PAGES = 32
ROWS = 6
CONTEXT = PAGE * PAGES


class World:
    """The system and its operations; each returns quietly when there is nothing to do it on."""

    def __init__(self):
        size = PAGES * PAGE
        self.pool = HSATokenToKVPool(
            size, page_size=PAGE, dtype=torch.float32, head_num=1, head_dim=2, layer_num=1, device="cpu",
            enable_memory_saver=False, hsa_layer_ids=[0], repr_kind="mean",
        )  # fmt: skip
        self.allocator = HSAPagedTokenToKVPoolAllocator(
            size, PAGE, torch.float32, "cpu", self.pool, need_sort=False
        )
        self.rows = ReqToTokenPool(ROWS, CONTEXT, "cpu", enable_memory_saver=False)
        self.tree = Tree(self.rows, self.allocator, PAGE)
        config = HSAConfig(
            page_size=PAGE,
            chunk_repr="mean",
            window_size=0,
            dense_backend="torch_native",
        )
        fields = {
            FIELD_PREFIX + f.name: getattr(config, f.name)
            for f in dataclasses.fields(config)
        }
        self.layer = RadixAttention(1, 2, 1.0, 1, layer_id=0)
        self.backend = HSAAttnBackend(
            SimpleNamespace(
                model=self.layer,
                token_to_kv_pool=self.pool,
                req_to_token_pool=self.rows,
                server_args=SimpleNamespace(
                    enable_deterministic_inference=False, **fields
                ),
                device="cpu",
                is_draft_worker=False,
            )
        )
        self.free_rows = list(range(ROWS))
        self.requests: List[Request] = []
        self.host: Dict[Tuple[int, ...], torch.Tensor] = (
            {}
        )  # prefixes copied to the host tier
        self.salt = 0  # changes with the weights, and every key with it
        self.poison()

    # Requests

    def admit(self, tokens: List[int]) -> Optional[Request]:
        """Match the prompt in the radix cache and give it a row; at least one token stays to be computed."""
        if not self.free_rows:
            return None
        keys, previous = [], self.salt
        for token in tokens:
            previous = key_of(previous, token)
            keys.append(previous)
        req = Request(list(tokens), keys)
        slots, req.last_node = self.tree.match(tokens[:-1])
        self.tree.hold(req)
        req.req_pool_idx = self.free_rows.pop(0)
        length = len(slots)
        self.rows.req_to_token[req.req_pool_idx, :length] = slots.int()
        req.kv_committed_len = req.cache_protected_len = length
        self.requests.append(req)
        return req

    def release(self, req: Request, insert: bool) -> None:
        """Finish (its pages go to the radix cache) or cancel (they are freed)."""
        self.tree.finish(req, insert)
        self.forget(req)

    def release_in_flight(self, req: Request, insert: bool) -> None:
        """End a request that the batch in flight computes one more token for; that token is nobody's."""
        if req.left:
            self.release(req, insert=False)  # aborted in mid-prefill
            return
        req.pop()
        req.kv_committed_len -= 1
        if req.kv_committed_len % PAGE == 0:  # the token has opened a page
            self.allocator.free(
                self.rows.req_to_token[req.req_pool_idx, req.kv_committed_len]
                .long()
                .view(1)
            )
        self.release(req, insert)

    def forget(self, req: Request) -> None:
        self.free_rows.append(req.req_pool_idx)
        self.requests.remove(req)

    # Forward passes

    def extend(self, req: Request, size: int, mixed: bool) -> Optional[ForwardBatch]:
        """Build a batch of a chunk of a prompt and, if mixed, a token for every running request."""
        decoding = self._append_token(0) if mixed else {}
        batch = self._build({req: min(size, req.left), **decoding}, decode=False)
        return self._or_take_back(batch, decoding)

    def decode(self, token: int) -> Optional[ForwardBatch]:
        """Build a batch of a token for every running request."""
        decoding = self._append_token(token)
        return self._or_take_back(self._build(decoding, decode=True), decoding)

    def _append_token(self, token: int) -> Dict[Request, int]:
        running = [r for r in self.requests if not r.left]
        for req in running:
            req.append(token)
        return dict.fromkeys(running, 1)

    def _or_take_back(self, batch, decoding) -> Optional[ForwardBatch]:
        if batch is None:
            for req in decoding:
                req.pop()
        return batch

    def _build(self, new: Dict[Request, int], decode: bool) -> Optional[ForwardBatch]:
        """Allocate ``new[r]`` tokens for each request r; None, with no request changed, if there is no room."""
        reqs = list(new)
        prefix = torch.tensor([r.kv_committed_len for r in reqs])
        lens = prefix + torch.tensor(list(new.values()))
        if int(lens.max()) > CONTEXT:
            return None
        needed = int((lens - prefix).sum()) + len(reqs) * PAGE
        if self.allocator.available_size() < needed:
            self.tree.evict(needed - self.allocator.available_size())
        slots = self._alloc(reqs, prefix, lens, decode)
        if slots is None:
            return None
        new_keys = []
        for req, count in new.items():
            req.kv_committed_len += count
            new_keys += req.keys[req.kv_committed_len - count : req.kv_committed_len]
        batch = make_forward_batch(
            forward_mode=ForwardMode.DECODE if decode else ForwardMode.EXTEND,
            batch_size=len(reqs),
            input_ids=None,
            req_pool_indices=torch.tensor([r.req_pool_idx for r in reqs]),
            seq_lens=lens,
            seq_lens_cpu=lens,
            seq_lens_sum=0,
            out_cache_loc=slots,
            req_to_token_pool=self.rows,
            page_handouts=self.allocator.page_handouts,
            extend_seq_lens_cpu=None if decode else list(new.values()),
        )
        batch.new_keys = new_keys
        batch.requests = [(r, r.kv_committed_len) for r in reqs]
        return batch

    def _alloc(self, reqs, prefix, lens, decode=False) -> Optional[torch.Tensor]:
        """Slots of the tokens from ``prefix`` to ``lens``, written to the page table."""
        table = self.rows.req_to_token
        rows = torch.tensor([r.req_pool_idx for r in reqs])
        last = torch.where(prefix > 0, table[rows, prefix - 1], -1)
        if decode:
            slots = self.allocator.alloc_decode(lens, lens, last)
        else:
            slots = self.allocator.alloc_extend(
                prefix, prefix, lens, lens, last, int((lens - prefix).sum())
            )
        if slots is not None:
            for req, begin, part in zip(
                reqs, prefix.tolist(), slots.split((lens - prefix).tolist())
            ):
                table[req.req_pool_idx, begin : begin + len(part)] = part.int()
        return slots

    def forward(self, batch: ForwardBatch) -> None:
        """The layer's writes of one pass, then the comparison of every request that still runs."""
        self.backend.init_forward_metadata(batch)
        self.write_keys(batch.out_cache_loc, batch.new_keys)
        self.backend.forward_pass.write_representations(self.layer)
        self.check(batch)
        self.poison()

    def write_keys(self, slots: torch.Tensor, keys: List[int]) -> None:
        k = torch.tensor(keys, dtype=torch.float32).view(-1, 1, 1).expand(-1, 1, 2)
        self.pool.set_kv_buffer(self.layer, slots, k, k)

    def poison(self) -> None:
        """NaN in every free page."""
        for buffer in (self.pool.k_buffer[0], self.pool.v_buffer[0]):
            buffer.view(PAGES + 1, -1).index_fill_(
                0, self.allocator.free_pages, float("nan")
            )

    def check(self, batch: ForwardBatch) -> None:
        """No stale read, no missing candidate: complete pages are valid and represent the dictionary's keys."""
        md = self.backend.forward_pass.metadata
        valid = md.page_complete & self.pool.repr_valid(
            0, md.real_page_table, md.page_version
        )
        found = self.pool.repr_pages(0)[md.real_page_table.long()][..., 0, 0]
        found = found.masked_fill(~valid, float("nan")).tolist()
        for row, (req, length) in enumerate(batch.requests):
            if req in self.requests:
                expected = page_means(req.keys[:length])
                assert found[row][: len(expected)] == expected, (
                    row,
                    found[row],
                    expected,
                )
                assert not any(
                    valid[row, len(expected) :]
                ), "a page that is not complete is a candidate"

    # Storage

    def offload(self, req: Request) -> bool:
        """Copy a request's keys to the host, free its pages and load it into others; False if it did not fit."""
        length = req.kv_committed_len
        copy = self.allocator.get_cpu_copy(
            self.rows.req_to_token[req.req_pool_idx, :length].long()
        )
        self.tree.finish(req, False)
        self.poison()
        req.last_node = self.tree.root
        req.cache_protected_len = req.cache_inserted_len = req.kv_committed_len = 0
        slots = self._alloc([req], torch.tensor([0]), torch.tensor([length]))
        if slots is None:
            return False
        req.kv_committed_len = length
        self.allocator.load_cpu_copy(copy, slots)
        return True

    def back_up(self, tokens: List[int]) -> None:
        """Copy a cached prefix to the host tier, as a hierarchical cache does."""
        slots, _ = self.tree.match(tokens)
        if len(slots):
            self.host[tuple(tokens[: len(slots)])] = self.pool.k_buffer[0][
                slots
            ].clone()

    def load_back(self, prefix: Tuple[int, ...]) -> None:
        """Bring a prefix of the host tier back into the radix cache, in whole new pages."""
        tokens = list(prefix)
        cached, _ = self.tree.match(tokens)
        missing = len(tokens) - len(cached)
        slots = self.allocator.alloc(missing) if missing else None
        if slots is None:
            return
        for buffer in (self.pool.k_buffer[0], self.pool.v_buffer[0]):
            buffer[slots] = self.host[prefix][-missing:]
        self.tree.insert(tokens, torch.cat([cached, slots]), len(cached))

    def draft(self, req: Request, drafted: int, accepted: List[int]) -> None:
        """Draft tokens fill pages, are taken back and fill pages again for the verification; some are accepted.

        Where allocators take nothing back, drafting and verification share their pages.
        """
        length = req.kv_committed_len
        prefix, lens = torch.tensor([length]), torch.tensor([length + drafted])
        if length + drafted > CONTEXT:
            return
        takes_back = hasattr(self.allocator, "backup_state")
        state = self.allocator.backup_state() if takes_back else None
        slots = self._alloc([req], prefix, lens)
        if slots is None:
            return
        self.write_keys(slots, [MODULUS - 1] * drafted)
        if takes_back:
            self.allocator.restore_state(state)
            self.poison()
            slots = self._alloc([req], prefix, lens)
        for token in accepted:
            req.append(token)
        self.write_keys(
            slots, req.keys[length:] + [MODULUS - 1] * (drafted - len(accepted))
        )
        req.kv_committed_len += len(accepted)
        first_unused_page = -(-req.kv_committed_len // PAGE) * PAGE
        self.allocator.free(slots[first_unused_page - length :])
        self.poison()

    def flush(self, new_weights: bool) -> None:
        """End everything and reset cache and allocator; with new weights every key changes."""
        for req in list(self.requests):
            self.release(req, insert=False)
        self.tree.reset()
        self.allocator.clear()
        self.poison()
        if new_weights:
            self.salt += 1
            self.host.clear()

    def check_accounting(self) -> None:
        """Every page is free, in the radix cache or a request's own; none is free twice."""
        free = self.allocator.free_pages.tolist()
        assert len(set(free)) == len(free), "double free"
        assert 0 not in free
        cached = self.tree.tokens()
        own = sum(
            -(-(r.kv_committed_len - r.cache_protected_len) // PAGE)
            for r in self.requests
        )
        assert (
            len(free) + cached // PAGE + own == PAGES
        ), "a page is lost or counted twice"

    def drain(self) -> None:
        """End everything and evict the radix cache: the allocator must be full again."""
        for req in list(self.requests):
            self.release(req, insert=True)
        self.tree.evict(PAGES * PAGE)
        assert sorted(self.allocator.free_pages.tolist()) == list(
            range(1, PAGES + 1)
        ), "leak"
