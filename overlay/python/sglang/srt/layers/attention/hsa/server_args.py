# SPDX-License-Identifier: Apache-2.0
"""The ``--hsa-*`` options: a base class of ServerArgs, so that the patch there stays a few lines."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from typing import Optional

from sglang.srt.layers.attention.hsa import compat, refusals
from sglang.srt.layers.attention.hsa.config import (
    CHUNK_REPR_KINDS,
    DEFAULT_PREFILL,
    DENSE_BACKENDS,
    FIELD_PREFIX,
    SELECTION_STRATEGIES,
    WEIGHT_MODES,
    HSAConfig,
    option,
)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class HSAServerArgs:
    """Options of the HSA attention backend. None stands for the default in HSAConfig."""

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

    @staticmethod
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

    def _refuse_models_without_hsa(self) -> None:
        """Refuse a model before SGLang adjusts arguments to it: assertions there know backends by name.

        Raises:
            ValueError: for a model that HSA does not support, with all else that is wrong, one per line.
        """
        if refusals.uses_hsa(self) and refusals.refuses_model(
            self, self.get_model_config()
        ):
            self._handle_hsa_backend()

    def _handle_hsa_backend(self) -> None:
        """Check and resolve everything HSA needs from the server arguments.

        Raises:
            ValueError: for ``--hsa-*`` options without HSA; for invalid values and unsupported combinations, one per line.
        """
        if not refusals.uses_hsa(self):
            self._refuse_unused_hsa_options()
            return

        problems = []
        try:
            self._resolve_hsa_page_size()
        except ValueError as error:
            problems.append(str(error))
        for field in dataclasses.fields(HSAConfig):
            name = FIELD_PREFIX + field.name
            if getattr(self, name) is None:
                setattr(self, name, field.default)
        if self.hsa_prefill is None:
            # Passes over an 8-bit cache stay on HSA's kernels, on which dense attention has a cost.
            quantised = self.kv_cache_dtype.startswith("fp8")
            self.hsa_prefill = "sparse" if quantised else DEFAULT_PREFILL
        if self.hsa_dense_backend is None:
            self.hsa_dense_backend = self._default_hsa_dense_backend()
        try:
            HSAConfig.from_server_args(self)  # checks the values
        except ValueError as error:
            problems.append(str(error))
        refusals.check(self, self.get_model_config(), problems)
        if self.hsa_sink_pages == 0:
            logger.warning(
                "--hsa-sink-pages 0: pretrained models attend their first tokens from everywhere, so most lose their "
                "answers without that page; leave it at 1 unless the model was trained so."
            )
        self._limit_cuda_graphs_for_hsa()
        self._align_chunked_prefill_to_hsa_pages()

    def _refuse_unused_hsa_options(self) -> None:
        given = [
            option(field.name)
            for field in dataclasses.fields(HSAConfig)
            if getattr(self, FIELD_PREFIX + field.name) is not None
        ]
        if given:
            raise ValueError(
                f"{', '.join(given)}: only --attention-backend hsa reads this; "
                f"the attention backend is {self.attention_backend}. "
                "Add --attention-backend hsa or drop the option."
            )

    def _resolve_hsa_page_size(self) -> None:
        """``--page-size`` and its alias ``--hsa-page-size`` agree, or the one given counts for both."""
        asked, alias = self.page_size, self.hsa_page_size
        if asked is not None and alias is not None and asked != alias:
            raise ValueError(
                f"--page-size {asked} and --hsa-page-size {alias} differ: with HSA a page is both the unit of "
                f"the KV cache and of selection; give only --page-size."
            )
        page_size = asked if asked is not None else alias
        if page_size is None:
            page_size = HSAConfig.page_size
            logger.info(f"HSA selects whole pages: page_size is set to {page_size}.")
        self.page_size = self.hsa_page_size = page_size

    def _default_hsa_dense_backend(self) -> str:
        if self.device == "cpu":
            return "torch_native"
        best = self._get_default_attn_backend(
            self.use_mla_backend(), self.get_model_config()
        )
        reads_keys = best != "fa3" or self.kv_cache_dtype != "fp8_e5m2"
        return best if best in DENSE_BACKENDS and reads_keys else "triton"

    def _limit_cuda_graphs_for_hsa(self) -> None:
        """Decode graphs need the kernels; the work lists of a prefill come from lengths on the host."""
        if compat.prefill_graphs(self) and self.device == "cuda":
            logger.info("Prefill runs without CUDA graphs: HSA plans it on the host.")
        compat.disable_prefill_graphs(self)
        if self.device == "cpu" or not compat.decode_graphs(self):
            return
        if reason := HSAConfig.from_server_args(self).needs_references:
            logger.warning(f"Cuda graph is disabled because with HSA {reason}.")
            compat.disable_decode_graphs(self)

    def _align_chunked_prefill_to_hsa_pages(self) -> None:
        """Prefill chunks end on page boundaries; SGLang asserts it for every page size."""
        size = self.chunked_prefill_size
        if size is None or size <= 0 or size % self.page_size == 0:
            return
        aligned = max(size // self.page_size, 1) * self.page_size
        logger.warning(
            f"HSA rounds chunked_prefill_size {size} to {aligned}, a multiple of page_size {self.page_size}."
        )
        self.chunked_prefill_size = aligned
