"""What the demo's judge learns from: labelled prompts, the held-out split, read from files.

Sources (``shared/data/README.md`` has the licences): MATH with levels, GSM8K, Arena-Hard, the self-instruct seeds, and
our own ``data/graded_prompts.jsonl``, which spreads the scale over all domains at any length. The sources meet at
 overlapping levels, and ``judge_made`` changes the texts as users do, so that neither source nor length tells.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from streams.rubric import CATEGORIES, LETTERS, RATINGS, Question

GRADED = Path(__file__).parent / "data" / "graded_prompts.jsonl"
HELD_OUT_PERCENT = 20

Target = tuple[float, ...]
"""Probabilities of the labels of a question, in their order; they sum to 1."""


@dataclass(frozen=True)
class Example:
    """A text and what is known about it. ``targets`` may lack a question: then it is not asked."""

    text: str
    source: str
    level: float = math.nan
    """Difficulty 1..9 (NaN: unknown)."""
    category: str = ""
    """One of ``CATEGORIES``, "" if unknown."""
    targets: dict[Question, Target] = field(default_factory=dict)
    answer: str | None = None
    """A candidate answer: then only ``Question.answer_quality`` is asked."""


def _key(prompt: str) -> str:
    """The prompt without case, punctuation, and the values of its numbers: variants of one problem fall together."""
    return " ".join(re.sub(r"\d+", "0", word) for word in re.findall(r"\w+", prompt.casefold()))


def split(prompt: str) -> Literal["train", "heldout"]:
    """Which side of the fixed split a prompt is on: a fifth of each source is never trained on."""
    return (
        "heldout"
        if int.from_bytes(hashlib.sha256(_key(prompt).encode()).digest()[:4], "big") % 100 < HELD_OUT_PERCENT
        else "train"
    )


def without_near_copies(rows: Sequence[Example], others: Sequence[Example]) -> list[Example]:
    """``rows`` that share less than half of their word 4-grams with each of ``others``."""
    holders: dict[str, list[int]] = defaultdict(list)
    for n, other in enumerate(others):
        for gram in _grams(other.text):
            holders[gram].append(n)
    kept = []
    for row in rows:
        grams = _grams(row.text)
        shared: dict[int, int] = defaultdict(int)
        for gram in grams:
            for n in holders.get(gram, ()):
                shared[n] += 1
        if not shared or max(shared.values()) < 0.5 * len(grams):
            kept.append(row)
    return kept


def _grams(text: str) -> set[str]:
    words = _key(text).split()
    return {" ".join(words[i : i + 4]) for i in range(max(1, len(words) - 3))}


# --- the targets ------------------------------------------------------------------------------------------------------


def around(level: float, sigma: float) -> Target:
    """A Gaussian around ``level`` on the labels 1..9: near misses cost less, and the mean stays continuous."""
    weights = [math.exp(-0.5 * ((int(k) - level) / sigma) ** 2) for k in RATINGS]
    return tuple(w / sum(weights) for w in weights)


def of_category(name: str) -> Target:
    """Nearly all on one letter; the rest is shared, as categories overlap."""
    rest = 0.05 / (len(LETTERS) - 1)
    return tuple(0.95 if category == name else rest for category in CATEGORIES)


def asked(row: Example, sigma: float, quality: float) -> Example:
    """``row`` with the targets of what is known about it; ``sigma`` is how far its level may be off."""
    targets = {Question.quality: around(quality, 1.0)}
    if not math.isnan(row.level):
        targets[Question.difficulty] = around(row.level, sigma)
    if row.category:
        targets[Question.category] = of_category(row.category)
    return replace(row, targets=targets)


# --- the sources ------------------------------------------------------------------------------------------------------

MATH_LEVELS = {1: 2.8, 2: 3.8, 3: 4.8, 4: 6.0, 5: 7.2}
"""MATH's levels on our scale: school work to what an expert must think about."""


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)


def math_problems(data: Path) -> list[Example]:
    """MATH, levels 1-5 (two rows have level 0 and are left out)."""
    rows = json.loads((data / "math_train_level.json").read_text(encoding="utf-8"))
    return [
        asked(Example(row["problem"], "math", MATH_LEVELS[int(row["difficulty"])], "math"), 0.9, 8.5)
        for row in rows
        if row["difficulty"]
    ]


def gsm8k(data: Path) -> list[Example]:
    """GSM8K: a few steps of school arithmetic. ``answer`` is the reference solution without calculator marks."""
    return [
        asked(Example(row["question"], "gsm8k", 2.8, "math", answer=_solution(row["answer"])), 0.9, 8.5)
        for row in _lines(data / "gsm8k_test.jsonl")
    ]


def _solution(text: str) -> str:
    return re.sub(r"<<[^>]*>>", "", text).replace("####", "The answer is")


_CLUSTERS = (
    ("math", r"math|algebra|geometry|probabilit|square root|standard deviation|fourier|real analysis|calculating pi$"),
    ("code", (r"python|code|coding|css|javascript|typescript|rust|django|docker|sql|api|kubernetes|linux|regex|react|"
             r"web|script|git|excel|node|programming|develop|cuda|swift|kotlin|laravel|ssh|network|server|vba|awk|"
             r"c\+\+|hdl|hlsl|jax|pytorch|shiny|tidyverse|tkinter|wpf|odoo|nix|flask|gradio|symfony|spark|testing|"
             r"redis|cron|monads|linked list|data structures|algorithm")),
    ("business", (r"business|startup|market|sales|finance|tax|invoice|pricing|trading|investment|leadership|scrum|"
                 r"profitab|accounting|strategy")),
    ("humanities", r"philosoph|theolog|historical|semantic|debate|library science|climate change skep|lojban"),
    ("science", r"electromagnetic|medical|kalman|solar|sensor|radar|gradient descent|attention|radiology|physics"),
    ("reasoning", r"puzzle|chess|pattern|situation|rubik|comparative truths|logic"),
    ("everyday", r"recipe|meal|guitar|endurance|weather|walking"),
)  # fmt: skip
"""Arena-Hard's clusters by words of their names; others have no category (better none than a wrong one)."""


def arena_hard(data: Path) -> list[Example]:
    """Arena-Hard: picked from live traffic as hard. Not every prompt of it is, hence the wide target."""
    rows = []
    for row in _lines(data / "arena_hard_v0.1_question.jsonl"):
        cluster = row["cluster"].lower()
        category = next((name for name, words in _CLUSTERS if re.search(words, cluster)), "")
        rows.append(asked(Example(row["prompt"], "arena", 7.2, category), 1.2, 8.0))
    return rows


_TASKS = (
    ("code", r"python|code|sql|program_for|javascript|htlm|regular_expression|leetcode"),
    ("math", r"math|equation|numerical|summation|find_subset|perfect_numbers|ascending_sort|largest_number|conversion"),
    ("writing", (r"email|story|haiku|poem|joke|letter|paraphrase|opening|lyrics|rewriting|plain_to|article|grammar|"
                r"better_word|sentence_with|subject_gen|metaphor|conversation|complete_paragraph|dialect|summar")),
    ("everyday", (r"breakfast|recipe|cooking|food|lunch|snack|birthday|grocery|movie_rec|game_sug|exercise|workout|"
                 r"plan_a_trip|resolutions|cocktail|de-stress|budget|warmup|medicine|city_todo|drink|breaking_up")),
    ("reasoning", r"analogy|syllogism|antonym|most_relevant|multipe_choice|chess"),
    ("business", r"interview|product_desc|job|stock|support"),
    ("humanities", r"stereotype|religion|ethic|sue_or|law|proverb|idiom|democrats|fact_check"),
    ("science", r"natural_phenomenon|science|brainstorming_method|explain_like"),
)  # fmt: skip


def self_instruct(data: Path) -> list[Example]:
    """The self-instruct seeds: everyday tasks. The prompt is the instruction and the first instance's input."""
    rows = []
    for row in _lines(data / "self_instruct_seed_tasks.jsonl"):
        first = row["instances"][0]
        prompt = f"{row['instruction']}\n\n{first['input']}".strip()
        category = next((name for name, words in _TASKS if re.search(words, row["name"])), "")
        rows.append(asked(Example(prompt, "seeds", 2.2, category, answer=first["output"]), 1.0, 8.0))
    return rows


def graded(file: Path = GRADED) -> list[Example]:
    """Our own prompts: ``prompt``, ``difficulty`` 1..9, ``category``."""
    return [
        asked(Example(row["prompt"], "graded", float(row["difficulty"]), row["category"]), 0.8, 8.5)
        for row in _lines(file)
    ]


def all_prompts(data: Path | None, own: Path = GRADED) -> list[Example]:
    """Every source; without ``data`` only our own prompts."""
    rows = graded(own)
    if data is not None:
        rows += math_problems(data) + gsm8k(data) + arena_hard(data) + self_instruct(data)
    return rows


def held_out(rows: Iterable[Example]) -> list[Example]:
    """The rows never trained on."""
    return [row for row in rows if split(row.text) == "heldout"]
