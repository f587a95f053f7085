# SPDX-License-Identifier: Apache-2.0
"""What is asked: a pretrained model about a long text in words, or the needle checkpoint for a pass key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable

ROOT = Path(__file__).resolve().parents[2]
NEEDLE = ROOT / "examples" / "needle" / "checkpoint"
TRAINED = ROOT / "examples" / "needle" / "checkpoint-hils"
WHAT = {
    NEEDLE: "Qwen3, 3.8 million parameters",
    TRAINED: "HiLS, 3.9 million parameters, every layer trained for HSA",
}
# A pass key among those of other names, in a text of the retrieval suite.
NEEDLE_TASK, NEEDLE_LENGTH, NEEDLE_DEPTH, NEEDLE_SEED = "multikey", 6144, 0.2, 0

# The fact is made up, so that the model can know it from the text alone.
FACT = "The lighthouse keeper's favourite meal is pumpkin soup."
QUESTION = "What is the lighthouse keeper's favourite meal?"
ANSWER = "pumpkin soup"
TEXT_TOKENS, FACT_DEPTH = 2900, 0.3
PROOF_TOKENS = 1500


@dataclass(frozen=True)
class Scene:
    """A model and a question.

    Attributes:
        model: folder of the model.
        architecture: its family, of which the window-only class is named.
        about: what is on screen of both, a line each.
        path: endpoint that the question goes to.
        body: the request.
        right: whether an answer is right.
        ids: the prompt as tokens, or its begin, for the comparison of HSA with dense attention.
        tokens: of the whole prompt.
        distance: tokens from what is asked for to the end of the prompt.
        wanted: what is asked for.
    """

    model: Path
    architecture: str
    about: tuple[str, ...]
    path: str
    body: dict
    right: Callable[[str], bool]
    ids: list[int]
    tokens: int
    distance: int
    wanted: str

    def said(self, reply: dict) -> str:
        """The text of an answer."""
        choice = reply["choices"][0]
        return (choice["message"]["content"] if "message" in choice else choice["text"]).strip()


def pretrained(model: Path) -> Scene:
    """SmolLM2 and pages of Python's language reference with one sentence more, through the model's chat template."""
    from benchmarks.quality import documents
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    paragraphs, tokens = [], 0
    for paragraph in documents.text().split("\n\n"):
        if tokens > TEXT_TOKENS:
            break
        if not paragraphs or tokens < TEXT_TOKENS * FACT_DEPTH <= tokens + len(encode(paragraph)):
            at = len(paragraphs) + 1
        paragraphs.append(paragraph)
        tokens += len(encode(paragraph + "\n\n"))
    paragraphs.insert(at, FACT)
    messages = [dict(role="user", content="\n\n".join([*paragraphs, QUESTION]))]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = encode(prompt)
    distance = len(ids) - len(encode(prompt[: prompt.index(FACT)]))
    about = (
        "model:    SmolLM2-135M-Instruct, 30 layers, not trained for sparse attention",
        f"text:     {len(ids):,} tokens of Python's language reference; one sentence is planted {distance:,} tokens before the end:",
        f"          {FACT}",
        f"question: {QUESTION}",
    )
    body = dict(model="default", messages=messages, max_tokens=16, temperature=0)
    return Scene(
        model, "Llama", about, "/v1/chat/completions", body, lambda text: ANSWER in text, ids[:PROOF_TOKENS], len(ids),
        distance, ANSWER,
    )  # fmt: skip


def needle(model: Path = NEEDLE) -> Scene:
    """A checkpoint in the repository, which needs no download; TRAINED is the one that was trained for HSA."""
    from benchmarks.retrieval import samples, tasks
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(NEEDLE)  # of both
    sample = samples.make(
        NEEDLE_TASK, NEEDLE_LENGTH, NEEDLE_DEPTH, NEEDLE_SEED, lambda text: len(tokenizer.encode(text))
    )
    ids = tokenizer.encode(sample.prompt)
    distance = len(ids) - len(tokenizer.encode(sample.prompt[: sample.prompt.index(sample.answers[0])]))
    keys = sample.prompt.count(" Remember it,")
    about = (
        f"model:    {model.relative_to(ROOT)} ({WHAT[model]}, trained to retrieve)",
        f"text:     {len(ids):,} tokens with {keys} pass keys; the one asked for stands {distance:,} tokens before the end",
        "question: " + sample.prompt.rsplit("\n\n", 1)[1].replace("\n", "\n          "),
    )
    body = dict(model="default", prompt=sample.prompt, max_tokens=64, temperature=0, stop=["\n"])

    def right(text: str) -> bool:
        return tasks.grade(sample.answers, sample.pattern, text).exact

    return Scene(model, "Qwen3", about, "/v1/completions", body, right, ids, len(ids), distance, sample.answers[0])


def choose() -> Scene:
    """The pretrained model if it can be had, or the needle checkpoint, with one line that says so."""
    from benchmarks.quality import documents, fetch, model

    try:
        return pretrained(model.folder())
    except (fetch.ModelError, documents.DocumentError) as error:
        print(f"model: {error}; going on with the checkpoint in examples/needle instead", flush=True)
        return needle()
