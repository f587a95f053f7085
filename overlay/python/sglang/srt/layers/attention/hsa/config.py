# SPDX-License-Identifier: Apache-2.0
"""HSAConfig: every default and every check of HSA's own options, in one place."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Iterable, Optional, Tuple

from sglang.srt.layers.attention.hsa.page_repr import KINDS, PRIOR

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

PAGE_SIZES = (16, 32, 64, 128)
SELECTION_STRATEGIES = ("group", "head", "softmax_head")
CHUNK_REPR_KINDS = (*KINDS, PRIOR.name)
WEIGHT_MODES = ("mass", "score")
NOT_WEIGHTS = tuple(name for name, kind in KINDS.items() if kind.slow)
DENSE_BACKENDS = ("fa3", "flashinfer", "triton", "torch_native")
SINK_BACKENDS = ("fa3", "triton")  # of these, those that read learned sinks
# Of these, the one whose rows depend on no batch and no radix cache.
INVARIANT_BACKEND = "triton"

FIELD_PREFIX = "hsa_"
WHOLE_PAST = 1 << 30  # a ``dense_below`` beyond every position
PREFILLS = {"sparse": 0, "dense": WHOLE_PAST}
# The longest stretch of a prompt that dense attention reads as fast (docs/performance.md).
DEFAULT_PREFILL = "65536"


@dataclasses.dataclass(frozen=True)
class HSAConfig:
    """Resolved options of the HSA backend. Each field is the ``--hsa-*`` option of the same name.

    Attributes:
        topk: candidate pages attended per query and KV head.
        page_size: tokens per page; a page is the unit of selection and of the KV cache. With the representation of HiLS
            a landmark follows them, which has no slot.
        selection_strategy: how the query heads of a KV head rank pages together.
        layers: layers that use HSA: ``all`` or a list such as ``0,2,8-``. The first layer, whose attention is spread
            thin over the whole text, is dense unless named.
        prefill: which tokens of prompts attend their whole past: those at positions below a number, none (``sparse``) or
            all (``dense``). None is ``sparse``; a server resolves it to DEFAULT_PREFILL.
        window_size: most recent tokens that are always attended, extended down to a page boundary.
        enable_swa_fusion: attend the window together with the selected pages. Off: only the query's own page.
        chunk_repr: kind of page representation.
        weight_mode: ``mass`` is a softmax over all attended keys; ``score`` weighs pages by their scores.
        sink_pages: first pages that are always attended.
        dense_backend: backend of all other layers and of batches too short to select from.
        strict: stop with an error if the page table or a representation is damaged. Recomputes every
            representation in every pass.
    """

    topk: int = 32
    page_size: int = 64
    selection_strategy: str = "head"
    layers: str = "1-"
    prefill: Optional[str] = None
    window_size: int = 512
    enable_swa_fusion: bool = True
    chunk_repr: str = "slow_keys"
    weight_mode: str = "mass"
    sink_pages: int = 1
    dense_backend: Optional[str] = None
    strict: bool = False

    def __post_init__(self):
        _require(self.topk >= 1, "--hsa-topk", self.topk, "a page count of at least 1")
        # With rows of landmarks it is the checkpoint's.
        _require(
            self.has_landmark_rows or self.page_size in PAGE_SIZES,
            "--page-size",
            self.page_size,
            f"one of {', '.join(map(str, PAGE_SIZES))} (default {HSAConfig.page_size})",
        )
        _require(
            self.window_size >= 0,
            "--hsa-window-size",
            self.window_size,
            "a token count of at least 0",
        )
        _require(
            self.sink_pages >= 0,
            "--hsa-sink-pages",
            self.sink_pages,
            "a page count of at least 0",
        )
        for name, choices in (
            ("selection_strategy", SELECTION_STRATEGIES),
            ("chunk_repr", CHUNK_REPR_KINDS),
            ("weight_mode", WEIGHT_MODES),
            ("dense_backend", (None, *DENSE_BACKENDS)),
        ):
            value = getattr(self, name)
            allowed = ", ".join(choice for choice in choices if choice)
            _require(value in choices, option(name), value, f"one of {allowed}")
        if self.weight_mode == "score" and self.chunk_repr in NOT_WEIGHTS:
            raise ValueError(
                f"--hsa-weight-mode score does not go with --hsa-chunk-repr {self.chunk_repr}, whose scores are largest "
                "logits and not the weight of a page; use --hsa-weight-mode mass or --hsa-chunk-repr mean."
            )
        if self.selection_strategy == "softmax_head" and self.chunk_repr in NOT_WEIGHTS:
            raise ValueError(
                f"--hsa-selection-strategy softmax_head does not go with --hsa-chunk-repr {self.chunk_repr}, whose scores "
                "are largest logits and not logarithms of what pages weigh; use --hsa-selection-strategy head."
            )
        parse_layers(self.layers)
        _require(
            self.prefill in (None, *PREFILLS)
            or re.fullmatch(r"\d{1,9}", str(self.prefill)),
            option("prefill"),
            self.prefill,
            "sparse, dense, or the number of tokens at the start of a prompt that attend their whole past",
        )

    @property
    def has_landmark_rows(self) -> bool:
        """Whether each complete page has a landmark, a row that is no token."""
        return self.chunk_repr == PRIOR.name

    @property
    def places_per_page(self) -> int:
        """Tokens per page, and its landmark."""
        return self.page_size + self.has_landmark_rows

    @property
    def dense_below(self) -> int:
        """Tokens of prompts at smaller positions attend their whole past."""
        if self.prefill is None:
            return 0
        return PREFILLS[self.prefill] if self.prefill in PREFILLS else int(self.prefill)

    @property
    def effective_window(self) -> int:
        """Window in tokens; 0 is the query's own page."""
        return self.window_size if self.enable_swa_fusion else 0

    @property
    def shortest_sparse(self) -> int:
        """Tokens of the shortest context whose newest query has a page to select."""
        window = max(self.effective_window, 1)
        places = (self.sink_pages + 1) * self.places_per_page + window
        return places - places // self.places_per_page * self.has_landmark_rows

    @property
    def needs_references(self) -> Optional[str]:
        """Why no kernel can run these options; None if the kernels can."""
        if self.strict:
            return "the checks of --hsa-strict read back what the kernels keep on the device"
        return None

    @classmethod
    def from_server_args(cls, server_args: ServerArgs) -> HSAConfig:
        """The options of resolved server arguments."""
        return cls(
            **{
                field.name: getattr(server_args, FIELD_PREFIX + field.name)
                for field in dataclasses.fields(cls)
            }
        )


def option(field_name: str) -> str:
    """Command-line spelling of a config field."""
    return "--" + (FIELD_PREFIX + field_name).replace("_", "-")


def parse_layers(text: str) -> Tuple[Tuple[int, Optional[int]], ...]:
    """First and last layer of each range that ``--hsa-layers`` names; a last one of None is the model's.

    Raises:
        ValueError: for anything but ``all`` or a list of ids and ranges such as ``0,2,8-31`` or ``1-``.
    """
    if text == "all":
        return ((0, None),)
    ranges = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:(-)\s*(\d+)?\s*)?", part)
        first, dash, last = match.groups() if match else (None, None, None)
        if first is None or (last is not None and int(last) < int(first)):
            raise ValueError(
                f"--hsa-layers {text!r}: cannot read {part!r}; "
                "write layer ids and rising ranges such as 0,2,8-31 or 1-, or all."
            )
        end = last if dash else first
        ranges.append((int(first), None if end is None else int(end)))
    return tuple(ranges)


def select_layers(
    text: str, eligible: Iterable[int], num_layers: int
) -> Tuple[int, ...]:
    """Layers that use HSA, ascending: those named by ``--hsa-layers`` that are eligible.

    Args:
        text: value of ``--hsa-layers``.
        eligible: layers with causal full attention (not sliding-window).
        num_layers: layers of the model.

    Raises:
        ValueError: for a layer that the model lacks, or when no eligible layer is named.
    """
    eligible = sorted(eligible)
    named = set()
    for first, last in parse_layers(text):
        end = num_layers if last is None else last + 1
        if max(first, end) > num_layers:
            raise ValueError(
                f"--hsa-layers {text!r} names layer {max(first, num_layers)}, but the model has layers 0-{num_layers - 1}."
            )
        named.update(range(first, end))
    chosen = [layer for layer in eligible if layer in named]
    if not chosen:
        raise ValueError(
            f"--hsa-layers {text!r} leaves no layer for HSA: the layers with full attention are "
            f"{','.join(map(str, eligible)) or 'none'}; name some of them (or all), or use another --attention-backend."
        )
    return tuple(chosen)


def _require(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise ValueError(f"{name} {value} is not valid with HSA: use {expected}.")
