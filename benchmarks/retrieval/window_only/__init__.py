# SPDX-License-Identifier: Apache-2.0
"""A package for SGLANG_EXTERNAL_MODEL_PACKAGE: Qwen3 that sees nothing but a sliding window, as a baseline."""

import json


def override(window: int = 576) -> str:
    """Value of ``--json-model-override-args`` for a window of so many tokens: HSA's 512, extended to a page boundary."""
    return json.dumps({"architectures": ["Qwen3WindowForCausalLM"], "window_only": window})
