# SPDX-License-Identifier: Apache-2.0
"""Draw what bench_steps.py measured: prefill and decode time over context length, one curve per backend and batch size.

    python benchmarks/plot_steps.py STEPS.json [MORE.json ...] --out docs/steps.svg

Each input is the output of a run, whose last line is its JSON object. All of one picture have one geometry and GPU.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

NAMES = {"hsa": "HSA", "fa3": "FlashAttention 3", "flashinfer": "FlashInfer", "triton": "Triton"}
COLORS = {"hsa": "#d95f02", "fa3": "#1b9e77", "flashinfer": "#7570b3", "triton": "#999999"}
STYLES = ("-", "--", ":", "-.")
PANELS = (
    ("prefill_ms", "prefill_spread_ms", "Prefill, ms"),
    ("step_ms", "spread_ms", "Decode step, ms"),
)


def read(paths: list[Path]) -> tuple[dict, list[dict]]:
    """(provenance, rows) of all runs.

    Raises:
        ValueError: for a file without a run, or runs that do not belong together.
    """
    provenance, rows = {}, []
    for path in paths:
        lines = path.read_text().strip().splitlines()
        try:
            run = json.loads(lines[-1]) if lines else {}
            own = {name: run[name] for name in ("geometry", "gpu")}
            rows += run["rows"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} does not end in the JSON line of bench_steps.py; give the output of a whole run")
        if provenance and own != provenance:
            raise ValueError(f"{path} measured {own} and the first file {provenance}; draw them apart")
        provenance = own
    return provenance, rows


def draw(provenance: dict, rows: list[dict], out: Path) -> None:
    """Write the picture; its format follows the suffix. The same rows give the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "steps"
    batches = sorted({row["batch"] for row in rows})
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, (value, spread, label) in zip(axes, PANELS):
        # A prefill of more prompts takes that many times as long and shows nothing else.
        shown = batches[:1] if value == "prefill_ms" else batches
        for backend in dict.fromkeys(row["backend"] for row in rows):
            for batch, style in zip(shown, STYLES):
                own = sorted(
                    (row["length"], row[value], row[spread] / 2)
                    for row in rows
                    if (row["backend"], row["batch"]) == (backend, batch)
                )
                if own:
                    name = NAMES.get(backend, backend) + (f", batch {batch}" if len(shown) > 1 else "")
                    axis.errorbar(
                        *zip(*own), label=name, color=COLORS.get(backend, "black"), linestyle=style, marker="."
                    )
        lengths = sorted({row["length"] for row in rows})
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(lengths, [f"{n // 1024}K" for n in lengths])
        axis.set_xlabel("context, tokens")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize="small")
    figure.suptitle(f"{provenance['geometry']}, {provenance['gpu']}")
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="picture to write, such as steps.svg")
    args = parser.parse_args()
    try:
        draw(*read(args.runs), args.out)
    except (OSError, ValueError) as error:
        parser.exit(1, f"plot_steps: error: {error}\n")
    except ModuleNotFoundError as error:
        parser.exit(1, f"plot_steps: error: {error.name} is missing; pip install matplotlib\n")


if __name__ == "__main__":
    main()
