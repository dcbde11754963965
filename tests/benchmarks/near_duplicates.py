"""Signatures for near-duplicates beside the library that makes them."""

import time

from rensa import RMinHash

from streams.buffer.minhash import SEED, SLOTS, shingles, sketch
from streams.settings import BufferSettings
from tests.benchmarks.harness import Effort, Goal, Row, Spread, ratio, take_turns
from tests.benchmarks.load import Texts

CHARS = (220, 2000)
"""The average of the project's prompts, and a long one."""


def measure(effort: Effort) -> list[Row]:
    """For ordinary and for long texts."""
    return [row for chars in CHARS for row in _of(chars, effort)]


def _of(chars: int, effort: Effort) -> list[Row]:
    made = Texts(chars)
    texts = [made.of(chars) for _ in range(effort.pick(5_000, 50))]
    threshold = BufferSettings().near_duplicate or 0.7

    def ours() -> float:
        started = time.process_time()
        for text in texts:
            sketch(text, threshold)
        return len(texts) / (time.process_time() - started)

    def library() -> float:
        started = time.process_time()
        for text in texts:
            bare_signature(text)
        return len(texts) / (time.process_time() - started)

    ready = [shingles(text) for text in texts]

    def hashing() -> float:
        started = time.process_time()
        for tokens in ready:
            minhash = RMinHash(SLOTS, SEED)
            minhash.update(tokens)
            minhash.digest()
        return len(ready) / (time.process_time() - started)

    values = take_turns({"haypile": ours, "library": library, "hashing": hashing}, effort.rounds)
    beside = Spread(values["hashing"], "/s")
    return [
        Row(
            question="near-duplicates",
            haypile=f"signatures/s with their bands, of texts of {chars:,} characters",
            against="`rensa` by itself: the text's word 3-shingles, `update`, `digest`",
            goal=Goal(at_least=0.8),
            ours=Spread(values["haypile"], "/s"),
            theirs=Spread(values["library"], "/s"),
            measured=ratio(values["haypile"], values["library"]),
            notes=(f"`update` and `digest` alone, of shingles that are there already: {beside}",),
        )
    ]


def bare_signature(text: str) -> list[int]:
    """`rensa` as its README uses it, over word 3-shingles."""
    words = text.lower().split()
    minhash = RMinHash(SLOTS, SEED)
    minhash.update([" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))])
    digest: list[int] = minhash.digest()
    return digest
