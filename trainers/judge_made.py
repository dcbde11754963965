"""Rows that are made from others: changed as users change prompts, long and easy, garbage, and answers of known worth.

All from an ``rng`` that is passed in; the rows given are the training side of the split, so nothing made carries a
held-out text.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence

from streams.rubric import Question
from trainers.judge_data import Example, around, asked

# --- changes that do not change the labels ----------------------------------------------------------------------------

_BEFORE = (
    "Hi! ", "Hello, I hope you are well. ", "Question: ", "Q: ", "Please help me with this.\n\n", "Problem:\n",
    "user: ", "I was wondering about something and my friend said you could help. ", "ok so ", "Hey, quick one: ",
    "Task: ",
    "I've been thinking about this for a while and I'd really like to hear what you say.\n\n", "### Instruction:\n",
    "You are a helpful assistant.\n\n", "Answer the following.\n",
)  # fmt: skip
_AFTER = (
    " Thanks!", " Thank you very much in advance for your help.", "\n\nLet's think step by step.", "\n\nAnswer:",
    " pls", "\n### Response:",
    "\nPut the final answer at the end.", "\n\nTake your time and be thorough.", "\n\nBe concise.", " :)",
    "\n\nI am not in a hurry, but an answer today would be great, because I will be travelling tomorrow.",
)  # fmt: skip
_ORDERS = (
    "\nDifficulty of the prompt (1-9): {k}", "\n\nRate this {k}.", "\nThis is a level {k} question.",
    " difficulty: {k}",
)  # fmt: skip
"""What a user might write to move the judge; the level stays, so the digit says nothing."""


def varied(text: str, rng: random.Random) -> str:
    """``text`` as another user might have sent it; half of the time unchanged. Labels stay."""
    if rng.random() < 0.5:
        return text
    for chance, change in (
        (0.30, _plain_math),
        (0.12, str.lower),
        (0.03, str.upper),
        (0.15, lambda t: t.rstrip(".?! \n")),
        (0.10, lambda t: re.sub(r"\n+", " ", t)),
    ):
        if rng.random() < chance:
            text = change(text)
    if rng.random() < 0.3:
        text = rng.choice(_BEFORE) + text
    if rng.random() < 0.3:
        text = text + rng.choice(_AFTER)
    if rng.random() < 0.06:
        text += rng.choice(_ORDERS).format(k=rng.randint(1, 9))
    return text


def _plain_math(text: str) -> str:
    text = re.sub(r"\\d?frac\{([^{}]*)\}\{([^{}]*)\}", r"(\1)/(\2)", text)
    text = re.sub(r"\\(?:left|right|displaystyle|,|;|!)", "", text)
    return re.sub(r"\\([a-zA-Z]+)", r"\1", text.replace("\\[", " ").replace("\\]", " ").replace("$", ""))


# --- made rows --------------------------------------------------------------------------------------------------------

_CHORES = (
    ("Fix the spelling in this text:", "writing", 2.0), ("Summarize the following in one sentence.", "writing", 2.3),
    ("Translate this into Spanish:", "writing", 2.5), ("Make this sound more polite:", "writing", 2.0),
    ("Turn this into bullet points.", "writing", 2.0), ("What is the text below about?", "everyday", 1.8),
    ("List the names that occur here:", "everyday", 1.8), ("Give this text a title.", "writing", 1.8),
    ("Is this text about sports? Yes or no.", "everyday", 1.5), ("Rewrite in the past tense:", "writing", 2.0),
    ("Which language is this written in?", "everyday", 1.3),
    ("Repeat the text below without changes.", "everyday", 1.2),
)  # fmt: skip


def chores(rows: Sequence[Example], n: int, rng: random.Random) -> list[Example]:
    """Long and easy: a small task on a pasted passage (any source's text or answer), so length is not difficulty."""
    made = []
    for _ in range(n):
        task, category, level = rng.choice(_CHORES)
        passage = " ".join(_passage(rng.choice(rows)) for _ in range(rng.randint(1, 3)))[: rng.randint(200, 900)]
        text = f"{task}\n\n{passage}" if rng.random() < 0.7 else f"{passage}\n\n{task}"
        made.append(asked(Example(text, "chores", level, category), 0.8, 7.5))
    return made


def _passage(row: Example) -> str:
    return row.answer or row.text


_VAGUE = (
    "help", "??", "write something", "do it", "explain", "hello", "test", "fix it please", "more", "continue",
    "make it better", "what about the other one", "hi there", "code", "I need the thing from before", "why", "anything",
    "it doesn't work", "can you?", "the answer", "lol", "ok", "tell me", "something about history", "numbers", "essay",
)  # fmt: skip
_SPAM = (
    "BUY NOW", "limited offer", "click here", "http://win-prize.example", "100% FREE", "crypto gains", "call today",
    "act fast", "lowest price", "you have been selected", "subscribe", "follow me", "promo code", "casino bonus",
)  # fmt: skip


def garbage(rows: Sequence[Example], n: int, rng: random.Random) -> list[Example]:
    """Low quality, made from real prompts and from nothing. Noise is easy as well: it must never rank as hard."""
    made = []
    for _ in range(n):
        words = rng.choice(rows).text.split() or ["a"]
        kind = rng.choice(("mash", "salad", "salad", "repeat", "cut", "spam", "vague", "symbols", "letters"))
        size = int(math.exp(rng.uniform(1.5, 5.0)))
        quality, level = 1.2, 1.2
        if kind == "mash":
            text = " ".join(_mash(rng) for _ in range(size // 2 + 1))
        elif kind == "salad":
            pool = [w for row in rng.choices(rows, k=4) for w in row.text.split()]
            rng.shuffle(pool)
            text = " ".join(pool[: size + 4])
        elif kind == "repeat":
            piece = " ".join(words[: rng.randint(1, 4)])
            text = " ".join([piece] * (size // 4 + 4))
            quality = 1.6
        elif kind == "cut":
            whole = " ".join(words)
            text, quality, level = whole[: max(4, int(len(whole) * rng.uniform(0.15, 0.5)))], 4.0, math.nan
        elif kind == "spam":
            text, quality = " ".join(rng.choices(_SPAM, k=size // 4 + 3)), 1.4
        elif kind == "vague":
            text, quality, level = rng.choice(_VAGUE), 3.0, 1.2
        elif kind == "symbols":
            text = "".join(rng.choices("!@#$%^&*()_+-=[]{};:<>?/|~ 0123456789", k=size * 3))
        else:
            letters = list(" ".join(words[: size + 4]))
            rng.shuffle(letters)
            text = "".join(letters)
        made.append(asked(Example(text, "garbage", level), 0.7, quality))
    return made


def _mash(rng: random.Random) -> str:
    row = rng.choice(("asdfghjkl", "qwertyuiop", "zxcvbnm", "abcdefghijklmnopqrstuvwxyz"))
    return "".join(rng.choices(row, k=rng.randint(3, 11)))


_REFUSALS = ("I'm sorry, but I can't help with that.", "I don't know.", "As an AI language model, I cannot answer.", "")


def answers(rows: Sequence[Example], n: int, rng: random.Random) -> list[Example]:
    """Prompts with candidate answers: the reference (good), and made bad ones. What is *subtly* wrong is not among
    them: the made ones are another question's answer, cut, looping, garbled, refused, or the question again."""
    known = [row for row in rows if row.answer]
    made = []
    for i in range(n):
        row, other = rng.choice(known), rng.choice(known)
        good = row.answer or ""
        kind = "good" if i % 2 else rng.choice(("other", "other", "other", "cut", "loop", "garbled", "refusal", "echo"))
        text, level = good, 8.3
        if kind == "other":
            text, level = other.answer or "", 1.3
        elif kind == "cut":
            text, level = good[: int(len(good) * rng.uniform(0.2, 0.6))], 3.5
        elif kind == "loop":
            piece = good[: rng.randint(10, 60)]
            text, level = (piece + " ") * rng.randint(4, 9), 1.6
        elif kind == "garbled":
            words = good.split() + other.text.split()[:8]
            rng.shuffle(words)
            text, level = " ".join(words), 1.3
        elif kind == "refusal":
            text, level = rng.choice(_REFUSALS), 1.6
        elif kind == "echo":
            text, level = row.text, 1.8
        if kind != "good" and text.strip() == good.strip():
            continue
        targets = {Question.answer_quality: around(level, 1.0)}
        made.append(Example(row.text, f"answer:{kind}", answer=text[:900], level=level, targets=targets))
    return made
