# SPDX-License-Identifier: Apache-2.0
"""A paged cache with shuffled pages and NaN in every unused slot, for the HSA op tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, List, NamedTuple, Sequence

import numpy as np
import torch

from sglang.srt.layers.attention.hsa.config import (
    NOT_WEIGHTS,
    SELECTION_STRATEGIES,
    HSAConfig,
)
from sglang.srt.layers.attention.hsa.page_repr import KINDS, slow_channels
from sglang.srt.layers.attention.hsa.params import AttentionParams
from sglang.test.attention.hsa_release import graphs_up_to, resolved

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

# An engine of a test on a CUDA device: prompts of some hundred tokens have more pages than it selects.
GPU_ENGINE = dict(
    attention_backend="hsa",
    hsa_dense_backend="triton",
    hsa_prefill="sparse",
    hsa_topk=8,  # of fewer pages a page more or less, for a near-tie of two, moves logits by more than NEAR_TIE
    hsa_window_size=128,
    dtype="float16",
    max_total_tokens=16384,
    max_running_requests=8,
    **graphs_up_to(8),
    mem_fraction_static=0.3,
    skip_tokenizer_init=True,
    sampling_backend="pytorch",
    grammar_backend="none",
    log_level="error",
)


def without_hsa(engine: dict) -> dict:
    """The arguments of the dense engine that one with HSA is compared with: Triton, with pages of as many tokens."""
    kept = {k: v for k, v in engine.items() if not k.startswith("hsa_")}
    return {**kept, "attention_backend": "triton", "page_size": 64}


NEAR_TIE = 0.05  # log-probability; other shapes and other orders of summation round float16 in other ways


def random_prompts(lengths: Sequence[int]) -> List[List[int]]:
    """Prompts of a vocabulary of 512, the same in every process."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 512, n).tolist() for n in lengths]


def answers(
    llm, lengths: Sequence[int], new: int, prompts_too: bool = False
) -> List[dict]:
    """Greedy answers of ``new`` tokens, with their best log-probabilities, to random prompts of these lengths.

    First to each prompt alone, then to all as a batch, which finds them in the radix cache if there is one. With
    ``prompts_too`` the first answers have the log-probabilities of their prompts.
    """
    prompts = random_prompts(lengths)
    sampling = dict(temperature=0, ignore_eos=True, max_new_tokens=new)
    ask = dict(sampling_params=sampling, return_logprob=True, top_logprobs_num=4)
    more = dict(logprob_start_len=0) if prompts_too else {}
    outputs = [llm.generate(input_ids=p, **ask, **more) for p in prompts]
    return outputs + llm.generate(input_ids=prompts, **ask)


def assert_same_up_to_near_ties(
    outputs: Sequence[dict], references: Sequence[dict], new: int
):
    """Greedy texts equal up to the first near-tie, after which they part ways; at most one in three may have one.

    Args:
        outputs, references: of ``answers``.
        new: tokens of each.
    """
    ties = 0
    for got, expected in zip(outputs, references, strict=True):
        tokens, reference = got["output_ids"], expected["output_ids"]
        assert len(tokens) == len(reference) == new
        i = next((i for i, t in enumerate(reference) if tokens[i] != t), None)
        if i is None:
            continue
        best = expected["meta_info"]["output_top_logprobs"][i]
        behind = {token: best[0][0] - logprob for logprob, token, *_ in best}
        assert behind.get(tokens[i], NEAR_TIE) < NEAR_TIE, (i, tokens[i], best)
        ties += 1
    assert 3 * ties <= len(references)


# Kinds of representation and strategies that go together.
KINDS_AND_STRATEGIES = [
    (kind, strategy)
    for kind in KINDS
    for strategy in SELECTION_STRATEGIES
    if strategy != "softmax_head" or kind not in NOT_WEIGHTS
]


def rotary_channels(head_dim: int) -> torch.Tensor:
    """Channels that slow_keys keeps of a head turned by an ordinary rotary embedding ``[R]`` int32."""
    pairs = 10000.0 ** -(torch.arange(0, head_dim, 2) / head_dim)
    return slow_channels(torch.cat([pairs, pairs]))


def make_params(
    sm_scale: float = 0.25,
    logit_cap: float = 0.0,
    mask_last_slot: bool = False,
    **options,
) -> AttentionParams:
    """Parameters of a layer; ``options`` are fields of HSAConfig."""
    config = HSAConfig(**options)
    return AttentionParams(config, sm_scale, logit_cap, mask_last_slot=mask_last_slot)


class PagedBatch(NamedTuple):
    """Sequences in a paged cache, with their keys and values in logical order beside it.

    Attributes:
        k_buffer, v_buffer: ``[num_slots, H_kv, D]``, NaN where no token lives.
        page_table: ``[B, max_pages]`` int32.
        seq_lens: ``[B]`` int32.
        k, v: per sequence ``[S, H_kv, D]`` float64 numpy.
    """

    k_buffer: torch.Tensor
    v_buffer: torch.Tensor
    page_table: torch.Tensor
    seq_lens: torch.Tensor
    k: List[np.ndarray]
    v: List[np.ndarray]


def make_batch(
    seq_lens: Sequence[int],
    *,
    page_size: int = 64,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    v_head_dim: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> PagedBatch:
    """Random sequences over randomly placed pages; page 0 stays unused, as in the pool."""
    rng = torch.Generator().manual_seed(seed)
    counts = [-(-n // page_size) for n in seq_lens]
    num_pages = sum(counts) + 3
    v_head_dim = v_head_dim or head_dim
    k_buffer = torch.full((num_pages * page_size, num_kv_heads, head_dim), float("nan"))
    v_buffer = torch.full(
        (num_pages * page_size, num_kv_heads, v_head_dim), float("nan")
    )
    free = (torch.randperm(num_pages - 1, generator=rng) + 1).tolist()
    page_table = torch.zeros((len(seq_lens), max(counts)), dtype=torch.int32)
    keys, values = [], []
    for b, n in enumerate(seq_lens):
        pages = torch.tensor([free.pop() for _ in range(counts[b])])
        page_table[b, : counts[b]] = pages
        slots = (pages[:, None] * page_size + torch.arange(page_size)).flatten()[:n]
        # A common offset per page makes pages differ in their means, as real keys do.
        drift = torch.randn(counts[b], num_kv_heads, head_dim, generator=rng)
        k = torch.randn(n, num_kv_heads, head_dim, generator=rng)
        k += drift.repeat_interleave(page_size, 0)[:n]
        v = torch.randn(n, num_kv_heads, v_head_dim, generator=rng)
        k_buffer[slots], v_buffer[slots] = k, v
        keys.append(k.to(dtype).double().numpy())
        values.append(v.to(dtype).double().numpy())
    return PagedBatch(
        k_buffer.to(dtype),
        v_buffer.to(dtype),
        page_table,
        torch.tensor(seq_lens, dtype=torch.int32),
        keys,
        values,
    )


def slots_of(batch: PagedBatch, b: int, page: int, page_size: int) -> torch.Tensor:
    """Slots of logical page ``page`` of sequence ``b``."""
    return batch.page_table[b, page] * page_size + torch.arange(page_size)


def write_model_config(folder: Path, **fields) -> str:
    """A Qwen3 config.json without weights: all that ServerArgs reads of a model."""
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 512,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        **fields,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def server_args(model_path: str, **options) -> ServerArgs:
    """Resolved arguments of a server with HSA on a CPU."""
    from sglang.srt.server_args import ServerArgs

    defaults = dict(
        model_path=model_path,
        device="cpu",
        attention_backend="hsa",
        skip_tokenizer_init=True,
    )
    return resolved(ServerArgs(**{**defaults, **options}))


def write_random_model(folder: Path, seed: int = 0, **fields) -> str:
    """A Qwen3 checkpoint with random float32 weights, sharp enough that attention matters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    write_model_config(folder, initializer_range=0.15, **fields)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    model.save_pretrained(folder)
    return str(folder)


def repeat_kv_heads(checkpoint: str, folder: Path, times: int) -> str:
    """A ``write_random_model`` checkpoint with so many of each KV head: the same model, whose query heads share fewer keys."""
    from safetensors.torch import load_file, save_file

    fields = json.loads((Path(checkpoint) / "config.json").read_text())
    weights = load_file(Path(checkpoint) / "model.safetensors")
    for name, weight in weights.items():
        if "k_proj" in name or "v_proj" in name:
            heads = weight.unflatten(0, (-1, fields["head_dim"]))
            weights[name] = heads.repeat_interleave(times, 0).flatten(0, 1).contiguous()
    fields["num_key_value_heads"] *= times
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def write_random_gpt_oss(
    folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32
) -> str:
    """A gpt-oss checkpoint of four layers with random weights: windows of 128 in two, sinks in all.

    SGLang gives its projections the checkpoint's dtype, whatever the engine's is.
    """
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        hidden_size=128, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=64, vocab_size=512, num_local_experts=4, num_experts_per_tok=2, sliding_window=128,
        initializer_range=0.15, max_position_embeddings=32768, rope_parameters=dict(rope_type="default", rope_theta=10000.0),
        bos_token_id=0, eos_token_id=1, pad_token_id=2, swiglu_limit=7.0,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = GptOssForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.sinks.add_(2.0)  # enough to take mass from keys
    model.to(dtype).save_pretrained(folder)
    return str(folder)


def write_random_adapter(checkpoint: str, folder: Path, seed: int) -> str:
    """A LoRA adapter of rank 8 with random weights, of the projections of all attention layers of a checkpoint.

    ``folder`` gets the adapter, whose path is returned, and the checkpoint into which it is merged as ``merged``.
    """
    import shutil

    from safetensors.torch import load_file, save_file

    rank, alpha = 8, 16
    projections = ["q_proj", "k_proj", "v_proj", "o_proj"]
    weights = load_file(Path(checkpoint) / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, weight in weights.items():
        if name.split(".")[-2] not in projections:
            continue
        rows, columns = weight.shape
        down = torch.randn(rank, columns, generator=generator) * columns**-0.5
        up = torch.randn(rows, rank, generator=generator) * rank**-0.5 * weight.std()
        weight += alpha / rank * up @ down
        module = f"base_model.model.{name.removesuffix('.weight')}"
        factors |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    adapter, merged = folder / "adapter", folder / "merged"
    adapter.mkdir(parents=True)
    save_file(factors, adapter / "adapter_model.safetensors")
    config = dict(
        peft_type="LORA", task_type="CAUSAL_LM", bias="none",
        r=rank, lora_alpha=alpha, target_modules=projections,
    )  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    shutil.copytree(checkpoint, merged)
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    return str(adapter)


def write_random_eagle(folder: Path, target: str, eagle3: bool, seed: int = 1) -> str:
    """A random EAGLE or EAGLE3 draft checkpoint of one Llama layer for the checkpoint in the folder ``target``."""
    from safetensors.torch import save_file

    of_target = json.loads((Path(target) / "config.json").read_text())
    names = "hidden_size intermediate_size num_attention_heads num_key_value_heads head_dim vocab_size rms_norm_eps"
    config = {name: of_target[name] for name in names.split()}
    config |= dict(
        architectures=["LlamaForCausalLMEagle3" if eagle3 else "LlamaForCausalLMEagle"],
        model_type="llama",
        hidden_act="silu",
        num_hidden_layers=1,
        max_position_embeddings=of_target["max_position_embeddings"],
        rope_theta=10000.0,
        tie_word_embeddings=False,
        torch_dtype="float32",
    )
    if eagle3:
        config["draft_vocab_size"] = config["vocab_size"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))

    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = (
        config[name] * config["head_dim"]
        for name in ("num_attention_heads", "num_key_value_heads")
    )
    layer, wide = ("midlayer", 2 * hidden) if eagle3 else ("layers.0", hidden)
    shapes = {
        "fc.weight": (hidden, (3 if eagle3 else 2) * hidden),
        f"{layer}.self_attn.q_proj.weight": (heads, wide),
        f"{layer}.self_attn.k_proj.weight": (kv_heads, wide),
        f"{layer}.self_attn.v_proj.weight": (kv_heads, wide),
        f"{layer}.self_attn.o_proj.weight": (hidden, heads),
        f"{layer}.mlp.gate_proj.weight": (inner, hidden),
        f"{layer}.mlp.up_proj.weight": (inner, hidden),
        f"{layer}.mlp.down_proj.weight": (hidden, inner),
    }
    norms = [f"{layer}.post_attention_layernorm.weight"]
    if eagle3:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
        norms += [
            f"{layer}.input_layernorm.weight",
            f"{layer}.hidden_norm.weight",
            "norm.weight",
        ]
    else:
        shapes["fc.bias"] = (hidden,)
    rng = torch.Generator().manual_seed(seed)
    weights = {
        name: 0.15 * torch.randn(shape, generator=rng) for name, shape in shapes.items()
    }
    weights |= {name: torch.ones(hidden) for name in norms}
    save_file(weights, folder / "model.safetensors")
    return str(folder)
