"""What is fed: prompts made of the words of the project's own, as long as those are, each like no other."""

import hashlib
import json
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from streams.buffer.base import Offer
from streams.records import Message, ScoredPrompt, encode

ROOT = Path(__file__).parents[2]
SOURCES = (ROOT / "trainers/data/graded_prompts.jsonl", ROOT / "deploy/demo/prompts.jsonl")
CATEGORIES = ("code", "math", "reasoning", "science", "humanities", "business", "writing", "everyday")


@cache
def originals() -> tuple[str, ...]:
    """The project's prompts of one turn: of 20 to 1,100 characters, 220 on average."""
    records = [json.loads(line) for file in SOURCES for line in file.open(encoding="utf-8") if line.strip()]
    return tuple(record["prompt"] for record in records if "prompt" in record)


@cache
def _words(ascii_only: bool) -> tuple[str, ...]:
    """Every word as often as it is used, signs included."""
    return tuple(w for text in originals() for w in text.split() if w.isascii() or not ascii_only)


class Texts:
    """Texts of a seed: words as often as people use them, so that texts share some, and no two are alike."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def of(self, chars: int) -> str:
        """About so many characters (over rather than under)."""
        # Nine in ten of the project's prompts are ASCII, the long ones too.
        source, words, length = _words(self._rng.random() < 0.9), [], 0
        while length < chars:
            words.extend(self._rng.choices(source, k=max(1, (chars - length) // 6)))
            length = len(" ".join(words))
        return " ".join(words)[: max(chars, 1)].strip() or "why"

    def ordinary(self) -> str:
        """As long as one of the project's prompts."""
        return self.of(len(self._rng.choice(originals())))


def raw_records(count: int, seed: int) -> list[bytes]:
    """Records of `prompts.raw` as an app writes them."""
    made, rng = Texts(seed), random.Random(seed)
    texts: dict[str, None] = {}
    while len(texts) < count:  # a repeat would be refused
        texts[" ".join(made.ordinary().split())] = None
    return [
        json.dumps(
            {"id": f"r{seed}-{i}", "prompt": text, "user_id": f"u{rng.randrange(10_000)}", "source": "app"}
        ).encode()
        for i, text in enumerate(texts)
    ]


def scored_prompt(id: str, text: str, difficulty: float, category: str = "math") -> ScoredPrompt:
    """A rated prompt with all that the judge leaves in it."""
    return ScoredPrompt(
        id=id,
        prompt_id=hashlib.sha256(id.encode()).hexdigest(),
        messages=[Message("user", text)],
        ts=1_763_000_000_000,
        difficulty=difficulty,
        quality=6.5,
        category=category,
        label_mass=0.93,
        judge="d574e88b201b",
        user_id="u1",
        source="app",
        origin="prompts.raw:3:123456",
        language="en",
        tokens=len(text) // 4,
        distribution={"difficulty": [0.1111] * 9, "quality": [0.1111] * 9, "category": [0.125] * 8},
        seen_chars=len(text),
    )


def offers(count: int, seed: int, difficulties: Sequence[float], record_bytes: int = 2000) -> list[Offer]:
    """Offers whose record (JSON) has `record_bytes` bytes; the rank key is the difficulty."""
    texts, rng = Texts(seed), random.Random(seed)
    overhead = len(encode(scored_prompt(f"m{seed}-{count}", "", 5.123456789012345)))
    return [
        Offer(
            prompt=scored_prompt(
                f"m{seed}-{i}", texts.of(record_bytes - overhead), difficulties[i], rng.choice(CATEGORIES)
            ),
            rank_key=difficulties[i],
        )
        for i in range(count)
    ]
