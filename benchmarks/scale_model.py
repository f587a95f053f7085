# SPDX-License-Identifier: Apache-2.0
"""What more GPUs do, on paper: steps, prompts and output of an 8B shape on ranks and replicas, beside what was measured.

Prints two tables for docs/scaling.md, which explains them. Needs nothing but Python.

    python benchmarks/scale_model.py
"""

from __future__ import annotations

from typing import NamedTuple

from geometries import GEOMETRIES

# In bfloat16; input and output share their embedding.
SHAPE = GEOMETRIES["8b"]
LAYERS, HIDDEN, INTER = SHAPE["layers"], SHAPE["hidden"], SHAPE["inter"]
HEADS, KV_HEADS, DIM = SHAPE["heads"], SHAPE["kv_heads"], SHAPE["head_dim"]
PARAMETERS = LAYERS * (2 * HIDDEN * HEADS * DIM + 2 * HIDDEN * KV_HEADS * DIM + 3 * HIDDEN * INTER)  # of the layers
WEIGHTS = 2 * (PARAMETERS + 151936 * HIDDEN)  # bytes
# HSA's defaults: slow_keys, 32 pages of 64, window of 512, a sink; the first layer is dense.
PAGE, ATTENDED, REPRESENTATION = 64, (1 + 32 + 9) * 64, 4 * 64 + 64 * 32  # pages' slots; bytes of a page and KV head

# Fitted to the rows of CHECKS that say so, and SPARSE_EFFICIENCY to selection and attention of 16 x 64K (153 us a layer).
BANDWIDTH = 4.2e12  # bytes/s that a step reads
PER_LAYER = 33e-6  # s of a decode layer's launches and small kernels
LEAST_SPARSE = 24e-6  # s of selection and attention of a layer, however little it reads
SPARSE_EFFICIENCY = 0.7  # of BANDWIDTH
FLOPS = 605e12
SHARED_DENSE, SHARED_SPARSE = 0.62, 0.81  # of the time, where sequences read one document through the L2 cache
ALL_REDUCE = 275e9  # bytes/s
# Assumed.
LATENCY = 10e-6  # s of the all-reduce of a decode step
MEMORY = 0.88 * 141e9  # bytes of a GPU for weights and cache


class Deployment(NamedTuple):
    """``replicas`` servers of ``ranks`` tensor-parallel GPUs each."""

    ranks: int
    replicas: int

    def __str__(self) -> str:
        return f"{self.replicas} x {self.ranks}"


def kv_bytes(tokens: float) -> float:
    """Of one layer, all KV heads."""
    return tokens * 2 * KV_HEADS * DIM * 2


def sparse_bytes(tokens: float) -> float:
    """What a decode step reads of one sequence in a layer with HSA: representations, and the pages it attends."""
    return tokens / PAGE * KV_HEADS * REPRESENTATION + kv_bytes(min(tokens, ATTENDED))


def step(backend: str, ranks: int, sequences: float, tokens: float, shared: bool = False) -> float:
    """Seconds of a decode step of so many sequences of ``tokens``; ``shared``: of one document."""
    dense = sequences * kv_bytes(tokens) / ranks / BANDWIDTH
    sparse = sequences * sparse_bytes(tokens) / ranks / BANDWIDTH / SPARSE_EFFICIENCY
    if shared:
        dense, sparse = dense * SHARED_DENSE, sparse * SHARED_SPARSE
    seconds = WEIGHTS / ranks / BANDWIDTH + LAYERS * PER_LAYER
    if ranks > 1:
        seconds += 2 * LAYERS * LATENCY
    if backend == "fa3":
        return seconds + LAYERS * dense
    return seconds + dense + (LAYERS - 1) * max(LEAST_SPARSE, sparse)


def prefill(ranks: int, tokens: float, prefix: float = 0) -> float:
    """Seconds of a prompt's ``tokens`` behind a cached ``prefix``; attention is dense, as HSA's is below 64K."""
    products = 2 * PARAMETERS * tokens
    attention = 4 * HEADS * DIM * LAYERS * tokens * (prefix + tokens / 2)
    seconds = (products + attention) / ranks / FLOPS
    exchanged = 2 * LAYERS * tokens * HIDDEN * 2 * 2 * (ranks - 1) / ranks
    return seconds + exchanged / ALL_REDUCE


def capacity(backend: str, ranks: int) -> int:
    """Tokens whose keys and values fit beside the weights, and with HSA their representations."""
    per_token = LAYERS * kv_bytes(1)
    if backend == "hsa":
        per_token += (LAYERS - 1) * KV_HEADS * REPRESENTATION / PAGE
    return int((MEMORY * ranks - WEIGHTS) / per_token)


def fitting(backend: str, ranks: int, tokens: int, at_once: int) -> int:
    """How many of ``at_once`` sequences of ``tokens`` a replica holds."""
    return min(at_once, capacity(backend, ranks) // tokens)


def unique(backend: str, where: Deployment, tokens: int, new: int, at_once: int) -> float:
    """Output tokens/s of prompts of ``tokens`` without common parts, ``at_once`` in each replica, or as many as fit."""
    at_once = fitting(backend, where.ranks, tokens + new, at_once)
    each = prefill(where.ranks, tokens) + new * step(backend, where.ranks, at_once, tokens + new / 2) / at_once
    return where.replicas * new / each


def questions(backend: str, where: Deployment, document: int, asked: int, new: int, at_once: int, aware: bool) -> float:
    """Output tokens/s of ``asked`` questions of 130 tokens about each of many documents, ``at_once`` in each replica.

    A router that is ``aware`` of prefixes sends a document's questions to one replica, one document after the other. Another
    sends them anywhere: each replica that one reaches reads the document again, and questions of a step share nothing.
    """
    together = aware or where.replicas == 1
    readers = 1.0 if together else where.replicas * (1 - (1 - 1 / where.replicas) ** asked)
    if not together:
        at_once = fitting(backend, where.ranks, document + 130 + new, at_once)
    each = prefill(where.ranks, document) * readers / asked + prefill(where.ranks, 130, document)
    each += new * step(backend, where.ranks, at_once, document + new / 2, shared=together) / at_once
    return where.replicas * new / each


def prompts(backend: str, where: Deployment) -> float:
    """Seconds of 16 prompts of 32K and 128 new tokens, all at once."""
    each = 16 / where.replicas
    return each * prefill(where.ranks, 32768) + 128 * step(backend, where.ranks, each, 32832)


def two_waves(backend: str) -> float:
    """Seconds of 64 questions about a cached document of 64K, 256 new tokens, 32 at once, on two ranks."""
    return 64 * prefill(2, 130, 65536) + 2 * 256 * step(backend, 2, 32, 65800, shared=True)


ONE, RANKS, REPLICAS = Deployment(1, 1), Deployment(2, 1), Deployment(1, 2)
# What was measured (benchmarks/LOG.md), whether the model was fitted to it, and what it says.
CHECKS = (
    ("HSA, step of 64K", ONE, 5.71, "ms", True, lambda: 1e3 * step("hsa", 1, 1, 65536)),
    ("HSA, step of 128K", ONE, 6.05, "ms", False, lambda: 1e3 * step("hsa", 1, 1, 131072)),
    ("HSA, step of 8 x 16K", ONE, 7.06, "ms", False, lambda: 1e3 * step("hsa", 1, 8, 16384)),
    ("FA3, step of 8 x 32K", ONE, 13.74, "ms", False, lambda: 1e3 * step("fa3", 1, 8, 32768)),
    ("HSA, token of 32 questions", ONE, 15.28, "ms", True, lambda: 1e3 * step("hsa", 1, 32, 65800, True)),
    ("FA3, token of 32 questions", ONE, 50.91, "ms", True, lambda: 1e3 * step("fa3", 1, 32, 65800, True)),
    ("prompt of 32K", ONE, 1272, "ms", True, lambda: 1e3 * prefill(1, 32768)),
    ("HSA, 16K + 256, 16 at once", ONE, 402.5, "tokens/s", False, lambda: unique("hsa", ONE, 16384, 256, 16)),
    ("FA3, 16K + 256, 16 at once", ONE, 351.8, "tokens/s", False, lambda: unique("fa3", ONE, 16384, 256, 16)),
    ("HSA, 32K + 256, 12 at once", ONE, 176.5, "tokens/s", False, lambda: unique("hsa", ONE, 32768, 256, 12)),
    ("FA3, 32K + 256, 12 at once", ONE, 150.7, "tokens/s", False, lambda: unique("fa3", ONE, 32768, 256, 12)),
    ("HSA, token of 32 questions", RANKS, 9.36, "ms", False, lambda: 1e3 * step("hsa", 2, 32, 65800, True)),
    ("FA3, token of 32 questions", RANKS, 26.77, "ms", False, lambda: 1e3 * step("fa3", 2, 32, 65800, True)),
    ("HSA, 16 of 32K + 128", RANKS, 12.37, "s", True, lambda: prompts("hsa", RANKS)),
    ("FA3, 16 of 32K + 128", RANKS, 12.74, "s", False, lambda: prompts("fa3", RANKS)),
    ("HSA, 16 of 32K + 128", REPLICAS, 11.21, "s", False, lambda: prompts("hsa", REPLICAS)),
    ("HSA, 64 questions, 32 at once", RANKS, 5.77, "s", False, lambda: two_waves("hsa")),
    ("FA3, 64 questions, 32 at once", RANKS, 15.2, "s", False, lambda: two_waves("fa3")),
)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def check_table() -> str:
    """Measured and modelled, and the model's share."""
    rows = []
    for what, where, seen, unit, fitted, model in CHECKS:
        said = model()
        cells = [what, str(where), f"{seen:,} {unit}", f"{said:,.4g}", f"{said / seen:.2f}"]
        rows.append([*cells, "fitted" if fitted else "checked"])
    return table(["", "replicas x ranks", "measured", "model", "model / measured", ""], rows)


def scale_table() -> str:
    """Eight GPUs and 64, as ranks and replicas."""
    head = ["replicas x ranks", "step of 8 x 64K, ms", "prompt of 64K, s", "M tokens that fit, a replica"]
    head += ["32K + 1K, tokens/s", "questions, router aware", "router not aware"]
    rows = []
    for ranks, replicas in ((1, 1), (2, 1), (1, 8), (2, 4), (4, 2), (8, 1), (1, 64), (4, 16), (8, 8)):
        where = Deployment(ranks, replicas)

        def both(value, digits=0):
            return " / ".join(f"{value(backend):,.{digits}f}" for backend in ("hsa", "fa3"))

        rows.append(
            [
                str(where),
                both(lambda b: 1e3 * step(b, ranks, 8, 65536), 1),
                f"{prefill(ranks, 65536):.2f}",
                both(lambda b: capacity(b, ranks) / 1e6, 2),
                both(lambda b: unique(b, where, 32768, 1024, 16)),
                both(lambda b: questions(b, where, 65536, 64, 256, 32, True)),
                both(lambda b: questions(b, where, 65536, 64, 256, 32, False)),
            ]
        )
    return table(head, rows)


if __name__ == "__main__":
    print(check_table(), scale_table(), sep="\n\n")
