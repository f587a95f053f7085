# SPDX-License-Identifier: Apache-2.0
"""The suite, the recall tool and the training script are imported from where they stand."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "examples" / "needle")]
