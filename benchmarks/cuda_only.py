# SPDX-License-Identifier: Apache-2.0
"""The arguments of a benchmark that has nothing to measure without a CUDA device."""

from __future__ import annotations

import argparse

import torch


def parse_args(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The parsed arguments; ends with one line and status 2 where torch sees no CUDA device."""
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, f"{parser.prog}: error: this needs a CUDA device, and torch sees none here\n")
    return args
