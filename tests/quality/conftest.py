# SPDX-License-Identifier: Apache-2.0
"""The gates are imported from where they stand."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
