# SPDX-License-Identifier: Apache-2.0
"""What HiSparse's coordinator needs in a scheduler without a model on a host without a GPU."""

import torch

try:  # in v0.5.23 host memory is handed out in pages
    from sglang.srt.mem_cache.pool_host.hisparse import HiSparseHostPoolMixin as HostPages  # noqa: F401
except ModuleNotFoundError:

    class HostPages:
        """Nothing: host memory is handed out in tokens."""


class TorchWithoutPinning:
    """torch, for a module that pins memory, which needs a CUDA device."""

    def __getattr__(self, name):
        return getattr(torch, name)

    @staticmethod
    def tensor(*given, pin_memory=False, **options):
        return torch.tensor(*given, **options)
