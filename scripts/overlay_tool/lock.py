# SPDX-License-Identifier: Apache-2.0
"""upstream.lock: the SGLang releases that have a series, and the identity of every file that matters."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from .console import OverlayError

try:
    import tomllib
except ImportError:  # Python 3.10
    try:
        import tomli as tomllib
    except ImportError:
        from pip._vendor import tomli as tomllib

FILE_NAME = "upstream.lock"
CHOICE = "SGLANG_HSA_RELEASE"  # the environment's choice among the releases, where a command is given none
_FIELDS = ("version", "tag", "repository", "sources", "python", "torch")
_VERSION = re.compile(r"v?(\d+(?:\.\d+)+(?:(?:a|b|rc|\.?post|\.?dev)\d+)*)")
_STAGES = {"dev": -4, "a": -3, "b": -2, "rc": -1, "post": 1}  # a release itself is 0
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HEADER = """\
# SPDX-License-Identifier: Apache-2.0
# The SGLang releases that a series in patches/ is made for. `scripts/overlay.py refresh` writes this file.
# sources: SHA-256 over names and git blob ids of the package's files but compiled ones, the same in each archive.
# archives: SHA-256 of each archive on the package index; where there is no sdist, a wheel per Python and machine.
# identity: git blob ids of files that tell this release from its neighbours.
# files: git blob ids, before and after the series, of every file that it touches.
"""


@dataclass(frozen=True)
class Release:
    """One pinned release.

    `archives` maps a name to its SHA-256, `files` a path to its blob ids before and after the series; `sources` is empty
    for a release that has an sdist.
    """

    name: str
    version: str
    tag: str
    repository: str
    sources: str
    python: str
    torch: str
    archives: dict[str, str] = field(default_factory=dict)
    identity: dict[str, str] = field(default_factory=dict)
    files: dict[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Lock:
    default: str
    releases: dict[str, Release]

    def release(self, name: str | None) -> Release:
        """The named release, else the environment's choice, else the default; the leading v may be left out."""
        wanted = name or os.environ.get(CHOICE) or self.default
        for known in self.releases.values():
            if wanted in (known.name, known.version):
                return known
        raise OverlayError(f"{FILE_NAME} has no release {wanted}", f"it knows {', '.join(self.releases)}; overlay.py pin adds one")

    def with_release(self, release: Release) -> Lock:
        """The lock with this release in the place of its name, or else by its version."""
        releases = {**self.releases, release.name: release}
        if release.name not in self.releases:
            releases = dict(sorted(releases.items(), key=lambda item: version_key(item[1].version)))
        return replace(self, releases=releases)

    def before(self, version: str) -> Release | None:
        """The newest release in the lock that is older than a version."""
        older = [known for known in self.releases.values() if version_key(known.version) < version_key(version)]
        return max(older, key=lambda known: version_key(known.version), default=None)


def version_in(text: str) -> str | None:
    """The version that a name like v0.5.17 or 0.5.12.post1 stands for; None for any other text."""
    found = _VERSION.fullmatch(text)
    return found.group(1) if found else None


def version_key(version: str) -> tuple:
    """Orders versions: 0.5.9 < 0.5.10rc0 < 0.5.10 < 0.5.10.post1 < 0.5.11."""
    numbers = tuple(int(part) for part in re.match(r"\d+(?:\.\d+)*", version).group().split("."))
    stages = [(_STAGES[stage], int(number)) for stage, number in re.findall(r"(a|b|rc|post|dev)(\d+)", version)]
    return numbers, *stages, (0, 0)


def load(root: Path) -> Lock:
    path = root / FILE_NAME
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OverlayError(f"{path} is missing", "run from a complete checkout of this repository") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OverlayError(f"{path} is not valid TOML ({error})", "restore it from git") from None


def parse(text: str) -> Lock:
    data = tomllib.loads(text)
    releases = {name: _release(name, table) for name, table in data.get("release", {}).items()}
    if data.get("default") not in releases:
        raise OverlayError(f"{FILE_NAME} names no default release that it also pins", "restore it from git")
    return Lock(data["default"], releases)


def _release(name: str, table: dict) -> Release:
    missing = [key for key in _FIELDS if not isinstance(table.get(key), str)]
    if missing:
        raise OverlayError(f"{FILE_NAME}: release {name} lacks {', '.join(missing)}", "restore it from git")
    archives = dict(table.get("archives", {}))
    digests = [*archives.values(), *filter(None, [table["sources"]])]
    if not archives or not all(_SHA256.fullmatch(digest) for digest in digests):
        raise OverlayError(f"{FILE_NAME}: release {name} has no valid SHA-256", "restore it from git")
    files = {path: (ids["before"], ids["after"]) for path, ids in table.get("files", {}).items()}
    fields = {key: table[key] for key in _FIELDS}
    return Release(name=name, archives=archives, identity=dict(table.get("identity", {})), files=files, **fields)


def dump(lock: Lock) -> str:
    """The lock as text; the same lock gives the same bytes."""
    lines = [_HEADER, f"default = {_quote(lock.default)}"]
    for release in lock.releases.values():
        table = f"release.{_quote(release.name)}"
        lines += ["", f"[{table}]"]
        lines += [f"{key} = {_quote(getattr(release, key))}" for key in _FIELDS]
        for name, values in (("archives", release.archives), ("identity", release.identity)):
            lines += ["", f"[{table}.{name}]"]
            lines += [f"{_quote(key)} = {_quote(value)}" for key, value in sorted(values.items())]
        lines += ["", f"[{table}.files]"]
        for path, (before, after) in sorted(release.files.items()):
            lines.append(f"{_quote(path)} = {{ before = {_quote(before)}, after = {_quote(after)} }}")
    return "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
