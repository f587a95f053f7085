# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path

import pytest

import sglang

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from overlay_tool import lock  # noqa: E402, the line above makes it importable

DEFAULT = lock.load(ROOT).default


class Elsewhere(pytest.Module):
    def collect(self):
        pytest.skip(f"the pages are of {DEFAULT}", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return None if DEFAULT == f"v{sglang.__version__}" else Elsewhere.from_parent(parent, path=module_path)
