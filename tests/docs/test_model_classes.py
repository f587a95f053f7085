# SPDX-License-Identifier: Apache-2.0
"""The page of model classes says what start-up and the loader say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_current(child_env):
    """All classes of the release, none left out: the script reads them from the release's source."""
    command = [sys.executable, str(ROOT / "scripts" / "model_classes.py"), "--check"]
    done = subprocess.run(command, env=child_env(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
