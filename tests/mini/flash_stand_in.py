# SPDX-License-Identifier: Apache-2.0
"""flash_attn_with_kvcache of sgl_kernel in torch: the same signature, and the layout that its docstring asks for."""

import ast
import importlib.util
import inspect
from pathlib import Path

import torch


def flash_attn_with_kvcache(
    q,
    k_cache,
    v_cache,
    k=None,
    v=None,
    qv=None,
    rotary_cos=None,
    rotary_sin=None,
    cache_seqlens=None,
    cache_batch_idx=None,
    cache_leftpad=None,
    page_table=None,
    cu_seqlens_q=None,
    cu_seqlens_k_new=None,
    max_seqlen_q=None,
    rotary_seqlens=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    attention_chunk=None,
    softcap=0.0,
    rotary_interleaved=True,
    scheduler_metadata=None,
    num_splits=0,
    pack_gqa=None,
    sm_margin=0,
    return_softmax_lse=False,
    sinks=None,
    score_mod=None,
    aux_tensors=None,
    ver=3,
):
    for unused in (k, v, qv, rotary_cos, cache_batch_idx, cache_leftpad, attention_chunk, sinks, score_mod):
        assert unused is None
    assert causal and ver == 3 and not return_softmax_lse
    num_pages, page_size, heads_kv, dim = k_cache.shape
    assert v_cache.shape == k_cache.shape and k_cache.stride(-1) == v_cache.stride(-1) == 1
    assert cache_seqlens.dtype == page_table.dtype == torch.int32 and page_table.stride(-1) == 1
    batch = len(cache_seqlens)
    assert page_table.shape[0] == batch and cache_seqlens.shape == (batch,)
    if cu_seqlens_q is None:  # [B, Sq, H, D]
        assert q.dim() == 4 and len(q) == batch
        rows = list(q)
    else:  # [T, H, D]
        assert q.dim() == 3 and cu_seqlens_q.dtype == torch.int32 and cu_seqlens_q.shape == (batch + 1,)
        counts = cu_seqlens_q.diff().tolist()
        assert cu_seqlens_q[0] == 0 and sum(counts) == len(q) and max_seqlen_q == max(counts)
        rows = list(q.split(counts))
    out = []
    for b, queries in enumerate(rows):
        length = int(cache_seqlens[b])
        pages = page_table[b, : -(-length // page_size)].long()
        assert ((pages >= 0) & (pages < num_pages)).all()
        keys, values = (cache[pages].flatten(0, 1)[:length] for cache in (k_cache, v_cache))
        group = queries.shape[1] // heads_kv
        keys, values = (x.repeat_interleave(group, dim=1).transpose(0, 1) for x in (keys, values))
        logits = queries.transpose(0, 1) @ keys.transpose(1, 2) * (softmax_scale or dim**-0.5)
        if softcap > 0:
            logits = softcap * torch.tanh(logits / softcap)
        # Row i may see the keys [i + length - Sq - left, i + length - Sq + right], aligned to the bottom right.
        own = torch.arange(len(queries))[:, None] + length - len(queries)
        key = torch.arange(length)
        mask = key <= own
        if window_size != (-1, -1):
            left, right = window_size
            mask = mask & (key >= own - left) & (key <= own + right)
        out.append((logits.masked_fill(~mask, float("-inf")).softmax(-1) @ values).transpose(0, 1))
    return torch.stack(out) if cu_seqlens_q is None else torch.cat(out)


def real_parameters():
    """(name, source of the default or None) of each parameter of the installed sgl_kernel's function.

    Read from its source, because the package cannot be imported without a CUDA driver. None if it is not installed.
    """
    spec = importlib.util.find_spec("sgl_kernel")
    if spec is None:
        return None
    return _parameters(Path(spec.origin).with_name("flash_attn.py").read_text(encoding="utf-8"))


def own_parameters():
    return _parameters(inspect.getsource(inspect.getmodule(real_parameters)))


def _parameters(source):
    function = next(
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "flash_attn_with_kvcache"
    )
    arguments = function.args
    assert not (arguments.posonlyargs or arguments.kwonlyargs or arguments.vararg or arguments.kwarg)
    defaults = [None] * (len(arguments.args) - len(arguments.defaults))
    defaults += [ast.unparse(default) for default in arguments.defaults]
    return [(argument.arg, default) for argument, default in zip(arguments.args, defaults)]
