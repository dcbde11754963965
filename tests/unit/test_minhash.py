"""Sketches: stable, close to the true similarity, and what is alike is found."""

import random
import subprocess
import sys

import pytest

from streams.buffer.minhash import (
    MAX_CHARS,
    RECALL,
    SLOTS,
    alike,
    bands_and_rows,
    conversation_text,
    needed,
    shingles,
    sketch,
)
from streams.records import Message
from tests.support.prompts import text, twin


def test_shingles_are_words_of_the_lowercase_text() -> None:
    words = "One, two; THREE four-five six seven eight nine ten"
    assert shingles(words)[:3] == ["one two three", "two three four", "three four five"]
    assert len(shingles(words)) == 8
    # ASCII and the rest take different ways to the same words.
    assert shingles(words + " é")[:8] == shingles(words)


@pytest.mark.parametrize("short", ["", "?", "hi", "What is 2+2?", "🤖 🤖", "什么是素数？请证明它们有无穷多个。"])
def test_a_text_of_few_words_has_character_shingles(short: str) -> None:
    made = shingles(short)
    assert made and all(len(shingle) <= 5 for shingle in made)
    assert alike(sketch(short, 0.8), sketch(f"  {short.upper()} ", 0.8), 0.8)


def test_short_prompts_that_ask_for_something_else_are_not_alike() -> None:
    pairs = [("What is 12+7?", "What is 12+8?"), ("Capital of France?", "Capital of Spain?")]
    assert not any(alike(sketch(a, 0.8), sketch(b, 0.8), 0.8) for a, b in pairs)


def test_of_a_long_text_head_and_tail_count() -> None:
    middle = " ".join(f"w{i}" for i in range(MAX_CHARS))
    head, tail = text(1, 40), text(2, 40)
    assert len(shingles(f"{head} {middle} {tail}")) < MAX_CHARS
    assert set(shingles(head)) | set(shingles(tail)) <= set(shingles(f"{head} {middle} {tail}"))


def test_only_what_the_user_said_is_compared() -> None:
    turns = [Message("system", "s"), Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    assert conversation_text(turns) == "a\nc"


def test_the_estimate_is_close_to_the_similarity() -> None:
    rng = random.Random(1)
    errors = []
    for case in range(100):
        common = [f"w{case}x{i}" for i in range(rng.randint(60, 240))]
        a, b = [f"a{i}" for i in range(30)], [f"b{i}" for i in range(30)]
        left, right = " ".join(common + a), " ".join(common + b)
        true = len(set(shingles(left)) & set(shingles(right))) / len(set(shingles(left)) | set(shingles(right)))
        x, y = sketch(left, 0.8), sketch(right, 0.8)
        errors.append(sum(p == q for p, q in zip(x.slots, y.slots, strict=True)) / SLOTS - true)
    assert abs(sum(errors) / len(errors)) < 0.015
    assert max(map(abs, errors)) < 0.15


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.99])
def test_bands_find_what_is_alike(threshold: float) -> None:
    bands, rows = bands_and_rows(threshold)
    assert bands * rows <= SLOTS
    assert 1 - (1 - threshold**rows) ** bands >= RECALL
    found = wanted = 0
    for seed in range(60):
        words = text(seed, 80).split()
        other = words[:]
        other[seed % 60] = "changed"
        x, y = sketch(" ".join(words), threshold), sketch(" ".join(other), threshold)
        assert len(x.bands) == 4 * bands
        if sum(p == q for p, q in zip(x.slots, y.slots, strict=True)) >= needed(threshold):
            wanted += 1
            found += alike(x, y, threshold)
    assert found >= 0.95 * wanted
    assert wanted > 50 or threshold > 0.9


def test_unrelated_texts_share_no_band() -> None:
    sketches = [sketch(text(seed), 0.8) for seed in range(100)]
    marks = [(i, s.bands[i : i + 4]) for s in sketches for i in range(0, len(s.bands), 4)]
    assert len(set(marks)) == len(marks)
    assert not alike(sketches[0], sketches[1], 0.8) and alike(sketches[0], sketches[0], 0.8)


def test_needed_slots() -> None:
    assert (needed(0.5), needed(0.8), needed(0.999)) == (64, 103, 128)


def test_another_process_makes_the_same_sketch() -> None:
    """Sketches are stored: the hash of another run (or of another seed of Python's own) must be the same."""
    program = (
        "from streams.buffer.minhash import sketch; from tests.support.prompts import twin; "
        "s = sketch(twin(3, 1), 0.8); print((s.slots + s.bands).hex())"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    made = sketch(twin(3, 1), 0.8)
    assert run.stdout.strip() == (made.slots + made.bands).hex()
    assert sketch("What is haypile, and what does it do with all of the hard prompts?", 0.8).bands.hex() == PINNED


PINNED = "10ac91d6ceabb3e73875e236013167dfc9f72e5977a8291a69670f4d7e9602d44e1a81c2"
"""Changes only with another hash in `rensa`: then stored buffers must be rebuilt, and its version pinned."""
