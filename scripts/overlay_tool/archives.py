# SPDX-License-Identifier: Apache-2.0
"""Reads tar, zip and wheel files into a snapshot. Nothing is unpacked to disk before every name is checked."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
import zlib

from .console import OverlayError
from .tree import EXECUTABLE, LINK, REGULAR, Entry, Snapshot, check_links, check_path

SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip", ".whl")


def read_archive(name: str, data: bytes) -> Snapshot:
    """The files of an archive, without the single folder that sdists and GitHub wrap around them."""
    try:
        if name.endswith((".zip", ".whl")):
            files = _read_zip(data)
        else:
            files = _read_tar(data)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise OverlayError(f"{name} is not a readable archive ({error})", "fetch it again") from None
    files = _unwrap(files)
    check_links(files)
    return files


def _read_tar(data: bytes) -> Snapshot:
    files: Snapshot = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            if member.isdir():
                continue
            path = check_path(member.name.removeprefix("./"))
            if path in files:
                raise OverlayError(f"the archive holds {path} twice", "do not use this source")
            if member.issym():
                files[path] = Entry(member.linkname.encode(), LINK)
            elif member.isreg():
                content = archive.extractfile(member).read()
                files[path] = Entry(content, EXECUTABLE if member.mode & stat.S_IXUSR else REGULAR)
            else:
                raise OverlayError(f"{path} in the archive is a device or a hard link", "do not use this source")
    return files


def _read_zip(data: bytes) -> Snapshot:
    files: Snapshot = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            path = check_path(member.filename)
            if path in files:
                raise OverlayError(f"the archive holds {path} twice", "do not use this source")
            mode = member.external_attr >> 16
            kind = stat.S_IFMT(mode)
            if kind not in (0, stat.S_IFREG, stat.S_IFLNK):
                raise OverlayError(f"{path} in the archive is a device", "do not use this source")
            executable = EXECUTABLE if mode & stat.S_IXUSR else REGULAR
            files[path] = Entry(archive.read(member), LINK if kind == stat.S_IFLNK else executable)
    return files


def _unwrap(files: Snapshot) -> Snapshot:
    tops = {path.split("/")[0] for path in files}
    is_tree = "sglang/__init__.py" in files or "python/sglang/__init__.py" in files
    if is_tree or len(tops) != 1 or tops & set(files):
        return files
    return {path.split("/", 1)[1]: entry for path, entry in files.items()}
