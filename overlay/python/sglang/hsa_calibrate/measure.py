# SPDX-License-Identifier: Apache-2.0
"""Perplexity and attended attention mass of one setting, over all texts."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Callable, Dict, FrozenSet, List, Optional, Sequence, Tuple

import torch

from sglang.hsa_calibrate.loading import Text
from sglang.hsa_calibrate.probe import ModelLayers
from sglang.hsa_calibrate.simulation import Simulation, chunked_logits
from sglang.hsa_calibrate.sparse import BlockResult
from sglang.srt.layers.attention.hsa.config import HSAConfig, select_layers
from sglang.srt.layers.attention.hsa.layout import (
    num_candidate_pages,
    window_start_page,
)

EXACT = "exact"  # in place of a kind: the pages with the most exact attention mass


@dataclass(frozen=True)
class Setting:
    """What is compared.

    Attributes:
        kind: page representation.
        topk: budget in pages.
        dense_layers: layers left out of HSA beside those that ``--hsa-layers`` leaves out, ascending.
    """

    kind: str
    topk: int
    dense_layers: Tuple[int, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """Dense attention, or a setting, measured on all texts.

    Attributes:
        setting: None for dense attention.
        nll: negative log-likelihood of every scored token, in nats ``[rows]`` float64.
        mass: exact attention mass of what is attended, by layer that uses HSA, averaged over scored rows with candidates
            and query heads.
        keys_read: attended share of the past of the scored rows, averaged over all layers.
        rows_sparse: share of the scored rows that leave a page out.
    """

    setting: Optional[Setting]
    nll: torch.Tensor
    mass: Dict[int, float] = field(default_factory=dict)
    keys_read: float = 1.0
    rows_sparse: float = 0.0

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll.mean().item())

    @property
    def mean_mass(self) -> float:
        """Average over the layers that use HSA; 1 without any."""
        return sum(self.mass.values()) / len(self.mass) if self.mass else 1.0

    def loss(self, dense: Measurement) -> float:
        """Relative perplexity above dense attention's: 0.01 is one percent more."""
        return math.expm1((self.nll - dense.nll).mean().item())

    def loss_error(self, dense: Measurement) -> float:
        """Standard error of the loss, as if tokens were independent."""
        difference = self.nll - dense.nll
        if len(difference) < 2:
            return math.inf
        error = difference.std().item() / math.sqrt(len(difference))
        return (1 + self.loss(dense)) * error


class LayerMass:
    """Observer that averages attended mass by layer over the rows from ``skip`` on that have candidates."""

    def __init__(self, skip: int):
        self.skip = skip
        self.sums: Dict[int, torch.Tensor] = {}
        self.rows: Dict[int, torch.Tensor] = {}

    def __call__(self, layer: int, result: BlockResult) -> None:
        counted = (result.positions >= self.skip) & result.candidate.any(dim=1)
        mass = (result.attended.mean(dim=(0, 1)) * counted).sum(dtype=torch.float64)
        self.sums[layer] = self.sums.get(layer, 0) + mass
        self.rows[layer] = self.rows.get(layer, 0) + counted.sum()

    def means(self) -> Dict[int, float]:
        return {
            layer: (total / self.rows[layer].clamp(min=1)).item()
            for layer, total in sorted(self.sums.items())
        }


class Bench:
    """Measures settings of one model on the same texts.

    Args:
        model: causal model of transformers.
        layers: its attention layers.
        texts: tokens of each at least 2.
        config: HSA's options; kind and topk are replaced by those of a setting, and its dense layers leave ``layers``.
        channels: channels that slow_keys keeps, by layer.
        skip: first rows of each text that are not scored.
        progress: called with a line when a measurement is done.

    Attributes:
        named: layers with full attention that ``config.layers`` names.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        layers: ModelLayers,
        texts: Sequence[Text],
        config: HSAConfig,
        channels: Dict[int, torch.Tensor],
        skip: int,
        progress: Callable[[str], None] = lambda line: None,
    ):
        self.model, self.layers, self.texts = model, layers, texts
        self.config, self.channels, self.skip = config, channels, skip
        self.progress = progress
        self.named = frozenset(select_layers(config.layers, layers.full, layers.count))

    def sparse_layers(self, setting: Setting) -> FrozenSet[int]:
        """Layers that use HSA."""
        return self.named - frozenset(setting.dense_layers)

    def dense_layers(self, setting: Setting) -> FrozenSet[int]:
        """Layers with full attention that do not use HSA."""
        return frozenset(self.layers.full) - self.sparse_layers(setting)

    def simulation(self, setting: Setting, observe, observe_dense=False) -> Simulation:
        """The setting as an attention function."""
        return Simulation(
            configure(self.config, setting),
            self.sparse_layers(setting),
            self.channels,
            observe,
            observe_dense,
            setting.kind == EXACT,
        )

    def dense(self) -> Measurement:
        """The model as transformers runs it."""
        return Measurement(None, torch.cat([self._nll(text) for text in self.texts]))

    def sparse(self, setting: Setting) -> Measurement:
        """The model with HSA in every row."""
        observer, nll = LayerMass(self.skip), []
        for text in self.texts:
            with self.simulation(setting, observer).installed(self.model):
                nll.append(self._nll(text))
        return Measurement(
            setting,
            torch.cat(nll),
            observer.means(),
            self._keys_read(setting),
            self._rows_sparse(setting),
        )

    def _nll(self, text: Text) -> torch.Tensor:
        """Of the token after each row from ``skip`` on ``[len - 1 - skip]`` float64."""
        parts: List[torch.Tensor] = []
        for first, logits in chunked_logits(self.model, text.ids):
            lo = max(self.skip - first, 0)
            hi = min(len(logits), len(text.ids) - 1 - first)
            if lo >= hi:
                continue
            targets = torch.tensor(text.ids[first + lo + 1 : first + hi + 1])
            loss = torch.nn.functional.cross_entropy(
                logits[lo:hi], targets.to(logits.device), reduction="none"
            )
            parts.append(loss.double().cpu())
        return torch.cat(parts)

    def _keys_read(self, setting: Setting) -> float:
        config = configure(self.config, setting)
        read = sum(attended_keys(len(t.ids) - 1, self.skip, config) for t in self.texts)
        past = sum(sum(range(self.skip + 1, len(t.ids))) for t in self.texts)
        share = len(self.sparse_layers(setting)) / self.layers.count
        return share * read / past + 1 - share

    def _rows_sparse(self, setting: Setting) -> float:
        config = configure(self.config, setting)
        shape = (config.effective_window, config.page_size, config.sink_pages)
        rows = torch.cat(
            [torch.arange(self.skip, len(text.ids) - 1) for text in self.texts]
        )
        left_out = num_candidate_pages(rows, *shape) > config.topk
        return left_out.double().mean().item()


def configure(config: HSAConfig, setting: Setting) -> HSAConfig:
    """HSA's options with kind and budget of a setting."""
    if setting.kind == EXACT:
        return dataclasses.replace(config, topk=setting.topk)
    return dataclasses.replace(config, chunk_repr=setting.kind, topk=setting.topk)


def attended_keys(num_rows: int, skip: int, config: HSAConfig) -> int:
    """Keys that the rows from ``skip`` on attend in a layer that uses HSA, in all."""
    rows = torch.arange(skip, num_rows)
    args = (config.effective_window, config.page_size)
    start = window_start_page(rows, *args)
    pages = num_candidate_pages(rows, *args, config.sink_pages).clamp(max=config.topk)
    pages = pages + start.clamp(max=config.sink_pages)
    return int((rows + 1 - start * config.page_size + pages * config.page_size).sum())
