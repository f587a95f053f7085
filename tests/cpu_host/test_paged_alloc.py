# SPDX-License-Identifier: Apache-2.0
"""The paged allocator on CPU: the same slots as the Triton kernels, and None when pages run out."""

import pytest
import torch

from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.paged_alloc_torch import alloc_decode_torch, alloc_extend_torch

LENGTHS = (1, 63, 64, 65, 127, 1000)
PAGE_SIZES = (4, 16, 63, 64)  # those of HiLS are no powers of two


def ceil_div(a, b):
    return -(-a // b)


def random_pages(prefix_lens, num_free, page_size, generator):
    """Shuffled page numbers: the slot of each prefix's last token, and the free pages."""
    pages = torch.randperm(len(prefix_lens) + num_free, generator=generator) + 1
    own, free = pages[: len(prefix_lens)], pages[len(prefix_lens) :]
    last = own * page_size + (prefix_lens - 1) % page_size
    return torch.where(prefix_lens > 0, last, -1), free


def extend_case(page_size, bs, seed):
    generator = torch.Generator().manual_seed(seed)
    extend = torch.tensor(LENGTHS)[torch.randint(len(LENGTHS), (bs,), generator=generator)]
    kind = torch.randint(3, (bs,), generator=generator)
    any_prefix = torch.randint(1, 300, (bs,), generator=generator)
    # No prefix, a page aligned one as the radix cache gives, any other one as a chunked prefill leaves.
    prefix = torch.where(kind == 0, 0, torch.where(kind == 1, any_prefix // page_size * page_size, any_prefix))
    seq = prefix + extend
    new_pages = int((ceil_div(seq, page_size) - ceil_div(prefix, page_size)).sum())
    last_loc, free = random_pages(prefix, new_pages + seed % 3, page_size, generator)
    return prefix, seq, last_loc, free, page_size


def decode_case(page_size, bs, seed):
    generator = torch.Generator().manual_seed(seed)
    seq = torch.randint(1, 3 * page_size, (bs,), generator=generator)
    seq[::3] = seq[::3] // page_size * page_size + 1  # these open a page
    new_pages = int((seq % page_size == 1).sum())
    last_loc, free = random_pages(seq - 1, new_pages + seed % 3, page_size, generator)
    return seq, last_loc, free, page_size


CASES = [
    (op, make(page_size, bs, seed=100 * bs + n))
    for op, make in (("alloc_extend", extend_case), ("alloc_decode", decode_case))
    for page_size in PAGE_SIZES
    for bs in (1, 2, 7, 33)
    for n in range(5)
] + [
    ("alloc_extend", (torch.tensor([0]), torch.tensor([n]), torch.tensor([-1]), torch.arange(1, 300), page_size))
    for page_size in PAGE_SIZES
    for n in LENGTHS
]


def test_equal_to_triton_kernels(triton_interpreter):
    for (op, args), expected in zip(CASES, triton_interpreter(CASES), strict=True):
        out = torch.full_like(expected, -7)
        *tensors, page_size = args
        function = alloc_extend_torch if op == "alloc_extend" else alloc_decode_torch
        function(*tensors, out, 0, page_size)
        assert torch.equal(out, expected), (op, args)
        assert len(out.unique()) == len(out)


def allocator(num_pages, page_size, need_sort=False):
    size = num_pages * page_size
    return PagedTokenToKVPoolAllocator(size, page_size, torch.float32, "cpu", kvcache=None, need_sort=need_sort)


def extend(pool, prefix, seq, last_loc):
    prefix, seq, last_loc = map(torch.tensor, (prefix, seq, last_loc))
    return pool.alloc_extend(prefix, prefix, seq, seq, last_loc, int((seq - prefix).sum()))


@pytest.mark.parametrize("debug", ["0", "1"])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_shortage_returns_none_and_keeps_free_pages(monkeypatch, page_size, debug):
    monkeypatch.setenv("SGLANG_DEBUG_MEMORY_POOL", debug)
    pool = allocator(3, page_size)
    before = pool.free_pages.clone()
    assert extend(pool, [0], [3 * page_size + 1], [-1]) is None
    assert extend(pool, [0, 0], [2 * page_size, page_size + 1], [-1, -1]) is None
    assert torch.equal(pool.free_pages, before)

    assert extend(pool, [0, 0], [2 * page_size, page_size], [-1, -1]) is not None
    seq = torch.tensor([2 * page_size + 1])
    assert pool.alloc_decode(seq, seq, torch.tensor([3 * page_size - 1])) is None
    assert pool.available_size() == 0

    # With no free page at all, a token that fits into the old page still gets its slot.
    inside = torch.tensor([2 * page_size])
    slot = 3 * page_size - 2
    assert pool.alloc_decode(inside, inside, torch.tensor([slot])).tolist() == [slot + 1]
    assert extend(pool, [2 * page_size - 1], [2 * page_size], [slot]).tolist() == [slot + 1]


@pytest.mark.parametrize("need_sort", [False, True])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_random_life(monkeypatch, page_size, need_sort):
    """Requests that grow by chunks and tokens and finish never share a page and give every page back."""
    monkeypatch.setenv("SGLANG_DEBUG_MEMORY_POOL", "1")
    pool = allocator(64, page_size, need_sort)
    generator = torch.Generator().manual_seed(page_size)
    slots: dict[int, list[int]] = {}
    shortages = 0
    for step in range(300):
        choice = int(torch.randint(4, (), generator=generator))
        if choice == 0 and len(slots) < 8:
            slots[step] = []
        elif choice == 1 and slots:
            pool.free(torch.tensor(slots.pop(next(iter(slots))), dtype=torch.int64))
        if not slots:
            continue
        names = list(slots)
        prefix = [len(slots[n]) for n in names]
        last = [slots[n][-1] if slots[n] else -1 for n in names]
        if choice == 3 and all(prefix):
            seq = torch.tensor(prefix) + 1
            out = pool.alloc_decode(seq, seq, torch.tensor(last))
            lens = [1] * len(names)
        else:
            lens = torch.randint(1, 3 * page_size, (len(names),), generator=generator).tolist()
            out = extend(pool, prefix, [p + n for p, n in zip(prefix, lens)], last)
        if out is None:
            shortages += 1
            continue
        for name, part in zip(names, out.split(lens)):
            slots[name] += part.tolist()

        owner: dict[int, int] = {}
        for name, taken in slots.items():
            assert [s % page_size for s in taken] == [i % page_size for i in range(len(taken))]
            for page in {s // page_size for s in taken}:
                assert 1 <= page <= 64 and owner.setdefault(page, name) == name
            assert len({s // page_size for s in taken}) == ceil_div(len(taken), page_size)
        assert pool.available_size() == (64 - len(owner)) * page_size
    assert shortages > 0
    for taken in slots.values():
        pool.free(torch.tensor(taken, dtype=torch.int64))
    assert pool.available_size() == 64 * page_size
