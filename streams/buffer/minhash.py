"""Near-duplicates: MinHash signatures and their bands (Broder 1997; LSH after Leskovec et al., MMDS chapter 3).

Signatures come from `rensa` (Rust; 10 µs for 300 shingles where datasketch takes 1.3 ms; stable across processes). Of
each of the 128 minima only the lowest byte is kept (b-bit minwise hashing, Li & König 2010): unrelated prompts agree on
1 slot in 256, which adds 0.001 to an estimate of 0.8 and saves 384 bytes a member.
"""

import math
import re
import struct
import zlib
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

from streams.records import Message

SLOTS = 128
"""Standard error of the estimate at 0.8: 0.03."""
SEED = 42
SHINGLE_WORDS = 3
SHINGLE_CHARS = 5
FEW_WORDS = 10
"""With fewer words (or in a script without spaces) word shingles are too few to compare: characters are taken."""
MAX_CHARS = 32_768
"""Of a longer text its head and tail are compared: bounds the time in the event loop (2 ms)."""
RECALL = 0.99
"""Chance that two prompts exactly at the threshold share a band."""
ROWS = 4
"""Slots of a band: prompts that are 0.05 alike by chance share one of 17 bands in 1 case of 9,000."""

_word = re.compile(r"\w+")
_digit = re.compile(r"\d")
_ascii_gaps = {code: " " for code in range(128) if not _word.match(chr(code))}


class Sketch(NamedTuple):
    """What is compared: `slots` (128 bytes) estimates the similarity, `bands` (4 bytes each) finds with whom."""

    slots: bytes
    bands: bytes


def conversation_text(messages: Sequence[Message]) -> str:
    """What is compared of a conversation: everything that the user said."""
    return "\n".join(message.content for message in messages if message.role == "user")


def shingles(text: str) -> list[str]:
    """Word 3-shingles of the lowercase text, character 5-shingles of a text with few words. Never empty.

    Among words every number is the same one: a problem with other numbers is the same problem. A text of few words
    keeps its numbers, because they may be all that it asks about.
    """
    if len(text) > MAX_CHARS:
        text = text[: MAX_CHARS // 2] + "\n" + text[-MAX_CHARS // 2 :]
    text = text.lower()
    # The same words either way; a third of the time for ASCII.
    words = text.translate(_ascii_gaps).split() if text.isascii() else _word.findall(text)
    if len(words) >= FEW_WORDS:
        if not text.isascii() or _digit.search(text):
            words = ["0" if word.isdigit() else word for word in words]
        return list(map(" ".join, zip(words, words[1:], words[2:], strict=False)))
    text = " ".join(text.split())
    return [text[i : i + SHINGLE_CHARS] for i in range(max(1, len(text) - SHINGLE_CHARS + 1))]


@lru_cache
def bands_and_rows(threshold: float) -> tuple[int, int]:
    """Bands, and slots of each: the fewest (of at most `ROWS` slots) that find a pair at `threshold` with `RECALL`.

    A band of r slots is shared with probability s^r, one of b with 1 - (1 - s^r)^b. For 0.7: 17 bands of 4.
    """
    for rows in range(ROWS, 0, -1):
        bands = math.ceil(math.log(1 - RECALL) / math.log(1 - threshold**rows))
        if bands * rows <= SLOTS:
            return bands, rows
    return SLOTS, 1


@lru_cache
def needed(threshold: float) -> int:
    """Equal slots from which two sketches are alike."""
    return max(1, math.ceil(threshold * SLOTS - 1e-9))


@cache
def _hasher() -> Any:
    from rensa import RMinHash  # here: reading a buffer does without it

    return RMinHash


def sketch(text: str, threshold: float) -> Sketch:
    """Sketch of a text for comparing at `threshold`."""
    minhash = _hasher()(SLOTS, SEED)
    minhash.update(shingles(text))
    packed = struct.pack(f"<{SLOTS}I", *minhash.digest())
    count, rows = bands_and_rows(threshold)
    # The start value keeps equal slots of different bands apart.
    bands = map(zlib.crc32, struct.unpack_from(f"{4 * rows}s" * count, packed), range(0, count * 4 * rows, 4 * rows))
    return Sketch(packed[::4], struct.pack(f">{count}I", *bands))


def alike(a: Sketch, b: Sketch, threshold: float) -> bool:
    """Do both share a band and at least `needed` slots? Symmetric; the same test as in the Lua of the Redis buffer."""
    shared = any(a.bands[i : i + 4] == b.bands[i : i + 4] for i in range(0, len(a.bands), 4))
    return shared and equal_slots(a, b) >= needed(threshold)


def equal_slots(a: Sketch, b: Sketch) -> int:
    """Slots (of `SLOTS`) in which two sketches agree: their share estimates the Jaccard similarity."""
    return sum(x == y for x, y in zip(a.slots, b.slots, strict=True))
