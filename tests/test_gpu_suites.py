# SPDX-License-Identifier: Apache-2.0
"""scripts/gpu_suites.py finds the files that need CUDA devices, and reports what pytest reports."""

import gpu_suites
import pytest
import torch

FILE = """
import os, time, pytest
{body}
@pytest.mark.skipif(True, reason="needs two CUDA devices")
def test_skips(): pass
def test_passes(): assert os.environ.get("CUDA_VISIBLE_DEVICES") == "3"
"""


def run(tmp_path, body, limit=60):
    path = tmp_path / "test_x.py"
    path.write_text(FILE.format(body=body))
    return gpu_suites.run(gpu_suites.Suite(path, 1), limit, tmp_path, device=3)


def test_files_and_the_devices_that_they_need():
    found = {suite.path.name: suite.devices for suite in gpu_suites.find_suites([])}
    assert (found["test_hsa_decode_kernels.py"], found["test_gpu.py"], found["test_hsa_engine_gpu.py"]) == (1, 2, 4)
    assert "test_hsa_refusals.py" not in found and len(found) > 15
    assert {suite.path.name for suite in gpu_suites.find_suites(["gpt_oss"])} == {"test_hsa_gpt_oss_gpu.py"}


def test_outcomes(tmp_path):
    suite = run(tmp_path, "def test_fails(): assert False")
    assert suite.counts == dict(passed=1, failed=1, skipped=1) and suite.bad
    text = gpu_suites.table([suite])
    assert "| test_x.py | 1 | 1 | 1 | 1 |" in text and text.endswith("1 skipped: needs two CUDA devices")
    assert not run(tmp_path, "").bad


@pytest.mark.parametrize(
    "body,limit,note", [("def test_slow(): time.sleep(60)", 5, "ran out of 5 s"), ("os._exit(3)", 60, "no report")]
)
def test_a_file_that_does_not_report_is_bad(tmp_path, body, limit, note):
    suite = run(tmp_path, body, limit)
    assert suite.bad and note in suite.note and note in gpu_suites.table([suite])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so(capsys):
    assert gpu_suites.main([]) == 2
    assert "there is no CUDA device here" in capsys.readouterr().err
