"""Does a prompt repeat a benchmark? Word n-grams, as for GPT-3 (arXiv 2005.14165, appendix C)."""

import re
from collections.abc import Iterable, Sequence

from streams.records import Message

_WORD = re.compile(r"\w+")


class Contamination:
    """The n-grams of benchmark prompts. `sources` gives pairs of a benchmark's name and a prompt."""

    def __init__(self, sources: Iterable[tuple[str, str]], n: int) -> None:
        self._n = n
        self._grams: dict[int, str] = {}
        for name, text in sources:
            for gram in self._of(text):
                self._grams.setdefault(gram, name)

    def __bool__(self) -> bool:
        return bool(self._grams)

    def find(self, messages: Sequence[Message]) -> str | None:
        """The name of a benchmark that shares an n-gram with the user's words; None if none does.

        A benchmark prompt shorter than n words is found only as a whole.
        """
        if not self._grams:
            return None
        for message in messages:
            if message.role == "user":
                for gram in self._of(message.content):
                    if gram in self._grams:
                        return self._grams[gram]
        return None

    def _of(self, text: str) -> Iterable[int]:
        words = [word.lower() for word in _WORD.findall(text)]
        if not words:
            return
        if len(words) < self._n:
            yield hash(tuple(words))
        for start in range(len(words) - self._n + 1):
            yield hash(tuple(words[start : start + self._n]))
