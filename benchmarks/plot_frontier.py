# SPDX-License-Identifier: Apache-2.0
"""Draw what a kind and a budget buy: pass keys kept over the speed-up of a decode layer, the frontier as a line.

    python benchmarks/plot_frontier.py RUN --out docs/frontier.svg

RUN has ``budgets.json`` of ``benchmarks.quality``, the outputs ``decode-kinds.txt`` and ``decode-budgets.txt`` of
bench_decode_kernels.py, and ``dense-decode.txt``, times of dense layers on the decode kernel.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
from pathlib import Path

SHAPE = dict(length=65536, batch=1, heads=32, kv_heads=8, dim=128)
CONTEXT = 7500  # of the keys
SPLITS, STAGES = 32, 3  # of the dense layer at that shape
COLORS = {"slow_keys": "#2166ac", "mean_std": "#d95f02", "mean": "#b2182b"}


def layer_times(folder: Path) -> dict[tuple[str, int], float]:
    """Microseconds of selection and attention by kind and budget, at SHAPE.

    Raises:
        ValueError: the folder has none.
    """
    times = {}
    for name in ("decode-kinds.txt", "decode-budgets.txt"):
        for line in (folder / name).read_text().splitlines():
            if line.startswith("{'length'"):
                row = ast.literal_eval(line)
                if all(row[key] == value for key, value in SHAPE.items()):
                    times[row["kind"], row["topk"]] = row["both_us"]
    if not times:
        raise ValueError(f"{folder} has no decode times of {SHAPE}; run bench_decode_kernels.py")
    return times


def dense_time(folder: Path) -> float:
    """Microseconds of a dense layer at SHAPE.

    Raises:
        ValueError: the folder has none.
    """
    shape = re.escape(str(tuple(SHAPE.values())))
    text = (folder / "dense-decode.txt").read_text()
    found = re.search(rf"^dense {shape} .*\({SPLITS}, {STAGES}, ([\d.]+)\)", text, re.MULTILINE)
    if not found:
        raise ValueError(f"{folder / 'dense-decode.txt'} has no line of {SHAPE}")
    return float(found[1])


def points(folder: Path) -> tuple[list[tuple[str, int, float, int, float]], int]:
    """(kind, budget, speed-up, keys, perplexity in percent above dense) of each setting, and the keys of dense attention."""
    times, dense = layer_times(folder), dense_time(folder)
    rows = [row for row in json.loads((folder / "budgets.json").read_text())["rows"] if row["context"] == CONTEXT]
    found = [
        (*setting, dense / times[setting], row["keys"], row["ppl_loss"])
        for row in rows
        if (setting := (row["kind"], row["budget"])) in times
    ]
    if not found:
        raise ValueError(f"{folder} has no setting with both keys and times")
    return found, rows[0]["keys_dense"]


def frontier(settings: list) -> list:
    """Settings that no other beats in both speed-up and keys, the fastest last."""
    best = [a for a in settings if not any(b[2] > a[2] and b[3] >= a[3] for b in settings)]
    return sorted(best, key=lambda a: a[2])


def draw(settings: list, keys_dense: int, out: Path) -> None:
    """Write the picture; its format follows the suffix. The same settings give the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "frontier"
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.axhline(keys_dense, color="#444444", linestyle="--", linewidth=1, label="dense attention")
    right.axhline(0, color="#444444", linestyle="--", linewidth=1)
    line = frontier(settings)
    left.plot([a[2] for a in line], [a[3] for a in line], color="#bbbbbb", zorder=1, label="not beaten in both")
    for kind in dict.fromkeys(a[0] for a in settings):
        own = sorted((a for a in settings if a[0] == kind), key=lambda a: a[1])
        for axis, column in ((left, 3), (right, 4)):
            color = COLORS.get(kind, "black")
            axis.scatter([a[2] for a in own], [a[column] for a in own], color=color, label=kind, zorder=2)
    for number, (_, budget, gain, keys, loss) in enumerate(sorted(settings, key=lambda a: a[2])):
        shift = (6 if number % 2 else -16, 4)  # neighbours on either side
        left.annotate(str(budget), (gain, keys), shift, textcoords="offset points", fontsize=8)
        right.annotate(str(budget), (gain, loss), shift, textcoords="offset points", fontsize=8)
    left.set_ylim(0, 40)
    left.set_ylabel(f"pass keys of 40 at {CONTEXT:,} tokens")
    right.set_ylabel("perplexity above dense attention, %")
    left.legend(fontsize="small", loc="lower left")
    for axis in (left, right):
        axis.set_xlim(1.0, max(a[2] for a in settings) * 1.1)
        axis.set_xlabel("a decode layer, times as fast as dense (8B shape, 64K)")
        axis.grid(alpha=0.3)
    figure.suptitle("SmolLM2-135M by kind; numbers are pages selected")
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of the measurements")
    parser.add_argument("--out", type=Path, required=True, help="picture to write, such as frontier.svg")
    args = parser.parse_args()
    try:
        draw(*points(args.run), args.out)
    except (OSError, ValueError, KeyError, SyntaxError) as error:
        parser.exit(1, f"plot_frontier: error: {error}\n")
    except ModuleNotFoundError as error:
        parser.exit(1, f"plot_frontier: error: {error.name} is missing; pip install matplotlib\n")


if __name__ == "__main__":
    main()
