# SPDX-License-Identifier: Apache-2.0
"""A package for SGLANG_EXTERNAL_MODEL_PACKAGE: Qwen3 and Llama that see nothing but a sliding window, as a baseline."""

import json


def override(window: int = 576, architecture: str = "Qwen3") -> str:
    """Value of ``--json-model-override-args`` for a window of so many tokens: HSA's 512, extended to a page boundary."""
    return json.dumps({"architectures": [f"{architecture}WindowForCausalLM"], "window_only": window})
