# SPDX-License-Identifier: Apache-2.0
"""The map as a Markdown page, and one backend of it as plain text."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable

from .calls import Kernel, Step
from .model import Backend, ClassFacts, Held, Map, Outcomes, Place

MAX_NODES = 24  # a larger diagram helps nobody
MAX_CODE = 120  # in a table
MAX_CONDITION = 70  # in a tree of calls
KINDS = ("construction", "metadata", "CUDA graph", "forward", "other")

INTRO = """\
# Attention backend source map

`scripts/source_map.py --write` makes this page from the source of {label}; do not edit it. `--check`
fails when the page is out of date, `--backend NAME` prints one backend in a terminal, `--diff A B` compares two releases.
[What became of backends](source_map_releases.md) from release to release has a page of its own.

How to read it: a **place** is a file with a line, or the first and the last, of the tree, below `python/sglang/`. A place is
linked where the line is the same in the released files or in this repository's `overlay/`; a file that the series patches has
its line in the tree that `scripts/apply_overlay.sh` builds. A **kernel** is a function that runs on the device: a Triton or
TileLang function, CUDA code that is compiled at run time, or a function of another package, whose place is then the line that
calls it, also if it only prepares a launch, as `plan` does. Of torch only operators that attention is made of count: matrix
products, softmax, top-k, `scaled_dot_product_attention`. A backend that builds a second one from the registry and calls it
has that call in its list as `another backend's` method. What `__init__` sets are the functions and objects that it chooses or
builds, without what the engine hands in. Calls and conditions are quoted from SGLang.

The page is read off the syntax tree, and nothing is executed. All branches are followed, whatever device they are for, and
the elements of a list or a table are not told apart, so a way may be listed that no run takes. Calls through objects that the
engine hands in (the KV pool, the model) end at what their declared class does, so writing K and V into the cache is not
shown. What a library function returns is not followed, so a way may also be missing: that of HSA's decode with the weight mode
`score` is, which runs the launches of extend.
"""

EAGER_OR_GRAPH = """\
Without a CUDA graph every layer goes through `forward`. With one, that happened when the graph was captured; a step only
brings the metadata up to date and replays it."""


class Links:
    """How a place is written: its short path and line, as a link if there is something to link to."""

    def __init__(self, target: Callable[[str, int], str | None]):
        self._target = target

    def __call__(self, path: str, line: int, end: int = 0) -> str:
        url, last = self._target(path, line), f"-L{end}" if end > line else ""
        text = f"{short(path)}:{_lines(line, end)}"
        return f"[{text}]({url}{last})" if url else f"`{text}`"

    def of(self, place: Place | Held | Kernel) -> str:
        return self(place.path, place.line, place.end)


def _lines(line: int, end: int) -> str:
    return f"{line}-{end}" if end > line else f"{line}"


def short(path: str) -> str:
    return path.removeprefix("python/sglang/")


def page(facts: Map, links: Links) -> str:
    parts = [
        INTRO.format(label=facts.label),
        _choice(facts, links),
        _registry(facts, links),
        _decode_step(facts, links),
        *(_section(item, links) for item in facts.classes),
    ]
    return "\n".join(parts)


def _choice(facts: Map, links: Links) -> str:
    lines = [
        "## How a backend is chosen",
        "",
        "Called one after the other, from start-up to the table of backends:",
        "",
    ]
    lines += _table("function", facts.chain, links)
    lines += ["", "```mermaid", "flowchart TD"]
    previous = ""
    for number, place in enumerate(facts.chain):
        lines.append(f'    c{number}["{place.name}"]')
        if previous:
            lines.append(f"    {previous} --> c{number}")
        previous = f"c{number}"
    lines += [
        f'    table[("{facts.registry.name}")]',
        f"    {previous} --> table",
        '    table --> backend["a backend"]',
    ]
    if facts.wrapper:
        lines += [f'    backend --> wrapper["{facts.wrapper.name}"]']
    lines += ["```", ""]
    if facts.helpers:
        lines += ["What they ask and build on the way:", "", *_table("function or class", facts.helpers, links), ""]
    if facts.wrapper:
        where = links.of(facts.wrapper)
        lines += [f"`{facts.wrapper.name}` ({where}) is given the backend and returns, by the kind of model:", ""]
        lines += ["| returns | when |", "| --- | --- |"]
        lines += [f"| {_code(built.call)} | {_conditions(built.conditions)} |" for built in _distinct(facts.wrapped)]
        lines.append("")
    others = [place for place in facts.lookups if place.name not in {part.name for part in facts.chain}]
    for place in others:
        lines += [f"`{place.name}` ({links.of(place)}) builds a second backend from the table.", ""]
    if facts.defaults:
        lines += ["### Defaults", "", "Without `--attention-backend`, the first of these whose condition holds:", ""]
        lines += ["| backend | when | place |", "| --- | --- | --- |"]
        lines += [
            f"| `{item.name}` | {_condition(item.note)} | {links(item.path, item.line)} |" for item in facts.defaults
        ]
        lines.append("")
    if facts.settings:
        lines += [
            "Before and after that, these lines set one of the three options by themselves (innermost condition):",
            "",
        ]
        lines += ["| sets | in | when | place |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {_code(item.text)} | `{item.function}` | {_condition(item.condition)} | {links(item.path, item.line)} |"
            for item in facts.settings
        ]
        lines.append("")
    return "\n".join(lines)


def _distinct(outcomes: Outcomes) -> list:
    """Objects by the text that returns them, each once."""
    return list({(built.call, built.conditions): built for built in outcomes.built}.values())


def _registry(facts: Map, links: Links) -> str:
    where = links(facts.registry.path, facts.registry.line)
    lines = ["## Registry", "", f"`{facts.registry.name}` ({where}) has {len(facts.backends)} names.", ""]
    lines += ["| `--attention-backend` | factory | class | conditions |", "| --- | --- | --- | --- |"]
    for backend in facts.backends:
        classes = "<br>".join(f"[{built.cls.name}](#{built.cls.name.lower()})" for built in _by_class(backend))
        factory = f"`{backend.factory.name}` {links.of(backend.factory)}"
        lines.append(f"| `{backend.name}` | {factory} | {classes} | {'<br>'.join(_demands(backend)) or 'none'} |")
    return "\n".join([*lines, ""])


def _by_class(backend: Backend) -> list:
    return list({built.cls: built for built in backend.outcomes.built}.values())


def _demands(backend: Backend) -> list[str]:
    found = []
    for built in _by_class(backend):
        if built.conditions:
            found.append(f"`{built.cls.name}` if {_conditions(built.conditions)}")
        if "=" in built.call:
            found.append(f"as {_code(built.call)}")
    for condition, message in backend.outcomes.refuses:
        found.append(f"refuses if {_condition(condition)}" + (f": {_cell(message)}" if message else ""))
    return found


def _decode_step(facts: Map, links: Links) -> str:
    lines = ["## One decode step", ""]
    if not facts.decode_step:
        return "\n".join(
            [*lines, "The functions that lead to a backend were not found under their names in this tree.", ""]
        )
    lines += [EAGER_OR_GRAPH, ""]
    lines += _call_table(facts.decode_step, links)
    lines += ["", "```mermaid", "sequenceDiagram"]
    replaying = [place.name.split(".")[0] for place in facts.decode_step if place.note.endswith(".replay")]
    holders = dict(zip(replaying, [*replaying[1:], "Graph"]))
    seen: list[str] = []
    for place in facts.decode_step:
        owner = place.name.split(".")[0]
        called = place.note.split(" ", 1)[1]
        message = called.rsplit(".", 1)[-1]
        through = "AttentionBackend" if "attn_backend" in called else "RadixAttention"
        target = {"replay": holders.get(owner), "forward": through}.get(message, "Backend")
        if owner == "AttentionBackend":
            message += " (decode)" if message == "forward_decode" else " (prefill, verify)"
        seen.append(f"    {owner}->>{target}: {message}")
    lines += [*dict.fromkeys(seen), "    Backend->>Kernel: launch, or capture into the graph (see the backend below)", "```", ""]
    if facts.runner_calls:
        lines += ["Everything in the engine that asks a backend for metadata or for what CUDA graphs need:", ""]
        lines += [*_call_table(facts.runner_calls, links), ""]
    return "\n".join(lines)


def _call_table(places: list[Place], links: Links) -> list[str]:
    """Functions and the calls in their notes, each with its line."""
    lines = ["| function | calls | place |", "| --- | --- | --- |"]
    for place in places:
        line, call = place.note.split(" ", 1)
        lines.append(f"| `{place.name}` | {_code(call)} | {links(place.path, int(line))} |")
    return lines


def _section(facts: ClassFacts, links: Links) -> str:
    names = ", ".join(f"`{name}`" for name in facts.backends)
    lines = [f"## {facts.place.name}", "", f"{names} · {links.of(facts.place)}"]
    lines[-1] += f" · extends {', '.join(f'`{base}`' for base in facts.bases)}" if facts.bases else ""
    lines += ["", *([f"{_cell(facts.place.note)}.", ""] if facts.place.note else [])]
    lines += ["| kind | method | place | |", "| --- | --- | --- | --- |"]
    for kind in KINDS:
        for place in facts.methods.get(kind, []):
            owner, name = place.name.rsplit(".", 1)
            inherited = "" if owner == facts.place.name else f" of `{owner}`"
            lines.append(f"| {kind} | `{name}`{inherited} | {links.of(place)} | {_cell(place.note)} |")
    lines.append("")
    lines += _also("Other methods of the class", facts.others)
    if facts.held:
        lines += ["| `__init__` sets | to | kind | place |", "| --- | --- | --- | --- |"]
        lines += [f"| `{held.attribute}` | `{held.what}` | {held.kind} | {links.of(held)} |" for held in facts.held]
        lines.append("")
    kernels = facts.kernels()
    if not kernels:
        return "\n".join([*lines, "No kernel was found on the way from these methods.", ""])
    lines += ["| kernel | kind | place | reached from |", "| --- | --- | --- | --- |"]
    for places, methods in kernels.values():
        where = ", ".join(_lines_of(places, links))
        lines.append(
            f"| `{places[0].name}` | {places[0].kind} | {where} | {', '.join(f'`{method}`' for method in methods)} |"
        )
    lines += ["", "```text", *tree_text(facts.paths), "```", ""]
    calls = _outside_calls(facts)
    if calls:
        lines += ["What its own methods hand to other packages on the way forward:", "", "```python", *calls, "```", ""]
    decode = next((path for path in facts.paths if path.name.endswith(".forward_decode")), None)
    if decode is not None:
        lines += ["```mermaid", "flowchart LR", *_flow(decode), "```", ""]
    lines += _also("Other classes of the file", facts.neighbours)
    return "\n".join(lines)


def _outside_calls(facts: ClassFacts) -> list[str]:
    """The calls of other packages in the forward methods and what they call of the class, with their arguments."""
    found: dict[Kernel, None] = {}

    def visit(step: Step) -> None:
        for call in step.calls:
            owner, _, name = call.name.rpartition(".")
            if call.kernel and call.kernel.call and call.kernel.kind != "torch":
                found[call.kernel] = None
            elif owner in (facts.place.name, *facts.bases) and "metadata" not in name:
                visit(call)

    for path in facts.paths:
        if path.name.rpartition(".")[2].startswith("forward"):
            visit(path)
    lines = []
    for kernel in found:
        lines += [f"# {kernel.name}, {short(kernel.path)}:{kernel.line}"]
        lines += _wrapped(kernel.call)
    return lines


def _wrapped(call: str) -> list[str]:
    """A call over several lines, none of which ends inside of a string."""
    pieces = re.sub(r"(\"[^\"]*\"|'[^']*')", lambda found: found[0].replace(" ", "\0"), call)
    lines = textwrap.wrap(
        pieces, MAX_CODE, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return [line.replace("\0", " ") for line in lines]


def _also(title: str, places: list[Place]) -> list[str]:
    named = ", ".join(f"`{place.name}` :{_lines(place.line, place.end)}" for place in places)
    return [f"{title}: {named}.", ""] if places else []


def _lines_of(places: Iterable[Kernel], links: Links) -> list[str]:
    return [links.of(place) for place in places]


def tree_text(paths: list[Step]) -> list[str]:
    """The calls from each method to its kernels; what was expanded before is not expanded again."""
    lines: list[str] = []
    expanded: set[tuple] = set()

    def write(step: Step, prefix: str, branch: str, here: str) -> None:
        same = (step.name, step.path, step.line, *step.kernels())  # a function can call what it is given
        known = bool(step.calls) and same in expanded
        name = f"{step.name} <{step.kernel.kind}>" if step.kernel else step.name
        where = f":{step.line}" if step.path == here else f"{short(step.path)}:{step.line}"
        condition = f"  {_cut(step.condition, MAX_CONDITION)}" if step.condition else ""
        lines.append(f"{prefix}{branch}{name}  {where}{condition}{'  (see above)' if known else ''}")
        if known:
            return
        expanded.add(same)
        inner = prefix + {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
        for number, call in enumerate(step.calls):
            write(call, inner, "└─ " if number == len(step.calls) - 1 else "├─ ", step.path)

    for path in paths:
        write(path, "", "", "")
    return lines


def _flow(path: Step) -> list[str]:
    """A flowchart: the whole way if it is small, or else from each direct call straight to its kernels."""
    full = _edges(path)
    if len({end for edge in full for end in edge}) > MAX_NODES:
        full = []
        for call in path.calls:
            full.append((_node(path), _node(call)))
            full += [(_node(call), (kernel.name, True)) for kernel in call.kernels() if kernel != call.kernel]
    edges = list(dict.fromkeys(full))
    nodes = list(dict.fromkeys(end for edge in edges for end in edge))
    lines = []
    for number, (name, is_kernel) in enumerate(nodes):
        lines.append(f'    n{number}[["{name}"]]' if is_kernel else f'    n{number}["{name}"]')
    return lines + [f"    n{nodes.index(start)} --> n{nodes.index(end)}" for start, end in edges]


def _node(step: Step) -> tuple[str, bool]:
    return step.name, step.kernel is not None


def _edges(step: Step) -> list[tuple]:
    return [edge for call in step.calls for edge in [(_node(step), _node(call)), *_edges(call)]]


def terminal(facts: Map, name: str) -> str | None:
    """One backend as plain text: by its name, its class, or the name of the file that holds the class."""
    chosen = [item for item in facts.classes if name in (*item.backends, item.place.name, _file_name(item))]
    lines = []
    for item in chosen:
        lines += [
            f"{item.place.name}  {short(item.place.path)}:{_lines(item.place.line, item.place.end)}",
            f"  backends: {', '.join(item.backends)}",
        ]
        lines += [f"  extends: {', '.join(item.bases)}"] if item.bases else []
        for backend in facts.backends:
            if backend.name in item.backends:
                lines.append(
                    f"  {backend.name}: {backend.factory.name}  {short(backend.factory.path)}:{backend.factory.line}"
                )
                lines += [f"    {text.replace('`', '')}" for text in _demands(backend)]
        for kind in KINDS:
            for place in item.methods.get(kind, []):
                lines.append(f"  {kind:<13} {place.name}  {short(place.path)}:{_lines(place.line, place.end)}")
        for held in item.held:
            lines.append(f"  holds         {held.attribute} = {held.what}  {short(held.path)}:{_lines(held.line, held.end)}")
        lines += ["", *("  " + line for line in tree_text(item.paths)), ""]
    return "\n".join(lines) or None


def names(facts: Map) -> list[str]:
    """What `terminal` knows backends by, classes left out."""
    return sorted({*(backend.name for backend in facts.backends), *map(_file_name, facts.classes)})


def _file_name(item: ClassFacts) -> str:
    *_, folder, file = item.place.path.split("/")
    return folder if file == "backend.py" else file.removesuffix(".py").removesuffix("_backend")


def _table(head: str, places: list[Place], links: Links) -> list[str]:
    rows = [f"| `{place.name}` | {links.of(place)} | {_cell(place.note)} |" for place in places]
    return [f"| {head} | place | |", "| --- | --- | --- |", *rows]


def _conditions(conditions: Iterable[str]) -> str:
    return " and ".join(_code(condition) for condition in conditions) or "always"


def _condition(text: str) -> str:
    return _code(text) if text else "always"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else re.sub(r"\w*$", "", text[:length]) + "…"  # no half words


def _code(text: str) -> str:
    return f"`{_cut(text, MAX_CODE)}`".replace("|", "\\|")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
