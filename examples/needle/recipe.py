# SPDX-License-Identifier: Apache-2.0
"""What is trained, for how long and on which lengths; all numbers of the recipe in one place."""

from __future__ import annotations

import dataclasses

import data
from hils import HiLSShape
from model import Shape


@dataclasses.dataclass(frozen=True)
class Stage:
    """One part of the curriculum: texts of up to ``length`` tokens.

    Attributes:
        length: tokens of the longest sequences.
        tokens: tokens per step, whatever the sequences' length.
        least: steps before it may end.
        most: steps after which it ends.
        share: of the run's time after which it ends, however many steps it had.
        pool: names, and groups of digits, that its facts are made of. To match and to copy is learned much sooner
            with few of them, and new ones are then picked up at once.
        dense: share of its texts that are full of facts.
        mixes: kinds of facts in a text, see ``data.draw``.
        topk: pages that HiLS attends; 0 for those of its shape.
    """

    length: int
    tokens: int
    least: int
    most: int
    share: float
    pool: int = 1000
    dense: float = 0.5
    mixes: tuple[str, ...] = data.MIXES
    topk: int = 0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A curriculum and its optimizer.

    Attributes:
        enough: a stage ends when this share of answer tokens is right (tasks with one right order; mean of
            the last ``window`` steps at its longest length).
        decay: share of the last stage in which the learning rate falls to a twentieth.
        text_weight: loss weight of tokens that nothing predicts, against 1 for an answer.
    """

    shape: Shape
    stages: tuple[Stage, ...]
    lr: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.05
    enough: float = 0.96
    window: int = 20
    decay: float = 0.6
    text_weight: float = 0.0


ALL_PAGES = 1 << 20  # more than any text has

# For texts that are too short to hold much: most of their tokens are answers.
FIRST = ("recital", "recital", "keys", "copies", "counts", "counts")

RECIPES = {
    # The committed checkpoint: one H200, under ten minutes.
    "needle": Recipe(
        Shape(),
        (
            Stage(64, 16384, 300, 4000, 0.10, pool=32, mixes=("recital",)),
            Stage(128, 32768, 300, 3000, 0.12, dense=1.0, mixes=FIRST),
            Stage(256, 32768, 200, 2000, 0.10),
            Stage(512, 32768, 200, 1500, 0.08),
            Stage(1024, 65536, 150, 800, 0.08),
            Stage(2048, 65536, 150, 600, 0.08),
            Stage(4096, 131072, 100, 400, 0.10),
            Stage(8192, 131072, 400, 9000, 1.0),
        ),
    ),
    # The same model with landmarks, from the committed checkpoint: all pages first, then those that it keeps.
    "hils": Recipe(
        HiLSShape(),
        (
            Stage(1024, 65536, 100, 200, 0.12, topk=ALL_PAGES),
            Stage(2048, 65536, 100, 200, 0.15, topk=ALL_PAGES),
            Stage(4096, 131072, 100, 200, 0.25),
            Stage(8192, 131072, 100, 9000, 1.0),
        ),
        lr=5e-4,
    ),
    # The same course at a size that a CPU can follow: shows that and when each skill comes.
    "cpu": Recipe(
        Shape(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
        ),
        (
            Stage(64, 2048, 300, 4000, 0.3, pool=32, mixes=("recital",)),
            Stage(128, 2048, 200, 4000, 0.25, pool=100, dense=1.0, mixes=FIRST),
            Stage(256, 2048, 200, 3000, 0.3),
            Stage(512, 4096, 200, 9000, 1.0),
        ),
        warmup=50,
    ),
    # For a test: a few seconds each.
    "hils-seconds": Recipe(
        HiLSShape(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            chunk_size=16,
            hils_sliding_window=32,
            hils_topk=2,
            lmk_q_lora_dim=8,
            rope_context_length=256,
        ),
        (Stage(128, 512, 2, 15, 0.5, pool=100, mixes=FIRST, topk=ALL_PAGES), Stage(256, 512, 2, 15, 1.0)),
        lr=1e-2,
        warmup=5,
        window=4,
    ),
    "seconds": Recipe(
        Shape(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
        ),
        (Stage(128, 512, 2, 15, 0.5, pool=100, mixes=FIRST), Stage(256, 512, 2, 15, 1.0)),
        lr=1e-2,
        warmup=5,
        window=4,
    ),
}
