# SPDX-License-Identifier: Apache-2.0
"""Layers with a sliding window and learned sinks, beside layers with HSA, in one pool and in a pool of their own.

On a CUDA device, or under TRITON_INTERPRET=1.
"""

import pytest
import torch

from sglang.srt.layers.attention.hsa import compat
from sglang.srt.layers.attention.hsa.model_layers import layers_beyond, sink_logits
from sglang.srt.layers.attention.hsa.passes.decode import decoded_layers
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.page_repr_allocator import HSASWATokenToKVPoolAllocator
from sglang.srt.mem_cache.page_repr_pool import HSASWAKVPool
from sglang.test.attention.hsa_device import DEVICE, needs_kernels
from sglang.test.attention.hsa_fixtures import rotary_channels
from sglang.test.attention.hsa_layers import Layers
from sglang.test.attention.hsa_release import window_pool_options

pytestmark = needs_kernels

PAGE, PAGES, WINDOW = 16, 80, 37
HEADS, KV_HEADS, DIM = 4, 2, 16
# Layer 0 slides, layer 1 uses HSA, layer 2 is dense.

apart = pytest.param(
    True,
    marks=pytest.mark.skipif(
        not compat.graphs_hold_metadata(),
        reason="refused with SGLang 0.5.12 and earlier",
    ),
)


def pool_and_allocator():
    """A pool with NaN everywhere, whose two kinds of pages have other numbers."""
    common = dict(page_size=PAGE, dtype=torch.float32, device=DEVICE)
    pool = HSASWAKVPool(
        PAGES * PAGE, 24 * PAGE, head_num=KV_HEADS, head_dim=DIM, swa_attention_layer_ids=[0],
        full_attention_layer_ids=[1, 2], hsa_layer_ids=(1,), repr_kind="slow_keys",
        repr_channels=rotary_channels(DIM)[None], **window_pool_options(), **common,
    )  # fmt: skip
    for part in (pool.full_kv_pool, pool.swa_kv_pool):
        for buffer in (*part.k_buffer, *part.v_buffer):
            buffer.fill_(float("nan"))
    allocator = HSASWATokenToKVPoolAllocator(
        PAGES * PAGE, 24 * PAGE, kvcache=pool, need_sort=False, **common
    )
    windows = allocator.swa_attn_allocator
    windows.free_pages = windows.free_pages.flip(0)
    return dict(pool=pool, allocator=allocator)


def make(is_apart, **options):
    rng = torch.Generator().manual_seed(3)
    options = {"layers": 3, "num_heads": HEADS, "num_kv_heads": KV_HEADS, **options}
    h = Layers(
        sinks=[torch.randn(options["num_heads"], generator=rng) for _ in range(3)],
        windows={0: WINDOW},
        **options,
        **(pool_and_allocator() if is_apart else {}),
    )
    h.layers[0].sliding_window_size = WINDOW - 1  # SGLang counts those before the query
    backend = h.backend
    backend.beyond_dense = frozenset({0, 1, 2})  # torch_native reads no sinks
    backend.attended = backend.pool.hsa_layers | backend.beyond_dense
    if backend.decode is not None:
        state = backend.decode
        state.layers = decoded_layers(dict(enumerate(h.layers)), h.pool, h.config)
        for step in state.steps:
            step.layers = state.layers
    return h


def leave_windows(h, sequences):
    """Free what no window reaches any more, and make NaN of it."""
    pool, allocator = h.pool, h.allocator
    for s in sequences:
        gone = max(0, (s.length - WINDOW) // PAGE * PAGE)
        slots = h.req_to_token_pool.req_to_token[s.row, :gone].long()
        mapped = pool.window_slots(slots)
        for buffer in (*pool.swa_kv_pool.k_buffer, *pool.swa_kv_pool.v_buffer):
            buffer[mapped[mapped > 0]] = float("nan")
        allocator.free_swa(slots)


@pytest.mark.parametrize("is_apart", [False, apart])
@pytest.mark.parametrize("kernels", [False, True])
def test_prompts(is_apart, kernels):
    """In two pieces, the second beside a sequence that is new."""
    h = make(is_apart, extend_kernels=kernels)
    sequences = [h.new_sequence() for _ in range(2)]
    h.check(sequences[:1], counts=[75])
    if is_apart:
        leave_windows(h, sequences[:1])
    h.check(sequences, counts=[30, 17])
    counts = h.backend.counters.snapshot()
    assert 0 < counts["pages_selected"] <= counts["pages_candidate"]


@pytest.mark.parametrize("is_apart", [False, apart])
@pytest.mark.parametrize(
    "options", [{}, dict(logit_cap=5.0, enable_swa_fusion=False), dict(kernels=False)]
)
def test_decode(is_apart, options, monkeypatch):
    """While pages leave the windows, and where none has been left yet. Nothing asks the dense backend."""
    on_references = "kernels" in options
    h = make(is_apart, **({} if on_references else options))
    if on_references:
        h.backend.kernels = frozenset()
    sequences = [h.new_sequence() for _ in range(3)]
    h.prefill(sequences, [200, 15, 79])
    monkeypatch.setattr(h.backend, "dense", None)
    for _ in range(3):  # the second and the third pass complete a page
        if is_apart:
            leave_windows(h, sequences)
        h.check(sequences)
    assert h.backend.counters.snapshot()["reprs_healed"] == 0


def test_draft_tokens_see_their_windows(monkeypatch):
    h = make(False, num_draft_tokens=4)
    sequences = [h.new_sequence() for _ in range(2)]
    h.prefill(sequences, [140, 31])
    monkeypatch.setattr(h.backend, "dense", None)
    h.check(sequences, new=4)


@pytest.mark.skipif(
    not compat.graphs_hold_metadata(), reason="refused with SGLang 0.5.12 and earlier"
)
def test_a_graph_with_more_rows_than_its_batch():
    """A graph holds the tables that are written before it; rows that pad it write to the page that takes padding."""
    h = make(True)
    sequences = [h.new_sequence()]
    h.prefill(sequences, [60])
    state = h.backend.decode
    assert state.begins_before_graphs
    state.reserve(4)
    batch = h.decode_batch(sequences)
    padded = torch.ones(3, dtype=torch.int64, device=DEVICE)
    batch.seq_lens = torch.cat([batch.seq_lens, padded])
    batch.req_pool_indices = torch.cat([batch.req_pool_indices, 0 * padded])
    h.backend.init_forward_metadata_out_graph(batch)
    windows = state.steps[0].windows
    assert windows.page_table.data_ptr() == state.reserved.window.page_table.data_ptr()
    own = h.pool.window_slots(batch.out_cache_loc)
    assert windows.slots.tolist() == [int(own), 0, 0, 0]
    pages = h.pool.window_slots(h.pages_of(sequences[0]).long() * PAGE) // PAGE
    assert windows.page_table[0, :4].tolist() == pages.tolist()


def test_what_the_kernel_does_not_compute_of_a_window_goes_to_the_dense_backend():
    h = make(False)
    layers = dict(enumerate(h.layers))
    assert decoded_layers(layers, h.pool, h.config) == {0, 1, 2}
    h.layers[0].tp_q_head_num = 8
    assert decoded_layers(layers, h.pool, h.config) == {1, 2}


class Attention(torch.nn.Module):
    """One attention, with what models call their learned sinks."""

    def __init__(self, layer_id, sinks=None, window=-1):
        super().__init__()
        self.sinks = sinks
        self.attn = RadixAttention(
            HEADS, DIM, 1.0, KV_HEADS, layer_id=layer_id, sliding_window_size=window
        )


def test_what_torch_native_cannot_attend():
    sinks = torch.zeros(HEADS)
    model = torch.nn.ModuleList([Attention(0, window=5), Attention(1, sinks), Attention(2)])  # fmt: skip
    assert list(sink_logits(model)) == [1] and sink_logits(model)[1] is sinks
    assert layers_beyond("torch_native", model, False) == {1}
    assert layers_beyond("torch_native", model, True) == {0, 1}
    assert not layers_beyond("fa3", model, True)
