# SPDX-License-Identifier: Apache-2.0
"""A prefill engine and a decode engine, each a process of its own: ``python disaggregation_child.py JOB.json RESULT.json``.

The job is ``engine_client``'s. The results are the decode engine's, with ``prefilled``, the tokens that the prefill engine
found in its radix cache.
"""

import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "local_transfer")]
os.environ |= dict(MC_FORCE_TCP="1", PYTHONPATH=os.pathsep.join(sys.path))


def serve(role, job, requests, answers):
    """Answer request after request; a request begins when both engines have taken the last one."""
    import sglang as sgl
    import torch
    from engine_client import run

    arguments = dict(disaggregation_mode=role, disaggregation_transfer_backend="mooncake", log_level="error", random_seed=0)
    if role == "decode" and torch.cuda.device_count() > 1:
        arguments["base_gpu_id"] = 1
    with sgl.Engine(**{**arguments, **job["engine"]}) as engine:
        print('"up"', file=answers, flush=True)
        for i, request in enumerate(iter(lambda: json.loads(requests.readline()), None)):
            answer = run(
                engine,
                request,
                bootstrap_host="127.0.0.1",
                bootstrap_port=job["engine"]["disaggregation_bootstrap_port"],
                bootstrap_room=[100 * i + j + 1 for j in range(len(request["prompts"]))],
            )
            print(json.dumps(answer), file=answers, flush=True)
        state = engine.get_server_info()["internal_states"][0]
        print(json.dumps({"hsa_counters": state.get("hsa_counters")}), file=answers, flush=True)


def start(role, job):
    """(process, file of requests to it, file of its answers) of a forked engine."""
    requests, to_it = os.pipe()
    from_it, answers = os.pipe()
    child = os.fork()
    if not child:
        for end in (to_it, from_it):
            os.close(end)
        status = 1
        try:
            serve(role, job, os.fdopen(requests), os.fdopen(answers, "w"))
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        sys.stderr.flush()
        os._exit(status)
    for end in (requests, answers):
        os.close(end)
    return child, os.fdopen(to_it, "w"), os.fdopen(from_it)


def main(job_path, result_path):
    job = json.loads(Path(job_path).read_text())
    if job["engine"].get("device") == "cpu":  # the schedulers are forks
        import without_cuda  # noqa: F401
    engines = {role: start(role, job) for role in ("prefill", "decode")}

    def answer():
        """The next line of each engine; none where it has ended."""
        return {role: json.loads(answers.readline()) for role, (_, _, answers) in engines.items()}

    assert answer() == dict(prefill="up", decode="up")
    results = []
    for request in job["requests"]:
        for _, to_it, _ in engines.values():
            print(json.dumps(request), file=to_it, flush=True)
        got = answer()
        results.append({**got["decode"], "prefilled": got["prefill"]["cached"]})
    for _, to_it, _ in engines.values():
        print("null", file=to_it, flush=True)
    info = answer()
    for child, _, _ in engines.values():
        os.waitpid(child, 0)
    Path(result_path).write_text(json.dumps({"results": results, "info": info}))


if __name__ == "__main__":
    main(*sys.argv[1:])
