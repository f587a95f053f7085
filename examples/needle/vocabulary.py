# SPDX-License-Identifier: Apache-2.0
"""The checkpoint's tokenizer: every word of the suite is one token, numbers go in groups of three digits.

Its vocabulary is written down, not learned, so it is the same everywhere. Any other text is encoded by characters
and bytes and comes back unchanged.
"""

from __future__ import annotations

import functools
import json
import random
import re
import string
from pathlib import Path

from benchmarks.retrieval import tasks
from benchmarks.retrieval.lexicon import ADJECTIVES, COUNTED, NAMES, NOUNS, PLACES, VERBS
from benchmarks.retrieval.samples import INTRO

END, PAD, UNKNOWN = "<|end|>", "<|pad|>", "<|unknown|>"
SPACE = "▁"  # how a leading space is written in a token
MULTIPLE = 64  # the embedding's rows are padded to a multiple of it


def words() -> list[str]:
    """Words with or without the space before them, as they stand in the suite's texts."""
    pick = random.Random(0)
    texts = [INTRO]
    for task in tasks.TASKS.values():
        problem = task(pick, 4096, 0.5)
        texts += [fact.sentence for fact in problem.facts] + [problem.question, problem.reply]
    texts += [tasks.filler(pick)]
    fixed = {piece.replace(" ", SPACE) for text in texts for piece in re.findall(r" ?[A-Za-z]+", text)}
    drawn = {SPACE + word for part in (ADJECTIVES, NOUNS, VERBS, PLACES, NAMES, COUNTED) for word in part}
    return sorted(fixed | drawn)


def build():
    """The tokenizer, as transformers' fast tokenizer."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    characters = sorted({SPACE, "\n", *string.printable[:95]} - {" "})
    # The space is part of a number's first group: what answers a question is then the very next token.
    groups = [f"{n:03d}" for n in range(1000)] + [f"{SPACE}{n}" for n in range(100, 1000)]
    special = [END, PAD, UNKNOWN]
    # Of the ways to cut a text, the one with the highest sum wins: whole words and groups, then characters.
    pieces = [(token, 0.0) for token in special]
    pieces += [(f"<0x{byte:02X}>", -50.0) for byte in range(256)]
    pieces += [(character, -20.0) for character in characters]
    pieces += [(token, -1.0) for token in groups + words()]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=special.index(UNKNOWN), byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, model_max_length=32768)


build_once = functools.cache(build)


def save(tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, with a class name that transformers 4 knows as well."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    fields = {**json.loads(path.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}
    fields.pop("backend", None)
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


def rows(tokenizer) -> int:
    """Rows of the embedding."""
    return -(-len(tokenizer) // MULTIPLE) * MULTIPLE
