# SPDX-License-Identifier: Apache-2.0
"""HiSparse's swap-in kernel on a CPU, its own source in fibers, against the oracle: blocks of any number of warps."""

import multiprocessing
import traceback

import pytest
import torch
from cuda_build import KERNEL
from emulated_swap_in import compile_emulated
from hisparse_release import KERNEL as KERNEL_PATH
from pin import pin_file
from swap_in import lengths_for, make_state, run_steps

TOP_K, BUFFER = 64, 1088  # 34 chunks: more than a warp can sum at once, and no whole number of rounds


def check(module, top_k, buffer, requests, steps):
    state = make_state(lengths_for(top_k, buffer, requests), buffer, torch.int64, seed=buffer)
    run_steps(module, state, top_k, buffer, seed=4, steps=steps, device="cpu")


def ends_well(module, *case):
    """In a process of its own, since a kernel that writes out of bounds may end it. (Passed, what it says.)"""

    def run():
        try:
            check(module, *case)
        except BaseException:
            sender.send(traceback.format_exc())
            raise SystemExit(1)
        sender.send("")

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run)
    process.start()
    sender.close()
    try:
        said = receiver.recv()
    except EOFError:
        said = "it died"
    process.join()
    return process.exitcode == 0, said


@pytest.mark.parametrize("backwards", (0, 1), ids=("forwards", "backwards"))
@pytest.mark.parametrize("threads", (32, 64, 96, 256, 480, 512, 960, 1024))
def test_blocks_of_any_number_of_warps(tmp_path, threads, backwards):
    module = compile_emulated(tmp_path, KERNEL, TOP_K, BUFFER, threads)
    module.backwards = backwards
    passed, said = ends_well(module, TOP_K, BUFFER, 20, 3)
    assert passed, said


@pytest.mark.parametrize("top_k, buffer", ((512, 512), (512, 1024), (1024, 2048), (2048, 4096)))
def test_sizes_of_models(tmp_path, top_k, buffer):
    """With the wrapper's default of 256 threads."""
    passed, said = ends_well(compile_emulated(tmp_path, KERNEL, top_k, buffer, 256), top_k, buffer, 10, 2)
    assert passed, said


@pytest.mark.parametrize("threads, well", ((256, False), (480, False), (512, True), (960, True), (1024, True)))
def test_the_kernel_without_the_patch(tmp_path, threads, well):
    """What the patch is for, and that the coordinator's 960 threads (1024 in v0.5.10rc0) are not hit."""
    source = pin_file(KERNEL_PATH)
    if "extern __shared__" not in source.read_text():
        pytest.skip("the pinned kernel has static arrays, which are not emulated")
    passed, said = ends_well(compile_emulated(tmp_path, source, TOP_K, BUFFER, threads), TOP_K, BUFFER, 20, 3)
    assert passed == well, said
