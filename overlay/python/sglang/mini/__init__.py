# SPDX-License-Identifier: Apache-2.0
"""A small engine: SGLang's attention kernels on a Hugging Face model, without SGLang's runtime.

See docs/mini_engine.md. Names are resolved on first use, so that importing the package does not import torch.
"""

import importlib

_MODULES = {
    "MiniEngine": "engine",
    "SamplingParams": "api",
    "Completion": "api",
    "Delta": "api",
    "MiniError": "api",
    "SglKernelAttentionBackend": "flash_attention",
}
__all__ = list(_MODULES)


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
