# SPDX-License-Identifier: Apache-2.0
"""Hands the repository's pages to MkDocs at their own paths, and beside them the files that they link to."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from pymdownx.superfences import fence_code_format

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def pages() -> list[Path]:
    """Every Markdown page of the repository."""
    patterns = ("*.md", "docs/*.md", "benchmarks/*.md", "examples/*/checkpoint*/README.md")
    return sorted(page for pattern in patterns for page in ROOT.glob(pattern))


def linked(page: Path) -> set[Path]:
    """Files of the repository that a page links to and that are no pages."""
    targets = {link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link}
    found = {(page.parent / target).resolve() for target in targets}
    outside = [path for path in found if not path.is_relative_to(ROOT)]
    if outside:
        raise PluginError(f"{page.name} links to {outside[0]}, which is not in the repository")
    return {path for path in found if path.is_file() and path.suffix != ".md"}


def on_config(config):
    """Mermaid needs a function, which plain YAML cannot name."""
    fence = {"name": "mermaid", "class": "mermaid", "format": fence_code_format}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def on_files(files, config):
    for path in pages() + sorted(set().union(*map(linked, pages()))):
        uri = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files
