# SPDX-License-Identifier: Apache-2.0
"""What pages cost whose keys arrive from another server: represented by the decode pass that meets them, or transferred.

Per length, of one request: milliseconds to represent all its pages in all layers, in one launch as in decode; to launch that
with nothing to do; to copy the representations, and the keys and values, layer by layer. The copies go to the second device
where there is one. Checks the representations of one layer against the torch reference first. Ends in one JSON line.

    python benchmarks/bench_arrivals.py --lengths 8192 65536
"""

from __future__ import annotations

import argparse
import json
import sys

import cuda_only
import geometries
import torch

from representations import empty_representations, kept_channels, represent
from sglang.srt.layers.attention.hsa.config import HSAConfig
from sglang.srt.layers.attention.hsa.counters import HSACounters
from sglang.srt.layers.attention.hsa.ops.page_repr.kernel import AllLayers, addresses_of, write_committed_pages
from sglang.srt.layers.attention.hsa.page_repr import KINDS
from sglang.srt.layers.attention.hsa.params import AttentionParams, LayerCache

PAGE = 64
TOLERANCE = 2e-2  # relative, of bfloat16 representations


def copies(tensors: list[torch.Tensor], repeats: int) -> tuple[float, float]:
    """Of copying the tensors to the last device."""
    there = [torch.empty_like(t, device=f"cuda:{torch.cuda.device_count() - 1}") for t in tensors]

    def copy():
        for source, target in zip(tensors, there):
            target.copy_(source, non_blocking=True)

    return cuda_only.milliseconds(copy, repeats)


def bench(geometry: str, length: int, kind: str, repeats: int) -> dict:
    torch.manual_seed(0)
    g = geometries.GEOMETRIES[geometry]
    layers, kv_heads, dim, pages = g["layers"], g["kv_heads"], g["head_dim"], length // PAGE
    params = AttentionParams(HSAConfig(page_size=PAGE, chunk_repr=kind), dim**-0.5)
    keys = [
        torch.randn((pages + 1) * PAGE, kv_heads, dim, device="cuda", dtype=torch.bfloat16) for _ in range(layers)
    ]
    reprs = [empty_representations(k, params) for k in keys]
    stamps = [torch.zeros(pages + 1, dtype=torch.int64, device="cuda") for _ in keys]
    version = torch.ones(pages + 1, dtype=torch.int64, device="cuda")
    channels = kept_channels(params, dim)
    every = None if channels is None else channels.expand(layers, -1).contiguous()
    addresses = [addresses_of(tensors, "cuda") for tensors in (keys, reprs, stamps)]
    first = LayerCache(keys[0], None, reprs[0], stamps[0], version, channels)
    all_layers = AllLayers(*addresses, torch.ones(layers, device="cuda"), every, first)
    order = (torch.randperm(pages, device="cuda") + 1).int()
    slots = (order[:, None] * PAGE + torch.arange(PAGE, device="cuda")).flatten().int()
    request_slots = torch.cat([slots, slots.new_zeros(PAGE)])[None]
    lens, request = torch.tensor([length + 1], device="cuda"), torch.zeros(1, dtype=torch.int64, device="cuda")
    own, counters = torch.zeros(1, dtype=torch.int64, device="cuda"), HSACounters("cuda")

    def represent_all():
        write_committed_pages(
            all_layers, version, request_slots, request, lens, 1, own, counters.values, params, recent=1
        )

    def forget():
        for stamp in stamps:
            stamp.zero_()

    represent_all()
    healed = sum(value for name, value in counters.snapshot().items() if name.startswith("reprs_"))
    expected, _ = represent(keys[-1], params)
    error = float((reprs[-1][1:].float() - expected[1:].float()).norm() / expected[1:].float().norm())
    if not (error < TOLERANCE and healed == layers * pages):
        raise SystemExit(f"bench_arrivals: wrong result at {length=}: {error=}, {healed} of {layers * pages} represented")
    all_ms, all_spread = cuda_only.milliseconds(represent_all, repeats, forget)
    none_ms, _ = cuda_only.milliseconds(represent_all, repeats)
    reprs_ms, reprs_spread = copies(reprs, repeats)
    keys_ms, keys_spread = copies(keys, repeats)
    size = keys[0].numel() * keys[0].element_size() * layers
    return dict(
        length=length, layers=layers, kv_heads=kv_heads, dim=dim, kind=kind, error=round(error, 5), represented=healed,
        represent_ms=round(all_ms, 3), represent_spread_ms=round(all_spread, 3), nothing_to_do_ms=round(none_ms, 3),
        read_tb_s=round(size / all_ms / 1e9, 2), copy_representations_ms=round(reprs_ms, 3),
        copy_representations_spread_ms=round(reprs_spread, 3), copy_keys_and_values_ms=round(2 * keys_ms, 3),
        copy_keys_spread_ms=round(keys_spread, 3),
        representations_share=round(sum(r.numel() * r.element_size() for r in reprs) / (2 * size), 4),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", default="8b", choices=geometries.GEOMETRIES)
    parser.add_argument("--lengths", nargs="+", type=int, default=[8192, 65536])
    parser.add_argument("--kinds", nargs="+", default=[HSAConfig.chunk_repr], choices=[k for k in KINDS if KINDS[k].stored])
    parser.add_argument("--repeats", type=int, default=10)
    args = cuda_only.parse_args(parser)
    rows = []
    for length in args.lengths:
        for kind in args.kinds:
            rows.append(bench(args.geometry, length, kind, args.repeats))
            print(rows[-1], flush=True)
    gpu, devices = torch.cuda.get_device_name(), torch.cuda.device_count()
    print(json.dumps(dict(command=" ".join(sys.argv), gpu=gpu, devices=devices, torch=torch.__version__, rows=rows)))


if __name__ == "__main__":
    main()
