# SPDX-License-Identifier: Apache-2.0
"""Files as the pinned release has them. The overlay tool keeps them beside the tree that it builds."""

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


def pin_function(path: str, name: str, namespace: dict):
    """The function ``name`` of the pinned ``path``, compiled in ``namespace``."""
    import ast

    tree = ast.parse(pin_file(path).read_text())
    found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name]
    assert len(found) == 1, (name, len(found))
    scope = dict(namespace)
    exec(compile(ast.Module(body=found, type_ignores=[]), path, "exec"), scope)
    return scope[name]
