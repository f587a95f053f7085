# SPDX-License-Identifier: Apache-2.0
"""What is compared: dense attention, HSA as it comes, with half its budget, and whatever else is asked for."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

# What an arm is there for.
DENSE, DEFAULT, HALF, EXTRA, CONTROL = "dense", "default", "half budget", "extra", "control"
OPTIONS = {"kind": "chunk-repr", "strategy": "selection-strategy", "budget": "topk", "layers": "layers"}
CAN_FA3 = """
import torch
from sgl_kernel.flash_attn import flash_attn_with_kvcache
assert torch.cuda.get_device_capability()[0] == 9
"""


class ArmError(ValueError):
    """A description of an arm that cannot be read; one line."""


@dataclass(frozen=True)
class Arm:
    """One server.

    Attributes:
        name: on screen, in tables and pictures.
        role: one of the constants above; it decides on the gate.
        options: what of HSA's options is not the default, by the names of ``OPTIONS``.
    """

    name: str
    role: str
    options: tuple[tuple[str, str], ...] = ()

    def arguments(self, dense_backend: str, on_cpu: bool) -> list[str]:
        """Options of the server that make the arm."""
        if self.role == DENSE:
            return ["--attention-backend", dense_backend]
        # Every position leaves pages out; the stretch that is dense by default would hide what a choice of pages loses.
        found = ["--attention-backend", "hsa", "--hsa-prefill", "sparse"]
        if not on_cpu:
            found += ["--hsa-dense-backend", dense_backend]
        for name, value in self.options:
            found += [f"--hsa-{OPTIONS[name]}", value]
        return found


def parse(text: str) -> Arm:
    """An arm of the command line: ``kind=mean,budget=16``, ``layers=2-29``.

    Raises:
        ArmError: it names something else.
    """
    options: dict[str, str] = {}
    for part in text.split(","):
        name, found, value = part.strip().partition("=")
        if not found and options and name[:1].isdigit():  # a comma within a list of layers
            last = next(reversed(options))
            options[last] += "," + name
            continue
        if name not in OPTIONS or not value or name in options:
            raise ArmError(f"cannot read {part!r} of the arm {text!r}: write {', '.join(f'{key}=VALUE' for key in OPTIONS)}")
        if name == "budget" and not (value.isdigit() and int(value)):
            raise ArmError(f"the budget {value!r} of the arm {text!r} is not a number of pages")
        options[name] = value
    return Arm(text, EXTRA, tuple(options.items()))


def full(default_budget: int, more: list[Arm]) -> list[Arm]:
    """Arms of the full tier."""
    half = Arm("half budget", HALF, (("budget", str(default_budget // 2)),))
    return [Arm("dense", DENSE), Arm("default", DEFAULT), half, *more]


def small(budget: int, more: list[Arm]) -> list[Arm]:
    """Arms of the small tier: a budget that leaves most pages out, and a kind that must fail with it."""
    few = ("budget", str(budget))
    control = Arm("mean", CONTROL, (("kind", "mean"), few))
    return [Arm("dense", DENSE), Arm("default kind", DEFAULT, (few,)), control, *more]


def default_budget() -> int:
    """Pages that HSA selects when nobody says otherwise."""
    from sglang.srt.layers.attention.hsa.config import HSAConfig

    return HSAConfig.topk


def dense_backend(asked: str | None, on_cpu: bool) -> str:
    """The asked one, or the best that loads."""
    if asked or on_cpu:
        return asked or "torch_native"
    loads = subprocess.run([sys.executable, "-c", CAN_FA3], capture_output=True).returncode == 0
    return "fa3" if loads else "triton"
