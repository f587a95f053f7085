# SPDX-License-Identifier: Apache-2.0
"""What the HSA tests need that differs between SGLang releases, chosen by what is present."""

from __future__ import annotations

import dataclasses
import inspect
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Collection, Iterator

import pytest

from sglang.srt.layers.attention.hsa.compat import (
    arguments,
    declare,
    graphs_hold_metadata,
)
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

try:  # since 0.5.17
    from sglang.kernels.jit.utils import common as jit_utils
except ModuleNotFoundError:
    from sglang.jit_kernel import utils as jit_utils

try:  # since 0.5.13
    from sglang.srt.model_executor import forward_context
except ImportError:  # until 0.5.12 a batch names its backend
    forward_context = None

get_ci_test_range = jit_utils.get_ci_test_range

# The mode of a pass that writes the draft model's keys of verified tokens: of the accepted ones alone until 0.5.13, then of
# all, which the releases before know, too.
DRAFT_EXTEND = getattr(ForwardMode, "DRAFT_EXTEND", ForwardMode.DRAFT_EXTEND_V2)

ragged_draft_extends = pytest.mark.skipif(
    DRAFT_EXTEND is ForwardMode.DRAFT_EXTEND_V2,
    reason="the release extends drafts by all draft tokens",
)


def make_forward_batch(page_handouts: int | None = None, **fields) -> ForwardBatch:
    """A batch with those of ``fields`` that the release's batches have.

    Args:
        page_handouts: when it was built, since tests begin passes later than a scheduler does.
    """
    known = {field.name for field in dataclasses.fields(ForwardBatch)}
    batch = ForwardBatch(**{name: x for name, x in fields.items() if name in known})
    batch.page_handouts = page_handouts
    return batch


def finish(tree, req, insert: bool) -> None:
    """Give a request's pages to the radix cache, or back, and end it there."""
    taken = inspect.signature(tree.cache_finished_req).parameters
    length = {}
    if "kv_len_to_handle" in taken:  # in v0.5.10rc0 the request itself says so
        length["kv_len_to_handle"] = req.kv_committed_len
    tree.cache_finished_req(req, is_insert=insert, **length)


def resolved(args: ServerArgs) -> ServerArgs:
    """Arguments with all that follows from them; since 0.5.21 not when they are made, but when they are asked to."""
    if hasattr(args, "resolve_once"):
        args.resolve_once()
    return arguments(args)


def change(args, **values) -> None:
    """Set fields of resolved server arguments, which are read-only in later releases."""
    if hasattr(args, "resolve_once"):
        return declare(args, **values)
    for name, value in values.items():
        object.__setattr__(args, name, value)


def fields_of(args: ServerArgs) -> dict:
    """Each option and its resolved value."""
    return {name: getattr(args, name) for name in option_names()}


def graphs_up_to(batch: int) -> dict:
    """The option that bounds the batches that decode has CUDA graphs for."""
    later = "cuda_graph_max_bs_decode"
    return {later if has_option(later) else "cuda_graph_max_bs": batch}


def decodes_without_graphs(info: dict) -> bool:
    """From the arguments that a server reports."""
    config = info.get("cuda_graph_config")
    if config is None:  # until 0.5.12
        return info["disable_cuda_graph"]
    decode = config["decode"] if isinstance(config, dict) else vars(config.decode)
    return decode.get("backend") == "disabled"


def without_graphs() -> dict:
    """The options of an engine that uses no CUDA graphs at all."""
    prefill = "disable_piecewise_cuda_graph"  # part of the other since 0.5.13
    return {
        "disable_cuda_graph": True,
        **({prefill: True} if has_option(prefill) else {}),
    }


def without_prefill_graphs() -> dict:
    """The option of an engine that uses no CUDA graphs in prefill."""
    if has_option("cuda_graph_backend_prefill"):
        return {"cuda_graph_backend_prefill": "disabled"}
    return {"disable_piecewise_cuda_graph": True}  # until 0.5.12


def replicas_have_cores() -> bool:
    """Whether replicas on a CPU are bound to cores as the ranks of one engine are: since 0.5.23."""
    from sglang.srt.utils import numa_utils

    bind = getattr(numa_utils, "init_threads_binding", None)
    return bind is not None and "world_size" in inspect.signature(bind).parameters


def has_option(name: str) -> bool:
    """Whether the release's server has an option."""
    return name in option_names()


def option_names() -> Collection[str]:
    from sglang.srt.server_args import ServerArgs

    return inspect.signature(ServerArgs).parameters


@contextmanager
def no_server() -> Iterator[None]:
    """Arguments of a server without a model are those of this process: since 0.5.21 models are made with some."""
    try:
        from sglang.srt.runtime_context import publish, reset_context
    except ImportError:
        yield
        return
    from sglang.srt.server_args import ServerArgs

    publish(ServerArgs(model_path="dummy", device="cpu"), role="test")
    yield
    reset_context()


@contextmanager
def draft_backend_factory(runner, topk: int, steps: int) -> Iterator:
    """What a draft worker gets its backends from, where HSA is the backend of drafts."""
    from sglang.srt.speculative.draft_utils import DraftBackendFactory

    runner.draft_attention_backend = "hsa"
    asked = dict(draft_model_runner=runner, topk=topk, speculative_num_steps=steps)
    if "server_args" in inspect.signature(DraftBackendFactory).parameters:
        names = "attention_backend", "prefill_attention_backend", "decode_attention_backend"  # fmt: skip
        asked["server_args"] = SimpleNamespace(
            **dict.fromkeys(names), speculative_draft_attention_backend="hsa",
            speculative_attention_mode="prefill",
        )  # fmt: skip
    with no_server():
        yield DraftBackendFactory(**asked)


def forward_with(backend) -> AbstractContextManager:
    """The layers that run in it find this attention backend."""
    if forward_context is None:
        return nullcontext()
    return forward_context.forward_context(
        forward_context.ForwardContext(attn_backend=backend)
    )


def begin_as_in_a_graph(backend, batch: ForwardBatch) -> None:
    """What runs before the layers of a pass that a CUDA graph holds, in the graph and outside of it."""
    if graphs_hold_metadata():
        backend.init_forward_metadata_out_graph(batch, in_capture=True)
        backend.init_forward_metadata_out_graph(batch)
        backend.init_forward_metadata_in_graph(batch)
    else:
        backend.init_forward_metadata_capture_cuda_graph(batch)
        backend.init_forward_metadata_replay_cuda_graph(batch, batch.batch_size)


def pretend_to_have_memory(monkeypatch, megabytes: int) -> None:
    """Let server arguments be resolved for a CUDA device that is not there."""
    from sglang.srt import server_args
    from sglang.srt.utils import common

    asked = "get_device_memory_capacity"
    for module in (server_args, common):
        if hasattr(module, asked):
            monkeypatch.setattr(module, asked, lambda device: megabytes)


def window_pool_options() -> dict:
    """What a pool whose sliding windows lie apart must be given: an option that it lost since."""
    known = inspect.signature(SWAKVPool).parameters
    name = "enable_kvcache_transpose"
    return {name: False} if name in known else {}
