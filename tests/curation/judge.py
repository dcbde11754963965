"""The demo's judge: figures on what it was not trained on, agreement with the anchors, and how far attacks move it.

With SmolLM2 in this process; all three together take most of an hour of processor time.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from streams.rubric import Question
from tests.curation.corpus import ROOT, SHARED
from trainers.base_model import prepare_smollm2
from trainers.judge import Judge
from trainers.judge_attacks import attack_table
from trainers.judge_check import Labelled, check
from trainers.judge_report import Report, report, table

ADAPTER = ROOT / "trainers/judges/demo"
ANCHORS = ROOT / "agents/data/anchors.jsonl"
UNTOUCHED = ROOT / "deploy/demo/prompts.jsonl"
ROWS, MATH_ROWS = 100, 500
"""Of each set; MATH's levels lie close together, so it takes more to see a difference."""


def base() -> Path:
    """SmolLM2-135M-Instruct as a folder."""
    return prepare_smollm2(ROOT / "var/local/base")


@cache
def judge() -> Judge:
    """The demo's judge."""
    return Judge.load(base(), ADAPTER)


def figures() -> str:
    """Markdown: Spearman and AUC beside the prompt's length, and what the judge gains on it."""
    data = SHARED if SHARED.is_dir() else None
    return table(report(judge(), data, UNTOUCHED, ROWS, MATH_ROWS))


def anchors() -> str:
    """Markdown: the same on all anchors."""
    rows = [json.loads(line) for line in ANCHORS.read_text(encoding="utf-8").split("\n") if line.strip()]

    def rate(prompts: Sequence[str]) -> list[float]:
        found = judge().rate(prompts, [Question.difficulty])
        return [readings[Question.difficulty].value for readings in found]

    found = check([Labelled(row["prompt"], float(row["difficulty"])) for row in rows], rate)
    return table(Report({"anchors": found}, {}, 1.0)).rsplit("\n\nLeast", 1)[0]


def attacks() -> str:
    """Markdown: a row a kind of attack."""
    return attack_table(base(), ADAPTER, ANCHORS)
