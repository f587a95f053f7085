# SPDX-License-Identifier: Apache-2.0
"""Files as the pinned release has them. The overlay tool keeps them beside the tree that it builds."""

import ast
import functools
import json
from pathlib import Path

import pytest


def pin_file(path: str) -> Path:
    """Where the pinned release's copy of ``path`` (from the repository's root) lies; skips without an overlay tree."""
    import sglang

    record = Path(sglang.__file__).parents[2] / ".overlay"
    if not (record / "manifest.json").is_file():
        pytest.skip("sglang is not imported from a tree that scripts/apply_overlay.sh made")
    digest = json.loads((record / "manifest.json").read_text())["upstream"][path].split()[1]
    kept = record / "pristine" / digest
    assert kept.is_file(), f"{path} is not patched, so the pinned copy is the one in the tree"
    return kept


@functools.cache
def _pin_code(path: str, name: str):
    tree = ast.parse(pin_file(path).read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name]
    assert len(found) == 1, (name, len(found))
    return compile(ast.Module(body=found, type_ignores=[]), path, "exec")


def pin_function(path: str, name: str, namespace: dict):
    """The function ``name`` of the pinned ``path``, defined in a copy of ``namespace``."""
    scope = dict(namespace)
    exec(_pin_code(path, name), scope)
    return scope[name]
