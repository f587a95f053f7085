# SPDX-License-Identifier: Apache-2.0
"""The rows of the support matrix: each setting of a feature with the tests that prove it, or with its refusal."""

from __future__ import annotations

from dataclasses import dataclass

IN_TREE = "overlay/python/sglang/test/attention/"
SPARSE, DENSE, STORAGE = (f"tests/hsa/test_engine_{name}.py::" for name in ("sparse", "dense", "storage"))
SCHEDULE = SPARSE + "test_schedule_does_not_change_tokens"
KERNEL_SHAPES = IN_TREE + "test_hsa_decode_kernels.py::test_shapes"
REFERENCE_DENSE = IN_TREE + "test_hsa_paged_kernel.py::test_all_pages_selected_is_dense_attention"
ON_GPU = IN_TREE + "test_hsa_engine_gpu.py::"
FP8 = STORAGE + "test_fp8_cache_gives_each_request_its_own_answer"
FP8_ORACLE = IN_TREE + "test_hsa_kv_dtypes.py::test_fp8_attention_and_selection_equal_the_oracle_on_dequantised_keys"
KINDS_AND_STRATEGIES = IN_TREE + "test_hsa_decode_kernels.py::test_every_kind_and_strategy"
OTHER_OPTIONS = SPARSE + "test_other_options_equal_the_brute_force_model"
HALF = IN_TREE + "test_hsa_kv_dtypes.py::test_half_precision_caches"
HICACHE = IN_TREE + "test_hsa_hierarchical_cache.py::test_pages_from_the_host_are_healed"
WINDOWS = "tests/hsa/test_window_memory.py::"
IMAGES = "tests/hsa/test_images.py::"
RANKS = "tests/hsa/test_dp_attention.py::"
REFUSAL_TESTS = IN_TREE + "test_hsa_refusals.py::"
DRAFTS = IN_TREE + "test_hsa_speculative_gpu.py::test_drafts_leave_the_tokens_alone"
HILS = "tests/hils/"
TOKENS = SPARSE + "test_tokens_equal_the_brute_force_model"
TWO_GPUS = "two CUDA devices for the latter"


@dataclass(frozen=True)
class Cell:
    """One setting of a feature: supported, with the tests that prove it, or refused, with the text that is printed.

    Attributes:
        feature, setting: what the row is about.
        proof: ids of tests; none if it is refused.
        refusal: `feature` of an entry of REFUSALS; empty if none of them refuses it.
        printed: text of an error that is raised once the model's layers exist, `…` for what differs; empty for none.
        needs: what the tests need beyond a CPU.
    """

    feature: str
    setting: str
    proof: tuple[str, ...] = ()
    refusal: str = ""
    printed: str = ""
    needs: str = ""


CELLS = (
    Cell("Page size", "16", (KERNEL_SHAPES, REFERENCE_DENSE + "[0.0-16]")),
    Cell("Page size", "32", (OTHER_OPTIONS,)),
    Cell("Page size", "64", (TOKENS, REFERENCE_DENSE + "[0.0-64]")),
    Cell("Page size", "128", (KERNEL_SHAPES, REFERENCE_DENSE + "[0.0-128]")),
    Cell("KV cache dtype", "float32", (TOKENS,)),
    Cell("KV cache dtype", "bfloat16", (DENSE + "test_bfloat16_differs_from_dense_by_no_more_than_its_noise", HALF)),
    Cell("KV cache dtype", "float16", (HALF,)),
    Cell("KV cache dtype", "fp8_e4m3", (FP8 + "[fp8_e4m3]", FP8_ORACLE)),
    Cell("KV cache dtype", "fp8_e5m2", (FP8 + "[fp8_e5m2]", FP8_ORACLE)),
    Cell(
        "KV cache dtype",
        "fp8 on a CPU, with layers that are dense",
        printed="--attention-backend hsa does not support a … KV cache on a CPU unless every layer uses HSA; add "
        "--hsa-layers all or leave --kv-cache-dtype at auto.",
    ),
    Cell(
        "KV cache dtype",
        "fp8 on a CPU, v0.5.23",
        printed="--attention-backend hsa does not support a … KV cache on a CPU with this release of SGLang, which leaves it "
        "to intel_amx; leave --kv-cache-dtype at auto.",
    ),
    Cell(
        "KV cache dtype",
        "another, from the checkpoint",
        printed="--attention-backend hsa does not support a … KV cache, which the checkpoint asks for; add "
        "--kv-cache-dtype bf16.",
    ),
    Cell("KV cache dtype", "fp8_e5m2 with FlashAttention 3", refusal="fp8_e5m2 keys with FlashAttention 3"),
    Cell("KV cache dtype", "fp4_e2m1", refusal="block-scaled KV cache"),
    Cell("KV cache dtype", "fp4_mx_block16", refusal="block-scaled KV cache"),
    Cell("KV cache dtype", "mxfp8", refusal="block-scaled KV cache"),
    Cell("KV cache dtype", "nvfp4", refusal="block-scaled KV cache"),
    Cell("KV cache layout", "page-major, unified, heads first", refusal="other layouts of the KV cache"),
    Cell(
        "KV cache layout",
        "sized late, or none",
        refusal="a KV cache that is sized after CUDA graphs are captured, or none",
    ),
    Cell(
        "KV cache layout",
        "any other pool",
        printed="--attention-backend hsa does not support the … that the options ask for; drop what changes the layout of "
        "the KV cache.",
    ),
    Cell("CUDA graph", "decode", (ON_GPU + "test_cuda_graphs_do_not_change_tokens",), needs="a CUDA device"),
    Cell("CUDA graph", "prefill", refusal="CUDA graphs of prefill"),
    Cell("CUDA graph", "torch.compile", refusal="torch.compile"),
    Cell("Radix cache", "on", (TOKENS, STORAGE + "test_forced_retractions_and_shuffled_shared_prefixes[True]")),
    Cell("Radix cache", "off", (SCHEDULE + "[no-radix]",)),
    Cell("Chunked prefill", "any size", (SCHEDULE + "[chunk-64]", SCHEDULE + "[chunk-1000]")),
    Cell("Mixed chunk", "on", (SCHEDULE + "[chunk-100-mixed]",)),
    Cell("Overlap schedule", "on", (STORAGE + "test_forced_retractions_and_shuffled_shared_prefixes[True]",)),
    Cell("Overlap schedule", "off", (SCHEDULE + "[no-overlap-mixed]",)),
    Cell("Overlap schedule", "two batches", refusal="two-batch overlap"),
    Cell("Overlap schedule", "prefill beside decode", refusal="prefill-decode multiplexing"),
    Cell("Speculative decoding", "EAGLE", (DRAFTS + "[EAGLE]", DRAFTS + "[EAGLE-chunked]"), needs="a CUDA device"),
    Cell("Speculative decoding", "EAGLE3", (DRAFTS + "[EAGLE3]",), needs="a CUDA device"),
    Cell(
        "Speculative decoding", "NEXTN", (REFUSAL_TESTS + "test_nextn_is_eagle", DRAFTS + "[EAGLE]"), needs="a CUDA device"
    ),
    Cell(
        "Speculative decoding",
        "STANDALONE",
        tuple(DRAFTS + f"[STANDALONE{case}]" for case in ("", "-rejected", "-dense-draft")),
        needs="a CUDA device",
    ),
    Cell("Speculative decoding", "NGRAM", refusal="NGRAM speculative decoding"),
    Cell("Speculative decoding", "DFLASH", refusal="other algorithms of speculative decoding"),
    Cell("Speculative decoding", "DSPARK", refusal="other algorithms of speculative decoding"),
    Cell("Drafts", "trees", refusal="branching drafts"),
    Cell("Drafts", "longer than a page", refusal="drafts longer than the window or than a page"),
    Cell("Drafts", "overlap worker of SGLang 0.5.13 and earlier", refusal="the overlapped drafts of SGLang 0.5.13 and earlier"),
    Cell("Drafts", "of adaptive length", refusal="drafts whose length adapts"),
    Cell("Drafts", "planned on a stream of their own", refusal="drafts that are planned on a stream of their own"),
    Cell("Drafts", "multi-layer EAGLE", refusal="multi-layer EAGLE"),
    Cell("Drafts", "CPU", refusal="speculative decoding on a CPU"),
    Cell("Drafts", "strict mode", refusal="speculative decoding in strict mode"),
    Cell("Drafts", "of a model that reads images", refusal="speculative decoding of models that read images"),
    Cell("Drafts", "hierarchical cache", refusal="speculative decoding with the hierarchical cache"),
    Cell(
        "Drafts",
        "draft model with sliding-window layers",
        printed="--attention-backend hsa does not draft with a model that has sliding-window layers; add "
        "--speculative-draft-attention-backend triton.",
    ),
    Cell("Sliding window", "layers in the common pool", (SPARSE + "test_layer_lists_and_sliding_window_layers",)),
    Cell(
        "Sliding window",
        "layers with a pool of their own",
        (WINDOWS + "test_gpt_oss_is_what_transformers_computes[64]", WINDOWS + "test_the_pool_of_windows_saves_memory"),
        needs="`scripts/test.sh -m slow` for the latter",
    ),
    Cell("Sliding window", "the same, with SGLang 0.5.12 and earlier", refusal="hybrid sliding-window memory"),
    Cell(
        "Sliding window",
        "the same, with drafts",
        refusal="speculative decoding with hybrid sliding-window memory",
    ),
    Cell(
        "Sliding window",
        "the same, with the hierarchical cache",
        refusal="the hierarchical cache with hybrid sliding-window memory",
    ),
    Cell("Sliding window", "heads of another size", refusal="heads of other sizes in sliding-window layers"),
    Cell("Sliding window", "attention chunks", refusal="chunked local attention"),
    Cell(
        "Soft cap",
        "on",
        (DENSE + "test_greedy_tokens_and_logprobs[gemma2-softcap-window]", REFERENCE_DENSE + "[5.0-64]"),
    ),
    Cell(
        "Tensor parallel",
        "up to the KV heads",
        (SPARSE + "test_two_tensor_parallel_ranks", ON_GPU + "test_tensor_parallel_ranks"),
        needs=TWO_GPUS + "; four have not run",
    ),
    Cell(
        "Tensor parallel",
        "more ranks than KV heads",
        (
            SPARSE + "test_ranks_that_share_a_kv_head_choose_for_their_own_query_heads",
            ON_GPU + "test_ranks_that_share_a_kv_head_choose_for_their_own_query_heads",
        ),
        needs=TWO_GPUS + "; it has not run",
    ),
    Cell("Data parallel", "replicas", (SPARSE + "test_two_replicas", ON_GPU + "test_two_replicas"), needs=TWO_GPUS),
    Cell(
        "Data parallel",
        "attention",
        (
            RANKS + "test_two_ranks_equal_the_brute_force_model",
            RANKS + "test_every_page_is_what_transformers_computes",
            IN_TREE + "test_hsa_padded_batches.py::test_rows_of_no_request",
            ON_GPU + "test_data_parallel_attention",
        ),
        needs="`scripts/test.sh -m slow` for the second, two CUDA devices for the last",
    ),
    Cell("Data parallel", "attention, with SGLang 0.5.12 and earlier", refusal="data-parallel attention"),
    Cell(
        "Data parallel",
        "attention, with drafts, sliding windows in a pool of their own or pplx",
        refusal="data-parallel attention with drafts, hybrid sliding-window memory or pplx",
    ),
    Cell(
        "Pipeline parallel", "on", (SPARSE + "test_two_pipeline_stages", ON_GPU + "test_two_pipeline_stages"), needs=TWO_GPUS
    ),
    Cell("Pipeline parallel", "on, with SGLang 0.5.12 and earlier", refusal="pipeline parallelism"),
    Cell("Context parallel", "on", refusal="context-parallel attention"),
    Cell("Context parallel", "decode", refusal="decode context parallelism"),
    Cell(
        "Prefill-decode disaggregation",
        "on",
        (
            "tests/hsa/test_disaggregation.py::test_tokens_are_those_of_one_engine[qwen3]",
            "tests/hsa/test_disaggregation.py::test_tokens_are_those_of_one_engine_on_gpus",
        ),
        needs="a CUDA device for the latter",
    ),
    Cell(
        "Prefill-decode disaggregation",
        "sliding windows in a pool of their own",
        ("tests/hsa/test_disaggregation.py::test_tokens_are_those_of_one_engine[gpt_oss]",),
        needs="`scripts/test.sh -m slow`",
    ),
    Cell(
        "Prefill-decode disaggregation",
        "drafts, LoRA",
        refusal="drafts or adapters with prefill-decode disaggregation",
    ),
    Cell("Prefill-decode disaggregation", "images", refusal="images with prefill-decode disaggregation"),
    Cell(
        "Prefill-decode disaggregation",
        "pipeline parallel, data-parallel attention",
        refusal="several stages or attention ranks with prefill-decode disaggregation",
    ),
    Cell(
        "Prefill-decode disaggregation",
        "hierarchical cache, retracted requests in a pool on the host",
        refusal="pools on the host with prefill-decode disaggregation",
    ),
    Cell("Prefill-decode disaggregation", "decode offload", refusal="decode KV offload"),
    Cell("Hierarchical cache", "CUDA", (HICACHE + "[kernel]", HICACHE + "[direct]"), needs="a CUDA device"),
    Cell("Hierarchical cache", "CPU", refusal="hierarchical cache on a CPU"),
    Cell("Hierarchical cache", "storage behind it", refusal="storage behind the hierarchical cache"),
    Cell("Hierarchical cache", "LMCache", refusal="LMCache"),
    Cell(
        "LoRA",
        "several adapters in a batch, each with pages of its own",
        ("tests/hsa/test_adapters.py::test_each_adapter_has_its_own_pages",),
    ),
    Cell("Deterministic inference", "on", (ON_GPU + "test_deterministic_inference",), needs="a CUDA device"),
    Cell("Deterministic inference", "on a CPU, or with --hsa-strict", refusal="deterministic inference on the reference ops"),
    Cell("Deterministic inference", "mean, mean_std", refusal="deterministic inference by means of keys"),
    Cell(
        "Deterministic inference",
        "dense layers on FA3, FlashInfer or torch_native",
        refusal="deterministic inference beside another dense backend",
    ),
    Cell("Deterministic inference", "mixed chunks", refusal="deterministic inference of mixed batches"),
    Cell(
        "Deterministic inference",
        "speculative decoding, LoRA, data-parallel attention",
        refusal="deterministic inference with drafts, adapters or data-parallel attention",
    ),
    Cell("Deterministic inference", "images", refusal="deterministic inference of models that read images"),
    Cell("CPU", "prefill and decode", (DENSE + "test_greedy_tokens_and_logprobs[qwen3-gqa]", TOKENS)),
    Cell("Models", "dense, grouped-query attention", (DENSE + "test_greedy_tokens_and_logprobs[qwen3-gqa]",)),
    Cell("Models", "dense, multi-head attention", (DENSE + "test_greedy_tokens_and_logprobs[llama-mha]",)),
    Cell(
        "Models",
        "Qwen 2, Gemma 3, Mistral, Phi 3, OLMo 2, Granite, Granite 4 without Mamba",
        (DENSE + "test_other_classes",),
        needs="`scripts/test.sh -m slow` for all but Granite",
    ),
    Cell(
        "Models",
        "other [classes that are served](model_classes.md)",
        ("tests/hsa/test_model_classes.py::test_every_page_selected_is_dense_attention",),
        needs="`scripts/test.sh -m slow`",
    ),
    Cell("HiLS checkpoints", "answers of the reference", (HILS + "test_parity.py::test_answers_are_those_of_the_reference",)),
    Cell(
        "HiLS checkpoints",
        "any chunks, mixed, without radix cache or overlap, strict",
        (HILS + "test_schedules.py::test_schedule_does_not_change_answers",),
    ),
    Cell(
        "HiLS checkpoints",
        "radix cache",
        (HILS + "test_schedules.py::test_prefixes_in_the_radix_cache_keep_their_representations",),
    ),
    Cell("HiLS checkpoints", "kernels, interpreted", (HILS + "test_kernels.py::test_answers_are_those_of_the_reference",)),
    Cell("HiLS checkpoints", "tensor parallel", (HILS + "test_schedules.py::test_two_tensor_parallel_ranks",)),
    Cell(
        "HiLS checkpoints",
        "sliding windows in a pool of their own",
        (HILS + "test_window_pool.py::test_windows_are_exact_while_pages_leave_them",),
    ),
    Cell("HiLS checkpoints", "speculative decoding", refusal="speculative decoding of HiLS checkpoints"),
    Cell(
        "HiLS checkpoints",
        "more ranks than KV heads",
        refusal="more tensor-parallel ranks than KV heads of HiLS checkpoints",
    ),
    Cell("HiLS checkpoints", "data-parallel attention", refusal="data-parallel attention of HiLS checkpoints"),
    Cell("HiLS checkpoints", "pipeline parallel", refusal="pipeline parallelism of HiLS checkpoints"),
    Cell("HiLS checkpoints", "hierarchical cache", refusal="the hierarchical cache with HiLS checkpoints"),
    Cell("HiLS checkpoints", "disaggregation", refusal="prefill-decode disaggregation of HiLS checkpoints"),
    Cell("HiLS checkpoints", "LoRA", refusal="LoRA adapters of HiLS checkpoints"),
    Cell("HiLS checkpoints", "8-bit KV cache", refusal="8-bit KV caches of HiLS checkpoints"),
    Cell(
        "HiLS checkpoints",
        "8-bit KV cache that the checkpoint asks for",
        printed="--attention-backend hsa does not support a … KV cache of a HiLS checkpoint, which its quantisation asks "
        "for; add --kv-cache-dtype bf16.",
    ),
    Cell(
        "HiLS checkpoints",
        "another attention backend",
        printed="… checkpoints were trained for HSA, which no other attention backend computes; add --attention-backend "
        "hsa.",
    ),
    Cell(
        "Models",
        "Qwen3-VL: prompts with images",
        (
            IMAGES + "test_every_page_is_what_transformers_computes[qwen3_vl]",
            IMAGES + "test_few_pages_equal_the_brute_force_model[qwen3_vl]",
        ),
    ),
    Cell(
        "Models",
        "Qwen3-VL with experts, Qwen2.5-VL, Qwen2-VL: prompts with images",
        (
            IMAGES + "test_every_page_is_what_transformers_computes",
            IMAGES + "test_few_pages_equal_the_brute_force_model",
        ),
        needs="`scripts/test.sh -m slow`",
    ),
    Cell("Models", "other multimodal ones", refusal="multimodal models"),
    Cell("Models", "MLA", refusal="multi-head latent attention"),
    Cell(
        "Models",
        "gpt-oss: learned attention sinks",
        (
            WINDOWS + "test_gpt_oss_is_what_transformers_computes[64]",
            WINDOWS + "test_sinks_and_few_pages_equal_the_brute_force_model",
        ),
    ),
    Cell("Models", "learned sinks with another dense backend than FA3 and Triton", refusal="learned sinks with FlashInfer or torch_native on a GPU"),
    Cell("Models", "learned attention sinks of others", refusal="attention sinks"),
    Cell(
        "Models",
        "attention with a temperature by position, or another soft cap than tanh",
        printed="--attention-backend hsa does not support the attention of …, which asks for …; choose another "
        "--attention-backend.",
    ),
    Cell(
        "Models",
        "layers that share a cache",
        printed="--attention-backend hsa does not support the attention of …, which shares the cache of …; choose "
        "another --attention-backend.",
    ),
    Cell("Models", "Transformers backend", refusal="the Transformers modelling backend"),
    Cell("Models", "EXAONE with sliding windows", refusal="sliding windows of EXAONE"),
    Cell("Models", "dual chunk attention", refusal="dual chunk attention"),
    Cell("Models", "Phi-3-small's blocks", refusal="block-sparse attention"),
    Cell("Models", "ALiBi", refusal="linear position biases"),
    Cell("Models", "encoder-decoder", refusal="encoder-decoder models"),
    Cell("Models", "embedding", refusal="embedding models"),
    Cell(
        "Models",
        "attention in both directions",
        printed="--attention-backend hsa does not support the attention of …, which is not causal self-attention; choose "
        "another --attention-backend.",
    ),
    Cell(
        "Models",
        "head dimension above 256 on CUDA",
        printed="the HSA kernels take head dimensions up to 256, not …; choose another --attention-backend",
    ),
    Cell("Models", "linear attention", refusal="linear-attention hybrids"),
    Cell("Models", "diffusion", refusal="diffusion language models"),
    Cell(
        "Backends",
        "dense layers and short batches",
        (
            IN_TREE + "test_hsa_backend_decode.py::test_layers_without_hsa_are_dense",
            IN_TREE + "test_hsa_backend_decode.py::test_short_batches_take_the_dense_path_and_are_counted",
        ),
    ),
    Cell("Backends", "another for prefill or decode", refusal="a different backend for prefill or decode"),
    Cell("Backends", "double sparsity", refusal="double sparsity"),
    Cell("Backends", "HiSparse", refusal="hierarchical sparse offload"),
    Cell("Selection strategy", "group, head, softmax_head", (KINDS_AND_STRATEGIES, OTHER_OPTIONS)),
    Cell("Weight mode", "mass, score", (TOKENS, OTHER_OPTIONS)),
    Cell("Page representation", "slow_keys, mean_std, mean, landmark", (KINDS_AND_STRATEGIES,)),
    Cell("Page representation", "prior", refusal="query-dependent page representations"),
)
