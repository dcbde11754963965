"""Decontamination: how many copies of benchmark prompts are found, and how many other prompts are refused with them."""

import random
from collections.abc import Sequence

from agents.rules.contamination import Contamination
from streams.records import Message
from streams.settings import IngestSettings
from tests.curation.corpus import corpus
from tests.curation.variants import KINDS, variants

SIZES = (5, 8, 13)
OVERLAPS = (0.01, 0.3, 0.5, 0.8)
"""The first stands for "any shared n-gram", as for GPT-3."""


def table() -> str:
    """Markdown: recall of copies, and other prompts refused, for n and overlap. The benchmark is Arena-Hard."""
    sets = corpus()
    name = "arena-hard" if "arena-hard" in sets else "graded"
    benchmark = sets[name]
    others = [text for other, texts in sets.items() if other != name for text in texts]
    settings = IngestSettings()
    kinds = [kind for kind in KINDS if kind != "other numbers"]  # other numbers are another question
    rows = [
        "| n-gram | overlap | others refused | verbatim | within a longer text | " + " | ".join(kinds) + " |",
        "|---:|---:|---:|---:|---:|" + "---:|" * len(kinds),
    ]
    made = [variants(text, i) for i, text in enumerate(benchmark)]
    inside = [f"{random.Random(i).choice(others)}\n\n{text}" for i, text in enumerate(benchmark)]
    for n in SIZES:
        for overlap in OVERLAPS:
            rule = Contamination([(name, text) for text in benchmark], n, overlap)
            cells = [f"{refused(rule, others)} of {len(others)}"]
            groups: list[Sequence[str]] = [benchmark, inside]
            groups += [[other[kind] for other in made if kind in other] for kind in kinds]
            cells += [f"{refused(rule, group) / len(group):.2f}" for group in groups]
            chosen = (n, overlap) == (settings.decontaminate_ngram, settings.decontaminate_overlap)
            shown = "any" if overlap == OVERLAPS[0] else f"{overlap:g}"
            rows.append(
                f"| {'**' if chosen else ''}{n}{'**' if chosen else ''} | {shown} | " + " | ".join(cells) + " |"
            )
    return f"The benchmark: {name}, {len(benchmark)} prompts.\n\n" + "\n".join(rows)


def refused(rule: Contamination, texts: Sequence[str]) -> int:
    """How many of the texts are refused."""
    return sum(rule.find([Message("user", text)]) is not None for text in texts)
