# SPDX-License-Identifier: Apache-2.0
"""Build backend of the patched tree's root: every hook runs upstream's own project in python/.

Name, dependencies, extras and console scripts are therefore upstream's. Only the version needs help: upstream derives it
from its git history, which the tree does not have, so it comes from the manifest that the overlay tool wrote.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

from setuptools import build_meta

_ROOT = Path(__file__).resolve().parent


@contextlib.contextmanager
def _project():
    """Upstream's project folder as the current one, with the version of the pinned release.

    Without a project file setuptools would install an empty sglang 0.0.0 that requires nothing.
    """
    if not (_ROOT / "python" / "pyproject.toml").is_file():
        sys.exit(
            f"overlay: error: {_ROOT} was made from a wheel or another source without a project file, so pip cannot install "
            "it; delete it and run scripts/apply_overlay.sh without --source, or set PYTHONPATH to its folder python"
        )
    manifest = json.loads((_ROOT / ".overlay" / "manifest.json").read_text(encoding="utf-8"))
    os.environ.setdefault("SETUPTOOLS_SCM_PRETEND_VERSION_FOR_SGLANG", manifest["version"])
    before = os.getcwd()
    os.chdir(_ROOT / "python")
    try:
        yield
    finally:
        os.chdir(before)


def _with_folder(hook):
    """A hook that writes into a folder, which may be given relative to the caller's."""

    def run(folder, *args, **kwargs):
        folder = os.path.abspath(folder)
        with _project():
            return hook(folder, *args, **kwargs)

    return run


def _build_editable(folder, config_settings=None, metadata_directory=None):
    """Installs python/ as a plain path entry.

    The default, an import hook, is asked only after the current folder: next to the tree, `import sglang` would then find the
    tree's root as an empty namespace package.
    """
    settings = {"editable_mode": "compat", **(config_settings or {})}
    return build_meta.build_editable(folder, settings, metadata_directory)


def _without_folder(hook):
    def run(config_settings=None):
        with _project():
            return hook(config_settings)

    return run


get_requires_for_build_wheel = _without_folder(build_meta.get_requires_for_build_wheel)
get_requires_for_build_editable = _without_folder(build_meta.get_requires_for_build_editable)
get_requires_for_build_sdist = _without_folder(build_meta.get_requires_for_build_sdist)
prepare_metadata_for_build_wheel = _with_folder(build_meta.prepare_metadata_for_build_wheel)
prepare_metadata_for_build_editable = _with_folder(build_meta.prepare_metadata_for_build_editable)
build_wheel = _with_folder(build_meta.build_wheel)
build_editable = _with_folder(_build_editable)
build_sdist = _with_folder(build_meta.build_sdist)
