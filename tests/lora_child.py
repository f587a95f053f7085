# SPDX-License-Identifier: Apache-2.0
"""``engine_client.py`` for engines with LoRA adapters, for which SGLang pins memory: ``lora_child.py JOB.json RESULT.json``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import without_cuda  # noqa: E402, F401, in the scheduler's process, too, which imports this
from engine_client import main  # noqa: E402

if __name__ == "__main__":
    main(*sys.argv[1:])
