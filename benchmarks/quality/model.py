# SPDX-License-Identifier: Apache-2.0
"""Build a Hugging Face folder from the GGUF file of a Llama: weights, configuration, tokenizer.

Weights are what gguf's own dequantiser gives, in bfloat16. llama.cpp stores the rows of the query and key projections
in another order than Hugging Face (rotary pairs side by side instead of half a head apart); that is undone here.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from . import fetch

# GGUF's name of a tensor -> Hugging Face's.
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL = 3  # GGUF's type of a token that no text contains


def folder(gguf: Path | None = None) -> Path:
    """The model's folder in the cache; built when it is asked for first. A file that is named is checked all the same.

    Raises:
        fetch.ModelError: the model's file cannot be had.
    """
    built = fetch.cache() / f"smollm2-135m-{fetch.SHA256[:12]}"
    source = fetch.find(gguf) if gguf or not (built / "config.json").exists() else None
    if source and not (built / "config.json").exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=built.parent))
        try:
            build(source, part)
            part.chmod(0o755)
            part.replace(built)
        except OSError:
            if not (built / "config.json").exists():  # or another process was first
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return built


def build(source: Path, out: Path) -> None:
    """Write the folder of a GGUF file."""
    from gguf import GGUFReader
    from safetensors.torch import save_file

    reader = GGUFReader(str(source))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights(reader, fields), out / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(fields, out)
    (out / "config.json").write_text(json.dumps(config(fields), indent=1) + "\n", encoding="utf-8")


def weights(reader: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """State dict in bfloat16, under Hugging Face's names."""
    import numpy
    import torch
    from gguf.quants import dequantize

    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    state = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(numpy.array(dequantize(tensor.data, tensor.tensor_type), dtype=numpy.float32))
        *block, name, kind = tensor.name.split(".")  # blk.7.attn_q.weight, or output_norm.weight
        if name in heads:
            weight = halves_apart(weight, heads[name])
        prefix = f"model.layers.{block[1]}." if block else ""
        state[f"{prefix}{NAMES[name]}.{kind}"] = weight.to(torch.bfloat16).contiguous()
    return state


def halves_apart(weight: Any, heads: int) -> Any:
    """Rows of a projection ``[heads * D, N]`` from llama.cpp's order (0, D/2, 1, D/2 + 1, ...) to 0, 1, ..., D - 1."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def config(fields: dict[str, Any]) -> dict[str, Any]:
    """The configuration, whose embeddings are tied: the file has no output matrix."""
    return dict(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        head_dim=fields["llama.rope.dimension_count"],
        max_position_embeddings=fields["llama.context_length"],
        rope_theta=fields["llama.rope.freq_base"],
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_act="silu",
        tie_word_embeddings=True,
        torch_dtype="bfloat16",
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
    )


def write_tokenizer(fields: dict[str, Any], out: Path) -> None:
    """Byte-level BPE from the file's tokens and merges; every digit is a token, as in SmolLM2's own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, merges = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.merges"]
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs))
    digits, level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, level])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"]) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(out / "tokenizer.json"))
    begin, end = (tokens[fields[f"tokenizer.ggml.{name}_token_id"]] for name in ("bos", "eos"))
    about = dict(
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token=begin,
        eos_token=end,
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        pad_token=end,
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
        chat_template=fields["tokenizer.chat_template"],
    )
    (out / "tokenizer_config.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
