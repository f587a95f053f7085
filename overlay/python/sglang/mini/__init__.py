# SPDX-License-Identifier: Apache-2.0
"""A small engine: SGLang's attention kernels on a Hugging Face model, without SGLang's runtime.

See docs/mini_engine.md. Names are resolved on first use, so that importing the package does not import torch.
"""

__all__ = [
    "MiniEngine",
    "SamplingParams",
    "Completion",
    "Delta",
    "MiniError",
    "SglKernelAttentionBackend",
]


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sglang.mini import engine

    return getattr(engine, name)
