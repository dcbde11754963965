"""Variants of a prompt as users make them: with slips, other numbers, in another order, in other words."""

import random
import re
from collections.abc import Callable

KEYS = "qwertyuiopasdfghjklzxcvbnm"
SYNONYMS = {
    "find": "determine",
    "calculate": "compute",
    "compute": "work out",
    "write": "compose",
    "explain": "describe",
    "how": "in what way",
    "many": "lots of",
    "total": "overall",
    "show": "demonstrate",
    "prove": "show",
    "give": "provide",
    "make": "create",
    "create": "make",
    "want": "would like",
    "need": "require",
    "use": "employ",
    "using": "with",
    "help": "assist",
    "big": "large",
    "small": "little",
    "each": "every",
    "buy": "purchase",
    "buys": "purchases",
    "get": "obtain",
    "start": "begin",
    "end": "finish",
    "evaluate": "calculate",
    "what's": "what is",
    "following": "given",
    "list": "enumerate",
    "please": "kindly",
    "problem": "task",
    "answer": "reply",
    "also": "too",
    "must": "has to",
    "should": "ought to",
    "but": "yet",
    "because": "since",
    "difference": "distinction",
}
OPENINGS = (
    "Hi! ",
    "Please help me with this: ",
    "Question: ",
    "Hello, could you answer the following? ",
    "I was asked this. ",
)
CLOSINGS = ("", " Thanks!", " Thank you in advance.", " Explain your reasoning.", "\n\nAnswer briefly.")


def typos(text: str, rng: random.Random) -> str:
    """A slip in one word of fifteen, at least in one: a letter lost, doubled, swapped or hit beside."""
    words = re.split(r"(\s+)", text)
    places = [i for i, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    for i in rng.sample(places, min(len(places), max(1, len(places) // 15))):
        word, at = words[i], rng.randrange(1, len(words[i]) - 1)
        words[i] = rng.choice(
            [
                word[:at] + word[at + 1 :],
                word[:at] + word[at] + word[at:],
                word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :],
                word[:at] + rng.choice(KEYS) + word[at + 1 :],
            ]
        )
    return "".join(words)


def whitespace(text: str, rng: random.Random) -> str:
    """Other white space between the words, as after copying from a page."""
    return "".join(
        rng.choice([" ", "  ", "\n", " \n\t"]) if part.isspace() else part for part in re.split(r"(\s+)", text)
    )


def case(text: str, rng: random.Random) -> str:
    """All small, all capital, and without the closing mark."""
    return rng.choice([text.lower(), text.upper(), text.rstrip(".?! ")])


def numbers(text: str, rng: random.Random) -> str:
    """The same problem with other numbers; a text without numbers stays as it is (then it is no variant)."""
    return re.sub(r"\d+", lambda match: str(rng.randrange(2, 10 ** min(4, len(match.group())) + 10)), text)


def reordered(text: str, rng: random.Random) -> str:
    """Its sentences in another order; a text of one sentence stays as it is."""
    sentences = re.split(r"(?<=[.!?])\s+", text)
    shuffled = sentences[:]
    while len(set(sentences)) > 1 and shuffled == sentences:
        rng.shuffle(shuffled)
    return " ".join(shuffled)


def framed(text: str, rng: random.Random) -> str:
    """With a greeting before it or a wish after it."""
    return rng.choice(OPENINGS) + text + rng.choice(CLOSINGS)


def paraphrased(text: str, rng: random.Random) -> str:
    """Other words for what has a common synonym: as near to a paraphrase as a table of words comes."""
    return re.sub(
        r"[A-Za-z']+",
        lambda match: SYNONYMS.get(match.group().lower(), match.group()) if rng.random() < 0.8 else match.group(),
        text,
    )


KINDS: dict[str, Callable[[str, random.Random], str]] = {
    "white space": whitespace,
    "case, closing mark": case,
    "typos": typos,
    "other numbers": numbers,
    "sentences reordered": reordered,
    "greeting, wish": framed,
    "synonyms": paraphrased,
}


def variants(text: str, seed: int) -> dict[str, str]:
    """A variant of each kind; a kind that leaves the text as it is is left out."""
    rng = random.Random(seed)
    made = {kind: make(text, rng) for kind, make in KINDS.items()}
    return {kind: variant for kind, variant in made.items() if variant != text}
