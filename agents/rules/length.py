"""The length of a conversation in tokens: by a tokenizer where there is one, else estimated."""

import re
from collections.abc import Callable, Sequence

from streams.records import Message

CountTokens = Callable[[str], int]
"""Tokens of a text."""

_PIECE = re.compile(r"[^\W\d_]+|\d|[^\w\s]|_")


def estimate(text: str) -> int:
    """About how many tokens byte-level BPE makes of a text.

    Digits and signs are one each, a word one for every five letters (the last up to nine), another script one for every
    four bytes. docs/curation.md tells how far off it is; what a tokenizer has seen little of may be twice as long.
    """
    pieces = _PIECE.findall(text)
    # Most pieces are one token: only the others are looked at one by one.
    others = [p for p in pieces if len(p) > 9 or not p.isascii()]
    return len(pieces) - len(others) + sum(len(p) // 5 if p.isascii() else -(-len(p.encode()) // 4) for p in others)


def tokens_of(messages: Sequence[Message], count: CountTokens) -> int:
    """Tokens of all messages, without those of a chat template."""
    return sum(count(message.content) for message in messages)
