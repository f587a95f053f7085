# SPDX-License-Identifier: Apache-2.0
"""The list of deliberate faults fits the tree. ``check.py`` runs their tests, which takes minutes."""

import ast
import re
from pathlib import Path

import pytest
from faults import FAULTS

OVERLAY = Path(__file__).parents[2] / "overlay/python/sglang"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_fault_can_be_made(fault):
    text = (OVERLAY / "srt" / fault.file).read_text(encoding="utf-8")
    assert text.count(fault.old) == 1
    ast.parse(text.replace(fault.old, fault.new))
    file, name = fault.test.split("::")
    tests = (OVERLAY / "test/attention" / file).read_text(encoding="utf-8")
    assert re.search(rf"^def {name}\(", tests, re.MULTILINE)


def test_every_part_is_covered():
    assert len(FAULTS) >= 20 and len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert {fault.file.split("/")[-1] for fault in FAULTS} >= {"page_repr_pool.py", "selector.py", "kernel.py", "store.py"}
