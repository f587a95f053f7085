# SPDX-License-Identifier: Apache-2.0
"""``engine_client.py`` for engines with LoRA adapters: SGLang pins memory for them, which needs a GPU.

``python lora_child.py JOB.json RESULT.json``
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from engine_client import main  # noqa: E402


def unpinned(make):
    return lambda *args, pin_memory=False, **options: make(*args, **options)


# In the scheduler's process, too, which imports this.
torch.tensor, torch.empty, torch.zeros = map(unpinned, (torch.tensor, torch.empty, torch.zeros))
torch.Tensor.pin_memory = lambda tensor: tensor

if __name__ == "__main__":
    main(*sys.argv[1:])
