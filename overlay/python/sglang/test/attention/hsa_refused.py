# SPDX-License-Identifier: Apache-2.0
"""What asks for each refusal of ``--attention-backend hsa``: arguments, or fields of a model's configuration, by its name."""

from types import SimpleNamespace

from sglang.test.attention.hsa_release import has_option

ASKED_BY_ARGUMENTS = {
    "a different backend for prefill or decode": dict(
        prefill_attention_backend="triton"
    ),
    "query-dependent page representations": dict(hsa_chunk_repr="prior"),
    "block-scaled KV cache": dict(kv_cache_dtype="fp4_e2m1"),
    "fp8_e5m2 keys with FlashAttention 3": dict(
        hsa_dense_backend="fa3", kv_cache_dtype="fp8_e5m2"
    ),
    "double sparsity": dict(enable_double_sparsity=True),
    "hierarchical sparse offload": dict(enable_hisparse=True),
    "CUDA graphs of prefill": (
        dict(enforce_piecewise_cuda_graph=True)
        if has_option("enforce_piecewise_cuda_graph")
        else dict(cuda_graph_backend_prefill="breakable")
    ),
    "other layouts of the KV cache": dict(enable_page_major_kv_layout=True),
    "decode context parallelism": dict(dcp_size=2, tp_size=2),
    "torch.compile": dict(enable_torch_compile=True),
    "deterministic inference on the reference ops": dict(
        enable_deterministic_inference=True
    ),
    "hierarchical cache on a CPU": dict(enable_hierarchical_cache=True),
    "storage behind the hierarchical cache": dict(hicache_storage_backend="file"),
    "LMCache": dict(enable_lmcache=True),
    "decode KV offload": dict(disaggregation_decode_enable_offload_kvcache=True),
    "two-batch overlap": dict(enable_two_batch_overlap=True),
    "prefill-decode multiplexing": dict(enable_pdmux=True),
    "diffusion language models": dict(dllm_algorithm="LowConfidence"),
    "context-parallel attention": dict(attn_cp_size=2, tp_size=2),
    "embedding models": dict(is_embedding=True),
}

ASKED_BY_MODEL = {
    "multi-head latent attention": dict(attention_arch=SimpleNamespace(name="MLA")),
    "attention sinks": dict(
        hf_config=SimpleNamespace(architectures=["MiMoV2FlashForCausalLM"])
    ),
    "encoder-decoder models": dict(is_encoder_decoder=True),
    "linear-attention hybrids": dict(
        hf_text_config=SimpleNamespace(
            layer_types=["linear_attention", "full_attention"]
        )
    ),
    "heads of other sizes in sliding-window layers": dict(
        hf_text_config=SimpleNamespace(head_dim=256, global_head_dim=512)
    ),
    "chunked local attention": dict(attention_chunk_size=8192),
    "multimodal models": dict(is_multimodal=True),
    "the Transformers modelling backend": dict(model_impl="transformers"),
    "sliding windows of EXAONE": dict(
        hf_config=SimpleNamespace(
            architectures=["Exaone4ForCausalLM"], sliding_window_pattern=4
        )
    ),
    "dual chunk attention": dict(
        hf_config=SimpleNamespace(
            architectures=["Qwen2ForCausalLM"], dual_chunk_attention_config={}
        )
    ),
    "block-sparse attention": dict(
        hf_config=SimpleNamespace(
            architectures=["Phi3SmallForCausalLM"], dense_attention_every_n_layers=2
        )
    ),
    "linear position biases": dict(use_alibi=True),
}


# A chain of drafts on a CUDA device; each entry asks for one thing more.
DRAFTS = dict(
    device="cuda",
    speculative_algorithm="EAGLE",
    speculative_num_steps=3,
    speculative_eagle_topk=1,
    speculative_num_draft_tokens=4,
)

# With SGLang 0.5.12 and earlier.
STAGES, IN_ONE_POOL = "pipeline parallelism", "hybrid sliding-window memory"
RANKS = "data-parallel attention"
# Of models whose sliding-window layers have a pool of their own, and learned sinks.
ASKED_OF_GPT_OSS = {
    "speculative decoding with hybrid sliding-window memory": DRAFTS,
    "the hierarchical cache with hybrid sliding-window memory": dict(
        device="cuda", enable_hierarchical_cache=True
    ),
    "data-parallel attention with drafts, hybrid sliding-window memory or pplx": dict(
        enable_dp_attention=True, dp_size=2, tp_size=2
    ),
    "learned sinks with FlashInfer or torch_native on a GPU": dict(
        device="cuda", hsa_dense_backend="flashinfer"
    ),
}

# Of models that read images; test_hsa_image_models.py.
ASKED_OF_IMAGES = {
    "speculative decoding of models that read images": {**DRAFTS, "device": "cuda"},
    "deterministic inference of models that read images": dict(
        device="cuda", hsa_dense_backend="triton", enable_deterministic_inference=True
    ),
    "images with prefill-decode disaggregation": dict(disaggregation_mode="prefill"),
}

# Of checkpoints that were trained for HSA.
ASKED_OF_HILS = {
    "speculative decoding of HiLS checkpoints": dict(
        speculative_algorithm="NEXTN", speculative_num_steps=1
    ),
    "the hierarchical cache with HiLS checkpoints": dict(
        enable_hierarchical_cache=True
    ),
    "LoRA adapters of HiLS checkpoints": dict(enable_lora=True),
    "prefill-decode disaggregation of HiLS checkpoints": dict(
        disaggregation_mode="decode"
    ),
    "8-bit KV caches of HiLS checkpoints": dict(kv_cache_dtype="fp8_e4m3"),
    "more tensor-parallel ranks than KV heads of HiLS checkpoints": dict(tp_size=4),
    "pipeline parallelism of HiLS checkpoints": dict(pp_size=2),
    "data-parallel attention of HiLS checkpoints": dict(
        enable_dp_attention=True, dp_size=2, tp_size=2
    ),
}

ASKED_BY_DRAFTS = {
    "speculative decoding on a CPU": dict(device="cpu"),
    "NGRAM speculative decoding": dict(speculative_algorithm="NGRAM"),
    "branching drafts": dict(speculative_eagle_topk=2),
    "drafts longer than the window or than a page": dict(hsa_window_size=3),
    "other algorithms of speculative decoding": dict(speculative_algorithm="DFLASH"),
    "drafts whose length adapts": dict(speculative_adaptive=True),
    "multi-layer EAGLE": dict(enable_multi_layer_eagle=True),
    "speculative decoding in strict mode": dict(hsa_strict=True),
    "speculative decoding with the hierarchical cache": dict(
        enable_hierarchical_cache=True
    ),
}

# Of a decode server.
ASKED_OF_DISAGGREGATION = {
    "drafts or adapters with prefill-decode disaggregation": dict(enable_lora=True),
    "several stages or attention ranks with prefill-decode disaggregation": dict(
        pp_size=2
    ),
    "pools on the host with prefill-decode disaggregation": dict(
        enable_hierarchical_cache=True
    ),
}

# Of deterministic inference on a CUDA device.
ASKED_OF_DETERMINISM = {
    "deterministic inference by means of keys": dict(hsa_chunk_repr="mean"),
    "deterministic inference beside another dense backend": dict(
        hsa_dense_backend="fa3"
    ),
    "deterministic inference of mixed batches": dict(enable_mixed_chunk=True),
    "deterministic inference with drafts, adapters or data-parallel attention": DRAFTS,
}

# Asked by options that not every release has.
OPTIONAL = {
    feature
    for cases in (ASKED_BY_ARGUMENTS, ASKED_BY_DRAFTS)
    for feature, asked in cases.items()
    if not all(map(has_option, asked))
}

# Asked by environment variables.
SIZED_LATE = "a KV cache that is sized after CUDA graphs are captured, or none"
ASKED_OF_DRAFTS_BY_VARIABLES = {
    "the overlapped drafts of SGLang 0.5.13 and earlier": "SGLANG_ENABLE_SPEC_V2",
    "drafts that are planned on a stream of their own": "SGLANG_ENABLE_OVERLAP_PLAN_STREAM",
}

EVERY_FEATURE = {
    *ASKED_BY_ARGUMENTS, *ASKED_BY_MODEL, *ASKED_BY_DRAFTS, *ASKED_OF_GPT_OSS, *ASKED_OF_IMAGES, *ASKED_OF_HILS,
    *ASKED_OF_DISAGGREGATION, *ASKED_OF_DETERMINISM, *ASKED_OF_DRAFTS_BY_VARIABLES,
    STAGES, IN_ONE_POOL, RANKS, SIZED_LATE,
}  # fmt: skip
