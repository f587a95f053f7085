# SPDX-License-Identifier: Apache-2.0
"""Ask start-up and the loader about one model class: a small configuration, then the class itself without weights."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Callable

from model_classes_tool.configurations import TARGET, Recipe

# What a refusal tells to add, tried after the defaults: (what its text says, the option, arguments of the server).
WAYS_OUT = (
    ("--disable-hybrid-swa-memory", "--disable-hybrid-swa-memory", dict(disable_hybrid_swa_memory=True)),
    ("use --hsa-chunk-repr mean_std", "--hsa-chunk-repr mean_std", dict(hsa_chunk_repr="mean_std")),
)
DEFAULTS = dict(
    device="cpu", attention_backend="hsa", hsa_layers="all", skip_tokenizer_init=True, random_seed=0, dtype="float32"
)
NEEDS_CUDA = "needs a CUDA device"


@dataclass
class Verdict:
    """What became of a class.

    Attributes:
        kind: "served", "refused", "not built".
        reason: features of the refusals, text of the error, or why it was not built.
        options: that it is served with.
        layers, dense: attention layers, and how many of them stay dense.
        early: whether the refusal needs the configuration alone.
    """

    kind: str
    reason: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    layers: int = 0
    dense: int = 0
    early: bool = True


def in_child(ask: Callable[[], Verdict], seconds: int = 60) -> Verdict:
    """The answer of a forked process, which may crash or hang without harm."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            answer = ask()
        except BaseException as error:  # noqa: BLE001 the parent wants whatever it was
            answer = Verdict("not built", [describe(error)])
        os.write(write, json.dumps(asdict(answer)).encode())
        os._exit(0)
    os.close(write)
    data, deadline = b"", time.monotonic() + seconds
    while time.monotonic() < deadline:
        if select.select([read], [], [], max(deadline - time.monotonic(), 0))[0]:
            part = os.read(read, 65536)
            if not part:
                break
            data += part
    else:
        os.killpg(pid, signal.SIGKILL)
    os.close(read)
    _, status = os.waitpid(pid, 0)
    if data:
        return Verdict(**json.loads(data))
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return Verdict("not built", [f"took more than {seconds} s"])
    return Verdict("not built", [f"its process ended with status {status}"])


def classify(name: str, recipe: Recipe) -> Verdict:
    """Ask about a class, and again with what its refusals say is the way out, each time in a process of its own.

    A class that fails is asked about once more with another backend, since the fault may be its own.
    """
    options: list[str] = []
    given: dict = {}
    ask = lambda: _ask(name.partition(",")[0], recipe, given)  # noqa: E731
    while True:
        verdict = in_child(ask)
        if verdict.kind == "not built" and verdict.reason != [NEEDS_CUDA]:
            given = dict(attention_backend="torch_native", hsa_layers=None)
            if in_child(ask).reason == verdict.reason:
                verdict.reason = [f"fails with any attention backend: {verdict.reason[0]}"]
            return verdict
        way = next((way for way in WAYS_OUT if _opens(way, verdict, options)), None)
        if way is None:
            verdict.options = options if verdict.kind == "served" else []
            return verdict
        options.append(way[1])
        given |= way[2]


def _opens(way: tuple, verdict: Verdict, taken: list[str]) -> bool:
    text, option, _ = way
    return verdict.kind == "refused" and option not in taken and len(verdict.reason) == 1 and text in verdict.reason[0]


def _ask(architecture: str, recipe: Recipe, given: dict) -> Verdict:
    with tempfile.TemporaryDirectory() as root:
        path = str(recipe.write(Path(root) / "model", architecture))
        target = str(TARGET.write(Path(root) / "target", "LlamaForCausalLM")) if recipe.draft else path
        return _start(path, target, recipe.draft, given)


def _start(path: str, target: str, draft: bool, given: dict) -> Verdict:
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.layers.attention.hsa.model_refusals import MODEL_REFUSALS
    from sglang.srt.server_args import ServerArgs

    try:
        args = ServerArgs(model_path=target, **{**DEFAULTS, **given})
        config = args.get_model_config()
        if draft:  # a draft model beside a target that is served
            config = ModelConfig.from_server_args(args, model_path=path, is_draft_model=True)
            lines = [refusal.message for refusal in MODEL_REFUSALS if refusal.applies(args, config)]
            if lines:
                return Verdict("refused", lines)
    except ValueError as error:
        if is_ours(str(error)):
            return Verdict("refused", str(error).split("\n"))
        raise
    return _build(args, config)


def _build(args, config) -> Verdict:
    import torch

    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.layers.attention.hsa.model_layers import attentions, choose_layers
    from sglang.srt.model_loader.loader import _initialize_model
    from sglang.srt.model_loader.utils import set_default_torch_dtype

    torch.cuda.Stream = lambda *args, **kwargs: None  # some classes make one whatever the device
    start_groups(args, config)
    try:
        with set_default_torch_dtype(config.dtype):
            model = _initialize_model(config, LoadConfig())
    except ValueError as error:
        if is_ours(str(error)):
            return Verdict("refused", [str(error)], early=False)
        raise
    if args.attention_backend != "hsa":
        return Verdict("served")
    ids = {module.layer_id for _, module in attentions(model)}
    chosen = choose_layers(model, config, args, config.is_draft_model)
    return Verdict("served", layers=len(ids), dense=len(ids) - len(chosen))


def start_groups(args, config) -> None:
    """The one-process groups that modules expect."""
    from sglang.srt.distributed.parallel_state import init_distributed_environment, initialize_model_parallel
    from sglang.srt.layers.dp_attention import initialize_dp_attention
    from sglang.srt.layers.moe import initialize_moe_config
    from sglang.srt.server_args import set_global_server_args_for_scheduler

    set_global_server_args_for_scheduler(args)
    with tempfile.TemporaryDirectory() as folder:
        init_distributed_environment(
            backend="gloo", world_size=1, rank=0, local_rank=0, distributed_init_method=f"file://{folder}/store"
        )
        initialize_model_parallel()
    initialize_dp_attention(server_args=args, model_config=config)
    initialize_moe_config(args)


def is_ours(text: str) -> bool:
    """Whether an error is HSA's own."""
    return all(line.startswith(("--attention-backend hsa", "--hsa-")) for line in text.split("\n"))


def describe(error: BaseException) -> str:
    """An error in one line that does not differ from machine to machine."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    text = re.sub(re.escape(tempfile.gettempdir()) + r"/\S+|0x[0-9a-f]+", "…", text)
    if "CUDA" in text:
        return NEEDS_CUDA
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
