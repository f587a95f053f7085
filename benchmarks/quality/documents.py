# SPDX-License-Identifier: Apache-2.0
"""English prose that every Python brings along: the language reference of ``help()``, cut into documents.

The text differs from one Python to the next, so results carry its sha256.
"""

from __future__ import annotations

import hashlib
import re
import textwrap
from pathlib import Path
from typing import Callable, Iterator

DOCUMENTS = 8
LEAST_WORDS = 5  # of a paragraph
QUOTES = str.maketrans("‘’“”", "''\"\"")


class DocumentError(Exception):
    """There is not enough text; one line."""


def text() -> str:
    """All topics in alphabetical order, without repeated paragraphs, headings, grammar and line breaks within prose."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DocumentError("this Python has no pydoc_data; use one with its whole standard library") from None
    paragraphs: dict[str, None] = {}
    for name in sorted(topics):
        paragraphs.update(dict.fromkeys(prose(topics[name])))
    return "\n\n".join(paragraphs)


def prose(topic: str) -> Iterator[str]:
    """Paragraphs of a topic: examples keep their lines, prose is one line."""
    for part in re.split(r"\n[ \t]*\n", topic):
        part = textwrap.dedent(part.strip("\n")).translate(QUOTES)
        lines = part.split("\n")
        if re.search(r"^\S+ *::=", part, re.MULTILINE) or re.fullmatch(r"[*=\-~^\s]*", lines[-1]):
            continue
        listing = part[:1] in ("*", "-")
        if ">>>" not in part and (listing or not any(line[:1].isspace() for line in lines)):
            part = " ".join(line.strip() for line in lines)
            if len(part.split()) < LEAST_WORDS:
                continue
        yield part.strip()


def sha256(whole: str) -> str:
    return hashlib.sha256(whole.encode()).hexdigest()


def cut(whole: str, count: int = DOCUMENTS) -> list[str]:
    """The text in parts of about equal length that begin with a paragraph."""
    paragraphs = whole.split("\n\n")
    parts: list[list[str]] = [[] for _ in range(count)]
    seen = 0
    for paragraph in paragraphs:
        parts[min(count - 1, seen * count // len(whole))].append(paragraph)
        seen += len(paragraph) + 2
    return ["\n\n".join(part) for part in parts]


def read(files: list[Path]) -> list[str]:
    """The texts of files, one document each.

    Raises:
        DocumentError: one cannot be read.
    """
    try:
        return [file.read_text(encoding="utf-8") for file in files]
    except (OSError, UnicodeDecodeError) as error:
        raise DocumentError(f"a text cannot be read: {error}") from None


def tokenized(
    encode: Callable[[str], list[int]], least: int, count: int = DOCUMENTS, files: list[Path] | None = None
) -> tuple[list[list[int]], str]:
    """Token ids of the documents, and the sha256 of their text.

    Args:
        encode: from a text to its ids, without special tokens.
        least: tokens that each document must have.
        files: texts to take instead of Python's topics, one document each.

    Raises:
        DocumentError: one has fewer.
    """
    parts = read(files) if files else cut(text(), count)
    documents = [encode(part) for part in parts]
    shortest = min(map(len, documents))
    if shortest < least:
        raise DocumentError(f"the shortest document has {shortest} tokens, {least} are needed")
    return documents, sha256("\n\n".join(parts) if files else text())
