# SPDX-License-Identifier: Apache-2.0
"""A small SGLang and one overlay file on it, for the tests of the contract check."""

from __future__ import annotations

import hashlib

import world as worlds
from overlay_tool import lock
from overlay_tool.tree import Entry
from world import RELEASE, VERSION, tar_bytes, write

import overlay_contract

UPSTREAM = {
    "pool.py": """
from abc import ABC, abstractmethod
from typing import Optional
from sglang.settings import Settings, settings

class Pool(ABC):
    def __init__(self, size: int, page_size: int, device: str = "cpu"):
        self.size = size
        self.page_size = page_size
        self.settings: Settings = settings

    @abstractmethod
    def clear(self): ...

    def alloc(self, need: int, priority: int = 0) -> Optional[list]:
        return None

    def free(self, indices, **kwargs): ...

    @property
    def parent(self) -> Optional["Pool"]:
        return None

class PagedPool(Pool):
    def clear(self): ...

    def page_of(self, slot: int) -> int:
        return slot // self.page_size

def make_pool(settings: Settings, size: int) -> PagedPool:
    return PagedPool(size, settings.page_size)
""",
    "settings.py": """
import dataclasses

@dataclasses.dataclass
class Settings:
    page_size: int = 1
    device: str = "cpu"

    def is_cpu(self) -> bool:
        return self.device == "cpu"

class Mode:
    def is_draft(self): ...

settings = Settings()
""",
    "engine.py": """
from sglang.pool import make_pool

class Engine:
    def run(self, pool):
        pool.alloc(4, priority=1)
        pool.free([1])
""",
    "open.py": """
import torch

class Layer(torch.nn.Module):
    def forward(self, x): ...
""",
}

OURS = """
from __future__ import annotations
from typing import TYPE_CHECKING
from sglang.pool import PagedPool
from sglang.settings import settings
if TYPE_CHECKING:
    from sglang.pool import Pool
    from sglang.settings import Mode, Settings

class OurPool(PagedPool):
    def __init__(self, size, page_size, device="cpu"):
        super().__init__(size, page_size, device)
        self.ours = self.page_of(3)

    def alloc(self, need, priority=0):
        return super().alloc(need, priority)

    def free(self, indices, **kwargs):
        print(self.size + len(indices))

def cost(pool: Pool, settings: Settings) -> int:
    pages = pool.size // settings.page_size
    return pages if settings.is_cpu() else pool.parent.page_size

def device() -> str:
    return settings.device
"""


def check(tmp_path, ours: str = OURS, upstream: dict[str, str] = UPSTREAM, argv=("--quiet",), **more: str) -> int:
    """Runs the script on a repository with one overlay file, `ours.py`, and those in `more`."""
    files = {f"sglang/{path}": Entry(text.encode()) for path, text in upstream.items()}
    files |= {"sglang/__init__.py": Entry(b""), "PKG-INFO": Entry(f"Name: sglang\nVersion: {VERSION}\n".encode())}
    archive = tar_bytes(files)
    digest = hashlib.sha256(archive).hexdigest()
    release = lock.Release(
        name=RELEASE, version=VERSION, tag=RELEASE, repository="", sources="", python=">=3.10", torch="",
        archives={worlds.ARCHIVE: digest}, identity={"python/sglang/__init__.py": Entry(b"").blob},
    )  # fmt: skip
    write(tmp_path, {
        "upstream.lock": lock.dump(lock.Lock(RELEASE, {RELEASE: release})).encode(),
        f"patches/{RELEASE}/series": b"",
        "overlay/python/sglang/ours.py": ours.encode(),
        **{f"overlay/python/sglang/{name}.py": text.encode() for name, text in more.items()},
        f"cache/{digest}/{worlds.ARCHIVE}": archive,
    })
    return overlay_contract.main(list(argv), tmp_path)


def changed(path: str, *edits: tuple[str, str], **more: str) -> dict[str, str]:
    text = UPSTREAM[path]
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return {**UPSTREAM, path: text, **more}


def line_of(text: str, source: str = OURS) -> int:
    (found,) = [number for number, line in enumerate(source.splitlines(), 1) if text in line]
    return found
