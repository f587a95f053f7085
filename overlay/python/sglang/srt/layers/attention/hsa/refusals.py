# SPDX-License-Identifier: Apache-2.0
"""What HSA does not support, as data: start-up checks it and the support matrix is generated from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence, Tuple

from sglang.srt.configs.hils import is_hils
from sglang.srt.layers.attention.hsa import compat
from sglang.srt.layers.attention.hsa.checkpoint_options import HILS_REFUSALS
from sglang.srt.layers.attention.hsa.config import SINK_BACKENDS
from sglang.srt.layers.attention.hsa.determinism import DETERMINISM_REFUSALS
from sglang.srt.layers.attention.hsa.disaggregation import DISAGGREGATION_REFUSALS
from sglang.srt.layers.attention.hsa.model_refusals import (
    HYBRID_MEMORY,
    MODEL_REFUSALS,
    Refusal,
    has_window_pool,
    is_early_release,
    reads_sinks,
)

if TYPE_CHECKING:
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.server_args import ServerArgs


def uses_hsa(args: ServerArgs) -> bool:
    """Whether any of the attention backend options names HSA."""
    return "hsa" in (
        args.attention_backend,
        args.prefill_attention_backend,
        args.decode_attention_backend,
        args.speculative_draft_attention_backend,
    )


def _mixed_pair(args: ServerArgs, model: ModelConfig) -> bool:
    return set(compat.attention_backends(args)) != {"hsa"}


def draft_shape(args: ServerArgs) -> Tuple[int, int]:
    """(branches per draft step, tokens per verification) that the server arguments lead to."""
    steps, topk = args.speculative_num_steps, args.speculative_eagle_topk
    tokens = args.speculative_num_draft_tokens
    if steps is None:
        steps, topk, tokens = compat.auto_choose_speculative_params(args)
    return topk or 1, steps + 1 if topk == 1 else tokens or steps + 1


def _drafts_with_model(args: ServerArgs) -> bool:
    """Whether a model drafts chains: the others, refused by themselves, have no parameters as those of `draft_shape`."""
    return args.speculative_algorithm in CHAINS


def _longest_draft(args: ServerArgs) -> int:
    """Draft tokens that the window keeps from being candidates, and that complete one page at most."""
    window = args.hsa_window_size if args.hsa_enable_swa_fusion else 0
    return min(max(window, 1), args.page_size)


CHAINS = ("EAGLE", "EAGLE3", "NEXTN", "STANDALONE")
BLOCK_SCALED = ("fp4_e2m1", "nvfp4", "fp4_mx_block16", "mxfp8")
_UNTESTED = "it has not been shown to keep page representations right"

REFUSALS: Tuple[Refusal, ...] = (
    *MODEL_REFUSALS,
    # Backends and kernels
    Refusal(
        "a different backend for prefill or decode",
        "--prefill-attention-backend or --decode-attention-backend",
        _mixed_pair,
        "the other backend would never write page representations",
        "set only --attention-backend hsa, and --hsa-dense-backend for the other layers",
    ),
    *HILS_REFUSALS,
    Refusal(
        "query-dependent page representations",
        "--hsa-chunk-repr prior",
        lambda args, model: args.hsa_chunk_repr == "prior"
        and not is_hils(model.hf_config),
        "they come from a trained landmark query that ordinary checkpoints lack",
        "use slow_keys, mean_std, mean or landmark",
    ),
    Refusal(
        "block-scaled KV cache",
        "--kv-cache-dtype fp4_e2m1, nvfp4, fp4_mx_block16 or mxfp8",
        lambda args, model: args.kv_cache_dtype in BLOCK_SCALED,
        "its keys have a scale per block, which no HSA op applies",
        "use --kv-cache-dtype fp8_e4m3",
    ),
    Refusal(
        "fp8_e5m2 keys with FlashAttention 3",
        "--hsa-dense-backend fa3 --kv-cache-dtype fp8_e5m2",
        lambda args, model: args.hsa_dense_backend == "fa3"
        and args.kv_cache_dtype == "fp8_e5m2",
        "FlashAttention 3 reads fp8_e4m3 only",
        "use --hsa-dense-backend triton or --kv-cache-dtype fp8_e4m3",
    ),
    Refusal(
        "learned sinks with FlashInfer or torch_native on a GPU",
        "--hsa-dense-backend flashinfer or torch_native",
        lambda args, model: reads_sinks(model)
        and args.device != "cpu"
        and args.hsa_dense_backend not in SINK_BACKENDS,
        "dense layers would leave the sinks out",
        "use --hsa-dense-backend fa3 or triton",
    ),
    Refusal(
        "double sparsity",
        "--enable-double-sparsity",
        lambda args, model: compat.asked(args, "enable_double_sparsity"),
        "it is a second, different selection of tokens over the same cache",
        "drop one of the two",
    ),
    Refusal(
        "hierarchical sparse offload",
        "--enable-hisparse",
        lambda args, model: args.enable_hisparse,
        "its allocator swaps single tokens of sparse MLA layers in and out, and a page that is "
        "partly away has no representation",
        "drop one of the two",
    ),
    Refusal(
        "CUDA graphs of prefill",
        "--enforce-piecewise-cuda-graph or --cuda-graph-backend-prefill",
        lambda args, model: compat.prefill_graphs_are_forced(args),
        "the work lists of a prefill are made on the host from its lengths, which a captured graph cannot do",
        "drop it",
    ),
    Refusal(
        "torch.compile",
        "--enable-torch-compile",
        lambda args, model: args.enable_torch_compile,
        "selection has data-dependent shapes that break the compiled graph",
        "drop --enable-torch-compile",
    ),
    *DETERMINISM_REFUSALS,
    Refusal(
        "other layouts of the KV cache",
        "--enable-page-major-kv-layout, --enable-unified-memory or SGLANG_USE_HND_KVCACHE",
        lambda args, model: compat.asked(args, "enable_page_major_kv_layout")
        or compat.asked(args, "enable_unified_memory")
        or compat.variable("SGLANG_USE_HND_KVCACHE"),
        "HSA's kernels read keys as slots of heads, and page versions belong to one pool of their own",
        "drop it",
    ),
    Refusal(
        "a KV cache that is sized after CUDA graphs are captured, or none",
        "SGLANG_ENABLE_POST_CAPTURE_KV_SIZING or --prefill-only-disable-kv-cache",
        lambda args, model: compat.asked(args, "prefill_only_disable_kv_cache")
        or compat.variable("SGLANG_ENABLE_POST_CAPTURE_KV_SIZING"),
        "representations are allocated with the keys, for as many pages",
        "drop it",
    ),
    # Cache movement
    Refusal(
        "hierarchical cache on a CPU",
        "--enable-hierarchical-cache --device cpu",
        lambda args, model: args.enable_hierarchical_cache and args.device == "cpu",
        "its transfers between host and device need device streams and compiled kernels",
        "drop --enable-hierarchical-cache",
    ),
    Refusal(
        "storage behind the hierarchical cache",
        "--hicache-storage-backend",
        lambda args, model: args.hicache_storage_backend is not None,
        "pages that return from it would be healed like those from the host, but this has not been run",
        "drop --hicache-storage-backend",
    ),
    Refusal(
        "LMCache",
        "--enable-lmcache",
        lambda args, model: args.enable_lmcache,
        "pages return from the store without their representations and the reload is untested",
        "drop --enable-lmcache",
    ),
    *DISAGGREGATION_REFUSALS,
    # Scheduling and parallelism
    Refusal(
        "speculative decoding on a CPU",
        "--speculative-algorithm --device cpu",
        lambda args, model: bool(args.speculative_algorithm) and args.device == "cpu",
        "the workers that draft and verify launch CUDA kernels",
        "drop --speculative-algorithm",
    ),
    Refusal(
        "NGRAM speculative decoding",
        "--speculative-algorithm NGRAM",
        lambda args, model: args.speculative_algorithm == "NGRAM",
        "its drafts form a tree even at a breadth of 1, and HSA verifies chains",
        "use EAGLE, EAGLE3 or STANDALONE",
    ),
    Refusal(
        "branching drafts",
        "--speculative-eagle-topk above 1, the default of some models",
        lambda args, model: _drafts_with_model(args) and draft_shape(args)[0] > 1,
        "HSA verifies chains",
        "use --speculative-eagle-topk 1 with --speculative-num-steps N --speculative-num-draft-tokens N+1",
    ),
    Refusal(
        "drafts longer than the window or than a page",
        "--speculative-num-draft-tokens",
        lambda args, model: _drafts_with_model(args)
        and draft_shape(args)[1] > _longest_draft(args),
        "a draft token could select a page that other draft tokens complete",
        "use fewer draft tokens, or a larger --hsa-window-size",
    ),
    Refusal(
        "the overlapped drafts of SGLang 0.5.13 and earlier",
        "SGLANG_ENABLE_SPEC_V2",
        lambda args, model: bool(args.speculative_algorithm)
        and compat.variable("SGLANG_ENABLE_SPEC_V2"),
        _UNTESTED,
        "unset SGLANG_ENABLE_SPEC_V2",
    ),
    Refusal(
        "other algorithms of speculative decoding",
        "--speculative-algorithm, DFLASH or DSPARK for example",
        lambda args, model: args.speculative_algorithm not in (None, "NGRAM", *CHAINS),
        _UNTESTED,
        "use EAGLE, EAGLE3 or STANDALONE",
    ),
    Refusal(
        "drafts whose length adapts",
        "--speculative-adaptive",
        lambda args, model: bool(args.speculative_algorithm)
        and compat.asked(args, "speculative_adaptive"),
        "the buffers of a pass are made for one number of draft tokens",
        "drop --speculative-adaptive",
    ),
    Refusal(
        "drafts that are planned on a stream of their own",
        "SGLANG_ENABLE_OVERLAP_PLAN_STREAM",
        lambda args, model: bool(args.speculative_algorithm)
        and compat.variable("SGLANG_ENABLE_OVERLAP_PLAN_STREAM"),
        "what is planned reads keys that the stream of the model may not have written yet",
        "unset SGLANG_ENABLE_OVERLAP_PLAN_STREAM",
    ),
    Refusal(
        "multi-layer EAGLE",
        "--enable-multi-layer-eagle",
        lambda args, model: bool(args.speculative_algorithm)
        and args.enable_multi_layer_eagle,
        _UNTESTED,
        "drop --enable-multi-layer-eagle",
    ),
    Refusal(
        "speculative decoding in strict mode",
        "--hsa-strict --speculative-algorithm",
        lambda args, model: bool(args.speculative_algorithm) and bool(args.hsa_strict),
        "the reference ops have no verification pass",
        "drop one of the two",
    ),
    Refusal(
        "speculative decoding with the hierarchical cache",
        "--enable-hierarchical-cache --speculative-algorithm",
        lambda args, model: bool(args.speculative_algorithm)
        and args.enable_hierarchical_cache,
        "the host keeps no keys of the draft model",
        "drop one of the two",
    ),
    Refusal(
        "speculative decoding with hybrid sliding-window memory",
        "--speculative-algorithm",
        lambda args, model: bool(args.speculative_algorithm) and has_window_pool(model),
        "rows of drafts read windows from the common pool alone",
        "add --disable-hybrid-swa-memory",
    ),
    Refusal(
        "speculative decoding of models that read images",
        "--speculative-algorithm",
        lambda args, model: bool(args.speculative_algorithm) and model.is_multimodal,
        "no draft has been verified after an image",
        "drop --speculative-algorithm",
    ),
    Refusal(
        "the hierarchical cache with hybrid sliding-window memory",
        "--enable-hierarchical-cache",
        lambda args, model: args.enable_hierarchical_cache and has_window_pool(model),
        _UNTESTED,
        "add --disable-hybrid-swa-memory",
    ),
    Refusal(
        "two-batch overlap",
        "--enable-two-batch-overlap",
        lambda args, model: args.enable_two_batch_overlap,
        "the child batches carry no metadata of their own for HSA",
        "drop --enable-two-batch-overlap",
    ),
    Refusal(
        "prefill-decode multiplexing",
        "--enable-pdmux",
        lambda args, model: args.enable_pdmux,
        "split prefill runs layer by layer beside decode and shares its metadata",
        "drop --enable-pdmux",
    ),
    Refusal(
        "diffusion language models",
        "--dllm-algorithm",
        lambda args, model: args.dllm_algorithm is not None,
        "blocks are rewritten after they were complete",
        "drop --dllm-algorithm",
    ),
    Refusal(
        "data-parallel attention",
        "--enable-dp-attention, with SGLang 0.5.12 and earlier",
        lambda args, model: compat.attention_dp_size(args) > 1 and is_early_release(),
        "with those releases no rank has run it",
        "use --dp-size without it",
    ),
    Refusal(
        "data-parallel attention with drafts, hybrid sliding-window memory or pplx",
        "--enable-dp-attention or --attn-dp-size",
        lambda args, model: compat.attention_dp_size(args) > 1
        and (
            bool(args.speculative_algorithm)
            or has_window_pool(model)
            or args.moe_a2a_backend == "pplx"
            or compat.variable("SGLANG_DEEPEP_V2_FORCE_MAX_LEN")
        ),
        "no rank has been idle with either, and pplx (or a forced length of deepep_v2) gives idle ranks a made-up request",
        "drop --speculative-algorithm and --moe-a2a-backend and add --disable-hybrid-swa-memory",
    ),
    Refusal(
        "context-parallel attention",
        "--attention-context-parallel-size",
        lambda args, model: args.attn_cp_size > 1,
        "a rank does not see the keys of a whole page",
        "leave it at 1",
    ),
    Refusal(
        "decode context parallelism",
        "--dcp-size",
        lambda args, model: compat.asked(args, "dcp_size", 1) > 1,
        "a rank does not see the keys of a whole page",
        "leave it at 1",
    ),
    Refusal(
        "pipeline parallelism",
        "--pipeline-parallel-size, with SGLang 0.5.12 and earlier",
        lambda args, model: args.pp_size > 1 and is_early_release(),
        "with those releases no stage has been run",
        "use --tensor-parallel-size",
    ),
)


def refuses_model(args: ServerArgs, model: ModelConfig) -> bool:
    """Whether the model is refused, whatever the options."""
    return any(
        refusal.applies(args, model)
        for refusal in MODEL_REFUSALS
        if refusal is not HYBRID_MEMORY
    )


def check(args: ServerArgs, model: ModelConfig, others: Sequence[str] = ()) -> None:
    """Raise ValueError with what was found elsewhere and every refusal that applies, one per line."""
    found = [*others, *(r.message for r in REFUSALS if r.applies(args, model))]
    if found:
        raise ValueError("\n".join(found))
