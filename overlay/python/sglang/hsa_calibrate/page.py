# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page of traces: the prompt by pages, and what each layer selected of it.

The data stand in the page as JSON with every ``<``, ``>`` and ``&`` escaped, and the script puts text into the document
as text only, so a prompt cannot become markup.
"""

from __future__ import annotations

import html
import json
from typing import Dict, List, Sequence

from sglang.hsa_calibrate.loading import Text
from sglang.hsa_calibrate.measure import Bench, Measurement
from sglang.hsa_calibrate.page_script import SCRIPT
from sglang.hsa_calibrate.page_style import STYLE
from sglang.hsa_calibrate.recommend import Recommendation
from sglang.hsa_calibrate.report import options_of
from sglang.hsa_calibrate.trace import Conversation, Trace
from sglang.srt.layers.attention.hsa.layout import num_candidate_pages

DIGITS = 5  # of shares; a page of a thousand still has two that count

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main id="root"><noscript>This page draws its data with a script, which is part of it.</noscript></main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def render(
    model_name: str,
    tokenizer,
    bench: Bench,
    conversation: Conversation,
    dense: Measurement,
    measured: Sequence[Measurement],
    traces: Sequence[Trace],
    recommendation: Recommendation,
) -> str:
    """The page.

    Args:
        measured: the settings, in the order of ``traces``.
    """
    config, answer = bench.config, conversation.answer
    num_pages = traces[0].mass.shape[1]
    first_row = len(conversation.prompt.ids) - 1
    last_row = first_row + len(answer) - 1
    shape = (config.effective_window, config.page_size, config.sink_pages)
    data = {
        "model": model_name,
        "strategy": config.selection_strategy,
        "page_size": config.page_size,
        "prompt": conversation.prompt.name,
        "prompt_tokens": len(conversation.prompt.ids),
        "answer": conversation.answer_text,
        "answer_tokens": len(answer),
        "own": conversation.own,
        "answer_perplexity": round(conversation.perplexity, DIGITS),
        "perplexity": round(dense.perplexity, DIGITS),
        "layers": list(bench.layers.full),
        "heads": bench.layers.num_kv_heads,
        "sinks": config.sink_pages,
        # Pages from here on lie in the window of every row of the answer.
        "window": config.sink_pages + num_candidate_pages(last_row, *shape),
        "pages": page_texts(
            conversation.prompt, answer, tokenizer, config.page_size, num_pages
        ),
        "settings": [
            {
                "kind": m.setting.kind,
                "topk": m.setting.topk,
                "dense": sorted(bench.dense_layers(m.setting)),
                "options": options_of(bench, m.setting),
                "perplexity": round(m.perplexity, DIGITS),
                "loss": round(m.loss(dense), DIGITS),
                "calibrated_mass": round(m.mean_mass, DIGITS),
                "best": m.setting == recommendation.best.setting,
                "passed": recommendation.passed,
                "answer_perplexity": round(t.perplexity, DIGITS),
                "selected": _rounded(t.selected),
                "heads": t.heads.tolist(),
                "mass": _rounded(t.mass),
                "missed": _rounded(t.missed),
            }
            for m, t in zip(measured, traces)
        ],
    }
    return TEMPLATE.format(
        title=html.escape(f"{model_name}: pages that an answer selects"),
        style=STYLE,
        data=embedded(data),
        script=SCRIPT,
    )


def embedded(data: object) -> str:
    """JSON that can stand in a script element: no character of it opens or closes markup."""
    text = json.dumps(
        data, separators=(",", ":")
    )  # ASCII: line separators, too, are escaped
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def page_texts(
    prompt: Text, answer: Sequence[int], tokenizer, page_size: int, num_pages: int
) -> List[Dict[str, object]]:
    """First and last token of each page, and what of prompt and answer stands in it."""
    pages = []
    for page in range(num_pages):
        lo, hi = page * page_size, (page + 1) * page_size
        past = max(lo - len(prompt.ids), 0), max(hi - len(prompt.ids), 0)
        rest = answer[past[0] : past[1]]
        pages.append(
            {
                "first": lo,
                "last": min(hi, len(prompt.ids) + len(answer)) - 1,
                "text": _prompt_part(prompt, lo, hi, tokenizer),
                "answer": tokenizer.decode(rest) if len(rest) else "",
            }
        )
    return pages


def _prompt_part(prompt: Text, lo: int, hi: int, tokenizer) -> str:
    """Text of tokens lo .. hi - 1: cut from the text where offsets are known, so that no character is lost."""
    ids = prompt.ids[lo:hi]
    if prompt.pieces is None or not len(ids):
        return tokenizer.decode(ids) if len(ids) else ""
    begin = prompt.pieces[lo] if lo else 0
    end = prompt.pieces[hi] if hi < len(prompt.pieces) else len(prompt.text)
    return prompt.text[begin:end]


def _rounded(values) -> List[List[float]]:
    return [[round(value, DIGITS) for value in row] for row in values.tolist()]
