# SPDX-License-Identifier: Apache-2.0
"""``engine_client.py`` on Triton kernels, interpreted on a CPU, over a cache whose free memory is NaN.

Run with TRITON_INTERPRET=1: ``python kernels_child.py JOB.json RESULT.json``.
"""

import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "kernels")]

import quick_interpreter  # noqa: E402, F401, a plugin that works by being imported
from engine_client import main  # noqa: E402

from sglang.srt.layers import hils_ops  # noqa: E402
from sglang.srt.layers.attention.hsa.backend import KERNELS, HSAAttnBackend  # noqa: E402
from sglang.srt.mem_cache.page_repr_pool import HSASWAKVPool, PageReprMixin  # noqa: E402


def poisoned(create):
    def create_and_poison(self):
        create(self)
        pools = (self.full_kv_pool, self.swa_kv_pool) if isinstance(self, HSASWAKVPool) else (self,)
        keys_and_values = (buffer for pool in pools for buffer in (*pool.k_buffer, *pool.v_buffer))
        for tensor in (*keys_and_values, *self.repr_buffers, *self.repr_biases):
            tensor.fill_(float("nan"))

    return create_and_poison


if __name__ == "__main__":  # the scheduler is a fork
    HSAAttnBackend._kernels_on = lambda self, device, asked: KERNELS
    hils_ops.on_kernels = lambda x: True
    PageReprMixin._create_repr_buffers = poisoned(PageReprMixin._create_repr_buffers)
    main(*sys.argv[1:])
