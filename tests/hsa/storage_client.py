# SPDX-License-Identifier: Apache-2.0
"""Drive one sgl.Engine through histories that move pages: ``python storage_client.py JOB.json RESULT.json``.

The job has engine arguments, ``prompts`` (token ids) and ``steps``, each the name of a scenario with its arguments.
Decoding is greedy and ignores EOS.
"""

import asyncio
import json
import random
import sys
from pathlib import Path

NEW = 24


class Client:
    def __init__(self, engine, prompts):
        self.engine, self.prompts = engine, prompts

    async def generate(self, prompt, new=NEW, rid=None):
        out = await self.engine.async_generate(
            input_ids=prompt,
            sampling_params=dict(temperature=0, ignore_eos=True, max_new_tokens=new),
            return_logprob=True,
            rid=rid,
        )
        meta = out["meta_info"]
        return dict(
            tokens=out["output_ids"],
            logprobs=[entry[0] for entry in meta.get("output_token_logprobs", [])],
            cached=meta.get("cached_tokens", 0),  # a request that is aborted while it waits has neither
            # The second name is that of later releases.
            retractions=meta.get("total_retractions", meta.get("num_retractions", 0)),
            aborted=meta["finish_reason"]["type"] == "abort",
        )

    async def flush(self):
        result = await self.engine.tokenizer_manager.flush_cache()
        return result.success

    async def flush_when_idle(self):
        """The scheduler is idle a little after the last answer."""
        for _ in range(200):
            if await self.flush():
                return True
            await asyncio.sleep(0.05)
        return False

    async def alone(self):
        """Each prompt by itself, on an empty cache."""
        results = []
        for prompt in self.prompts:
            assert await self.flush_when_idle()
            results.append(await self.generate(prompt))
        assert await self.flush_when_idle()
        return results

    async def together(self, seed, rounds=1):
        """All prompts at once in a random order, ``rounds`` times; results in the order of the prompts."""
        order = list(range(len(self.prompts)))
        results = []
        for round_ in range(rounds):
            random.Random(seed + round_).shuffle(order)
            done = await asyncio.gather(*(self.generate(self.prompts[i]) for i in order))
            results += [r for _, r in sorted(zip(order, done), key=lambda pair: pair[0])]
        return results

    async def aborts(self, seed, extra):
        """The prompts, among ``extra`` others that are aborted in mid-prefill or while they decode."""
        rng = random.Random(seed)
        # The victims share pages with the prompts, so that an abort frees what others also use.
        victims = [self.prompts[i % len(self.prompts)] + [7 + i] * 500 for i in range(extra)]

        async def victim(i, prompt):
            task = asyncio.create_task(self.generate(prompt, new=400, rid=f"victim-{i}"))
            await asyncio.sleep(rng.uniform(0.0, 1.5))
            self.engine.tokenizer_manager.abort_request(f"victim-{i}")
            return await task

        async def survivor(prompt):
            await asyncio.sleep(rng.uniform(0.0, 1.0))
            return await self.generate(prompt)

        done = await asyncio.gather(
            *(survivor(p) for p in self.prompts), *(victim(i, p) for i, p in enumerate(victims))
        )
        return dict(survivors=done[: len(self.prompts)], victims=done[len(self.prompts) :])

    async def flushes(self, seed, rounds):
        """Flush requests while the prompts run: some are refused, those that wait for idleness succeed."""
        answers = []

        async def flusher(stop):
            while not stop.is_set():
                answers.append(await self.flush())
                await asyncio.sleep(0.05)

        stop = asyncio.Event()
        task = asyncio.create_task(flusher(stop))
        results = await self.together(seed, rounds)
        stop.set()
        await task
        return dict(results=results, answers=answers)

    async def many(self, count, length, concurrency):
        """Short requests, ``concurrency`` at a time; then how many tokens and requests the pools still hold."""
        gate = asyncio.Semaphore(concurrency)

        async def one(i):
            async with gate:
                out = await self.generate([7 + (i * 31 + j * j) % 500 for j in range(length)], new=2)
            return len(out["tokens"])

        tokens = await asyncio.gather(*(one(i) for i in range(count)))
        for _ in range(100):  # in later releases the scheduler reports its load now and then
            [before] = await self.engine.tokenizer_manager.get_loads()
            if not before.num_used_tokens:
                break
            await asyncio.sleep(0.1)
        flushed = await self.flush_when_idle()
        [after] = await self.engine.tokenizer_manager.get_loads()
        return dict(
            tokens=sum(tokens), used=before.num_used_tokens, flushed=flushed,
            used_after=after.num_used_tokens, running=after.num_running_reqs,
        )  # fmt: skip


def main(job_path, result_path):
    import sglang as sgl

    job = json.loads(Path(job_path).read_text())
    defaults = dict(
        device="cpu", dtype="float32", mem_fraction_static=0.5, log_level="error", random_seed=0,
    )  # fmt: skip
    with sgl.Engine(**{**defaults, **job["engine"]}) as engine:
        client = Client(engine, job["prompts"])
        results = [
            engine.loop.run_until_complete(getattr(client, name)(**arguments))
            for name, arguments in job["steps"]
        ]
        info = engine.get_server_info()["internal_states"][0]
    answer = {"results": results, "hsa_counters": info.get("hsa_counters"), "memory_usage": info["memory_usage"]}
    Path(result_path).write_text(json.dumps(answer, default=float))


if __name__ == "__main__":
    main(*sys.argv[1:])
