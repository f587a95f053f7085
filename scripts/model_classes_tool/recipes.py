# SPDX-License-Identifier: Apache-2.0
"""Which configuration each model class of the release is asked about with."""

from __future__ import annotations

from typing import Any

from model_classes_tool.configurations import LAYERS, Recipe

# The draft class of Step 3.5 takes layer 45 whatever the configuration says, so its lists per layer have 46 entries.
STEP3P5 = dict(
    num_attention_groups=2,
    moe_layers_enum="4,5,6,7",
    layer_types=["full_attention"] + ["sliding_attention"] * 3 + ["full_attention"] + ["sliding_attention"] * 3,
    sliding_window=64,
    moe_top_k=2,
    share_expert_dim=32,
    use_head_wise_attn_gate=True,
    use_moe_router_bias=True,
    need_fp32_gate=False,
    moe_router_scaling_factor=1.0,
    attention_other_setting=dict(num_attention_heads=4, num_attention_groups=2),
    yarn_only_types=[],
    partial_rotary_factors=[1.0] * LAYERS,
    swiglu_limits=[0.0] * 46,
    swiglu_limits_shared=[0.0] * 46,
    rope_theta=[10000.0] * 46,
    pad_token_id=0,
)

# Layers of classes whose default slides in none.
WINDOWS = (["sliding_attention"] * 3 + ["full_attention"]) * 2

# Classes whose configuration transformers or SGLang registers: (model type, fields that its defaults lack or have wrong
# for a small model).
KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "AfmoeForCausalLM": (
        "afmoe",
        dict(layer_types=WINDOWS),
    ),
    "ApertusForCausalLM": ("apertus", {}),
    "ArceeForCausalLM": ("arcee", {}),
    "BertForSequenceClassification": ("bert", {}),
    "BertModel": ("bert", {}),
    "CLIPModel": ("clip", {}),
    "ChatGLMModel": (
        "chatglm",
        dict(kv_channels=16, multi_query_attention=True, multi_query_group_num=2, num_layers=LAYERS, padded_vocab_size=512),
    ),
    "Cohere2ForCausalLM": ("cohere2", {}),
    "CohereForCausalLM": ("cohere", {}),
    "Contriever": ("bert", {}),
    "DbrxForCausalLM": (
        "dbrx",
        dict(
            attn_config=dict(kv_n_heads=2, clip_qkv=8.0, rope_theta=10000.0),
            ffn_config=dict(ffn_hidden_size=128, moe_num_experts=4, moe_top_k=2),
        ),
    ),
    "DeepseekV2ForCausalLM": ("deepseek_v2", {}),
    "DeepseekV32ForCausalLM": ("deepseek_v3", {}),
    "DeepseekV3ForCausalLM": ("deepseek_v3", {}),
    "DotsOCRForCausalLM": ("dots_ocr", {}),
    "Ernie4_5_ForCausalLM": ("ernie4_5", {}),
    "Ernie4_5_MoeForCausalLM": ("ernie4_5_moe", dict(moe_k=2)),
    "Exaone4ForCausalLM": ("exaone4", {}),
    "Exaone4ForCausalLM, no sliding windows": (
        "exaone4",
        dict(sliding_window=None, sliding_window_pattern=None, layer_types=["full_attention"] * LAYERS),
    ),
    "ExaoneForCausalLM": ("exaone", dict(pad_token_id=0, rope_theta=10000.0)),
    "ExaoneMoEForCausalLM": ("exaone_moe", {}),
    "FalconH1ForCausalLM": ("falcon_h1", {}),
    "GPT2LMHeadModel": ("gpt2", {}),
    "GPTBigCodeForCausalLM": ("gpt_bigcode", {}),
    "GPTJForCausalLM": ("gptj", dict(rotary_dim=16)),
    # Published configurations have hidden_act, the defaults hidden_activation alone.
    "Gemma2ForCausalLM": ("gemma2", dict(hidden_act="gelu_pytorch_tanh")),
    "Gemma2ForSequenceClassification": ("gemma2", {}),
    "Gemma3ForCausalLM": ("gemma3_text", {}),
    "Gemma3ForConditionalGeneration": ("gemma3", {}),
    "Gemma3nForCausalLM": (
        "gemma3n_text",
        dict(
            intermediate_size=128,
            num_kv_shared_layers=2,
            rope_local_base_freq=10000.0,
            activation_sparsity_pattern=[0.0] * LAYERS,
        ),
    ),
    "Gemma3nForConditionalGeneration": (
        "gemma3n",
        dict(text_config=dict(num_hidden_layers=LAYERS, intermediate_size=128, activation_sparsity_pattern=[0.0] * LAYERS)),
    ),
    "Gemma4ForCausalLM": ("gemma4_text", dict(global_head_dim=32, sliding_window=64, hidden_size_per_layer_input=16)),
    "GemmaForCausalLM": ("gemma", {}),
    "Glm4ForCausalLM": ("glm4", {}),
    "Glm4MoeForCausalLM": ("glm4_moe", {}),
    "Glm4MoeLiteForCausalLM": ("glm4_moe_lite", dict(mlp_layer_types=None)),
    "Glm4vForConditionalGeneration": ("glm4v", {}),
    "Glm4vMoeForConditionalGeneration": ("glm4v_moe", {}),
    "GlmAsrForConditionalGeneration": ("glmasr", {}),
    "GlmMoeDsaForCausalLM": ("glm_moe_dsa", dict(mlp_layer_types=None)),
    "GlmOcrForConditionalGeneration": ("glm_ocr", {}),
    "GptOssForCausalLM": ("gpt_oss", dict(swiglu_limit=7.0, sliding_window=128)),
    "GraniteForCausalLM": ("granite", {}),
    "GraniteMoeForCausalLM": ("granitemoe", dict(attention_multiplier=0.25)),
    "GraniteMoeHybridForCausalLM": (
        "granitemoehybrid",
        dict(mamba_n_heads=8, mamba_d_head=16, layer_types=["mamba"] * 7 + ["attention"]),
    ),
    "GraniteMoeHybridForCausalLM, attention layers alone": (
        "granitemoehybrid",
        dict(mamba_n_heads=8, mamba_d_head=16, layer_types=["attention"] * LAYERS, position_embedding_type="rope"),
    ),
    "HunYuanDenseV1ForCausalLM": ("hunyuan_v1_dense", dict(head_dim=16)),
    "HunYuanMoEV1ForCausalLM": (
        "hunyuan_v1_moe",
        dict(head_dim=16, moe_intermediate_size=32, moe_topk=2, num_shared_expert=1, use_mixed_mlp_moe=True),
    ),
    "JetNemotronForCausalLM": (
        "jet_nemotron",
        dict(
            hidden_size=64,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_hidden_layers=LAYERS,
            vocab_size=512,
            intermediate_size=128,
            max_position_embeddings=8192,
            layer_types=["jet", "attn", "jet", "swa"] * 2,
        ),
    ),
    "KimiLinearForCausalLM": ("kimi_linear", {}),
    "KimiVLForConditionalGeneration": ("kimi_vl", {}),
    "LagunaForCausalLM": ("laguna", dict(layer_types=WINDOWS, sliding_window=64)),
    "Lfm2ForCausalLM": ("lfm2", dict(layer_types=["conv", "full_attention"] * 4)),
    "Lfm2MoeForCausalLM": ("lfm2_moe", dict(layer_types=["conv", "full_attention"] * 4)),
    "Llama4ForCausalLM": ("llama4_text", dict(attention_chunk_size=8192)),
    "Llama4ForConditionalGeneration": ("llama4", {}),
    "LlamaForCausalLM": ("llama", {}),
    "LlamaForSequenceClassification": ("llama", {}),
    "LlavaForConditionalGeneration": ("llava", {}),
    "LongcatFlashForCausalLM": ("longcat_flash", {}),
    "MellumForCausalLM": ("mellum", dict(layer_types=WINDOWS, sliding_window=64)),
    "MiniMaxM2ForCausalLM": ("minimax_m2", dict(rope_theta=5000000.0)),
    "Ministral3ForCausalLM": ("ministral3", {}),
    "Mistral3ForConditionalGeneration": ("mistral3", {}),
    "MistralForCausalLM": ("mistral", {}),
    "MistralModel": ("mistral", {}),
    "MixtralForCausalLM": ("mixtral", {}),
    "MllamaForConditionalGeneration": ("mllama", {}),
    "NemotronHForCausalLM": ("nemotron_h", {}),
    "OPTForCausalLM": ("opt", {}),
    "Olmo2ForCausalLM": ("olmo2", {}),
    "Olmo2ForCausalLM, Olmo 3": (
        "olmo3",
        dict(rope_theta=500000.0, rope_scaling=dict(rope_type="default", rope_theta=500000.0)),
    ),
    "OlmoForCausalLM": ("olmo", {}),
    "OlmoeForCausalLM": ("olmoe", {}),
    "PaddleOCRVLForConditionalGeneration": ("paddleocr_vl", {}),
    "PersimmonForCausalLM": ("persimmon", {}),
    "Phi3ForCausalLM": ("phi3", {}),
    "PhiForCausalLM": ("phi", {}),
    "PhiMoEForCausalLM": ("phimoe", {}),
    "QuantMixtralForCausalLM": ("mixtral", dict(head_dim=16, pad_token_id=0)),
    "Qwen2AudioForConditionalGeneration": ("qwen2_audio", {}),
    "Qwen2ForCausalLM": ("qwen2", {}),
    "Qwen2ForSequenceClassification": ("qwen2", {}),
    "Qwen2MoeForCausalLM": ("qwen2_moe", {}),
    # Published configurations have in_chans, the defaults in_channels alone.
    "Qwen2VLForConditionalGeneration": ("qwen2_vl", dict(vision_config=dict(in_chans=3))),
    "Qwen2_5_VLForConditionalGeneration": ("qwen2_5_vl", {}),
    "Qwen3ForCausalLM": ("qwen3", {}),
    "Qwen3ForSequenceClassification": ("qwen3", {}),
    "Qwen3MoeForCausalLM": ("qwen3_moe", {}),
    "Qwen3NextForCausalLM": ("qwen3_next", {}),
    "Qwen3OmniMoeForConditionalGeneration": ("qwen3_omni_moe", {}),
    "Qwen3VLForConditionalGeneration": ("qwen3_vl", {}),
    "Qwen3VLMoeForConditionalGeneration": ("qwen3_vl_moe", {}),
    "Qwen3_5ForConditionalGeneration": ("qwen3_5", {}),
    "Qwen3_5MoeForConditionalGeneration": ("qwen3_5_moe", {}),
    "StableLmForCausalLM": ("stablelm", {}),
    "Starcoder2ForCausalLM": ("starcoder2", {}),
    "Step3VLForConditionalGeneration": ("step3_vl", dict(text_config=dict(pad_token_id=0, moe_layers_enum="4,5"))),
    "Step3p5ForCausalLM": ("step3p5", STEP3P5),
    "WhisperForConditionalGeneration": ("whisper", {}),
    "XLMRobertaForSequenceClassification": ("xlm-roberta", {}),
    "XLMRobertaModel": ("xlm-roberta", {}),
}

MOE = dict(
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    norm_topk_prob=True,
    num_shared_experts=1,
    first_k_dense_replace=1,
)
BAILING = dict(MOE, use_qkv_bias=False, use_bias=False, score_function=None, embedding_dropout=0.0)
DEEPSEEK_V1 = dict(n_routed_experts=None, n_shared_experts=None, first_k_dense_replace=1, moe_layer_freq=1)
GROK1 = dict(
    num_local_experts=4,
    num_experts_per_tok=2,
    embedding_multiplier_scale=1.0,
    output_multiplier_scale=1.0,
    attn_logit_softcapping=30.0,
    router_logit_softcapping=30.0,
)
INTERNLM2 = dict(bias=False)

# Classes whose configuration comes with their checkpoints, as Python code that is not here: another with its fields.
STAND_INS: dict[str, tuple[str, dict[str, Any]]] = {
    # A hidden size of 4096 is what tells the models with rotary embedding from those with ALiBi.
    "BaichuanForCausalLM": (
        "llama",
        dict(hidden_size=4096, num_attention_heads=32, num_key_value_heads=32, head_dim=128, num_hidden_layers=2),
    ),
    "BaichuanForCausalLM, ALiBi": ("llama", dict(hidden_size=5120, num_attention_heads=40, num_hidden_layers=2)),
    "BailingMoEForCausalLM": ("llama", BAILING),
    "BailingMoeForCausalLM": ("llama", BAILING),
    "BailingMoeV2ForCausalLM": ("llama", BAILING),
    "DeepseekForCausalLM": ("llama", DEEPSEEK_V1),
    "DeepseekOCRForCausalLM": ("llama", {}),
    "DeepseekVL2ForCausalLM": ("deepseek_v3", {}),
    "DotsVLMForCausalLM": ("deepseek_v3", {}),
    "Ernie4_5_VLMoeForConditionalGeneration": ("ernie4_5_moe", {}),
    "Grok1AForCausalLM": ("llama", {}),
    "Grok1ForCausalLM": ("llama", dict(GROK1, attn_temperature_len=1024)),
    "Grok1ForCausalLM, without a temperature": ("llama", GROK1),
    "Grok1ModelForCausalLM": ("llama", dict(GROK1, attn_temperature_len=1024)),
    "IQuestCoderForCausalLM": ("llama", {}),
    "IQuestLoopCoderForCausalLM": ("llama", dict(loop_num=2, loop_window_size=64)),
    "InternLM2ForCausalLM": ("llama", INTERNLM2),
    "InternLM2ForRewardModel": ("llama", INTERNLM2),
    "InternVLChatModel": ("qwen2", {}),
    "InternLM3ForCausalLM": ("llama", dict(qkv_bias=False)),
    "InternS1ForConditionalGeneration": ("qwen3", {}),
    "InternS1ProForConditionalGeneration": ("qwen3", {}),
    "JetVLMForConditionalGeneration": ("llama", {}),
    "KimiK25ForConditionalGeneration": ("deepseek_v3", {}),
    "LLaDA2MoeModelLM": (
        "llama",
        dict(
            BAILING,
            score_function="sigmoid",
            n_group=1,
            topk_group=1,
            moe_router_enable_expert_bias=True,
            use_qk_norm=True,
            partial_rotary_factor=1.0,
            routed_scaling_factor=1.0,
            rotary_dim=16,
            norm_head=False,
            moe_shared_expert_intermediate_size=32,
        ),
    ),
    "LightOnOCRForConditionalGeneration": ("llama", {}),
    "LlamaEmbeddingModel": ("llama", {}),
    "LlamaForClassification": ("llama", dict(classification_out_size=2)),
    "LlamaForSequenceClassificationWithNormal_Weights": ("llama", {}),
    "LlavaLlamaForCausalLM": ("llama", {}),
    "LlavaMistralForCausalLM": ("mistral", {}),
    "LlavaQwenForCausalLM": ("qwen2", {}),
    "LlavaVidForCausalLM": ("llama", {}),
    "MiDashengLMModel": ("qwen2", {}),
    "MiMoForCausalLM": ("qwen2", {}),
    "MiMoV2FlashForCausalLM": ("qwen2", dict(hybrid_layer_pattern=[1, 0] * 4)),
    "MiniCPM3ForCausalLM": ("llama", dict(kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=16, qk_nope_head_dim=16)),
    "MiniCPMForCausalLM": ("llama", dict(scale_emb=12, scale_depth=1.4, dim_model_base=64, num_experts=0)),
    "MiniCPMO": ("qwen2", {}),
    "MiniCPMV": ("qwen2", {}),
    "MistralLarge3ForCausalLM": ("deepseek_v3", {}),
    "MultiModalityCausalLM": ("llama", {}),
    "NVILAForConditionalGeneration": ("qwen2", {}),
    "NVILALiteForConditionalGeneration": ("qwen2", {}),
    "NemotronH_Nano_VL_V2": ("nemotron_h", {}),
    "OrionForCausalLM": ("llama", {}),
    "POINTSV15ChatModel": ("qwen2", {}),
    "Phi3SmallForCausalLM": (
        "llama",
        dict(
            hidden_act="gegelu",
            mup_attn_multiplier=1.0,
            mup_use_scaling=True,
            mup_embedding_multiplier=10.0,
            mup_width_multiplier=8.0,
            ff_intermediate_size=128,
            gegelu_limit=20.0,
            rope_embedding_base=10000,
            rope_position_scale=1.0,
            dense_attention_every_n_layers=2,
            blocksparse_block_size=64,
            blocksparse_homo_head_pattern=False,
            blocksparse_num_local_blocks=16,
            blocksparse_vert_stride=8,
            blocksparse_triton_kernel_block_size=64,
            layer_norm_epsilon=1e-5,
            dummy_token_indices=[],
        ),
    ),
    "Phi4MMForCausalLM": ("phi3", {}),
    "PixtralForConditionalGeneration": ("deepseek_v3", {}),
    "QWenLMHeadModel": ("llama", dict(layer_norm_epsilon=1e-6, seq_length=4096, rotary_emb_base=10000, kv_channels=16)),
    "Qwen2ForRewardModel": ("qwen2", {}),
    "Qwen3ForRewardModel": ("qwen3", {}),
    "SDARForCausalLM": ("qwen3", {}),
    "SDARMoeForCausalLM": ("qwen3_moe", {}),
    "Sarashina2VisionForCausalLM": ("llama", {}),
    "SarvamMLAForCausalLM": ("deepseek_v3", {}),
    "SarvamMoEForCausalLM": ("llama", dict(BAILING, use_qk_norm=True)),
    "SolarForCausalLM": ("llama", dict(bskcn_1=[2], bskcn_2=[3], bskcn_3=[5], bskcn_4=[6], bskcn_tv=[0.9, 0.8])),
    "StepVLForConditionalGeneration": ("qwen3", {}),
    "TeleFLMForCausalLM": ("llama", dict(use_mup=False)),
    "TorchNativeLlamaForCausalLM": ("llama", {}),
    "TorchNativePhi3ForCausalLM": ("phi3", {}),
    "TransformersForCausalLM": ("llama", {}),
    "XverseForCausalLM": ("llama", {}),
    "XverseMoeForCausalLM": ("llama", dict(num_experts=4, moe_top_k=2, num_shared_experts=1)),
    "YiVLForCausalLM": ("llava", dict(mm_hidden_size=64, mm_vision_tower="openai/clip-vit-large-patch14", hidden_size=64)),
}

# Classes of draft models, asked about beside a Llama that is served.
DRAFTS: dict[str, tuple[str, dict[str, Any]]] = {
    "DeepseekV3ForCausalLMNextN": ("deepseek_v3", {}),
    "Ernie4_5_MoeForCausalLMMTP": ("ernie4_5_moe", dict(num_nextn_predict_layers=1)),
    "ExaoneMoEForCausalLMMTP": ("exaone_moe", dict(num_nextn_predict_layers=1, is_moe_layer=[False] * LAYERS)),
    "Glm4MoeForCausalLMNextN": ("glm4_moe", dict(num_nextn_predict_layers=1)),
    "GlmOcrForConditionalGenerationNextN": ("glm_ocr", {}),
    "LlamaForCausalLMEagle": ("llama", dict(num_hidden_layers=1)),
    "LlamaForCausalLMEagle3": ("llama", dict(num_hidden_layers=1, draft_vocab_size=512)),
    "LongcatFlashForCausalLMNextN": ("longcat_flash", dict(num_nextn_predict_layers=1)),
    "MiMoMTP": ("qwen2", dict(num_nextn_predict_layers=1)),
    "MiMoV2MTP": ("qwen2", dict(num_nextn_predict_layers=1)),
    "MistralLarge3ForCausalLMEagle": ("deepseek_v3", {}),
    "NemotronHForCausalLMMTP": ("nemotron_h", {}),
    "Qwen2ForCausalLMEagle": ("qwen2", dict(num_hidden_layers=1)),
    "Qwen3NextForCausalLMMTP": ("qwen3_next", dict(num_nextn_predict_layers=1)),
    "Qwen3_5ForCausalLMMTP": ("qwen3_5", dict(num_nextn_predict_layers=1)),
    "Step3p5MTP": (
        "step3p5",
        dict(
            STEP3P5, num_nextn_predict_layers=1, layer_types=["sliding_attention"] * 46, partial_rotary_factors=[1.0] * 46
        ),
    ),
}

# Classes that no configuration can ask about here, and why.
NOT_ASKED = {
    "DeciLMForCausalLM": "the descriptions of its blocks are Python code that comes with its checkpoints",
    "MindSporeForCausalLM": "needs the package mindspore and an NPU",
    "PixtralVisionModel": "a vision tower, which other models have as a part",
}


def recipes(classes: set[str]) -> dict[str, Recipe | None]:
    """How to ask about each of the classes and its variants, sorted by name; None where nobody wrote it down."""
    found: dict[str, Recipe | None] = dict.fromkeys(classes)
    for table, marks in ((KNOWN, {}), (STAND_INS, dict(stands_in=True)), (DRAFTS, dict(draft=True))):
        for name, (model_type, fields) in table.items():
            if name.partition(",")[0] in classes:
                found[name] = Recipe(model_type, fields, **marks)
    return dict(sorted(found.items()))
