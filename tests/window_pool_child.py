# SPDX-License-Identifier: Apache-2.0
"""``engine_client.py`` with a pool of sliding windows whose pages are handed out in random order and are NaN once freed.

``python window_pool_child.py JOB.json RESULT.json``
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from engine_client import main  # noqa: E402

from sglang.srt.mem_cache.page_repr_allocator import HSASWATokenToKVPoolAllocator  # noqa: E402


def disturbed(init):
    def init_and_disturb(self, *args, **kwargs):
        init(self, *args, **kwargs)
        windows, pool = self.swa_attn_allocator, self._kvcache.swa_kv_pool
        free = windows.free
        order = torch.randperm(len(windows.free_pages), generator=torch.Generator().manual_seed(0))
        windows.free_pages = windows.free_pages[order]

        def poison_and_free(slots):
            for buffer in (*pool.k_buffer, *pool.v_buffer):
                buffer[slots] = float("nan")
            free(slots)

        windows.free = poison_and_free

    return init_and_disturb


if __name__ == "__main__":  # the scheduler is a fork
    HSASWATokenToKVPoolAllocator.__init__ = disturbed(HSASWATokenToKVPoolAllocator.__init__)
    main(*sys.argv[1:])
