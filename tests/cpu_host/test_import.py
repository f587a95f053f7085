# SPDX-License-Identifier: Apache-2.0
"""The tree imports on a host where sgl_kernel cannot be loaded, and ``--device cpu`` needs no variable."""

import pytest
from http_server import post, serving
from tiny_models import prompt_ids, tiny_qwen3

MODULES = (
    "sglang.srt.mem_cache.memory_pool_host",
    "sglang.srt.mem_cache.hicache_storage",
    "sglang.srt.managers.scheduler",
    "sglang.srt.model_executor.model_runner",
    "sglang.srt.entrypoints.engine",
    "sglang.srt.entrypoints.http_server",
    "sglang.srt.models.qwen3",
    "sglang.srt.models.llama",
    "sglang.srt.models.gemma2",
    "sglang.srt.models.olmo2",
)

# An import hook stands for a missing or unloadable wheel, so that the test means the same on every host.
IMPORT_WITHOUT_SGL_KERNEL = """
import importlib, sys
class Unloadable:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "sgl_kernel":
            raise ImportError("libcuda.so.1: cannot open shared object file")
sys.meta_path.insert(0, Unloadable())
importlib.import_module(sys.argv[1])
assert "sgl_kernel" not in sys.modules
"""


@pytest.mark.parametrize("module", ["sglang.srt.mem_cache.memory_pool_host", "sglang.srt.entrypoints.http_server"])
def test_module_imports_first(child, module):
    """Each as the first import of a process: no other module has prepared the ground."""
    child(["-c", IMPORT_WITHOUT_SGL_KERNEL, module])


def test_all_modules_import_in_a_cpu_scheduler(child):
    script = IMPORT_WITHOUT_SGL_KERNEL + "for name in sys.argv[2:]: importlib.import_module(name)\n"
    child(["-c", script, *MODULES], SGLANG_USE_CPU_ENGINE="1")


LAUNCH_ENVIRONMENT = """
import os, sys
from sglang.srt.entrypoints.engine import _set_envs_and_config
from sglang.srt.server_args import ServerArgs
args = ServerArgs(model_path=sys.argv[1], device="cpu")
from sglang.srt.layers.attention.hsa.compat import has_graphs
assert not has_graphs(args, "prefill")
for device, exported in (("cpu", None), ("cpu", "1"), ("cpu", "0"), ("cuda", None)):
    os.environ.pop("SGLANG_USE_CPU_ENGINE", None)
    if exported:
        os.environ["SGLANG_USE_CPU_ENGINE"] = exported
    object.__setattr__(args, "device", device)  # resolved arguments are read-only in later releases
    _set_envs_and_config(args)
    print(device, exported, "->", os.environ.get("SGLANG_USE_CPU_ENGINE"))
"""


def test_launch_sets_the_variable_for_children(child, checkpoints):
    """Only for the CPU, and never over a value that the user exported."""
    out = child(["-c", LAUNCH_ENVIRONMENT, tiny_qwen3(checkpoints)])
    assert [line for line in out.splitlines() if "->" in line] == [
        "cpu None -> 1",
        "cpu 1 -> 1",
        "cpu 0 -> 0",
        "cuda None -> None",
    ]


def test_http_server_serves(checkpoints, tmp_path):
    model = str(tiny_qwen3(checkpoints))
    with serving(tmp_path / "log", model_path=model, dtype="float32", max_total_tokens=2048, page_size=64) as url:
        sampling = dict(temperature=0, max_new_tokens=3, ignore_eos=True)
        answer = post(url + "/generate", dict(input_ids=prompt_ids(65), sampling_params=sampling))
        assert answer["meta_info"]["prompt_tokens"] == 65
        assert len(answer["output_ids"]) == 3
