# SPDX-License-Identifier: Apache-2.0
"""The ``--hsa-*`` options and what they lead to; upstream's files only name them."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from typing import TYPE_CHECKING, Optional

from sglang.srt.configs.hils import is_hils
from sglang.srt.layers.attention.hsa import compat, refusals
from sglang.srt.layers.attention.hsa.checkpoint_options import (
    check_given,
    checkpoint_options,
    unsupported_fields,
)
from sglang.srt.layers.attention.hsa.config import (
    CHUNK_REPR_KINDS,
    DEFAULT_PREFILL,
    DENSE_BACKENDS,
    FIELD_PREFIX,
    INVARIANT_BACKEND,
    SELECTION_STRATEGIES,
    WEIGHT_MODES,
    HSAConfig,
    option,
)
from sglang.srt.layers.attention.hsa.determinism import allow_deterministic_inference
from sglang.srt.layers.attention.hsa.disaggregation import (
    keep_retracted_keys_in_tensors,
)

if TYPE_CHECKING:
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)

# Tokens of the pool of layers with a sliding window, of those of the other pool.
WINDOW_TOKENS_RATIO = 0.04


@dataclasses.dataclass(kw_only=True)
class HSAServerArgs:
    """Options of the HSA attention backend, a base class of ServerArgs. None stands for the default in HSAConfig."""

    hsa_topk: Optional[int] = None
    hsa_page_size: Optional[int] = None
    hsa_selection_strategy: Optional[str] = None
    hsa_layers: Optional[str] = None
    hsa_prefill: Optional[str] = None
    hsa_window_size: Optional[int] = None
    hsa_enable_swa_fusion: Optional[bool] = None
    hsa_chunk_repr: Optional[str] = None
    hsa_weight_mode: Optional[str] = None
    hsa_sink_pages: Optional[int] = None
    hsa_dense_backend: Optional[str] = None
    hsa_strict: Optional[bool] = None

    # Until 0.5.18 options are resolved by methods; later they are fields of a record.

    @staticmethod
    def add_hsa_cli_args(parser: argparse.ArgumentParser) -> None:
        add_hsa_cli_args(parser)

    def _refuse_models_without_hsa(self) -> None:
        refuse_models_without_hsa(self)

    def _handle_hsa_backend(self) -> None:
        handle_hsa_backend(self)


def add_hsa_cli_args(parser: argparse.ArgumentParser) -> None:
    """Add the ``--hsa-*`` options to the server's parser."""
    group = parser.add_argument_group("HSA (hierarchical sparse attention)")

    def add(name: str, help: str, **kwargs) -> None:
        default = getattr(HSAConfig, name)
        group.add_argument(
            option(name), default=None, help=f"{help} Default: {default}.", **kwargs
        )

    add("topk", "Pages that each query attends per KV head.", type=int)
    add(
        "page_size",
        "Tokens per page; must agree with --page-size if both are given.",
        type=int,
    )
    add(
        "selection_strategy",
        "How the query heads of a KV head rank pages together.",
        choices=SELECTION_STRATEGIES,
    )
    add("layers", "Layers that use HSA: all, or a list such as 0,2,8-.", type=str)
    group.add_argument(
        option("prefill"),
        default=None,
        help="Tokens at the start of a prompt that attend their whole past: a number, sparse for none or dense for all. "
        f"Default: {DEFAULT_PREFILL}, or sparse with an 8-bit cache.",
    )
    add(
        "window_size",
        "Most recent tokens that are always attended, extended to a page boundary.",
        type=int,
    )
    add(
        "enable_swa_fusion",
        "Attend the window together with the selected pages; "
        "off, only the query's own page is.",
        action=argparse.BooleanOptionalAction,
    )
    add("chunk_repr", "Kind of page representation.", choices=CHUNK_REPR_KINDS)
    add(
        "weight_mode",
        "mass: one softmax over all attended keys; score: pages weighed by their scores.",
        choices=WEIGHT_MODES,
    )
    add("sink_pages", "First pages that are always attended.", type=int)
    group.add_argument(
        option("dense_backend"),
        choices=DENSE_BACKENDS,
        default=None,
        help="Backend of the layers without HSA and of batches too short to select from. "
        "Default: the platform's best.",
    )
    add(
        "strict",
        "Stop if the page table or a representation is damaged (recomputes every representation; for debugging).",
        action=argparse.BooleanOptionalAction,
    )


def refuse_models_without_hsa(args: ServerArgs) -> None:
    """Refuse a model before SGLang adjusts arguments to it: assertions there know backends by name.

    SGLang knows from then on that HSA can be deterministic.

    Raises:
        ValueError: for a model that HSA does not support, with all else that is wrong, one per line.
    """
    allow_deterministic_inference()
    view = compat.arguments(args)
    if refusals.uses_hsa(view) and refusals.refuses_model(
        view, compat.model_config(args)
    ):
        handle_hsa_backend(args)


def handle_hsa_backend(args: ServerArgs) -> None:
    """Check and resolve everything HSA needs from the server arguments.

    Raises:
        ValueError: for ``--hsa-*`` options without HSA; for invalid values and unsupported combinations, one per line.
    """
    view = compat.arguments(args)
    if not refusals.uses_hsa(view):
        _refuse_unused_options(view)
        return

    model = compat.model_config(args)
    checkpoint = checkpoint_options(model)
    problems = check_given(view, checkpoint) + unsupported_fields(model)
    try:
        page_size = _page_size(view, checkpoint.get("page_size"))
        compat.declare(args, page_size=page_size, hsa_page_size=page_size)
    except ValueError as error:
        problems.append(str(error))
    compat.declare(args, **_defaults(args, checkpoint))
    keep_retracted_keys_in_tensors(args)
    try:
        HSAConfig.from_server_args(view)  # checks the values
    except ValueError as error:
        problems.append(str(error))
    refusals.check(view, model, problems)
    if view.hsa_sink_pages == 0 and not checkpoint:
        logger.warning(
            "--hsa-sink-pages 0: pretrained models attend their first tokens from everywhere, so most lose their "
            "answers without that page; leave it at 1 unless the model was trained so."
        )
    _align_chunked_prefill_to_pages(args)
    _size_window_pool(args, model)  # a chunk's tokens among others
    _limit_cuda_graphs(args)


def _refuse_unused_options(view: ServerArgs) -> None:
    given = [
        option(field.name)
        for field in dataclasses.fields(HSAConfig)
        if getattr(view, FIELD_PREFIX + field.name) is not None
    ]
    if given:
        raise ValueError(
            f"{', '.join(given)}: only --attention-backend hsa reads this; "
            f"the attention backend is {view.attention_backend}. "
            "Add --attention-backend hsa or drop the option."
        )


def _page_size(view: ServerArgs, trained: Optional[int]) -> int:
    """``--page-size`` and its alias ``--hsa-page-size`` agree, or the one given counts for both.

    Args:
        trained: tokens per page that the checkpoint was trained with; None if it was not trained for HSA.
    """
    asked, alias = view.page_size, view.hsa_page_size
    if asked is not None and alias is not None and asked != alias:
        raise ValueError(
            f"--page-size {asked} and --hsa-page-size {alias} differ: with HSA a page is both the unit of "
            f"the KV cache and of selection; give only --page-size."
        )
    page_size = asked if asked is not None else alias
    if trained is not None and page_size not in (None, trained):
        raise ValueError(
            f"--page-size {page_size}: the pages of this checkpoint are {trained} tokens and a landmark, which has no "
            "slot; drop the option."
        )
    if page_size is None:
        page_size = trained or HSAConfig.page_size
        logger.info(f"HSA selects whole pages: page_size is set to {page_size}.")
    return page_size


def _defaults(args: ServerArgs, checkpoint: dict) -> dict:
    """Values of the options that were not given, the checkpoint's before any other."""
    view = compat.arguments(args)
    defaults = {
        FIELD_PREFIX + field.name: field.default
        for field in dataclasses.fields(HSAConfig)
    }
    # Passes over an 8-bit cache stay on HSA's kernels, on which dense attention has a cost.
    quantised = view.kv_cache_dtype.startswith("fp8")
    defaults["hsa_prefill"] = "sparse" if quantised else DEFAULT_PREFILL
    if view.hsa_dense_backend is None:
        defaults["hsa_dense_backend"] = _default_dense_backend(args)
    defaults |= {FIELD_PREFIX + name: value for name, value in checkpoint.items()}
    return {name: x for name, x in defaults.items() if getattr(view, name) is None}


def _default_dense_backend(args: ServerArgs) -> str:
    view = compat.arguments(args)
    if view.device == "cpu":
        return "torch_native"
    if compat.is_deterministic(view):
        return INVARIANT_BACKEND
    best = compat.default_backend(args)
    reads_keys = best != "fa3" or view.kv_cache_dtype != "fp8_e5m2"
    return best if best in DENSE_BACKENDS and reads_keys else "triton"


def _size_window_pool(args: ServerArgs, model: ModelConfig) -> None:
    """Of a HiLS checkpoint with sliding windows: long contexts need few of their tokens, so the pool is small by default."""
    if not (is_hils(model.hf_config) and model.is_hybrid_swa):
        return
    view = compat.arguments(args)
    # What nobody gave is None since 0.5.19, and before that the default.
    if view.swa_full_tokens_ratio not in (None, type(args).swa_full_tokens_ratio):
        return
    ratio = WINDOW_TOKENS_RATIO
    if view.max_total_tokens:
        # A pass needs the window before it, and its tokens.
        chunk = max(view.chunked_prefill_size or 0, view.page_size)
        needed = model.hf_config.window_tokens + chunk + 2 * view.page_size
        ratio = min(1.0, max(ratio, needed / view.max_total_tokens))
    logger.info(
        f"HSA sets --swa-full-tokens-ratio to {ratio:.2f}: long contexts need few tokens of sliding windows. "
        "Servers of many short requests want more."
    )
    compat.declare(args, swa_full_tokens_ratio=ratio)


def _limit_cuda_graphs(args: ServerArgs) -> None:
    """Decode graphs need the kernels; the work lists of a prefill come from lengths on the host."""
    view = compat.arguments(args)
    if compat.has_graphs(view, "prefill") and view.device == "cuda":
        logger.info("Prefill runs without CUDA graphs: HSA plans it on the host.")
    compat.disable_graphs(args, "prefill")
    if view.device == "cpu" or not compat.has_graphs(view, "decode"):
        return
    if reason := HSAConfig.from_server_args(view).needs_references:
        logger.warning(f"Cuda graph is disabled because with HSA {reason}.")
        compat.disable_graphs(args, "decode")


def _align_chunked_prefill_to_pages(args: ServerArgs) -> None:
    """Prefill chunks end on page boundaries; SGLang asserts it for every page size.

    Down, but up for the pages of 63 tokens of HiLS: of a prompt of 64K, chunks of 8,190 would leave 16 tokens for a pass of
    their own. With data-parallel attention SGLang will divide the size by the ranks.
    """
    view = compat.arguments(args)
    size, page_size = view.chunked_prefill_size, view.page_size
    ranks = compat.attention_dp_size(view)
    unit = page_size * ranks
    if size is None or size <= 0 or size % unit == 0:
        return
    # No power of two, as sizes and prompts like to be.
    up = page_size & (page_size - 1) != 0
    aligned = max(size // unit + up, 1) * unit
    of_ranks = f" on each of {ranks} ranks" if ranks > 1 else ""
    logger.warning(
        f"HSA rounds chunked_prefill_size {size} to {aligned}, a multiple of page_size {page_size}{of_ranks}."
    )
    compat.declare(args, chunked_prefill_size=aligned)
