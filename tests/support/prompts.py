"""Offers for the buffer's tests, and a clock that they move."""

import random
import zlib

from streams.buffer.base import Offer
from streams.records import CuratedOutcome, Message, ScoredPrompt

_random = random.Random(7)
WORDS = ["".join(_random.choices("abcdefghijklmnop", k=_random.randint(3, 9))) for _ in range(3000)]


class HandClock:
    """Seconds; stands still until the test moves it."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def text(seed: int, words: int = 60) -> str:
    """A text like no other of another seed."""
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def twin(seed: int, version: int, words: int = 60) -> str:
    """A text alike to every other version of the seed: the last word differs."""
    return text(seed, words) + f" version{version}"


def prompt(
    id: str,
    difficulty: float = 5.0,
    content: str | None = None,
    category: str = "math",
    judge: str = "j1",
) -> ScoredPrompt:
    """A scored prompt; its text is its own unless given."""
    content = text(zlib.crc32(id.encode())) if content is None else content
    return ScoredPrompt(
        id=id,
        prompt_id=f"p-{id}",
        messages=[Message("user", content)],
        ts=1,
        difficulty=difficulty,
        quality=6.0,
        category=category,
        label_mass=0.9,
        judge=judge,
    )


def offer(
    id: str,
    rank: float = 5.0,
    content: str | None = None,
    category: str = "math",
    judge: str = "j1",
    at: tuple[int, int] = (-1, -1),
    refusal: CuratedOutcome | None = None,
) -> Offer:
    """An offer whose difficulty is its rank key (kept within 1..9)."""
    scored = prompt(id, min(9.0, max(1.0, rank)), content, category, judge)
    return Offer(prompt=scored, rank_key=rank, partition=at[0], offset=at[1], refusal=refusal)
