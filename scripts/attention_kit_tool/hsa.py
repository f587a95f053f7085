# SPDX-License-Identifier: Apache-2.0
"""What the kit's mock model runner lacks for HSA: a pool with page representations, its options, a layer in its model."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from functools import partial
from typing import Iterator
from unittest import mock

from attention_kit_tool.cases import Case, dense_attention


@dataclasses.dataclass
class Counted:
    """Counters of the HSA backends that a case made."""

    made: list = dataclasses.field(default_factory=list)

    def totals(self) -> dict[str, int]:
        """Counts by name; waits for the device."""
        from sglang.srt.layers.attention.hsa.counters import COUNTERS

        snapshots = [counters.snapshot() for counters in self.made]
        return {name: sum(snapshot[name] for snapshot in snapshots) for name in COUNTERS}


@contextmanager
def kit_with_hsa(case: Case, topk: int, device: str) -> Iterator[Counted]:
    """Inside, the kit builds backend ``hsa`` for a case with ``topk`` pages selected.

    The kit hands out slots itself, so its allocator stays: a page that no allocator has touched is of the pool's first
    version and without a representation, and HSA's passes make one, as for a page that came back from the host.
    """
    from sglang.srt.layers.attention.hsa import counters
    from sglang.srt.runtime_context import RuntimeContext

    counted, module, options = Counted(), dense_attention(), _options(case, topk, device)
    make_counters, publish = counters.HSACounters, RuntimeContext.override_server_args

    def count(device):
        counted.made.append(make_counters(device))
        return counted.made[-1]

    def publish_with_hsa(context, **kit):
        algorithm = "EAGLE" if kit["speculative_num_draft_tokens"] else None  # the kit leaves it out
        return publish(context, **{**kit, **options, "speculative_algorithm": algorithm})

    with (
        mock.patch.object(counters, "HSACounters", count),
        mock.patch.object(RuntimeContext, "override_server_args", publish_with_hsa),
        mock.patch.object(module, "MHATokenToKVPool", _make_pool),
        mock.patch.object(module, "MockModelRunner", _runner_class(module.MockModelRunner)),
    ):
        yield counted


def _options(case: Case, topk: int, device: str) -> dict:
    """HSA's server arguments: as few tokens as it allows are attended without being selected."""
    from sglang.srt.layers.attention.hsa.config import FIELD_PREFIX, HSAConfig

    config = HSAConfig(
        topk=topk,
        page_size=case.batch.page_size,
        layers="all",
        window_size=case.draft_tokens,
        sink_pages=0,
        dense_backend="triton" if device == "cuda" else "torch_native",
    )
    return {FIELD_PREFIX + name: value for name, value in dataclasses.asdict(config).items()}


def _make_pool(**kit):
    """The kit's pool with representations; without a rotary embedding, no channel of a key is slower than another."""
    import torch

    from sglang.srt.layers.attention.hsa.config import HSAConfig
    from sglang.srt.layers.attention.hsa.page_repr import num_channels
    from sglang.srt.mem_cache.page_repr_pool import HSATokenToKVPool

    channels = torch.arange(num_channels(kit["head_dim"]), dtype=torch.int32)
    layers = range(kit["layer_num"])
    return HSATokenToKVPool(
        **kit,
        hsa_layer_ids=layers,
        repr_kind=HSAConfig.chunk_repr,
        repr_channels=channels.repeat(len(layers), 1),
    )


def _runner_class(base: type) -> type:
    """The kit's mock model runner, with an attention layer in each of its models."""
    from sglang.srt.layers.radix_attention import RadixAttention

    class Runner(base):
        def __init__(self, *, case, head_dim, **kit):
            heads = case.num_heads, head_dim, head_dim**-0.5, case.num_kv_heads
            self._make_layer = partial(RadixAttention, *heads, layer_id=0)
            super().__init__(case=case, head_dim=head_dim, **kit)

        @property
        def model(self):
            return self._model

        @model.setter
        def model(self, model) -> None:
            # A backend finds its layers in the model; the kit makes its layer after the backend, or shows an empty model.
            if not any(isinstance(module, RadixAttention) for module in model.modules()):
                model.attention = self._make_layer()
            self._model = model

    return Runner
