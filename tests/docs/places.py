# SPDX-License-Identifier: Apache-2.0
"""What the source map says of places, and whether it stands there. Knows nothing of the tool that writes the map."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def sections(text: str) -> dict[str, str]:
    """The chapters of the page by the names of the backends that they are for."""
    found: dict[str, str] = {}
    for part in text.split("\n## ")[1:]:
        head = part.split("\n", 3)[2]
        if " · " in head:
            for name in re.findall(r"`(\w+)`", head.split(" · ")[0]):
                found[name] = found.get(name, "") + part
    return found


def places(section: str) -> list[tuple[str, str, int]]:
    """(name, path, line) of the table rows and trees of a chapter."""
    found = [(name, path, line) for name, path, line, _ in rows(section)]
    here: dict[int, str] = {}
    for block in re.findall(r"```text\n(.*?)```", section, re.DOTALL):
        for row in block.splitlines():
            depth, name, path, line = re.match(r"^([│├└─ ]*)(.+?)  (\S*?):(\d+)(?:  |$)", row).groups()
            level = len(depth) // 3
            here[level] = path or here[level - 1]
            found.append((re.sub(r" <[^>]*>$", "", name), here[level], int(line)))
    return found


def rows(section: str) -> list[tuple[str, str, int, int]]:
    """(name, path, line, last line or 0) of the tables of a chapter. The name is the last one before the place."""
    found = []
    for row in re.findall(r"^\| (.+) \|$", section, re.MULTILINE):
        name = ""
        for cell in row.split(" | "):
            known = re.findall(r"[\[`]([\w/]+\.py):(\d+)(?:-(\d+))?[\]`]", cell)
            found += [(name, path, int(line), int(last or 0)) for path, line, last in known]
            if known:
                break
            name = cell.split("`")[1] if cell.startswith("`") else name
    return found


def stands_there(tree: Path, name: str, path: str, line: int) -> bool:
    """Whether a definition of that name, a call of it, or an attribute that is set to it, is on that line."""
    file = tree / "python" / "sglang" / path
    last = re.sub(r" \(.*\)$", "", name.removeprefix("another backend's ")).rsplit(".", 1)[-1]
    last = "ATTENTION_BACKENDS" if name == "another backend" else last
    for node in nodes(file):
        if getattr(node, "lineno", 0) != line:
            continue
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == last:
            return True
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            if name_of(node.value) in aliases(file, last):
                return True
        if isinstance(node, ast.Call):
            called = node.func.value if isinstance(node.func, ast.Subscript) else node.func
            if name_of(called) == last or name_of(called) in aliases(file, last):
                return True
            if any(isinstance(part, ast.Name) and part.id == last for part in node.args):  # compile(function)
                return True
            if isinstance(called, ast.Call) and last in returned_by(tree, file, name_of(called.func)):
                return True
            if name_of(called) in parameters_given(file, line, last):
                return True
    return False


def name_of(node: ast.AST) -> str | None:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)


@functools.cache
def nodes(file: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(file.read_text(encoding="utf-8-sig"))))


def mentioned(node: ast.AST) -> set[str]:
    """The names in an expression, and the keys of tables."""
    found = {name_of(part) for part in ast.walk(node)}
    return found | {part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and part.value} - {None}


@functools.cache
def aliases(file: Path, name: str) -> set[str]:
    """Other names that a file gives to a function, over assignments and imports, to a few levels.

    A variable that is set to what a function of the file returns is one, if that function returns one.
    """
    functions = [node for node in nodes(file) if isinstance(node, FUNCTIONS)]
    found, size = {name}, 0
    while size != len(found):
        size = len(found)
        givers = {function.name for function in functions if returned_in(function) & found}
        for node in nodes(file):
            if isinstance(node, ast.ImportFrom):
                found |= {part.asname for part in node.names if part.asname and part.name in found}
            elif isinstance(node, ast.Assign):
                used = {name_of(part) for part in ast.walk(node.value)} - {None}
                called = name_of(node.value.func) if isinstance(node.value, ast.Call) else None
                if used & found or called in givers:
                    found |= {name_of(part) for target in node.targets for part in targets_of(target)} - {None}
    return found | ({"dense_forward"} if name in ("forward_decode", "forward_extend") else set())


def targets_of(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, (ast.Tuple, ast.List)) else [node]


def functions_around(file: Path, line: int) -> Iterator[ast.FunctionDef]:
    return (node for node in nodes(file) if isinstance(node, FUNCTIONS) and node.lineno <= line <= node.end_lineno)


def parameters_given(file: Path, line: int, name: str) -> set[str]:
    """Parameters of the function around a line, as far as a call in the file hands it something of that name."""
    found: set[str] = set()
    for function in functions_around(file, line):
        given = [arg.arg for arg in (*function.args.posonlyargs, *function.args.args)]
        for node in nodes(file):
            if isinstance(node, ast.Call) and name_of(node.func) == function.name:
                pairs = [*zip(given, node.args), *((keyword.arg, keyword.value) for keyword in node.keywords)]
                found |= {part for part, value in pairs if part and mentioned(value) & aliases(file, name)}
    return found


def returned_by(tree: Path, file: Path, function: str | None) -> set[str]:
    """The names in what a function returns; it is one of the file, or of the file that this one imports it from."""
    for node in nodes(file):
        if isinstance(node, ast.ImportFrom) and node.module and function in [part.name for part in node.names]:
            file = tree / "python" / f"{node.module.replace('.', '/')}.py"
    bodies = [node for node in nodes(file) if isinstance(node, FUNCTIONS) and node.name == function]
    return {name for body in bodies for name in returned_in(body)}


@functools.cache
def returned_in(function: ast.FunctionDef) -> set[str]:
    values = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value]
    return {name for value in values for name in mentioned(value)}
