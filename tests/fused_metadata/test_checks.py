# SPDX-License-Identifier: Apache-2.0
"""What the op refuses: one line that names the argument, and nothing written."""

import enum
import inspect

import numpy as np
import pytest
import torch

from sglang.jit_kernel import attention
from sglang.jit_kernel import fused_metadata_precompute_and_broadcast as op
from sglang.jit_kernel.fused_metadata_checks import DRAFT_EXTEND, TARGET_VERIFY
from sglang.test.fused_metadata_cases import POISON, Case

BOTH = (op.fused_metadata_precompute_and_broadcast_cuda, op.fused_metadata_precompute_and_broadcast_reference)
MODES = {
    "decode": Case(4, 3, np.array([5, 70, 64, 130])),
    "target_verify": Case(4, 3, np.array([5, 70, 64, 130]), TARGET_VERIFY, 3),
    "draft_extend": Case(4, 3, np.array([5, 70, 64, 130]), DRAFT_EXTEND, 3, np.array([1, 0, 3, 2])),
}


def in_list(name, step, change):
    def apply(arguments):
        arguments[name] = list(arguments[name])
        arguments[name][step] = change(arguments[name][step])

    return apply


def put(name, change):
    def apply(arguments):
        arguments[name] = change(arguments[name])

    return apply


def misaligned(tensor):
    memory = bytearray(tensor.numel() * tensor.element_size() + 16)
    odd = 1 if torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % 2 == 0 else 2
    return torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=odd).view(tensor.shape)


def meta(tensor):
    return tensor.to("meta")


class Other(enum.IntEnum):
    """As ForwardMode is: an int that means something else here."""

    EXTEND = 1


DESTINATIONS = {
    "dtype": lambda t: t.long(),
    "device": meta,
    "one more": lambda t: torch.cat([t, t[:1]]),
    "one less": lambda t: t[:-1],
    "dimensions": lambda t: t[None],
    "strides": lambda t: torch.zeros(*t.shape, 2, dtype=torch.int32)[..., 0],
    "alignment": misaligned,
    "no tensor": lambda t: None,
    "a list": lambda t: t.tolist(),
}
WRONG = [
    (f"{what} of {name}", in_list(name, 2, change), rf"{name}\[2\] must be an aligned int32 \[")
    for name in op.fused_metadata_precompute_and_broadcast_cuda.__annotations__
    if name.endswith("_list")
    for what, change in DESTINATIONS.items()
]
WRONG += [
    ("columns", in_list("page_indices_list", 1, lambda t: t[:, :129].contiguous()), r"page_indices_list\[1\].*>= 13\d\]"),
    ("pages", in_list("real_page_table_list", 0, lambda t: t[:, :2].contiguous()), r"real_page_table_list\[0\].*>= 3\]"),
    ("rows that overlap", in_list("page_indices_list", 0, lambda t: t[:1].expand(t.shape)), "without overlap"),
    ("a list too short", put("cu_seqlens_k_list", lambda v: v[:2]), "cu_seqlens_k_list has 2 tensors and cache_seqlens_list has 3"),
    ("N of 0", put("cache_seqlens_list", lambda v: []), "no destination"),
    ("seq_lens dtype", put("seq_lens", lambda t: t.float()), "seq_lens must be .* got float32"),
    ("seq_lens dimensions", put("seq_lens", lambda t: t[None]), "seq_lens must be an aligned int32 or int64 tensor with 1"),
    ("seq_lens strides", put("seq_lens", lambda t: t.repeat(2)[::2]), "seq_lens must be"),
    ("seq_lens alignment", put("seq_lens", misaligned), "seq_lens must be an aligned"),
    ("seq_lens list", put("seq_lens", lambda t: t.tolist()), "seq_lens must be .* got list"),
    ("batch", put("seq_lens", lambda t: t[:3]), "req_pool_indices has a batch of 4, seq_lens one of 3"),
    ("requests dtype", put("req_pool_indices", lambda t: t.short()), "req_pool_indices must be .* got int16"),
    ("requests batch", put("req_pool_indices", lambda t: t[:2]), "req_pool_indices has a batch of 2, seq_lens one of 4"),
    ("requests device", put("req_pool_indices", meta), "req_pool_indices must be .* on cpu; got int64 .* on meta"),
    ("table dtype", put("req_to_token", lambda t: t.to(torch.uint8)), "req_to_token must be"),
    ("table dimensions", put("req_to_token", lambda t: t[0]), "req_to_token must be .* with 2 dimension"),
    ("table strides", put("req_to_token", lambda t: t.t().contiguous().t()), "req_to_token must be"),
    ("table device", put("req_to_token", meta), "req_to_token must be .* on meta"),
    ("max_len", put("max_len", lambda v: 10**6), r"max_len must be an int from 0 to 1\d\d, got 1000000"),
    ("max_len negative", put("max_len", lambda v: -1), "max_len must be an int"),
    ("max_len on the device", put("max_len", torch.tensor), "max_len must be an int"),
    ("page size", put("real_page_size", lambda v: 0), "real_page_size must be an int from 1"),
    ("topk", put("nsa_index_topk", lambda v: None), "nsa_index_topk must be an int from 1"),
    ("mode", put("forward_mode", lambda v: 3), "forward_mode must be 0"),
    ("another numbering of modes", put("forward_mode", lambda v: Other.EXTEND), "forward_mode must be 0 .* got <Other.EXTEND"),
    ("draft tokens", put("num_draft_tokens", lambda v: 0), "num_draft_tokens must be an int from 1"),
    ("offsets", put("seq_len_offsets", lambda v: [1, 2]), "seq_len_offsets has 2 values for 3 steps"),
    ("offset", put("seq_len_offsets", lambda v: [1, 2, 0.5]), "seq_len_offsets must be an int"),
]  # fmt: skip


def refuse(case, damage, message):
    for function in BOTH:
        buffers = case.buffers()
        arguments = case.arguments(buffers)
        damage(arguments)
        with pytest.raises(ValueError, match=message) as caught:
            function(**arguments)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith("fused_metadata_precompute_and_broadcast: ")
        assert all((b == POISON).all() for steps in buffers.values() for b in steps)


@pytest.mark.parametrize("mode", ("decode", "target_verify"))
@pytest.mark.parametrize("what, damage, message", WRONG, ids=[w[0] for w in WRONG])
def test_refused_before_anything_is_written(what, damage, message, mode):
    refuse(MODES[mode], damage, message)


@pytest.mark.parametrize("damage, message", (
    (put("extend_seq_lens", lambda t: None), "extend_seq_lens must be .* got NoneType"),
    (put("extend_seq_lens", lambda t: t[:3]), "extend_seq_lens has a batch of 3, seq_lens one of 4"),
    (put("extend_seq_lens", lambda t: t.short()), "extend_seq_lens must be .* got int16"),
    (put("extend_seq_lens", lambda t: t + 1), "extend_seq_lens must be from 0 to 3"),
    (put("extend_seq_lens", lambda t: t - 1), "extend_seq_lens must be from 0 to 3"),
    (put("req_pool_indices", lambda t: t + 7), "req_pool_indices must be from 0 to 6"),
    (put("num_draft_tokens", lambda v: 4), r"must be an aligned int32 \[>= 16"),
    (in_list("page_indices_list", 0, lambda t: t[:11]), r"page_indices_list\[0\] must be an aligned int32 \[>= 12, "),
    (in_list("nsa_cu_seqlens_k_list", 0, lambda t: t[:12]), r"nsa_cu_seqlens_k_list\[0\] must be an aligned int32 \[>= 13\]"),
    (in_list("cu_seqlens_k_list", 0, lambda t: torch.cat([t, t])), r"cu_seqlens_k_list\[0\] must be an aligned int32 \[5\]"),
))  # fmt: skip
def test_draft_extend_refuses(damage, message):
    refuse(MODES["draft_extend"], damage, message)


@pytest.mark.parametrize("mode, damage, message", (
    ("decode", put("num_draft_tokens", lambda v: 2), "num_draft_tokens must be 1 in decode, got 2"),
    ("decode", put("extend_seq_lens", lambda v: torch.ones(4)), "extend_seq_lens is for draft_extend"),
    ("target_verify", put("extend_seq_lens", lambda v: torch.ones(4)), "extend_seq_lens is for draft_extend"),
))  # fmt: skip
def test_modes_refuse_what_belongs_to_others(mode, damage, message):
    refuse(MODES[mode], damage, message)


def test_other_devices_are_refused():
    case = MODES["decode"]
    arguments = case.arguments(case.buffers("meta"), "meta")
    with pytest.raises(ValueError, match="no implementation for meta tensors; use CUDA or CPU tensors"):
        op.fused_metadata_precompute_and_broadcast_cuda(**arguments)


def test_nsa_arguments_may_be_missing_together():
    fields = ("cache_seqlens_list", "real_page_table_list")
    for function in BOTH:
        case = Case(4, 2, np.array([5, 70, 64, 130]), fields=fields, topk=None)
        case.run(function)


def test_both_functions_have_one_signature_and_the_export_is_the_function():
    one, other = (inspect.signature(function) for function in BOTH)
    assert one == other
    assert attention.fused_metadata_precompute_and_broadcast_cuda is BOTH[0]
    assert list(one.parameters)[:12] == [
        "seq_lens", "req_pool_indices", "req_to_token", "cache_seqlens_list", "cu_seqlens_k_list", "page_indices_list",
        "nsa_cache_seqlens_list", "nsa_cu_seqlens_k_list", "real_page_table_list", "max_len", "nsa_index_topk",
        "real_page_size",
    ]  # fmt: skip


def test_a_kernel_that_does_not_build_is_reported(monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("no nvcc")

    monkeypatch.setattr(op, "load_jit", fail)
    # Without the caches: each keeps the first answer of the process.
    monkeypatch.setattr(op, "_jit_fused_metadata_module", op._jit_fused_metadata_module.__wrapped__)
    assert op.can_use_fused_metadata_precompute_and_broadcast.__wrapped__() is False
    assert "no nvcc" in caplog.text
