# SPDX-License-Identifier: Apache-2.0
"""Build backend of the patched tree's root. Name, dependencies, extras and console scripts are upstream's.

A tree from upstream's sources has upstream's project in python/, and every hook runs that. Only the version needs help:
upstream derives it from its git history, which the tree does not have, so it comes from the manifest that the overlay tool
wrote. A tree from a wheel has no project but the wheel's metadata, and the hooks pack those again.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import sys
import zipfile
from pathlib import Path

from setuptools import build_meta

_ROOT = Path(__file__).resolve().parent
_PACKAGE = _ROOT / "python"
_REPLACED = ("RECORD", "WHEEL")  # files of a wheel's metadata that are about that wheel alone


@contextlib.contextmanager
def _project():
    """Upstream's project folder as the current one, with the version of the pinned release."""
    manifest = json.loads((_ROOT / ".overlay" / "manifest.json").read_text(encoding="utf-8"))
    os.environ.setdefault("SETUPTOOLS_SCM_PRETEND_VERSION_FOR_SGLANG", manifest["version"])
    before = os.getcwd()
    os.chdir(_PACKAGE)
    try:
        yield
    finally:
        os.chdir(before)


def _build_editable(folder, config_settings=None, metadata_directory=None):
    """Installs python/ as a plain path entry.

    The default, an import hook, is asked only after the current folder: next to the tree, `import sglang` would then find
    the tree's root as an empty namespace package.
    """
    settings = {"editable_mode": "compat", **(config_settings or {})}
    return build_meta.build_editable(folder, settings, metadata_directory)


def _dist_info() -> Path:
    """The metadata of the wheel that the tree was made from; the wheel's compiled parts need its Python."""
    found = sorted(_PACKAGE.glob("sglang-*.dist-info"))
    if not found:
        # Without a project file setuptools would install an empty sglang 0.0.0 that requires nothing.
        sys.exit(
            f"overlay: error: {_ROOT} was made from a source without a project file or metadata, so pip cannot install it; "
            "delete it and run scripts/apply_overlay.sh without --source, or set PYTHONPATH to its folder python"
        )
    made_for = set(re.findall(r"^Tag: *cp(\d+)-", (found[0] / "WHEEL").read_text(encoding="utf-8"), re.MULTILINE))
    running = "%d%d" % sys.version_info[:2]
    if made_for and running not in made_for:
        sys.exit(
            f"overlay: error: {_ROOT} was made from a wheel for Python {min(made_for)[0]}.{min(made_for)[1:]}, this is "
            f"{sys.version.split()[0]}; delete it and run scripts/apply_overlay.sh with PYTHON set to this one"
        )
    return found[0]


def _metadata(info: Path) -> dict[str, bytes]:
    kept = (path for path in sorted(info.rglob("*")) if path.is_file() and path.name not in _REPLACED)
    return {f"{info.name}/{path.relative_to(info).as_posix()}": path.read_bytes() for path in kept}


def _package() -> dict[str, bytes]:
    paths = (path for path in sorted((_PACKAGE / "sglang").rglob("*")) if path.is_file())
    return {path.relative_to(_PACKAGE).as_posix(): path.read_bytes() for path in paths if path.suffix != ".pyc"}


def _prepare(folder, config_settings=None):
    info = _dist_info()
    for name, data in _metadata(info).items():
        target = Path(folder, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return info.name


def _pack(folder, content: dict[str, bytes], info: Path) -> str:
    tags = re.findall(r"^Tag: *(\S+)", (info / "WHEEL").read_text(encoding="utf-8"), re.MULTILINE)
    lines = "".join(f"Tag: {tag}\n" for tag in tags)
    files = {**content, **_metadata(info)}
    files[f"{info.name}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: sglang-hsa\nRoot-Is-Purelib: false\n{lines}".encode()
    rows = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(data)}\n")
    files[f"{info.name}/RECORD"] = "".join([*rows, f"{info.name}/RECORD,,\n"]).encode()
    wheel = f"{info.name.removesuffix('.dist-info')}-{tags[0]}.whl"
    with zipfile.ZipFile(Path(folder, wheel), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return wheel


def _pack_editable(folder, config_settings=None, metadata_directory=None):
    info = _dist_info()
    link = f"__editable__.{info.name.removesuffix('.dist-info')}.pth"
    return _pack(folder, {link: f"{_PACKAGE}\n".encode()}, info)


def _pack_wheel(folder, config_settings=None, metadata_directory=None):
    return _pack(folder, _package(), _dist_info())


def _refuse_sdist(folder, config_settings=None):
    sys.exit(f"overlay: error: {_ROOT} was made from a wheel, which has no sdist; build a wheel instead")


def _no_requirements(config_settings=None):
    _dist_info()
    return []


def _hook(upstreams, of_wheel):
    """Upstream's hook where its project is, else the one for a wheel's tree. A folder may be relative to the caller's."""

    def run(*args, **kwargs):
        args = [os.path.abspath(arg) if isinstance(arg, str) else arg for arg in args]
        if not (_PACKAGE / "pyproject.toml").is_file():
            return of_wheel(*args, **kwargs)
        with _project():
            return upstreams(*args, **kwargs)

    return run


get_requires_for_build_wheel = _hook(build_meta.get_requires_for_build_wheel, _no_requirements)
get_requires_for_build_editable = _hook(build_meta.get_requires_for_build_editable, _no_requirements)
get_requires_for_build_sdist = _hook(build_meta.get_requires_for_build_sdist, _no_requirements)
prepare_metadata_for_build_wheel = _hook(build_meta.prepare_metadata_for_build_wheel, _prepare)
prepare_metadata_for_build_editable = _hook(build_meta.prepare_metadata_for_build_editable, _prepare)
build_wheel = _hook(build_meta.build_wheel, _pack_wheel)
build_editable = _hook(_build_editable, _pack_editable)
build_sdist = _hook(build_meta.build_sdist, _refuse_sdist)
