# SPDX-License-Identifier: Apache-2.0
"""How many tokens of keys a radix cache copies."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sglang.srt.mem_cache.radix_cache import RadixKey


@contextmanager
def counted_copies() -> Iterator[list[int]]:
    """One number, to which each slice of a key adds its tokens while the context lasts."""
    copied = [0]
    original = RadixKey.__getitem__

    def counting(key, index):
        part = original(key, index)
        copied[0] += len(part)
        return part

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RadixKey, "__getitem__", counting)
        yield copied
