# SPDX-License-Identifier: Apache-2.0
"""The torch_native backend against a brute-force oracle: windows, logit caps, prefixes, pages, mixed batches."""

from types import SimpleNamespace

import pytest
import torch

from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

windowed = pytest.importorskip("sglang.srt.layers.attention.torch_windowed", reason="the release has windows of its own")
Q_BLOCK, windowed_attention = windowed.Q_BLOCK, windowed.windowed_attention

PAGE, DIM, CONTEXT = 64, 16, 1280
SCALING = 0.4  # large enough that the logits reach the caps below
WINDOWS = (-1, 1, 63, 64, 65, 1000)
CAPS = (0.0, 3.0)


def oracle(query, key, value, scaling, window, cap):
    """One query at the last position of ``key``, in float64, by the definition."""
    out = torch.empty(query.shape[0], value.shape[2], dtype=torch.float64)
    last = key.shape[0] - 1
    seen = [j for j in range(last + 1) if window < 0 or j >= last - window]
    for head in range(query.shape[0]):
        kv_head = head * key.shape[1] // query.shape[0]
        logits = key[seen, kv_head].double() @ query[head].double() * scaling
        if cap:
            logits = cap * torch.tanh(logits / cap)
        out[head] = logits.softmax(0) @ value[seen, kv_head].double()
    return out


class Batch:
    """Requests in shuffled pages of a NaN-poisoned pool; keys and values of prefixes are already stored."""

    def __init__(self, prefix, extend, heads, kv_heads, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        self.prefix, self.extend, self.heads, self.kv_heads = prefix, extend, heads, kv_heads
        self.seq = [p + n for p, n in zip(prefix, extend)]
        num_pages = sum(-(-n // PAGE) for n in self.seq)
        self.pool = MHATokenToKVPool(
            size=num_pages * PAGE,
            page_size=PAGE,
            dtype=torch.float32,
            head_num=kv_heads,
            head_dim=DIM,
            layer_num=1,
            device="cpu",
            enable_memory_saver=False,
        )
        for buffer in (*self.pool.k_buffer, *self.pool.v_buffer):
            buffer.fill_(float("nan"))
        self.table = torch.zeros(len(prefix), CONTEXT, dtype=torch.int32)
        pages = (torch.randperm(num_pages, generator=self.generator) + 1).tolist()
        self.q = self.random(sum(extend), heads)
        self.k, self.v, new_k, new_v, new_slots = [], [], [], [], []
        for row, (start, length) in enumerate(zip(prefix, self.seq)):
            slots = torch.cat([torch.arange(PAGE) + PAGE * pages.pop() for _ in range(-(-length // PAGE))])[:length]
            self.table[row, :length] = slots
            k, v = self.random(length, kv_heads), self.random(length, kv_heads)
            self.pool.k_buffer[0][slots[:start]], self.pool.v_buffer[0][slots[:start]] = k[:start], v[:start]
            self.k.append(k)
            self.v.append(v)
            new_k.append(k[start:])
            new_v.append(v[start:])
            new_slots.append(slots[start:])
        self.new_k, self.new_v, self.new_slots = map(torch.cat, (new_k, new_v, new_slots))

    def random(self, tokens, heads):
        return torch.randn(tokens, heads, DIM, generator=self.generator)

    def run(self, window, cap, decode=False):
        layer = RadixAttention(
            self.heads, DIM, SCALING, self.kv_heads, layer_id=0, logit_cap=cap, sliding_window_size=window
        )
        forward_batch = SimpleNamespace(
            token_to_kv_pool=self.pool,
            req_to_token_pool=SimpleNamespace(req_to_token=self.table),
            req_pool_indices=torch.arange(len(self.seq)),
            seq_lens=torch.tensor(self.seq),
            extend_prefix_lens=torch.tensor(self.prefix),
            extend_seq_lens=torch.tensor(self.extend),
            out_cache_loc=self.new_slots,
        )
        backend = TorchNativeAttnBackend(SimpleNamespace(device="cpu"))
        forward = backend.forward_decode if decode else backend.forward_extend
        out = forward(self.q.flatten(1), self.new_k, self.new_v, layer, forward_batch)
        return out.view(-1, self.heads, DIM)

    def expected(self, window, cap):
        rows, query = [], iter(self.q)
        for k, v, start, length in zip(self.k, self.v, self.prefix, self.seq):
            for position in range(start, length):
                rows.append(oracle(next(query), k[: position + 1], v[: position + 1], SCALING, window, cap))
        return torch.stack(rows).float()


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads, kv_heads", [(4, 2), (2, 2)])
def test_extend(window, cap, heads, kv_heads):
    """No prefix, an aligned one, any other one, and a decoding request, as in a mixed batch."""
    batch = Batch(prefix=[0, 64, 127, 1000, 0], extend=[65, 127, 63, 1, 1], heads=heads, kv_heads=kv_heads)
    torch.testing.assert_close(batch.run(window, cap), batch.expected(window, cap), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads, kv_heads", [(4, 2), (2, 2)])
def test_decode(window, cap, heads, kv_heads):
    lengths = [1, 63, 64, 65, 66, 127, 1000, 1066]
    batch = Batch(prefix=[n - 1 for n in lengths], extend=[1] * len(lengths), heads=heads, kv_heads=kv_heads)
    out = batch.run(window, cap, decode=True)
    torch.testing.assert_close(out, batch.expected(window, cap), atol=2e-5, rtol=1e-4)


def test_window_and_cap_change_the_output():
    """The oracle comparison above is not vacuous: each option moves the result by far more than its tolerance."""
    batch = Batch(prefix=[200], extend=[1], heads=4, kv_heads=2)
    plain = batch.run(-1, 0.0, decode=True)
    for window, cap in ((64, 0.0), (63, 0.0), (-1, 3.0)):
        assert (batch.run(window, cap, decode=True) - plain).abs().max() > 1e-2
    assert (batch.run(64, 0.0, decode=True) - batch.run(63, 0.0, decode=True)).abs().max() > 1e-3


def test_absent_cap_means_none():
    """Gemma2 passes its config's ``attn_logit_softcapping``, which may be null."""
    batch = Batch(prefix=[70], extend=[3], heads=2, kv_heads=2)
    torch.testing.assert_close(batch.run(-1, None), batch.run(-1, 0.0))


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("q_len, kv_len", [(1, 1), (Q_BLOCK, Q_BLOCK), (Q_BLOCK + 1, 1000), (600, 600)])
def test_query_blocks(q_len, kv_len, causal, cap):
    """Cutting the queries into blocks changes nothing, whatever falls on their borders."""
    generator = torch.Generator().manual_seed(q_len + kv_len)
    query, key, value = (torch.randn(2, n, DIM, generator=generator) for n in (q_len, kv_len, kv_len))
    out = windowed_attention(query, key, value, SCALING, causal, 100, cap)
    logits = (query @ key.transpose(1, 2)) * SCALING
    if cap:
        logits = cap * torch.tanh(logits / cap)
    distance = torch.arange(kv_len - q_len, kv_len)[:, None] - torch.arange(kv_len)
    hidden = (distance > 100) | (distance < 0 if causal else False)
    expected = logits.masked_fill(hidden, float("-inf")).softmax(-1) @ value
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=1e-4)
