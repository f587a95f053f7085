# SPDX-License-Identifier: Apache-2.0
"""``engine_client.py`` whose data-parallel attention runs on a CPU: rows are copied by torch where SGLang starts a kernel.

``python dp_attention_child.py JOB.json RESULT.json``
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import without_cuda  # noqa: E402, F401
from engine_client import main  # noqa: E402

from sglang.srt.distributed.parallel_state import GroupCoordinator  # noqa: E402
from sglang.srt.layers import dp_attention  # noqa: E402
from sglang.srt.layers.attention.hsa.backend import HSAAttnBackend  # noqa: E402


def copy_rows(dst, src, dim, offset, size, offset_src):
    """``size`` rows between the start of one tensor and ``offset`` of the other."""
    begin, end = int(offset), int(offset) + int(size)
    if offset_src:
        dst[: end - begin] = src[begin:end]
    else:
        dst[begin:end] = src[: end - begin]


# In each process of a rank, too, which imports this.
dp_attention.memcpy_triton = copy_rows
GroupCoordinator.all_gather_into_tensor = GroupCoordinator._all_gather_into_tensor
GroupCoordinator.reduce_scatter_tensor = GroupCoordinator._reduce_scatter_tensor
# What v0.5.23 asks for on a CPU instead.
HSAAttnBackend.get_cpu_graph_seq_len_fill_value = HSAAttnBackend.get_cuda_graph_seq_len_fill_value

if __name__ == "__main__":
    main(*sys.argv[1:])
