"""The figures of a judge's card: on the held-out fifth of every source, and on prompts that were never trained on.

    python -m trainers.judge_report --base FOLDER --adapter FOLDER --data FOLDER --untouched deploy/demo/prompts.jsonl

Everything is rated as in service: the same requests, the same ``read``.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from streams.rubric import CATEGORIES, Question, Reading, category_of
from trainers.judge import Judge
from trainers.judge_check import Figure, Figures, Labelled, Row, figures
from trainers.judge_data import Example, all_prompts, held_out
from trainers.judge_made import answers, garbage

SEED = 11
"""Which rows are drawn where ``limit`` is less than there are."""


@dataclass(frozen=True)
class Report:
    """What was measured; a set that needs files that are not there is missing."""

    sets: dict[str, Figures]
    """``math``, ``hard against everyday``, ``graded`` and ``untouched`` are of difficulty; ``quality``; ``answers``."""
    categories: dict[str, float]
    """Share of right categories, on ``graded`` and ``untouched`` (by chance 1/8)."""
    label_mass: float
    """The least of all readings of difficulty."""


def _draw(rows: Sequence[Example], limit: int) -> list[Example]:
    return random.Random(SEED).sample(list(rows), min(limit, len(rows)))


def report(
    judge: Judge,
    data: Path | None,
    untouched: Path | None = None,
    limit: int = 10_000,
    math_limit: int | None = None,
    max_chars: int = 4000,
) -> Report:
    """Measures ``judge`` on at most ``limit`` rows a set (of MATH ``math_limit``, if given: its levels lie close
    together, so it takes more rows to see a difference). ``untouched``: a file for ``load_graded``."""
    rows = held_out(all_prompts(data))
    limits = {"math": limit if math_limit is None else math_limit}
    of = {
        source: _draw([r for r in rows if r.source == source], limits.get(source, limit))
        for source in sorted({r.source for r in rows})
    }
    sets: dict[str, Figures] = {}
    categories: dict[str, float] = {}
    masses: list[float] = []

    def measured(labelled: Sequence[Labelled]) -> Figures:
        found = judge.rate([row.prompt for row in labelled], [Question.difficulty], max_chars)
        return ranked(labelled, found)

    def ranked(labelled: Sequence[Labelled], found: Sequence[dict[Question, Reading]]) -> Figures:
        masses.extend(readings[Question.difficulty].label_mass for readings in found)
        pairs = zip(labelled, found, strict=True)
        return figures([Row(row.prompt, row.label, x[Question.difficulty].value) for row, x in pairs])

    def both(name: str, prompts: Sequence[tuple[str, float, str]]) -> None:
        asked = [Question.difficulty, Question.category]
        found = judge.rate([text for text, _, _ in prompts], asked, max_chars)
        sets[name] = ranked([Labelled(text, level) for text, level, _ in prompts], found)
        known = [(x[Question.category], c) for x, (_, _, c) in zip(found, prompts, strict=True) if c in CATEGORIES]
        right = [bool(reading.label) and category_of(reading) == c for reading, c in known]
        categories[name] = sum(right) / max(1, len(right))

    both("graded", [(r.text, r.level, r.category) for r in of["graded"]])
    if data is not None:
        sets["math"] = measured([Labelled(r.text, r.level) for r in of["math"]])
        easy = of["seeds"] + of["gsm8k"][: len(of["seeds"])]
        sets["hard against everyday"] = measured(
            [Labelled(r.text, True) for r in of["arena"]] + [Labelled(r.text, False) for r in easy]
        )
        made = answers(of["gsm8k"] + of["seeds"], min(limit, 200), random.Random(SEED))
        readings = judge.rate_answers([(r.text, r.answer or "") for r in made], max_chars)
        sets["answers"] = figures(
            [Row(r.answer or "", r.source == "answer:good", x.value) for r, x in zip(made, readings, strict=True)]
        )
    if untouched is not None:
        everyone = load_graded(untouched)
        prompts = random.Random(SEED).sample(everyone, min(limit, len(everyone)))
        both("untouched", prompts)
    real = _draw([r for r in rows if r.source != "math"], min(limit, 150))
    noise = [r for r in garbage(rows, min(limit, 150), random.Random(SEED)) if not math.isnan(r.level)]
    mixed = [Labelled(r.text, True) for r in real] + [Labelled(r.text, False) for r in noise]
    rated = judge.rate([row.prompt for row in mixed], [Question.quality], max_chars)
    sets["quality"] = figures(
        [Row(r.prompt, r.label, x[Question.quality].value) for r, x in zip(mixed, rated, strict=True)]
    )
    return Report(sets, categories, min(masses))


def load_graded(file: Path) -> list[tuple[str, float, str]]:
    """(prompt, level, category) of the rows of a JSONL file that have a level, garbage without one left out."""
    rows = []
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            meta = row.get("metadata") or {}
            if row.get("prompt") and meta.get("level"):
                rows.append((row["prompt"], float(meta["level"]), meta.get("category", "")))
    return rows


def table(found: Report) -> str:
    """Markdown, as in the card."""

    def shown(figure: Figure | None) -> str:
        return "" if figure is None else f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]"

    lines = [
        "| set | rows | Spearman | by length | gain | AUC | by length | gain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, f in found.sets.items():
        figures_of_set = (f.spearman, f.spearman_length, f.spearman_gain, f.auc, f.auc_length, f.auc_gain)
        cells = [shown(figure) for figure in figures_of_set]
        lines.append(f"| {name} | {f.rows} | {' | '.join(cells)} |")
    lines += [f"\nRight category, {name}: {share:.2f}" for name, share in found.categories.items()]
    return "\n".join([*lines, f"\nLeast label mass: {found.label_mass:.3f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description="measure a judge on what it was not trained on")
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--untouched", type=Path)
    parser.add_argument("--limit", type=int, default=10_000, help="rows a set")
    parser.add_argument("--math-limit", type=int, help="rows of MATH, if not as many as of the others")
    given = parser.parse_args()
    judge = Judge.load(given.base, given.adapter)
    print(table(report(judge, given.data, given.untouched, given.limit, given.math_limit)))


if __name__ == "__main__":
    main()
