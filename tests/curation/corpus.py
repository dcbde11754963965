"""The prompts that the rules are measured on: the project's own, and the labelled sets beside the project if there."""

import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
OWN = {
    "graded": (ROOT / "trainers/data/graded_prompts.jsonl", "prompt"),
    "demo": (ROOT / "deploy/demo/prompts.jsonl", "prompt"),
}
LABELLED = {
    "arena-hard": (SHARED / "arena_hard_v0.1_question.jsonl", "prompt"),
    "gsm8k": (SHARED / "gsm8k_test.jsonl", "question"),
    "math": (SHARED / "math_train_level.json", "problem"),
    "self-instruct": (SHARED / "self_instruct_seed_tasks.jsonl", "instruction"),
}
MOST = 1500
"""Prompts of one set: all pairs of all sets stay a matter of a minute."""


@cache
def corpus() -> dict[str, tuple[str, ...]]:
    """Prompts by set, each once, at most `MOST` of a set. Without the labelled sets only the project's own."""
    found = {}
    for name, (file, field) in (OWN | LABELLED).items():
        if file.exists():
            texts = list(dict.fromkeys(str(row[field]) for row in rows_of(file) if isinstance(row.get(field), str)))
            random.Random(1).shuffle(texts)
            found[name] = tuple(texts[:MOST])
    return found


def missing() -> list[str]:
    """Labelled sets that are not there."""
    return [name for name, (file, _) in LABELLED.items() if not file.exists()]


def described() -> str:
    """One line: how many prompts of which sets."""
    sizes = ", ".join(f"{name} {len(texts)}" for name, texts in corpus().items())
    left_out = f"; not there: {', '.join(missing())}" if missing() else ""
    return f"{sum(map(len, corpus().values()))} prompts ({sizes}{left_out})"


def rows_of(file: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON file (a list) or of JSON lines."""
    with file.open(encoding="utf-8") as lines:
        if file.suffix == ".json":
            yield from json.load(lines)
        else:
            yield from (json.loads(line) for line in lines if line.strip())
