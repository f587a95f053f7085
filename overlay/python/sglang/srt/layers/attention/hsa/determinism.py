# SPDX-License-Identifier: Apache-2.0
"""``--enable-deterministic-inference``: what makes SGLang take HSA for it, and what it does not go with.

A row's result is the same to the bit then, whatever else is in its batch and however its prompt is cut or cached. What
the kernels do for it hangs on ``batch_invariant`` (see docs/kernels.md).
"""

from __future__ import annotations

from typing import Tuple

from sglang.srt.layers.attention.hsa import compat
from sglang.srt.layers.attention.hsa.config import INVARIANT_BACKEND
from sglang.srt.layers.attention.hsa.model_refusals import Refusal


def allow_deterministic_inference() -> None:
    """Name HSA in SGLang's lists of backends that can be deterministic, and can with a radix cache."""
    from sglang.srt import server_args

    for backends in (
        server_args.DETERMINISTIC_ATTENTION_BACKEND_CHOICES,
        server_args.RADIX_SUPPORTED_DETERMINISTIC_ATTENTION_BACKEND,
    ):
        if "hsa" not in backends:
            backends.append("hsa")


DETERMINISM_REFUSALS: Tuple[Refusal, ...] = (
    Refusal(
        "deterministic inference on the reference ops",
        "--enable-deterministic-inference with --device cpu or --hsa-strict",
        lambda args, model: compat.is_deterministic(args)
        and (args.device == "cpu" or bool(args.hsa_strict)),
        "the sums of their matrix products depend on the size of a batch",
        "use a CUDA device without --hsa-strict",
    ),
    Refusal(
        "deterministic inference by means of keys",
        "--enable-deterministic-inference with --hsa-chunk-repr mean or mean_std",
        lambda args, model: compat.is_deterministic(args)
        and args.hsa_chunk_repr in ("mean", "mean_std"),
        "decode and prefill may add up the keys of a page in different orders",
        "use slow_keys",
    ),
    Refusal(
        "deterministic inference beside another dense backend",
        "--enable-deterministic-inference with --hsa-dense-backend fa3, flashinfer or torch_native",
        lambda args, model: compat.is_deterministic(args)
        and args.device != "cpu"
        and args.hsa_dense_backend != INVARIANT_BACKEND,
        "dense layers would depend on the batch or on the radix cache; beside fa3, too, log-probabilities differed by 1e-5",
        "use --hsa-dense-backend triton",
    ),
    Refusal(
        "deterministic inference of mixed batches",
        "--enable-deterministic-inference with --enable-mixed-chunk",
        lambda args, model: compat.is_deterministic(args) and args.enable_mixed_chunk,
        "the kernels of prompts would take a step of decode whenever a prompt comes in",
        "drop --enable-mixed-chunk",
    ),
    Refusal(
        "deterministic inference with drafts, adapters or data-parallel attention",
        "--enable-deterministic-inference with --speculative-algorithm, --enable-lora, --lora-paths or --enable-dp-attention",
        lambda args, model: compat.is_deterministic(args)
        and (
            bool(args.speculative_algorithm or args.enable_lora or args.lora_paths)
            or compat.attention_dp_size(args) > 1
        ),
        "no run has compared their tokens to the bit",
        "drop the other option",
    ),
    Refusal(
        "deterministic inference of models that read images",
        "--enable-deterministic-inference with a model that reads images",
        lambda args, model: compat.is_deterministic(args) and model.is_multimodal,
        "their vision towers attend all images of a pass at once, and no run has compared them to the bit",
        "drop --enable-deterministic-inference",
    ),
)
