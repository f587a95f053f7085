# SPDX-License-Identifier: Apache-2.0
"""Makes this folder's helpers importable, and the one of tests/hisparse that calls nvcc."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "hisparse")]
