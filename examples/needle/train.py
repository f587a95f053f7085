# SPDX-License-Identifier: Apache-2.0
"""Train the needle checkpoint from synthetic text alone, in one run of a few minutes.

    python examples/needle/train.py --out FOLDER

The curriculum moves to longer texts as soon as the current ones are answered. Its course is written to
``schedule.json``; with ``--schedule`` a run repeats that course step by step, from the same seed and on the same data.
``state.pt`` holds everything a second run of the same command needs to go on. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # batches are made in processes of their own

import card  # noqa: E402, the lines above make these importable
import data  # noqa: E402
import evaluate  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import vocabulary  # noqa: E402
from hils import HiLS, HiLSShape  # noqa: E402
from model import Qwen3, export  # noqa: E402
from recipe import RECIPES, Recipe, Stage  # noqa: E402

# Tasks whose answers have one right order: what a stage is measured by.
ORDERED = [data.KINDS.index(kind) for kind in ("single", "multikey", "multiquery", "variables")]
RESERVE = 45  # seconds that are kept for the last evaluation
SAVE_EVERY = 120  # seconds


class Batches(torch.utils.data.IterableDataset):
    """Batches of a stage from a step on: worker w of n makes every n-th, so their order does not depend on n."""

    def __init__(self, recipe: Recipe, stage: Stage, seed: int, first: int):
        self.recipe, self.stage, self.seed, self.first = recipe, stage, seed, first

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        rank, count = (worker.id, worker.num_workers) if worker else (0, 1)
        encode = data.Encoder(vocabulary.build_once())
        step = self.first + rank
        while True:
            yield self.batch(encode, step)
            step += count

    def batch(self, encode: data.Encoder, step: int):
        length = step_length(self.stage, self.seed, step)
        rows = max(1, self.stage.tokens // length)
        stage = self.stage
        made = data.batch(
            encode, self.seed, step, rows, length, self.recipe.text_weight, stage.dense, stage.pool, stage.mixes
        )
        return length, made.ids, made.weight, made.kind


def unchanged(batch):
    return batch


def step_length(stage: Stage, seed: int, step: int) -> int:
    """Length of a step's sequences: mostly the stage's longest, else a half, a quarter and so on, down to 128 if longer."""
    pick = np.random.default_rng([seed, step])
    halvings = int(pick.geometric(0.6)) - 1
    return max(min(128, stage.length), stage.length >> halvings)


def answer_loss(model: Qwen3, ids: torch.Tensor, weight: torch.Tensor, kind: torch.Tensor):
    """Weighted loss of a batch, and per task how many answer tokens are right and how many there are."""
    device_type = ids.device.type
    with torch.autocast(device_type, torch.bfloat16, enabled=device_type == "cuda"):
        hidden = model(ids[:, :-1])
        counted = weight[:, 1:] > 0
        logits = model.logits(hidden[counted])
    target, weight, kind = ids[:, 1:][counted], weight[:, 1:][counted], kind[:, 1:][counted].long()
    loss = (F.cross_entropy(logits.float(), target, reduction="none") * weight).sum() / weight.sum()
    right = (logits.argmax(-1) == target).float()
    tasks = len(data.KINDS)
    bucket = torch.where(kind < 0, tasks, kind)
    seen = torch.zeros(tasks + 1, device=ids.device).index_add_(0, bucket, torch.ones_like(right))
    good = torch.zeros(tasks + 1, device=ids.device).index_add_(0, bucket, right)
    return loss, torch.stack([good, seen])[:, :tasks]


class Run:
    """A training run: its state, and what it decides by the clock."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.recipe = args, RECIPES[args.recipe]
        self.begin = time.monotonic()
        self.device = torch.device(args.device)
        self.tokenizer = vocabulary.build()
        shape = self.recipe.shape
        assert shape.vocab_size == vocabulary.rows(self.tokenizer), (shape.vocab_size, len(self.tokenizer))
        self.model = (HiLS if isinstance(shape, HiLSShape) else Qwen3)(shape, args.seed)
        has_landmarks = bool(args.start) and self.model.start_from(args.start)
        self.model.to(self.device)
        matrices = [w for w in self.model.parameters() if w.dim() == 2]
        vectors = [w for w in self.model.parameters() if w.dim() < 2]
        groups = [
            dict(params=matrices, weight_decay=self.recipe.weight_decay),
            dict(params=vectors, weight_decay=0.0),
        ]
        self.lr = args.lr or self.recipe.lr
        self.optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.98), fused=self.device.type == "cuda")
        self.step, self.stage_step, self.course, self.seconds = 0, 0, [], 0.0
        self.stage_begin = self.begin
        # Stages in order, each with its number of steps where that is known.
        self.plan = [dict(stage=i) for i in range(len(self.recipe.stages))]
        if has_landmarks:
            self.plan = self.plan[-1:]
        if args.schedule:
            self.plan = json.loads(args.schedule.read_text())
        self.saved = time.monotonic()
        if (args.out / "state.pt").exists():
            self.resume()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.begin

    @property
    def time_left(self) -> float:
        return 60 * self.args.minutes - RESERVE * min(1.0, self.args.minutes / 5) - self.elapsed

    def resume(self) -> None:
        state = torch.load(self.args.out / "state.pt", map_location=self.device, weights_only=True)
        if state["identity"] != self.identity():
            raise SystemExit(
                f"train: {self.args.out} holds a run of {state['identity']}, not {self.identity()}: give another --out"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.stage_step = state["step"], state["stage_step"]
        self.course, self.seconds = state["course"], state["seconds"]
        if self.args.again and len(self.course) >= len(self.plan):
            self.plan = [*self.course, dict(stage=len(self.recipe.stages) - 1)]
        print(f"resumed at step {self.step}, after {len(self.course)} stages", flush=True)

    def identity(self) -> str:
        return f"recipe {self.args.recipe}, seed {self.args.seed}"

    def save(self) -> None:
        state = dict(
            identity=self.identity(),
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            step=self.step,
            stage_step=self.stage_step,
            course=self.course,
            seconds=self.seconds + self.elapsed,
        )
        partial = self.args.out / "state.pt.new"
        torch.save(state, partial)
        os.replace(partial, self.args.out / "state.pt")
        self.saved = time.monotonic()

    @property
    def planned(self) -> dict:
        """The plan's entry of the current stage."""
        return self.plan[len(self.course)]

    @property
    def last(self) -> bool:
        return self.planned["stage"] == len(self.recipe.stages) - 1

    def stage_ends(self, recent: list[float]) -> bool:
        """Whether the current stage is over: as planned, or when its texts are answered or its time is up."""
        stage = self.recipe.stages[self.planned["stage"]]
        if "steps" in self.planned:
            return self.stage_step >= self.planned["steps"]
        if self.stage_step >= stage.most:
            return True
        if self.last:
            return self.time_left <= 0
        if time.monotonic() - self.stage_begin > stage.share * 60 * self.args.minutes:
            return True
        answered = len(recent) >= self.recipe.window and np.mean(recent[-self.recipe.window :]) >= self.recipe.enough
        return self.stage_step >= stage.least and bool(answered)

    def rate(self) -> float:
        """Learning rate of the next step."""
        warm = min(1.0, (self.step + 1) / self.recipe.warmup)
        if not self.last:
            return self.lr * warm
        if "steps" in self.planned:
            done = self.stage_step / self.planned["steps"]
        else:
            done = self.stage_step / self.recipe.stages[-1].most
            spent = time.monotonic() - self.stage_begin
            # Where time runs out before the steps do, the rate follows the clock.
            done = max(done, spent / max(1e-9, spent + self.time_left))
        left = min(1.0, max(0.0, 1 - done) / self.recipe.decay)
        return self.lr * warm * max(0.05, left)

    def train(self) -> None:
        while len(self.course) < len(self.plan):
            index = self.planned["stage"]
            stage = self.recipe.stages[index]
            self.stage_begin = time.monotonic()
            print(f"stage {index}: up to {stage.length} tokens, {stage.tokens} per step, pool {stage.pool}", flush=True)
            if not self.train_stage(stage):
                return
            self.course.append(dict(stage=index, steps=self.stage_step))
            self.stage_step = 0
            self.save()

    def train_stage(self, stage: Stage) -> bool:
        """Train until the stage ends; False when the time is up before it did."""
        if isinstance(self.model, HiLS):
            self.model.set_selection(stage.topk or self.model.shape.hils_topk)
        workers = self.args.workers
        loader = torch.utils.data.DataLoader(
            Batches(self.recipe, stage, self.args.seed, self.step),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            # Arrays come through pipes; tensors would need more shared memory than a container may have.
            collate_fn=unchanged,
        )
        recent: list[float] = []
        counts, losses, pending, marked = np.zeros((2, len(data.KINDS))), [], [], time.monotonic()
        for length, *arrays in loader:
            if self.time_left <= 0 and not self.last and "steps" not in self.planned:
                return False
            if self.stage_ends(recent):
                return True
            ids, weight, kind = (torch.from_numpy(array).to(self.device) for array in arrays)
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate()
            loss, right = answer_loss(self.model, ids, weight, kind)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            self.stage_step += 1
            pending.append((length, loss.detach(), right))
            if self.step % 10 == 0:  # one wait for the device in ten steps
                for step_length_, step_loss, step_right in pending:
                    step_right = step_right.double().cpu().numpy()
                    if step_length_ == stage.length:
                        counts += step_right
                        losses.append(float(step_loss))
                        good, seen = step_right[:, ORDERED].sum(axis=1)
                        if seen:
                            recent.append(good / seen)
                pending.clear()
                if losses and not math.isfinite(losses[-1]):
                    raise SystemExit(f"train: the loss is not finite at step {self.step}; a lower --lr may help")
            if self.step % self.args.report == 0 and losses:
                per = (time.monotonic() - marked) / self.args.report
                tasks = " ".join(f"{k} {g / s:.2f}" for k, g, s in zip(data.KINDS, *counts) if s)
                print(
                    f"{self.elapsed:6.0f} s  step {self.step}  length {stage.length}  loss {np.mean(losses):.3f}  "
                    f"{1000 * per:.0f} ms  {tasks}",
                    flush=True,
                )
                counts, losses, marked = np.zeros_like(counts), [], time.monotonic()
            if time.monotonic() - self.saved > SAVE_EVERY:
                self.save()
        raise AssertionError("batches do not end")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint and of the run's state")
    parser.add_argument("--recipe", default="needle", choices=RECIPES)
    parser.add_argument("--start", type=Path, help="checkpoint that a recipe of HiLS goes on from: a dense one, or one with landmarks, by the last stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="wall-clock time with evaluation (default: %(default)s)"
    )
    parser.add_argument("--lr", type=float, help="learning rate in place of the recipe's")
    parser.add_argument("--schedule", type=Path, help="repeat the course of this schedule.json, whatever time it takes")
    parser.add_argument("--again", action="store_true", help="do the last stage of a finished run once more")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=max(0, min(14, (os.cpu_count() or 1) - 2)))
    parser.add_argument("--report", type=int, default=50, help="steps between two lines (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=8, help="per cell of the last evaluation (default: %(default)s)")
    parser.add_argument(
        "--lengths", nargs="*", type=int, help="lengths of the last evaluation (default: up to twice the longest)"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    if args.start and not isinstance(RECIPES[args.recipe].shape, HiLSShape):
        raise SystemExit(f"train: --start is for recipes of HiLS; {args.recipe} begins with random weights")
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    longest = RECIPES[args.recipe].stages[-1].length
    lengths = args.lengths or [n for n in (longest >> 3, longest >> 2, longest >> 1, longest) if n >= 256]
    lengths += [] if args.lengths else [longest * 3 // 2, longest * 2]
    try:
        evaluate.check(lengths)
    except ValueError as error:
        raise SystemExit(f"train: --lengths: {error}") from None
    run = Run(args)
    parameters = sum(weight.numel() for weight in run.model.parameters())
    print(f"{run.identity()}: {parameters:,} parameters on {run.device}", flush=True)
    run.train()
    run.save()
    run.model.eval()
    if isinstance(run.model, HiLS):
        run.model.set_selection(run.model.shape.hils_topk)  # of the checkpoint, in whatever stage the time was up

    checkpoint = args.out / "checkpoint"
    export(run.model, checkpoint, run.tokenizer.eos_token_id, run.tokenizer.pad_token_id)
    vocabulary.save(run.tokenizer, checkpoint)
    complete = len(run.course) >= len(run.plan)
    if complete:
        (args.out / "schedule.json").write_text(json.dumps(run.course, indent=1) + "\n")
    scores = evaluate.grid(run.model, run.tokenizer, lengths, (0.1, 0.5, 0.9), args.samples, run.device, args.workers)
    print(evaluate.table(scores), flush=True)
    result = dict(
        recipe=args.recipe,
        seed=args.seed,
        lr=run.lr,
        parameters=parameters,
        bytes=(checkpoint / "model.safetensors").stat().st_size,
        complete=complete,
        steps=run.step,
        course=run.course,
        seconds=round(run.seconds + run.elapsed, 1),
        device=torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "a CPU",
        torch=torch.__version__,
        scores=scores,
    )
    text = card.write(result, run.recipe.shape, longest, len(vocabulary.words()))
    (checkpoint / "README.md").write_text(text, encoding="utf-8")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
