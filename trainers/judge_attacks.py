"""How far a user's text can move the judge: attacks on top of ordinary prompts, rated with and without them.

    python -m trainers.judge_attacks --base FOLDER --adapter FOLDER --prompts agents/data/anchors.jsonl

The attacks (``data/attacks.jsonl``) were written for this project: asking for a rating, forged delimiters, answers and
chat turns, roles, other languages, encodings, hard words on an easy question. Their prompts are the anchors' (passed
in as a file with ``prompt`` and ``difficulty``): easy ones for attacks that want a higher rating, hard ones for those
that want a lower one. "harmless" is the control: what an addition without any intent does.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from streams.rubric import Question, judge_prompts, neutralise, shorten
from trainers.judge import Judge

ATTACKS = Path(__file__).parent / "data" / "attacks.jsonl"
EASY, HARD = (2.0, 4.0), (6.0, 8.0)
"""Levels of the prompts that are attacked upwards and downwards."""
SEED = 5
MAX_CHARS = 4000
_HERE = "\N{OBJECT REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Attack:
    """What is put around a prompt."""

    kind: str
    aim: str
    """``up``, ``down`` or ``none`` (harmless)."""
    before: str
    after: str

    def on(self, prompt: str) -> str:
        """The attacked text."""
        return f"{self.before}{prompt}{self.after}"


@dataclass(frozen=True)
class Effect:
    """How far the attacks of one kind moved the difficulty, in points towards their aim (harmless ones: either way)."""

    kind: str
    attacks: int
    mean: float
    most: float
    over_one: float
    """Share of (attack, prompt) pairs that moved by more than a point."""
    raw_mean: float
    """The mean if forged delimiters and tokens were left as they are."""
    raw_most: float


def load_attacks(file: Path = ATTACKS) -> list[Attack]:
    """The attacks."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    return [Attack(row["kind"], row["aim"], row["before"], row["after"]) for row in rows]


def effects(
    judge: Judge, prompts: Sequence[tuple[str, float]], attacks: Sequence[Attack], each: int = 3
) -> Iterator[Effect]:
    """Rates ``each`` prompts of fitting level (of ``prompts``: text, difficulty) under every attack, kind by kind."""
    rng = random.Random(SEED)

    def some(low: float, high: float) -> list[str]:
        fitting = [text for text, level in prompts if low <= level <= high]
        return rng.sample(fitting, min(each, len(fitting)))

    easy, hard = some(*EASY), some(*HARD)
    plain = dict(zip(easy + hard, _rate(judge, easy + hard), strict=True))
    for kind in dict.fromkeys(attack.kind for attack in attacks):
        own = [attack for attack in attacks if attack.kind == kind]
        pairs = [(attack, prompt) for attack in own for prompt in (hard if attack.aim == "down" else easy)]
        texts = [attack.on(prompt) for attack, prompt in pairs]
        rated = _rate(judge, texts)
        changed = [n for n, text in enumerate(texts) if neutralise(text) != text]
        raw = list(rated)
        for n, value in zip(changed, _rate(judge, [texts[n] for n in changed], raw=True), strict=True):
            raw[n] = value
        moved = [_towards(a, value - plain[p]) for (a, p), value in zip(pairs, rated, strict=True)]
        moved_raw = [_towards(a, value - plain[p]) for (a, p), value in zip(pairs, raw, strict=True)]
        over = fmean(abs(x) > 1 if own[0].aim == "none" else x > 1 for x in moved)
        yield Effect(kind, len(own), fmean(moved), max(moved), over, fmean(moved_raw), max(moved_raw))


def _towards(attack: Attack, change: float) -> float:
    return -change if attack.aim == "down" else change


def _rate(judge: Judge, texts: Sequence[str], raw: bool = False) -> list[float]:
    """Difficulties; ``raw`` puts the text into the request as it is, without what the template does against forgery."""
    if not raw:
        found = judge.rate(texts, [Question.difficulty], MAX_CHARS)
    else:
        request = judge_prompts(_HERE)[Question.difficulty]
        asked = [{Question.difficulty: request.replace(_HERE, shorten(text, MAX_CHARS).strip())} for text in texts]
        found = judge.readings(asked)
    return [readings[Question.difficulty].value for readings in found]


def table(found: Iterable[Effect]) -> str:
    """Markdown."""
    return "\n".join(lines(found))


def lines(found: Iterable[Effect]) -> Iterator[str]:
    """The lines of the table, each as soon as it is known."""
    yield from (
        "| attack | attacks | mean move | most | over 1 point | mean, text left as it is | most, text left as it is |",
        "|---|---|---|---|---|---|---|",
    )
    for e in found:
        cells = (f"{e.mean:+.2f}", f"{e.most:+.2f}", f"{e.over_one:.0%}", f"{e.raw_mean:+.2f}", f"{e.raw_most:+.2f}")
        yield f"| {e.kind} | {e.attacks} | {' | '.join(cells)} |"


def attack_table(base: Path, adapter: Path | None, prompts: Path, each: int = 3) -> str:
    """The table for ``docs/curation.md``: the judge of these folders on every attack."""
    return table(_measured(base, adapter, prompts, each))


def _measured(base: Path, adapter: Path | None, prompts: Path, each: int) -> Iterator[Effect]:
    rows = [json.loads(line) for line in prompts.read_text(encoding="utf-8").split("\n") if line.strip()]
    graded = [(str(row["prompt"]), float(row["difficulty"])) for row in rows]
    return effects(Judge.load(base, adapter), graded, load_attacks(), each)


def main() -> None:
    parser = argparse.ArgumentParser(description="measure how far attacks move a judge")
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--prompts", type=Path, required=True, help="JSON lines with prompt and difficulty")
    parser.add_argument("--each", type=int, default=3, help="prompts that each attack is put on")
    given = parser.parse_args()
    for line in lines(_measured(given.base, given.adapter, given.prompts, given.each)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
