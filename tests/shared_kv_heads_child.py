# SPDX-License-Identifier: Apache-2.0
"""``engine_client.py`` whose ranks share KV heads as on GPUs: on a CPU SGLang would add KV heads without weights instead.

``python shared_kv_heads_child.py JOB.json RESULT.json``
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from engine_client import main  # noqa: E402

from sglang.srt.model_executor import model_runner  # noqa: E402


def unchanged(model_config, load_config, tp_size):
    return model_config


model_runner.adjust_config_with_unaligned_cpu_tp = unchanged  # in each process of a rank, too, which imports this

if __name__ == "__main__":
    main(*sys.argv[1:])
