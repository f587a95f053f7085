# SPDX-License-Identifier: Apache-2.0
"""The patch series: its order, its patch files and what their names and headers must say.

A patch is named after its subject: `[CPU] Cap the final logits` is `cpu/cap-the-final-logits.patch`. The order stands in
`series` alone, so that a new patch renames no other.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from email.parser import BytesParser
from pathlib import Path

from .console import OverlayError
from .diff import DiffReader, FileDiff

ZERO_COMMIT = b"From " + b"0" * 40 + b" "
DEP3_FIELDS = ("Description", "Origin", "Forwarded", "Applied-Upstream", "Last-Update", "Retire-When")
_HEADER = "# Order of application, one concern per patch. `scripts/overlay.py refresh` writes this file.\n"


@dataclass(frozen=True)
class Patch:
    """`name` is the path below the release's folder, as `series` has it."""

    name: str
    data: bytes
    subject: str
    message: str
    files: tuple[FileDiff, ...]

    @property
    def added(self) -> int:
        return sum(hunk.added for diff in self.files for hunk in diff.hunks)

    @property
    def removed(self) -> int:
        return sum(hunk.removed for diff in self.files for hunk in diff.hunks)

    @property
    def paths(self) -> set[str]:
        return {path for diff in self.files for path in diff.paths}

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def parse_patch(name: str, data: bytes) -> Patch:
    """One patch as `git format-patch` writes it: a mail header, a message, a diff."""
    reader = DiffReader(name, data)
    if not data.startswith(b"From "):
        raise reader.fail("not a patch exported by git format-patch")
    if b"" not in reader.lines:
        raise reader.fail("no message")
    end_of_header = reader.lines.index(b"")
    starts = (at for at, line in enumerate(reader.lines) if at > end_of_header and line.startswith(b"diff --git "))
    reader.at = next(starts, len(reader.lines))
    mail = BytesParser().parsebytes(b"\n".join(reader.lines[1:end_of_header]), headersonly=True)
    body = b"\n".join(reader.lines[end_of_header + 1 : reader.at])
    files = reader.files()
    if not files:
        raise reader.fail("the patch changes nothing")
    return Patch(name, data, _subject(mail), body.decode("utf-8", "replace"), tuple(files))


def _subject(mail) -> str:
    text = " ".join(str(mail.get("Subject", "")).split())
    return text.removeprefix("[PATCH] ")


def folder(root: Path, release_name: str) -> Path:
    return root / "patches" / release_name


def file_name(subject: str) -> str:
    """The whole subject as a file name, in the folder of its area."""
    area, _, what = subject.removeprefix("[").partition("] ")
    if not subject.startswith("[") or not _slug(area) or not _slug(what):
        raise OverlayError(f"the subject {subject!r} does not begin with its [Area]", "reword the commit")
    return f"{_slug(area)}/{_slug(what)}.patch"


def _slug(text: str) -> str:
    words = re.sub(r"[^a-z0-9_.]+", "-", text.lower().replace("'", ""))
    return words.strip("-.")


def names(root: Path, release_name: str) -> list[str]:
    """The names in `series`, checked against the files in both directions."""
    where = folder(root, release_name)
    try:
        text = (where / "series").read_text(encoding="utf-8")
    except FileNotFoundError:
        raise OverlayError(f"{where / 'series'} is missing", "restore it from git or run refresh") from None
    listed = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    repeated = {name for name in listed if listed.count(name) > 1}
    present = {path.relative_to(where).as_posix() for path in where.rglob("*.patch")}
    for problem, found in (
        ("names twice", repeated),
        ("names a missing file", set(listed) - present),
        ("does not name", present - set(listed)),
    ):
        if found:
            raise OverlayError(f"patches/{release_name}/series {problem}: {', '.join(sorted(found))}", "correct it")
    return listed


def load(root: Path, release_name: str) -> list[Patch]:
    where = folder(root, release_name)
    return [parse_patch(name, (where / name).read_bytes()) for name in names(root, release_name)]


def series_text(patches: list[Patch]) -> str:
    return _HEADER + "".join(f"{patch.name}\n" for patch in patches)


def header_problems(message: str) -> list[str]:
    """What a patch message lacks, as names of fields."""
    fields = dict(re.findall(r"^([A-Z][A-Za-z0-9-]*):[ \t]*(\S.*)$", message, re.MULTILINE))
    problems = [name for name in DEP3_FIELDS if name not in fields]
    if "Last-Update" in fields and not re.fullmatch(r"\d{4}-\d\d-\d\d", fields["Last-Update"].strip()):
        problems.append("Last-Update as YYYY-MM-DD")
    if not re.search(r"^Signed-off-by: \S.* <\S+@\S+>$", message, re.MULTILINE):
        problems.append("Signed-off-by")
    return problems
