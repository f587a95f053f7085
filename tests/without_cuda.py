# SPDX-License-Identifier: Apache-2.0
"""Importing it lets a CPU do what SGLang asks of CUDA on every device: pinned tensors, and events before it sends."""

import torch


class Done:
    """An event of a CPU: what was asked for has been done."""

    def record(self, stream=None):
        pass

    wait = synchronize = record

    def query(self):
        return True


def unpinned(make):
    return lambda *args, pin_memory=False, **options: make(*args, **options)


torch.tensor, torch.empty, torch.zeros = map(unpinned, (torch.tensor, torch.empty, torch.zeros))
torch.Tensor.pin_memory = lambda tensor: tensor
torch.cuda.Event, torch.cuda.current_stream, torch.cuda.synchronize = Done, lambda *_: None, lambda *_: None
