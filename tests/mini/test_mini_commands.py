# SPDX-License-Identifier: Apache-2.0
"""The chat and the benchmarks, as they are run."""

import io
import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

CHAT = "hello\n\n/stats\n/what\n/reset\nhello\n/exit\nnot read\n"


@pytest.fixture
def command(child_env):
    """``command(module, *arguments, text)`` -> the finished process."""

    def run(module, *arguments, text="", **env):
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            input=text, capture_output=True, text=True, timeout=300, env=child_env(**env),
        )  # fmt: skip

    return run


def test_help_needs_neither_torch_nor_the_runtime(child):
    """Nor loads them where ``import sglang`` does not, as later releases do."""
    script = (
        "import sys, sglang; heavy = lambda: {'torch', 'transformers', 'sglang.srt.server_args'} & set(sys.modules); "
        "before = heavy(); from sglang.mini.__main__ import build_parser; import sglang.mini; build_parser().format_help(); "
        "print(sorted(heavy() - before))"
    )
    assert child(["-c", script]).strip() == "[]"


def test_the_engine_needs_no_runtime(child, world):
    """What is loaded of sglang.srt is what `import sglang` loads; for HSA its own package, too."""
    script = (
        "import sys, sglang; srt = lambda: {m for m in sys.modules if m.startswith('sglang.srt.')}; first = srt()\n"
        "from sglang.mini import MiniEngine, SamplingParams\n"
        f"model, params = {str(world('qwen3').path)!r}, SamplingParams(max_tokens=2)\n"
        "MiniEngine(model).generate([1], params); print(srt() - first)\n"
        "MiniEngine(model, backend='hsa').generate([1], params)\n"
        "parents = {'sglang.srt.layers', 'sglang.srt.layers.attention'}\n"
        "print({m for m in srt() - first - parents if not m.startswith('sglang.srt.layers.attention.hsa')})\n"
    )
    assert child(["-c", script]).split("\n")[:2] == ["set()", "set()"]


def test_chat(command, world):
    w = world("qwen3")
    done = command("sglang.mini", "--model", w.path, "--page-size", 16, "--max-tokens", 12, text=CHAT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")
    stats = next(line for line in lines if line.startswith("{"))
    before, after = done.stdout.split(stats)
    assert before.strip() and before.strip() == after.strip()  # greedy, and forgotten in between
    assert json.loads(stats)["pages_cached"] > 0
    assert "Qwen3ForCausalLM (chat): backend torch on cpu" in done.stderr and "/reset forgets" in done.stderr
    ids = w.tokenizer("<|bos|><|user|>hello<|end|><|assistant|>", add_special_tokens=False).input_ids
    assert before.rstrip("\n") == w.tokenizer.decode(w.expected(ids, 12), skip_special_tokens=True)


def test_chat_past_the_budget(world, monkeypatch, capsys):
    """The line that does not fit is answered with an error, and the next one runs."""
    from sglang.mini.__main__ import main

    monkeypatch.setenv("ATTN_BACKEND", "hsa")
    monkeypatch.setattr("sys.stdin", io.StringIO("x" * 200 + "\nhi\n"))
    arguments = ("--page-size", "16", "--token-budget", "64", "--max-tokens", "8")
    assert main(["--model", str(world("qwen3").path), *arguments]) == 1
    output = capsys.readouterr()
    assert "more than the 64 tokens" in output.err and "backend hsa" in output.err
    assert output.out.split("\n")[1].strip()


def test_chat_with_a_line_that_is_no_text(world, monkeypatch, capsys):
    """A byte that is not UTF-8, as Python reads it in the C locale: an error, and the next line runs."""
    from sglang.mini.__main__ import main

    monkeypatch.setattr("sys.stdin", io.StringIO("\udcff\nhi\n"))
    assert main(["--model", str(world("qwen3").path), "--max-tokens", "8"]) == 1
    output = capsys.readouterr()
    assert "error: the line cannot be read (TypeError(" in output.err
    assert output.out.split("\n")[1].strip()


def test_a_dropped_engine_gives_its_cache_back(world):
    """At once: on a GPU the next engine may need the memory before Python collects cycles."""
    import gc
    import weakref

    gc.disable()
    try:
        engine = world("qwen3").engine()
        engine.generate([1, 2])
        cache = weakref.ref(engine.kv)
        del engine
        assert cache() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "arguments, words",
    (
        (["--model", "/no/such/folder"], "model folder /no/such/folder does not exist"),
        (["--temperature", "-1"], "temperature -1.0 is not valid"),
        (["--device", "nowhere"], "device nowhere cannot be used"),
        (["--dtype", "int8"], "dtype 'int8' is not known"),
        (["--hsa-topk", "0"], "--hsa-topk 0 is not valid"),
        (["--backend", "sgl"], "backend 'sgl' is not known"),
    ),
)
def test_refusals_are_one_line(world, arguments, words, capsys):
    from sglang.mini.__main__ import main

    if "--model" not in arguments:
        arguments = ["--model", str(world("qwen3").path), *arguments]
    assert main(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.split("\n") if line.startswith("error: ")]
    assert words in line


def test_the_engine_has_no_circle_of_imports():
    """Imports within functions count, too: `from sglang.mini.X import ...` goes one way."""
    from sglang import mini

    graph = {
        path.stem: set(re.findall(r"^\s*from sglang\.mini\.(\w+) import", path.read_text(encoding="utf-8"), re.MULTILINE))
        for path in Path(mini.__file__).parent.glob("*.py")
    }
    assert {"torch_attention", "kv_cache"} <= graph["hsa_attention"] and "hsa_attention" in graph["backend"]
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)  # CycleError names a circle


def test_a_benchmark_as_a_command(command):
    done = command("benchmarks.mini.local_bench", "--arms", "torch", "--repeats", "0")
    assert done.returncode == 2 and "error: use at least 2 --new-tokens and at least 1 --repeats." in done.stderr
    assert "Traceback" not in done.stderr


def bench(module, arguments, capsys):
    module.main(arguments)
    output = capsys.readouterr()
    assert "100%" in output.err  # the bar
    return json.loads(output.out.strip().split("\n")[-1])


COMMON = ["--device", "cpu", "--new-tokens", "4", "--repeats", "1", "--page-size", "64"]


def test_local_bench(capsys):
    from benchmarks.mini import local_bench

    result = bench(local_bench, [*COMMON, "--prompt-tokens", "16,200"], capsys)
    assert [(row["arm"], row["prompt"]) for row in result["rows"]] == [
        (arm, n) for arm in ("hf", "torch", "hsa") for n in (16, 200)
    ]
    assert "CUDA" in result["skipped"]["sgl_kernel"]
    for row in result["rows"]:
        assert row["ttfb_s"] > 0 and row["tokens_per_s"] > 0
        assert 0 < row["prefill_roofline"] < 1.5 and 0 < row["decode_roofline"] < 1.5
        assert row["arm"] == "hf" or row["equal"] == 1


def test_bench_suite(capsys, world):
    from benchmarks.mini import bench_suite

    arguments = ["--model", str(world("gemma2").path), "--contexts", "130", "--batch-sizes", "1,3"]
    result = bench(bench_suite, [*COMMON, *arguments, "--arms", "hf,torch"], capsys)
    assert len(result["throughput"]) == 4 and result["model"] == "gemma2"
    assert all(row["equal"] == 1 for row in result["throughput"] if row["arm"] == "torch")
    (prefix,) = result["prefix"]
    assert prefix["cached_tokens"] == 64
    assert all(row["pages_evicted"] > 0 for row in result["eviction"])
    lru, lfu = (row["hit_share"] for row in result["eviction"])
    assert 0 < lru < lfu


def test_a_bench_compares_an_end_of_sequence_like_any_token(world):
    from benchmarks.mini.bench_common import Bench, bench_parser

    bench = Bench(bench_parser("").parse_args([*COMMON, "--model", str(world("qwen3").path), "--arms", "hf,torch"]))
    prompts = [bench.prompt(50, seed=0)]
    expected = bench.generate_hf(prompts, 4)
    bench.model.generation_config.eos_token_id = expected[0][1]
    assert bench.generate_hf(prompts, 4) == expected
    assert bench.model.generation_config.eos_token_id == expected[0][1]
    assert bench.measure("torch", 50, 1, lambda prompts, engine: (1.0, 1.0))["equal"] == 1


def test_a_bench_does_not_time_wrong_tokens(world, monkeypatch, capsys):
    from benchmarks.mini import local_bench
    from sglang.mini.torch_attention import TorchAttentionBackend, torch_attention

    wrong = lambda _, q, state, positions: torch_attention(q, state, positions) * (-1 if state.decode else 1)  # noqa: E731
    monkeypatch.setattr(TorchAttentionBackend, "attend", wrong)
    with pytest.raises(ValueError, match="differs from the reference"):
        local_bench.main([*COMMON, "--arms", "torch", "--prompt-tokens", "50"])
    assert "{" not in capsys.readouterr().out


def test_rows_before_an_error_are_printed(capsys):
    from sglang.mini.api import MiniError
    from benchmarks.mini.bench_common import Bench

    def broken():
        raise MiniError("no more")

    with pytest.raises(MiniError, match="no more"):
        Bench.run(None, "local", [("rows", lambda: {"arm": "torch", "ttfb_s": 0.25}), ("rows", broken)])
    out = capsys.readouterr().out
    assert "torch" in out and "0.25" in out and "{" not in out
