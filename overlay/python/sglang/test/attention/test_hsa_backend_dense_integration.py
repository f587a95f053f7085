# SPDX-License-Identifier: Apache-2.0
"""HSA around each real dense backend, through sgl.Engine: prefill, decode, radix hit, layers of both kinds.

Without a GPU: torch_native, and Triton under its interpreter. With one: Triton, FlashInfer, and FA3 where its
library is installed.
"""

import os

import numpy as np
import pytest
import torch

import sglang as sgl
from sglang.test.attention.hsa_fixtures import write_random_model
from sglang.test.attention.hsa_release import without_graphs

ON_GPU = torch.cuda.is_available()
NEW = 12 if ON_GPU else 4  # the Triton interpreter takes seconds per token


def installed_dense_backends():
    if not ON_GPU:
        return ["torch_native", "triton"]
    backends = ["triton", "flashinfer"]
    try:
        import sgl_kernel.flash_attn  # noqa: F401

        backends.append("fa3")
    except ImportError:
        pass
    return backends


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    head_dim = 64 if ON_GPU else 16  # the GPU backends have no kernels for 16
    return write_random_model(
        tmp_path_factory.mktemp("qwen3"), head_dim=head_dim, num_hidden_layers=2
    )


@pytest.fixture(autouse=True)
def triton_interpreter(request, monkeypatch):
    """The scheduler's process inherits the variable; this process has imported Triton already."""
    if not ON_GPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def generate(model_path, prompts, **engine):
    """(prompt and output logprobs per prompt, counters); the second call finds the prompts cached."""
    with sgl.Engine(
        model_path=model_path,
        device="cuda" if ON_GPU else "cpu",
        dtype="bfloat16" if ON_GPU else "float32",
        skip_tokenizer_init=True,
        max_total_tokens=4096,
        max_running_requests=4,
        mem_fraction_static=0.3,
        sampling_backend="pytorch",
        grammar_backend="none",
        page_size=64,
        **without_graphs(),
        log_level="error",
        **engine,
    ) as llm:
        answers = []
        for _ in range(2):
            outputs = llm.generate(
                input_ids=prompts,
                sampling_params=dict(
                    temperature=0, ignore_eos=True, max_new_tokens=NEW
                ),
                return_logprob=True,
                logprob_start_len=0,
            )
            for o in outputs:
                info = o["meta_info"]
                entries = (
                    info["input_token_logprobs"][1:] + info["output_token_logprobs"]
                )
                answers.append(np.array([entry[0] for entry in entries]))
        state = llm.get_server_info()["internal_states"][0]
    return answers, state.get("hsa_counters")


@pytest.mark.parametrize("backend", installed_dense_backends())
def test_every_page_selected_equals_the_dense_backend(model_path, backend):
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 512, n).tolist() for n in (200, 65)]
    dense, none = generate(model_path, prompts, attention_backend=backend)
    assert none is None
    hsa, counts = generate(
        model_path, prompts, attention_backend="hsa", hsa_dense_backend=backend,
        hsa_layers="1", hsa_window_size=64, hsa_topk=10**6, hsa_strict=True,
    )  # fmt: skip
    # Greedy tokens may part at a near-tie in bfloat16: compare the prompts' logprobs there.
    keep = slice(None) if not ON_GPU else slice(0, -NEW)
    for got, expected in zip(hsa, dense):
        tolerance = 0.15 if ON_GPU else 2e-3
        np.testing.assert_allclose(got[keep], expected[keep], atol=tolerance)
    assert (
        counts["rows_sparse"] > 0
        and counts["pages_selected"] == counts["pages_candidate"]
    )
    assert os.environ.get("TRITON_INTERPRET") == (None if ON_GPU else "1")


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
