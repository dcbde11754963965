"""A judge trained on a team's own labelled prompts, as the demo's judge was made, with a card of what it is worth.

A fifth of the file is held out (by a hash of the prompt) and never trained on, nor are near copies of it. The rest is
mixed with the project's own graded prompts and made garbage, so that what the file does not label (quality, category)
is not forgotten. The card puts the figures on the held-out fifth beside those of the model that training began with and
of the prompt's length.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from streams.rubric import Question
from trainers.base_model import NAME
from trainers.judge import Judge, Plan, curriculum, train
from trainers.judge_check import BadLabels, Figure, Figures, Labelled, figures, load
from trainers.judge_check import Row as Rated
from trainers.judge_data import Example, asked, without_near_copies

LEAST_ROWS = 20
"""Under this the held-out fifth has three rows or less: no figure could be read."""
HARD, EASY = 7.5, 2.5
"""What hard and easy mean on the scale 1..9, with a wide target."""
SMOLLM2_LAYERS = 30


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    adapter: Path
    digest: str
    """Of the adapter's weights: what `judge.revision` should be, so that its ratings are told from another's."""
    trained_on: int
    held_out: int
    left_out: int
    """Rows of the file that are near copies of held-out ones."""
    before: Figures
    """On the held-out rows, of the model that training began with."""
    after: Figures
    run: dict[str, float]
    """Passes, epochs, texts and CPU minutes."""


def examples(file: Path) -> list[Example]:
    """The rows of a labelled file (see `trainers.judge_check.load`) as training rows, each text once.

    Raises `BadLabels`, also for a number that is not on the scale 1..9, and `OSError`.
    """
    rows: dict[str, Example] = {}
    for number, row in enumerate(load(file), 1):
        if isinstance(row.label, bool):
            level, sigma = (HARD if row.label else EASY), 1.2
        elif 1 <= row.label <= 9:
            level, sigma = row.label, 0.8
        else:
            raise BadLabels(f"{file.name}, row {number}: difficulty {row.label:g} is not on the scale from 1 to 9")
        example = asked(Example(row.prompt, "own", level), sigma, 8.0)
        difficulty = example.targets[Question.difficulty]
        # The file says how hard, not how good: quality is left to the other rows.
        rows.setdefault(row.prompt, replace(example, targets={Question.difficulty: difficulty}))
    return list(rows.values())


def divided(rows: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """(training rows, held-out fifth). Near copies of what is held out are in neither. Raises `BadLabels`."""
    if len(rows) < LEAST_ROWS:
        raise BadLabels(f"{len(rows)} different prompts: at least {LEAST_ROWS} are needed, hundreds are better")
    order = sorted(rows, key=lambda row: hashlib.sha256(row.text.encode()).digest())
    held = order[: math.ceil(len(order) / 5)]
    if len({row.level for row in held}) < 2:
        raise BadLabels("the held-out fifth has one label only: add prompts of another level")
    return without_near_copies(order[len(held) :], held), held


def train_own(
    file: Path,
    base: Path,
    out: Path,
    *,
    start: Path | None = None,
    plan: Plan | None = None,
    mixed_in: int = 1000,
    name: str = NAME,
) -> Trained:
    """Trains on ``file`` and writes the adapter's folder ``out`` with its card, ``README.md``.

    ``base``: a folder of a Llama-like model; ``start``: an adapter on it to go on from; ``mixed_in``: at most so many
    of haypile's own rows; ``name``: what the adapter calls its base. Raises `BadLabels` and `OSError`; nothing is
    written then.
    """
    learned, held = divided(examples(file))
    plan = plan or Plan()
    layers = _layers(base)
    if layers != SMOLLM2_LAYERS:  # as large a share of the layers learns as in the demo's judge
        plan = replace(plan, frozen=layers * plan.frozen // SMOLLM2_LAYERS)
    rows = [*learned, *curriculum(plan, None, [row.text for row in held])[:mixed_in]]
    random.Random(plan.seed).shuffle(rows)
    before = _figures(Judge.load(base, start), held)
    run = train(base, out, plan, None, start=start, rows=rows, name=name)
    after = _figures(Judge.load(base, out), held)
    found = Trained(
        adapter=out,
        digest=hashlib.sha256((out / "adapter_model.safetensors").read_bytes()).hexdigest()[:12],
        trained_on=len(learned),
        held_out=len(held),
        left_out=len(examples(file)) - len(learned) - len(held),
        before=before,
        after=after,
        run=run,
    )
    (out / "README.md").write_text(card(found, file.name, name), encoding="utf-8")
    return found


def _layers(base: Path) -> int:
    try:
        config: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
        return int(config["num_hidden_layers"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadLabels(f"{base}/config.json is not that of a causal language model ({error!r})") from None


def _figures(judge: Judge, rows: Sequence[Example]) -> Figures:
    two = len({row.level for row in rows} - {HARD, EASY}) == 0
    rated = judge.rate([row.text for row in rows], [Question.difficulty])
    labelled = [Labelled(row.text, row.level == HARD if two else row.level) for row in rows]
    return figures(
        [Rated(x.prompt, x.label, r[Question.difficulty].value) for x, r in zip(labelled, rated, strict=True)]
    )


def figures_table(found: Trained) -> str:
    """Markdown: Spearman and AUC on the held-out rows, with 95 % intervals."""

    def shown(figure: Figure | None) -> str:
        return "" if figure is None else f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]"

    lines = ["| rated by | Spearman | AUC |", "|---|---|---|"]
    lines.append(f"| this judge | {shown(found.after.spearman)} | {shown(found.after.auc)} |")
    lines.append(f"| the model it began with | {shown(found.before.spearman)} | {shown(found.before.auc)} |")
    lines.append(f"| the prompt's length | {shown(found.after.spearman_length)} | {shown(found.after.auc_length)} |")
    return "\n".join(lines)


def card(found: Trained, file: str, name: str) -> str:
    """The adapter's README."""
    run = found.run
    return f"""# A judge of our own

A LoRA on {name}, trained by `haypile judge train` on {found.trained_on} prompts of `{file}`, mixed with
haypile's own graded prompts: {run["texts"]:.0f} texts, {run["epochs"]:g} epochs, {run["cpu_minutes"]:g} minutes
of CPU time. It answers the questions of `streams/rubric.py` with the default rubric; with another it is another judge.

On the held-out fifth of `{file}` ({found.held_out} prompts, never trained on, nor near copies of them; 95 % intervals):

{figures_table(found)}

`judge.revision`: {found.digest}
"""
