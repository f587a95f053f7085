# SPDX-License-Identifier: Apache-2.0
"""Run sgl.Engine on a CPU: ``python engine_client.py JOB.json RESULT.json``.

A request with a list of prompts is one batch; prompts are token ids, or texts with lists of images. Decoding is greedy and
ignores EOS.
"""

import json
import sys
import zlib
from pathlib import Path


def run(engine, request, **more):
    """The result of a request; ``more`` is for ``Engine.generate``."""
    wants_prompt = request.get("prompt_logprobs", False)
    outputs = engine.generate(
        prompt=request.get("texts"),
        input_ids=request.get("prompts"),
        image_data=request.get("images"),
        lora_path=request.get("adapters"),
        sampling_params=dict(temperature=0, ignore_eos=True, max_new_tokens=request["max_new_tokens"]),
        return_logprob=request.get("logprobs", False) or wants_prompt,
        logprob_start_len=0 if wants_prompt else -1,
        **more,
    )
    result = dict(
        tokens=[o["output_ids"] for o in outputs],
        cached=[o["meta_info"]["cached_tokens"] for o in outputs],
    )
    for name, key in (("logprobs", "output_token_logprobs"), ("prompt_logprobs", "input_token_logprobs")):
        if request.get(name):
            result[name] = [[entry[0] for entry in o["meta_info"][key]] for o in outputs]
    return result


def random_weights(model):
    """Instead of SGLang's dummy weights, which are too small to tell one attention from another."""
    import torch

    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        values = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() > 1:
            values *= 2 / tensor.shape[-1] ** 0.5
        else:
            values = values * 0.1 + name.endswith("weight")  # of a norm, or a bias
        tensor.copy_(values)


def main(job_path, result_path):
    import sglang as sgl

    job = json.loads(Path(job_path).read_text())
    if job["random_weights"]:  # the scheduler is a fork
        from sglang.srt.model_loader import loader

        loader.initialize_dummy_weights = random_weights
    defaults = dict(
        device="cpu",
        dtype="float32",
        max_total_tokens=8192,
        max_running_requests=8,
        mem_fraction_static=0.5,
        log_level="error",
        random_seed=0,
    )
    with sgl.Engine(**{**defaults, **job["engine"]}) as engine:
        results = [run(engine, request) for request in job["requests"]]
        states = engine.get_server_info()["internal_states"]
    counters = [state.get("hsa_counters") for state in states]
    info = {"hsa_counters": counters[0], "of_each_rank": counters, "memory_usage": states[0]["memory_usage"]}
    Path(result_path).write_text(json.dumps({"results": results, "info": info}, default=float))


if __name__ == "__main__":
    main(*sys.argv[1:])
