# SPDX-License-Identifier: Apache-2.0
"""The cheapest setting that keeps a loss: the smallest budget, then the fewest dense layers.

Nothing here knows a model: losses come from a function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Dict, Iterable, List, Optional, Sequence, Tuple

from sglang.hsa_calibrate.measure import Setting


@dataclass(frozen=True)
class Outcome:
    """What a setting costs in quality.

    Attributes:
        setting: kind, budget and dense layers.
        loss: relative perplexity above dense attention's.
        mass: attended mass by layer that uses HSA.
    """

    setting: Setting
    loss: float
    mass: Dict[int, float]


@dataclass(frozen=True)
class Recommendation:
    """The end of the search.

    Attributes:
        best: the cheapest outcome that passes, or the one with the smallest loss.
        passed: whether ``best`` keeps the loss.
        tried: all outcomes, in the order they were measured.
    """

    best: Outcome
    passed: bool
    tried: Tuple[Outcome, ...]


Measure = Callable[[Setting], Outcome]


def dense_layer_limit(num_layers: int) -> int:
    """Layers left dense at most, of ``num_layers`` that could use HSA: an eighth, rounded up, and never all."""
    return min(math.ceil(num_layers / 8), num_layers - 1)


def worst_layers(mass: Dict[int, float], count: int) -> Tuple[int, ...]:
    """The layers with least attended mass, ascending; of equal ones the first."""
    return tuple(sorted(sorted(mass, key=lambda layer: (mass[layer], layer))[:count]))


def recommend(
    kinds: Sequence[str],
    budgets: Iterable[int],
    measure: Measure,
    max_loss: float,
    max_dense_layers: int,
) -> Recommendation:
    """Search budgets upwards for the first at which some kind keeps the loss.

    A budget that fails is tried with ``max_dense_layers`` dense layers, and if that passes, the fewest that do are found
    by bisection, as if more dense layers never hurt. All budgets are measured without dense layers first, for the table.

    Args:
        kinds: representation kinds; of those that need equally much, the one with the smaller loss wins.
        budgets: pages.
        measure: the outcome of a setting.
        max_loss: relative perplexity.
        max_dense_layers: 0 tries none.
    """
    budgets, tried = sorted(set(budgets)), []

    def run(setting: Setting) -> Outcome:
        tried.append(measure(setting))
        return tried[-1]

    plain = {topk: [run(Setting(kind, topk)) for kind in kinds] for topk in budgets}
    for topk in budgets:
        passing = [outcome for outcome in plain[topk] if outcome.loss <= max_loss]
        if not passing and max_dense_layers:
            found = (
                _fewest_dense(outcome, run, max_loss, max_dense_layers)
                for outcome in plain[topk]
            )
            passing = [outcome for outcome in found if outcome is not None]
        if passing:
            best = min(passing, key=lambda o: (len(o.setting.dense_layers), o.loss))
            return Recommendation(best, True, tuple(tried))
    return Recommendation(min(tried, key=lambda o: o.loss), False, tuple(tried))


def _fewest_dense(
    plain: Outcome, run: Measure, max_loss: float, most: int
) -> Optional[Outcome]:
    """The outcome with the fewest of the worst layers dense that passes, or None; ``plain`` does not."""

    def with_dense(count: int) -> Outcome:
        layers = worst_layers(plain.mass, count)
        return run(Setting(plain.setting.kind, plain.setting.topk, layers))

    best = with_dense(most)
    if best.loss > max_loss:
        return None
    low, high = 0, most  # low fails, high passes
    while high - low > 1:
        middle = (low + high) // 2
        outcome = with_dense(middle)
        if outcome.loss <= max_loss:
            best, high = outcome, middle
        else:
            low = middle
    return best


def ranges(layers: Iterable[int]) -> str:
    """Layer ids as ``--hsa-layers`` reads them: ``0-3,5,7-29``."""
    runs: List[List[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
