# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path

from elsewhere import skip_modules

import sglang

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from overlay_tool import lock  # noqa: E402, the line above makes it importable

DEFAULT = lock.load(ROOT).default
if DEFAULT != f"v{sglang.__version__}":
    pytest_pycollect_makemodule = skip_modules(f"the pages are of {DEFAULT}")
