# SPDX-License-Identifier: Apache-2.0
"""What the overlay uses of SGLang: there in every release of the lock, and found where it is not."""

from __future__ import annotations

import pytest
from contract_world import OURS, UPSTREAM, changed, check, line_of
from overlay_tool import fetch, index, lock
from overlay_tool.console import OverlayError
from overlay_tool.tree import Entry
from world import RELEASE, REPOSITORY, commit, write, zip_bytes

import overlay
import overlay_contract

PIP_DOWNLOAD = fetch._pip_download
USERS_CACHE = fetch.cache_dir()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SGLANG_HSA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def missing(tmp_path, capfd):
    """The findings of one check, without the path of `ours.py`; their number must be the exit code's reason."""

    def run(*args, **kwargs) -> list[str]:
        code = check(tmp_path, *args, **kwargs)
        *lines, total = capfd.readouterr().out.splitlines()
        assert code == bool(lines) and total.startswith(f"{RELEASE}: ") and f" {len(lines)} use" in total
        return [line.removeprefix(f"{RELEASE}: overlay/python/sglang/") for line in lines]

    return run


def test_all_is_there(missing):
    assert missing() == []


def test_a_moved_module(missing):
    moved = {path: text for path, text in UPSTREAM.items() if path != "settings.py"}
    moved["deep/config.py"] = UPSTREAM["settings.py"]
    found = missing(upstream=moved)
    assert found == [
        f"ours.py:{line_of('import settings')}: from sglang.settings import settings: there is no module sglang.settings",
        f"ours.py:{line_of('import Mode')}: from sglang.settings import Mode: there is no module sglang.settings;"
        " sglang.deep.config has it",
        f"ours.py:{line_of('import Mode')}: from sglang.settings import Settings: there is no module sglang.settings;"
        " sglang.deep.config has it",
    ]


def test_a_moved_name_that_is_still_exported_is_there(missing):
    moved = changed("settings.py", ("class Mode:\n    def is_draft(self): ...\n", "from sglang.mode import Mode as Mode\n"))
    assert missing(upstream={**moved, "mode.py": "class Mode: ...\n"}) == []


def test_a_name_that_a_module_lacks(missing):
    found = missing(upstream=changed("settings.py", ("class Mode:", "class Kind:")))
    assert found == [f"ours.py:{line_of('import Mode')}: from sglang.settings import Mode: sglang.settings has no Mode"]


@pytest.mark.parametrize(
    "path, edit, uses, lacks",
    [
        ("settings.py", ("page_size: int = 1", "pages: int = 1"), "settings.page_size", "Settings has no page_size"),
        ("settings.py", ("def is_cpu", "def on_cpu"), "settings.is_cpu", "Settings has no is_cpu"),
        ("settings.py", ('device: str = "cpu"', 'where: str = "cpu"'), "settings.device", "Settings has no device"),
        ("pool.py", ("def page_of", "def page_at"), "self.page_of", "OurPool has no page_of"),
        ("pool.py", ("def parent", "def owner"), "pool.parent", "Pool has no parent"),
        ("pool.py", ("self.size = size", "self.capacity = size"), "pool.size", "Pool has no size"),
        ("pool.py", ("self.size = size", "self.capacity = size"), "self.size", "OurPool has no size"),
    ],
)
def test_a_removed_attribute(missing, path, edit, uses, lacks):
    found = missing(upstream=changed(path, edit))
    assert f"ours.py:{line_of(uses)}: {uses}: {lacks}" in found


def test_what_a_property_returns_is_known(missing):
    ours = OURS.replace("pool.parent.page_size", "pool.parent.pages")
    assert missing(ours) == [f"ours.py:{line_of('pool.parent')}: pool.parent.pages: Pool has no pages"]


@pytest.mark.parametrize(
    "edit, lacks",
    [
        (("priority: int = 0", "priority: int = 0, retry: bool = False"), "OurPool.alloc: it does not take 'retry', a parameter of"),
        (("need: int, priority: int = 0", "need: int, *, order, priority: int = 0"), "OurPool.alloc: it does not take 'order'"),
        (("need: int, priority: int = 0", "priority: int, need: int = 0"), "OurPool.alloc: it takes 'priority' in another place"),
        (('device: str = "cpu"):', 'device: str = "cpu", sort=False):'), "OurPool.__init__: it does not take 'sort'"),
    ],
)
def test_a_changed_signature_of_an_overridden_method(missing, edit, lacks):
    found = [line for line in missing(upstream=changed("pool.py", edit)) if "super()" not in line]
    assert len(found) == 1 and lacks in found[0] and "python/sglang/pool.py:" in found[0]


def test_an_argument_that_callers_give_by_name(missing):
    ours = OURS.replace("def alloc(self, need, priority=0):", "def alloc(self, need, order=0):").replace("need, priority)", "need)")
    assert "OurPool.alloc: it does not take 'priority'" in missing(ours)[0]
    by_place = changed("engine.py", ("priority=1", "1"))
    assert missing(ours, upstream=by_place) == []


def test_a_keyword_that_callers_give_into_kwargs(missing):
    ours = OURS.replace("def free(self, indices, **kwargs):", "def free(self, indices):")
    assert missing(ours) == []
    passing = changed("engine.py", ("pool.free([1])", "pool.free([1], late=True)"))
    assert "OurPool.free: it does not take 'late', which callers pass" in missing(ours, upstream=passing)[0]


def test_a_new_abstract_method(missing):
    found = missing(upstream=changed("pool.py", ("class PagedPool(Pool):\n    def clear(self): ...", "class PagedPool(Pool):")))
    assert found == [f"ours.py:{line_of('class OurPool')}: class OurPool: it does not define Pool.clear, which is abstract"]


@pytest.mark.parametrize(
    "call, lacks",
    [
        ("make_pool(settings)", "it needs the argument 'size'"),
        ("make_pool(settings, 1, 2)", "it takes 2 arguments by position, not 3"),
        ("make_pool(settings, size=1, pages=2)", "it takes no argument 'pages'"),
        ("make_pool(settings, 1).pages", "PagedPool has no pages"),
        ("make_pool(*given, **options)", ""),
        ("make_pool(settings, size=1).page_of(2)", ""),
    ],
)
def test_a_call(missing, call, lacks):
    found = missing(f"from sglang.pool import make_pool\nfrom sglang.settings import settings\ngiven = options = ()\n\nx = {call}\n")
    assert len(found) == bool(lacks) and all(lacks in line and line.startswith("ours.py:5: ") for line in found)


SEAM = """
def choose():
    try:
        from sglang.new import thing
    except ImportError:
        from sglang.old import thing
    return thing
"""


@pytest.mark.parametrize(
    "upstream, number", [({"new.py": "thing = 1\n"}, 0), ({"old.py": "thing = 1\n"}, 0), ({}, 2), ({"new.py": "other = 1\n"}, 2)]
)
def test_of_alternative_imports_one_must_resolve(missing, upstream, number):
    found = missing(SEAM, upstream=upstream)
    assert len(found) == number
    if number:
        assert "from sglang.new import thing" in found[0] and "from sglang.old import thing" in found[1]


def test_an_import_that_may_fail_needs_no_alternative(missing):
    assert missing("try:\n    from sglang.new import thing\nexcept ImportError:\n    thing = None\n") == []
    found = missing("try:\n    from sglang.new import thing\nexcept ImportError as e:\n    raise RuntimeError from e\n")
    assert len(found) == 1
    found = missing("try:\n    from sglang.new import thing\nexcept ValueError:\n    thing = None\n")
    assert len(found) == 1


GUARDED = """
from __future__ import annotations
from sglang.settings import Mode, Settings

def is_draft(mode: Mode):
    if hasattr(mode, "is_draft"):
        return mode.is_draft()
    return mode.is_draft_v2()

def size(args: Settings):
    pages = args.pages if hasattr(args, "pages") else args.page_size
    return getattr(args, "slots", None) or pages
"""


def test_of_branches_under_hasattr_the_one_that_runs_must_resolve(missing):
    assert missing(GUARDED) == []
    renamed = changed("settings.py", ("def is_draft", "def is_draft_v2"), ("page_size: int = 1", "pages: int = 1"))
    assert missing(GUARDED, upstream=renamed) == []
    neither = changed("settings.py", ("def is_draft", "def is_draft_v3"), ("page_size: int = 1", "size: int = 1"))
    found = missing(GUARDED, upstream=neither)
    assert [line.partition(": ")[2] for line in found] == [
        "mode.is_draft_v2: Mode has no is_draft_v2", "args.page_size: Settings has no page_size",
    ]


def test_a_question_of_the_overlay_decides_too(missing):
    seams = "from sglang.settings import Mode\n\ndef is_new():\n    return hasattr(Mode, 'is_new')\n"
    ours = "from sglang.compat import is_new\nfrom sglang.settings import Mode\nif is_new():\n    Mode.is_new()\n"
    assert missing(ours, compat=seams) == []
    assert len(missing(ours.replace("if is_new()", "if not is_new()"), compat=seams)) == 1


def test_a_class_that_a_seam_chooses(missing):
    seams = "def pool_class():\n    from sglang.pool import PagedPool\n\n    return PagedPool\n"
    ours = OURS.replace("from sglang.pool import PagedPool", "from sglang.compat import pool_class\n\nPagedPool = pool_class()")
    assert missing(ours, compat=seams) == []
    found = missing(ours.replace("page_of(3)", "page_at(3)"), compat=seams)
    assert len(found) == 1 and "OurPool has no page_at" in found[0]


def test_what_isinstance_asks_widens_a_type(missing):
    ours = "from sglang.pool import PagedPool, Pool\n\ndef page(pool: Pool):\n    if isinstance(pool, PagedPool):\n        return pool.page_of(1)\n"
    assert missing(ours) == []
    assert len(missing(ours.replace("isinstance(pool, PagedPool)", "pool"))) == 1


def test_a_class_with_a_base_from_elsewhere_may_have_more(missing):
    ours = "from sglang.open import Layer\n\ndef count(layer: Layer):\n    return len(list(layer.parameters()))\n"
    assert missing(ours) == []


def test_a_mixin_has_what_its_users_have(missing):
    ours = """
from sglang.pool import PagedPool

class Mixin:
    def alloc(self, need, priority=0):
        self.page_of(need)
        return super().alloc(need, priority)

class Ours(Mixin, PagedPool):
    pass

def use(mixin: Mixin):
    return mixin.page_size
"""
    assert missing(ours) == []
    found = missing(ours, upstream=changed("pool.py", ("def page_of", "def page_at"), ("alloc(self", "allocate(self")))
    assert [line.split(": ")[1] for line in found] == ["self.page_of", "super().alloc"]


def test_what_nobody_reads_must_not_be_set(missing):
    ours = "from sglang.settings import Settings\n\ndef turn_off(args: Settings):\n    args.disable_graphs = True\n"
    assert missing(ours) == ["ours.py:4: args.disable_graphs: Settings has no disable_graphs"]


def test_tests_are_apart(missing):
    test = "from sglang.gone import thing\n"
    assert missing(**{"test/test_ours": test}) == []
    assert len(missing(argv=["--quiet", "--tests"], **{"test/test_ours": test})) == 1


def test_a_series_counts_for_its_release(tmp_path, capfd):
    """Patches may add what the overlay's files read, and make a class of the overlay a base."""
    ours = """
from __future__ import annotations
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from sglang.settings import Settings

class OurSettings:
    def pages(self):
        return self.device, self.page_size

def read(settings: Settings):
    return settings.hsa, settings.pages()
"""
    dev, later = tmp_path / "dev", tmp_path / "sglang-10.0-py3-none-any.whl"
    assert check(tmp_path, ours) == 1
    assert overlay.main(["checkout", str(dev)], tmp_path) == 0
    text = "from sglang.ours import OurSettings\n" + UPSTREAM["settings.py"].replace("class Settings:", "class Settings(OurSettings):\n    hsa: int = 1")
    write(dev, {"python/sglang/settings.py": text.encode()})
    commit(dev, "[Core] Add")
    assert overlay.main(["refresh", str(dev)], tmp_path) == 0
    assert overlay_contract.main(["--quiet"], tmp_path) == 0
    # A release that has no series yet is to get the same from the one that will be made for it; what is gone is gone.
    settings = UPSTREAM["settings.py"].replace("page_size: int", "size: int")
    files = {"sglang/__init__.py": Entry(b""), "sglang/settings.py": Entry(settings.encode())}
    write(tmp_path, {later.name: zip_bytes(files | {"sglang-10.0.dist-info/METADATA": Entry(b"Name: sglang\nVersion: 10.0\n")})})
    capfd.readouterr()
    assert overlay_contract.main(["--quiet", "--source", str(later)], tmp_path) == 1
    assert capfd.readouterr().out.splitlines() == [
        "v10.0: overlay/python/sglang/ours.py:9: self.page_size: OurSettings or Settings has no page_size",
        "v10.0: 1 file, 1 use of SGLang missing",
    ]


def test_the_newest_release_only_warns(tmp_path, monkeypatch, capfd):
    wheel = {"sglang/__init__.py": Entry(b""), "sglang-10.0.dist-info/METADATA": Entry(b"Name: sglang\nVersion: 10.0\n")}
    monkeypatch.setattr(index, "newest", lambda: "10.0")
    monkeypatch.setattr(fetch, "_pip_download", lambda *_: ("sglang-10.0-py3-none-any.whl", zip_bytes(wheel)))
    assert check(tmp_path, argv=["--quiet", "--newest"]) == 0
    assert "v10.0: overlay/python/sglang/ours.py:4: from sglang.pool import PagedPool: there is no module" in capfd.readouterr().out


def test_the_newest_release_cannot_be_had(tmp_path, monkeypatch, capfd):
    def fail():
        raise OverlayError("pip cannot fetch sglang", "check the network")

    monkeypatch.setattr(index, "newest", fail)
    assert check(tmp_path, argv=["--quiet", "--newest"]) == 0
    assert "overlay: note: pip cannot fetch sglang; check the network" in capfd.readouterr().err


def test_an_unknown_release_is_one_line(tmp_path, error_line):
    assert check(tmp_path, argv=["--release", "v1.0"]) == 1
    assert "upstream.lock has no release v1.0" in error_line()


@pytest.mark.parametrize("name", list(lock.load(REPOSITORY).releases))
def test_the_overlay_and_a_release_of_the_lock(name, monkeypatch, capfd):
    """Where neither the cache nor pip has the release's archive, there is nothing to compare with."""
    monkeypatch.setenv("SGLANG_HSA_CACHE", str(USERS_CACHE))
    monkeypatch.setattr(fetch, "_pip_download", PIP_DOWNLOAD)
    try:
        fetch.pinned_archive(lock.load(REPOSITORY).release(name))
    except OverlayError as error:
        pytest.skip(str(error))
    code = overlay_contract.main(["--quiet", "--release", name])
    out = capfd.readouterr().out
    assert code == 0, out
    assert int(out.split(": ")[-1].split()[0]) > 50  # files
