# SPDX-License-Identifier: Apache-2.0
"""The checkpoint and the texts, and what is refused of them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Sequence, Tuple

from sglang.hsa_calibrate import CalibrateError
from sglang.srt.layers.attention.hsa.config import HSAConfig

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Text:
    """A text in tokens.

    Attributes:
        name: name of its file.
        ids: tokens.
        pieces: offset in ``text`` at which each token begins, or None if the tokenizer does not say.
        text: what was tokenized.
    """

    name: str
    ids: Tuple[int, ...]
    pieces: Optional[Tuple[int, ...]]
    text: str

    def cut(self, num_tokens: int) -> Text:
        """Its first tokens."""
        if len(self.ids) <= num_tokens:
            return self
        pieces = self.pieces and self.pieces[:num_tokens]
        end = self.pieces[num_tokens] if self.pieces else len(self.text)
        return Text(self.name, self.ids[:num_tokens], pieces, self.text[:end])


def load_model(folder: str, device: Optional[str], dtype: Optional[str]):
    """(model, tokenizer) of a checkpoint of transformers.

    Args:
        folder: of the checkpoint.
        device: ``cpu`` or ``cuda``; None is CUDA if there is one.
        dtype: one of ``DTYPES``; None is float32 on a CPU, elsewhere that of the checkpoint.

    Raises:
        CalibrateError: for a folder that is no checkpoint of a causal model with plain attention.
    """
    config_file = Path(folder) / "config.json"
    if not config_file.is_file():
        raise CalibrateError(f"{folder} is no checkpoint: it has no config.json.")
    try:
        raw = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError:
        raise CalibrateError(f"{config_file} is not JSON.") from None
    refuse_config(raw)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise CalibrateError(f"--device {device}: there is none; use --device cpu.")
    dtype = dtype or ("float32" if device == "cpu" else "auto")
    # SDPA ignores soft caps.
    attention = "eager" if raw.get("attn_logit_softcapping") else "sdpa"
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention, local_files_only=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        line = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise CalibrateError(f"{folder} cannot be loaded: {line}") from None
    return model.eval().to(device), tokenizer


def refuse_config(raw: dict) -> None:
    """Raise CalibrateError for a config of a model that HSA does not serve."""
    name = raw.get("model_type", "this model")
    architectures = raw.get("architectures") or ["ForCausalLM"]
    if raw.get("kv_lora_rank"):
        raise CalibrateError(
            f"{name} has MLA attention, which HSA does not support; use a model with plain multi-head attention."
        )
    if raw.get("is_encoder_decoder") or not any("CausalLM" in a for a in architectures):
        raise CalibrateError(
            f"{name} ({', '.join(architectures)}) is not a causal language model; HSA serves those only."
        )


def read_text(file: str, tokenizer) -> Text:
    """A text file in tokens, with the special tokens that the tokenizer puts before a text.

    Raises:
        CalibrateError: for a file that cannot be read, is no UTF-8 or is empty.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise CalibrateError(f"{file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise CalibrateError(f"{file} is not UTF-8 text.") from None
    if not text.strip():
        raise CalibrateError(f"{file} is empty: calibration needs text of your own.")
    fast = getattr(tokenizer, "is_fast", False)
    encoded = tokenizer(text, return_offsets_mapping=fast, verbose=False)
    pieces = tuple(start for start, _ in encoded["offset_mapping"]) if fast else None
    return Text(Path(file).name, tuple(encoded["input_ids"]), pieces, text)


def tokens_needed(config: HSAConfig) -> int:
    """Tokens of the shortest text in which a row leaves a page out and a token follows it."""
    pages = config.sink_pages + config.topk + 1
    return pages * config.page_size + max(config.effective_window, 1) + 1


def num_tokens(asked: Optional[int], default: int, model) -> int:
    """Tokens per text: those asked for, or the default, within the model's context.

    Raises:
        CalibrateError: for more than the context.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context and asked and asked > context:
        raise CalibrateError(
            f"--tokens {asked} is beyond the model's context of {context} tokens; use less."
        )
    return asked or min(default, context or default)


def check_lengths(texts: Sequence[Text], config: HSAConfig, skip: int) -> None:
    """Refuse texts that say nothing about the largest budget.

    Args:
        config: the setting with most pages.
        skip: first rows that are not scored.

    Raises:
        CalibrateError: for a text in which no scored row leaves a page out.
    """
    needed = max(tokens_needed(config), skip + 2)
    for text in texts:
        if len(text.ids) < needed:
            raise CalibrateError(
                f"{text.name} has {len(text.ids)} tokens, and nothing is left out with {config.topk} pages: at least "
                f"{needed} are needed; use longer texts, more --tokens or smaller --budgets."
            )
