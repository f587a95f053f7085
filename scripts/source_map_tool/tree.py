# SPDX-License-Identifier: Apache-2.0
"""A release of SGLang as a set of parsed files, from a folder, an archive or the package index. Nothing is imported."""

from __future__ import annotations

import ast
import re
import tokenize
from functools import cached_property
from pathlib import Path

from overlay_tool import fetch, sources
from overlay_tool.archives import SUFFIXES, read_archive
from overlay_tool.console import OverlayError

PACKAGE = "python/sglang/"
_IMPORT = re.compile(rb"^\s*(?:from|import) (\w+)", re.MULTILINE)
_OPENING, _CLOSING = re.compile(r"([(\[{]) "), re.compile(r",? ([)\]}])")
_RELEASE = re.compile(r"v?(\d+(?:\.\d+)+(?:(?:a|b|rc|\.?post|\.?dev)\d+)*)")


class Module:
    """One file of the tree: its text and syntax tree; ``name`` is the dotted name it is imported by."""

    def __init__(self, path: str, text: str):
        self.path, self.text = path, text
        self.is_package = path.endswith("/__init__.py")
        self.name = path.removeprefix("python/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @cached_property
    def ast(self) -> ast.Module:
        try:
            return ast.parse(self.text)
        except SyntaxError as error:
            raise OverlayError(f"{self.path}:{error.lineno} is not valid Python here", "run a newer Python") from None

    def text_of(self, node: ast.expr) -> str:
        """The source of an expression on one line, without comments; unlike `ast.unparse` the same under every Python."""
        first, last = node.lineno - 1, node.end_lineno - 1
        lines = self._lines[first : last + 1]
        lines[-1] = lines[-1][: node.end_col_offset]
        lines[0] = lines[0][node.col_offset :]
        text = " ".join(_without_comments(b"\n".join(lines).decode("utf-8")).split())
        return _CLOSING.sub(r"\1", _OPENING.sub(r"\1", text))

    def call_text(self, node: ast.Call) -> str:
        """A call on one line, without what stands between its arguments."""
        given = [self.text_of(part) for part in node.args]
        given += [(f"{part.arg}=" if part.arg else "**") + self.text_of(part.value) for part in node.keywords]
        return f"{self.text_of(node.func)}({', '.join(given)})"

    @cached_property
    def _lines(self) -> list[bytes]:
        return self.text.encode("utf-8").split(b"\n")  # columns of ast are bytes


class Tree:
    """The Python files of a release by path, in upstream's layout (``python/sglang/...``).

    Args:
        label: what to call the release; a version, a tag or the name of a folder.
        texts: path -> bytes or a `Path` that is read when needed.
    """

    def __init__(self, label: str, texts: dict[str, bytes | Path]):
        self.label = label
        self._texts = texts
        self._modules: dict[str, Module] = {}

    @cached_property
    def paths(self) -> list[str]:
        return sorted(self._texts)

    def module(self, name: str) -> Module | None:
        """The module of a dotted name, or None if the tree has no such file."""
        stem = "python/" + name.replace(".", "/")
        return self.at(f"{stem}.py") or self.at(f"{stem}/__init__.py")

    def at(self, path: str) -> Module | None:
        if path not in self._texts:
            return None
        if path not in self._modules:
            self._modules[path] = Module(path, self._read(path).decode("utf-8-sig"))
        return self._modules[path]

    def containing(self, *words: str) -> list[Module]:
        """Serving code, without tests, whose text has one of these words."""
        wanted = [word.encode() for word in words]
        return [
            self.at(path)
            for path in self.paths
            if path.startswith(PACKAGE + "srt/") and any(word in self._read(path) for word in wanted)
        ]

    @cached_property
    def device_packages(self) -> frozenset[str]:
        """Packages that layers or kernels import. Others, however they are called, launch nothing."""
        found: set[str] = set()
        for path in self.paths:
            if "/layers/" in path or "kernel" in path:
                found.update(word.decode() for word in _IMPORT.findall(self._read(path)))
        return frozenset(found)

    def _read(self, path: str) -> bytes:
        text = self._texts[path]
        return text if isinstance(text, bytes) else text.read_bytes()


def _without_comments(text: str) -> str:
    """The source of an expression; in parentheses its lines are those of one statement."""
    if "#" not in text:
        return text
    lines = f"({text}\n)".splitlines(keepends=True)
    for token in tokenize.generate_tokens(iter(list(lines)).__next__):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column] + "\n"
    return "".join(lines)[1:-1]


def open_tree(name: str, label: str | None = None) -> Tree:
    """A folder or an archive, in the layout of the repository or of an sdist, or else a release from the package index."""
    path = Path(name)
    if path.is_dir():
        return Tree(label or path.name, _folder(path))
    if path.exists() or name.endswith(SUFFIXES):
        return _of(sources.read_source(path), label)
    release = _RELEASE.fullmatch(name)
    if not release:
        raise OverlayError(f"{name} is neither a release nor an existing folder or archive", "give one of these")
    archive, data = fetch.release_archive(release.group(1))
    return _of(
        sources.Upstream(sources.place(read_archive(archive, data), archive), archive), label or f"v{release.group(1)}"
    )


def _of(upstream: sources.Upstream, label: str | None) -> Tree:
    texts = {path: entry.data for path, entry in upstream.files.items() if _wanted(path)}
    return Tree(label or f"v{sources.version_of(upstream) or upstream.origin}", texts)


def _folder(root: Path) -> dict[str, bytes | Path]:
    base = next((base for base in (root / "python", root) if (base / "sglang/__init__.py").is_file()), None)
    if base is None:
        raise OverlayError(f"{root} holds no SGLang tree", "it needs python/sglang/ or sglang/ at its top")
    found = {f"python/{file.relative_to(base).as_posix()}": file for file in (base / "sglang").rglob("*.py")}
    return {path: file for path, file in found.items() if _wanted(path)}


def _wanted(path: str) -> bool:
    return path.startswith(PACKAGE) and path.endswith(".py") and not path.startswith(PACKAGE + "test/")
