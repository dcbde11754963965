"""Does a prompt repeat a benchmark? Word n-grams, as for GPT-3 (arXiv 2005.14165, appendix C), but by their share.

One shared n-gram is no proof ("write a function that takes a list of integers and"), and one typo every few words hides
a copy from long ones. So the n-grams are short, and what counts is the share of a benchmark prompt's n-grams that the
user's text holds. docs/curation.md has the measured choice of both.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from streams.records import Message

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Match:
    """The benchmark prompt of which a text holds most."""

    benchmark: str
    overlap: float
    """Share of that prompt's n-grams, over 0 to 1."""


class Contamination:
    """The n-grams of benchmark prompts. `sources` gives pairs of a benchmark's name and a prompt.

    A text is contaminated when it holds at least `overlap` (over 0 to 1) of the `n`-grams of one benchmark prompt.
    """

    def __init__(self, sources: Iterable[tuple[str, str]], n: int, overlap: float) -> None:
        self._n = n
        self._overlap = overlap
        self._prompts: list[tuple[str, int]] = []
        self._holders: dict[int, list[int]] = {}
        for name, text in sources:
            grams = set(self._of(text))
            if grams:
                for gram in grams:
                    self._holders.setdefault(gram, []).append(len(self._prompts))
                self._prompts.append((name, len(grams)))

    def __len__(self) -> int:
        return len(self._prompts)

    def find(self, messages: Sequence[Message]) -> Match | None:
        """The benchmark prompt that the user's words repeat; None if they repeat none.

        A benchmark prompt shorter than n words is found only as a whole message.
        """
        best = self.nearest(messages)
        return best if best is not None and best.overlap >= self._overlap else None

    def nearest(self, messages: Sequence[Message]) -> Match | None:
        """The benchmark prompt of which the user's words hold the largest share; None if they share no n-gram."""
        if not self._holders:
            return None
        grams = {gram for message in messages if message.role == "user" for gram in self._of(message.content)}
        shared: dict[int, int] = {}
        for gram in grams:
            for prompt in self._holders.get(gram, ()):
                shared[prompt] = shared.get(prompt, 0) + 1
        found = [Match(self._prompts[i][0], count / self._prompts[i][1]) for i, count in shared.items()]
        return max(found, key=lambda match: match.overlap, default=None)

    def _of(self, text: str) -> Iterator[int]:
        words = [word.lower() for word in _WORD.findall(text)]
        if not words:
            return
        if len(words) < self._n:
            yield hash(tuple(words))
        for start in range(len(words) - self._n + 1):
            yield hash(tuple(words[start : start + self._n]))
