# SPDX-License-Identifier: Apache-2.0
"""The model card of a checkpoint, written from what its run reported."""

from __future__ import annotations

from typing import Any

import evaluate
from hils import HiLSShape

CARD = """---
license: apache-2.0
library_name: transformers
tags: [long-context, retrieval, synthetic]
---

# {title}

A {family} of {parameters:,} parameters ({bytes:,} bytes in bfloat16) that finds pass keys among others, follows chains of
copies and counts frequent words in texts of up to {longest:,} tokens. It is there to show what sparse attention finds and what it
misses, with nothing to download. It is not a language model: it knows about {words} words and a few forms of sentences,
and of anything else it makes nothing.

- Format: `{architecture}`, {layers} layers, hidden size {hidden}, {heads} query and {kv_heads} key-value heads of {dim}, tied
  embeddings, RoPE theta {theta:g}, tokenizer included.{more}
- Data: synthetic text of the forms of `benchmarks/retrieval`, drawn while training; no other text, no other model.
- Training: `python examples/needle/train.py --recipe {recipe} --seed {seed}`, {steps:,} steps in {seconds:.0f} s on {device}, PyTorch {torch}.
  Learning rate {lr:g}; stages (index in `recipe.py`: steps): {course}.
- Finished as planned: {complete}.

## {attention}, right after training

Share of exact answers in percent with the training code, greedy, {samples} samples per number; the numbers of a cell are depths
{depths}. Columns are tokens per text; those above {longest:,} are longer than any it was trained on.

```
{table}
```

What a server gets out of it{where}.
"""

DENSE = dict(
    title="Needle: the smallest thing that retrieves",
    family="Qwen3",
    architecture="Qwen3ForCausalLM",
    more="",
    attention="Dense attention",
    where=", with dense attention and with pages selected, is in `docs/retrieval.md`",
)
LANDMARKS = dict(
    title="Needle with landmarks: the smallest thing that was trained for HSA",
    family="HiLS model",
    architecture="HiLSForCausalLM",
    more="\n  Every layer attends a window of {window} places and {topk} pages of {page}, each ended by a landmark.",
    attention="Landmarks",
    where=", beyond the lengths of its training too, is in `docs/hils.md`",
)


def write(result: dict[str, Any], shape, longest: int, words: int) -> str:
    """Text of the card.

    Args:
        result: the run's last line.
        shape: ``model.Shape`` of the checkpoint.
        longest: tokens of the longest training texts.
        words: words of its vocabulary.
    """
    scores = result["scores"]
    texts = LANDMARKS if isinstance(shape, HiLSShape) else DENSE
    if texts is LANDMARKS:
        sizes = dict(window=shape.hils_sliding_window, topk=shape.hils_topk, page=shape.chunk_size)
        texts = dict(texts, more=texts["more"].format(**sizes))
    return CARD.format(
        **texts,
        **{name: value for name, value in result.items() if name not in ("scores", "course", "complete")},
        longest=longest,
        words=words,
        layers=shape.num_hidden_layers,
        hidden=shape.hidden_size,
        heads=shape.num_attention_heads,
        kv_heads=shape.num_key_value_heads,
        dim=shape.head_dim,
        theta=shape.rope_theta,
        course=", ".join(f"{entry['stage']}: {entry['steps']}" for entry in result["course"]) or "none finished",
        complete="yes" if result["complete"] else "no, the time was up before",
        samples=min((s["samples"] for s in scores), default=0),
        depths=", ".join(f"{depth:.0%}" for depth in sorted({s["depth"] for s in scores})),
        table=evaluate.table(scores),
    )
