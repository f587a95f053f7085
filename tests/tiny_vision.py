# SPDX-License-Identifier: Apache-2.0
"""Tiny checkpoints that read images, with their processors, and what transformers answers. Nothing is downloaded.

``build("qwen3_vl", root)`` writes a complete folder and returns its path; the same shape returns the same folder.
"""

from __future__ import annotations

import os
import random
import string
from pathlib import Path
from typing import Any, Sequence

from tiny_models import COMMON, fill_weights, greedy_tokens, write_tokenizer

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"  # where a prompt has an image

_VISION = dict(depth=3, num_heads=2, in_channels=3, spatial_merge_size=2, temporal_patch_size=2)
_QWEN3_VISION = dict(
    _VISION,
    hidden_size=32,
    intermediate_size=64,
    out_hidden_size=64,
    patch_size=16,
    num_position_embeddings=64,
    deepstack_visual_indexes=[0, 2],
)
# Channels that turn by time, height and width: the slowest of Qwen 3 turn by time, those of Qwen 2 by width.
_INTERLEAVED = dict(rope_type="default", rope_theta=10000.0, mrope_section=[4, 2, 2], mrope_interleaved=True)
_SECTIONS = dict(rope_type="default", rope_theta=10000.0, mrope_section=[2, 3, 3])

_SHAPES: dict[str, dict[str, Any]] = {
    "qwen3_vl": dict(text_config=dict(rope_parameters=_INTERLEAVED), vision_config=_QWEN3_VISION),
    "qwen3_vl_moe": dict(
        text_config=dict(rope_parameters=_INTERLEAVED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48),
        vision_config=_QWEN3_VISION,
    ),
    "qwen2_vl": dict(
        text_config=dict(rope_parameters=_SECTIONS),
        # Published configurations have in_chans, transformers reads in_channels.
        vision_config=dict(_VISION, in_chans=3, embed_dim=32, hidden_size=64, mlp_ratio=2, patch_size=14),
    ),
    "qwen2_5_vl": dict(
        text_config=dict(rope_parameters=_SECTIONS),
        vision_config=dict(
            _VISION,
            hidden_size=32,
            intermediate_size=64,
            out_hidden_size=64,
            patch_size=14,
            window_size=112,
            fullatt_block_indexes=[1],
        ),
    ),
}
_PROCESSORS = {
    "qwen3_vl": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    "qwen3_vl_moe": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
}


def build(shape: str, root: str | os.PathLike) -> Path:
    """Build or reuse one checkpoint (config, float32 safetensors, tokenizer, processor) below ``root``.

    Raises:
        KeyError: for a shape that has no entry here.
    """
    path = Path(root) / shape
    if (path / "config.json").exists():
        return path
    path.mkdir(parents=True)
    ids = _write_processor(shape, path)
    _write_model(shape, ids, path)
    return path


def write_image(path: Path, height: int, width: int, seed: int) -> str:
    """A PNG of random pixels; returns its path."""
    from PIL import Image

    Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(3 * height * width)).save(path)
    return str(path)


def words(length: int, seed: int) -> str:
    """``length`` random letters and spaces."""
    return "".join(random.Random(seed).choices(string.ascii_letters + " ", k=length))


def load(path: str | os.PathLike) -> Any:
    """The eager float32 model of transformers."""
    import torch
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def inputs(path: str | os.PathLike, text: str, images: Sequence[str]) -> tuple[list[int], dict[str, Any]]:
    """(token ids, with those of each image; what transformers' model wants beside them)."""
    from PIL import Image
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(path)
    pictures = [Image.open(name) for name in images] or None
    given = dict(processor(text=[text], images=pictures, return_tensors="pt"))
    ids = given.pop("input_ids")[0].tolist()
    given.pop("attention_mask")
    return ids, given


def hf_greedy(path: str | os.PathLike, text: str, images: Sequence[str], new_tokens: int) -> list[int]:
    """Greedy tokens of transformers; EOS does not stop it."""
    ids, given = inputs(path, text, images)
    return greedy_tokens(load(path), ids, new_tokens, **given)


def _write_processor(shape: str, path: Path) -> dict[str, int]:
    """Write the processor; returns the ids of the tokens that the configuration names."""
    import transformers

    write_tokenizer(COMMON["vocab_size"] - len(VISION_TOKENS), path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    tokenizer.add_special_tokens(dict(additional_special_tokens=list(VISION_TOKENS)))
    sizes = dict(
        patch_size=_SHAPES[shape]["vision_config"]["patch_size"],
        merge_size=2,
        temporal_patch_size=2,
        size=dict(shortest_edge=1024, longest_edge=1 << 20),
    )
    processor, video_processor = (getattr(transformers, name) for name in _PROCESSORS[shape])
    processor(
        image_processor=transformers.Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=video_processor(**sizes),
    ).save_pretrained(path)
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return dict(zip(names, tokenizer.convert_tokens_to_ids(list(VISION_TOKENS))))


def _write_model(shape: str, ids: dict[str, int], path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    fields = _SHAPES[shape]
    config = AutoConfig.for_model(
        shape, **{**fields, "text_config": {**COMMON, **fields["text_config"]}}, **ids, tie_word_embeddings=False
    )
    config.dtype = torch.float32
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    fill_weights(model, tied=False, seed=0)
    if shape != "qwen3_vl_moe":
        model.save_pretrained(path)
        return
    # Published checkpoints have the weights of experts as [experts, inputs, outputs]; transformers would not write them so.
    state = {
        name: weight.transpose(1, 2).contiguous() if ".experts." in name else weight
        for name, weight in model.state_dict().items()
    }
    model.save_pretrained(path, state_dict=state, save_original_format=False)
