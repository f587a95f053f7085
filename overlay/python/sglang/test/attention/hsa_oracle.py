# SPDX-License-Identifier: Apache-2.0
"""Brute-force HSA in float64 numpy, one query at a time: the oracle of the HSA tests.

Written from the definitions with explicit sets of positions. It shares no code with the ops, knows nothing of
pages in memory and takes the keys of one sequence in their logical order.
"""

from __future__ import annotations

import dataclasses
from typing import Dict, Iterable, List, Optional, Tuple

import numpy as np


@dataclasses.dataclass
class Options:
    page_size: int = 64
    window_size: int = 512
    sink_pages: int = 1
    topk: int = 32
    kind: str = "mean_std"
    channels: Tuple[int, ...] = ()
    strategy: str = "group"
    mode: str = "mass"
    scale: float = 1.0
    cap: float = 0.0
    mask_last: bool = False
    dense_below: int = 0
    sinks: Tuple[
        float, ...
    ] = ()  # one logit more of each query head, which no value belongs to


def window_start(i: int, opt: Options) -> int:
    if i < opt.dense_below:
        return 0
    window = max(opt.window_size, 1)
    return max(0, (i - window + 1) // opt.page_size * opt.page_size)


def local_positions(i: int, opt: Options) -> List[int]:
    """Positions of sinks and window of the query at position i."""
    start = window_start(i, opt)
    sinks = [j for j in range(start) if j // opt.page_size < opt.sink_pages]
    return _attended(sinks + list(range(start, i + 1)), opt)


def page_positions(c: int, opt: Options) -> List[int]:
    """Positions of the keys of page c, once it is selected."""
    return _attended(range(c * opt.page_size, (c + 1) * opt.page_size), opt)


def _attended(positions: Iterable[int], opt: Options) -> List[int]:
    return [
        j for j in positions if not (opt.mask_last and (j + 1) % opt.page_size == 0)
    ]


def candidate_pages(i: int, opt: Options) -> List[int]:
    return [
        c for c in range(window_start(i, opt) // opt.page_size) if c >= opt.sink_pages
    ]


def raw_score(q: np.ndarray, keys: np.ndarray, opt: Options) -> float:
    """Score of a page with ``keys [P, D]`` for one query head ``q [D]``."""
    if opt.kind == "mean":
        return opt.scale * float(q @ keys.mean(0))
    if opt.kind == "mean_std":
        return opt.scale * float(q @ keys.mean(0) + np.abs(q) @ keys.std(0))
    if opt.kind == "slow_keys":
        kept = list(opt.channels)
        return opt.scale * float((four_bits(keys[:, kept]) @ q[kept]).max())
    if opt.kind == "landmark":
        return opt.scale * float(q @ keys[-1])
    raise ValueError(opt.kind)


def four_bits(keys: np.ndarray) -> np.ndarray:
    """Keys ``[P, R]`` as slow_keys keeps them: 16 equal steps per channel from its lowest value on, both in bfloat16."""
    low = _bfloat16(keys.min(0))
    step = _bfloat16(np.maximum((keys.max(0) - low) / 15, 2.0**-100))
    code = np.clip(np.floor((keys - low) / step + 0.5), 0, 15)
    return low + step * code


def _bfloat16(x: np.ndarray) -> np.ndarray:
    """Nearest number with 8 significant bits, ties to even."""
    fraction, exponent = np.frexp(x.astype(np.float32))
    return np.ldexp(np.rint(fraction * 256) / 256, exponent).astype(np.float64)


def _logits(q: np.ndarray, keys: np.ndarray, opt: Options) -> np.ndarray:
    logits = opt.scale * (keys @ q)
    return opt.cap * np.tanh(logits / opt.cap) if opt.cap else logits


def _lse(x: np.ndarray) -> float:
    return float(np.logaddexp.reduce(x)) if len(x) else -np.inf


def select(
    q: np.ndarray, k: np.ndarray, i: int, opt: Options
) -> Tuple[Dict[int, List[int]], np.ndarray]:
    """Selected logical pages per KV head, ascending, and raw scores ``[H_q, C]`` of all candidates.

    Args:
        q: the query at position i ``[H_q, D]``.
        k: keys of the sequence ``[S, H_kv, D]``.
    """
    num_heads, num_kv_heads = q.shape[0], k.shape[1]
    group = num_heads // num_kv_heads
    pages = candidate_pages(i, opt)
    size = opt.page_size
    raw = np.array(
        [
            [
                raw_score(q[h], k[c * size : (c + 1) * size, h // group], opt)
                for c in pages
            ]
            for h in range(num_heads)
        ]
    ).reshape(num_heads, len(pages))
    chosen = {}
    for g in range(num_kv_heads):
        heads = range(g * group, (g + 1) * group)
        if opt.strategy == "group":
            score = sum(raw[h] for h in heads)
        elif opt.strategy == "head":
            score = np.max([raw[h] for h in heads], axis=0)
        else:
            local = local_positions(i, opt)
            shares = []
            for h in heads:
                local_lse = _lse(_logits(q[h], k[local, g], opt))
                shares.append(raw[h] - np.logaddexp(local_lse, _lse(raw[h])))
            score = np.max(shares, axis=0)
        order = sorted(range(len(pages)), key=lambda n: (-score[n], pages[n]))
        chosen[g] = sorted(pages[n] for n in order[: opt.topk])
    return chosen, raw


def attend(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    i: int,
    opt: Options,
    chosen: Optional[Dict[int, List[int]]] = None,
) -> np.ndarray:
    """Output ``[H_q, D_v]`` of the query at position i; selects by itself unless ``chosen`` is given."""
    selected, raw = select(q, k, i, opt)
    chosen = selected if chosen is None else chosen
    pages = candidate_pages(i, opt)
    local = local_positions(i, opt)
    num_heads, group = q.shape[0], q.shape[0] // k.shape[1]
    out = np.zeros((num_heads, v.shape[-1]))
    for h in range(num_heads):
        g = h // group
        sink = opt.sinks[h] if opt.sinks else -np.inf
        if opt.mode == "mass":
            keys = local + [j for c in chosen[g] for j in page_positions(c, opt)]
            logits = _logits(q[h], k[keys, g], opt)
            p = np.exp(logits - np.logaddexp(_lse(logits), sink))
            out[h] = p @ v[keys, g]
            continue
        parts, scores = [], []
        for keys, score in [(local, None)] + [
            (page_positions(c, opt), raw[h, pages.index(c)]) for c in chosen[g]
        ]:
            logits = _logits(q[h], k[keys, g], opt)
            parts.append(np.exp(logits - _lse(logits)) @ v[keys, g])
            scores.append(_lse(logits) if score is None else score)
        weights = np.exp(np.array(scores) - np.logaddexp(_lse(np.array(scores)), sink))
        out[h] = weights @ np.array(parts)
    return out


def dense(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, i: int, opt: Options
) -> np.ndarray:
    """Full causal attention of the query at position i ``[H_q, D_v]``."""
    group = q.shape[0] // k.shape[1]
    out = np.zeros((q.shape[0], v.shape[-1]))
    for h in range(q.shape[0]):
        logits = _logits(q[h], k[: i + 1, h // group], opt)
        sink = opt.sinks[h] if opt.sinks else -np.inf
        p = np.exp(logits - np.logaddexp(_lse(logits), sink))
        out[h] = p @ v[: i + 1, h // group]
    return out
