"""Near-duplicates: MinHash signatures and their bands (Broder 1997; LSH after Leskovec et al., MMDS chapter 3).

Signatures come from `rensa` (Rust; 10 µs for 300 shingles where datasketch takes 1.3 ms; stable across processes). Of
each of the 128 minima only the lowest byte is kept (b-bit minwise hashing, Li & König 2010): two unrelated prompts agree
on 1 slot in 256, which adds 0.001 to an estimate of 0.8 and saves 384 bytes a member.
"""

import math
import re
import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from rensa import RMinHash

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

_word = re.compile(r"\w+")


class Sketch(NamedTuple):
    """What is compared: `slots` (128 bytes) estimates the similarity, `bands` (4 bytes each) finds whom to compare with."""

    slots: bytes
    bands: bytes


def conversation_text(messages: Sequence[Message]) -> str:
    """What is compared of a conversation: everything that the user said."""
    return "\n".join(message.content for message in messages if message.role == "user")


def shingles(text: str) -> list[str]:
    """Word 3-shingles of the lowercase text, character 5-shingles of a text with few words. Never empty."""
    if len(text) > MAX_CHARS:
        text = text[: MAX_CHARS // 2] + "\n" + text[-MAX_CHARS // 2 :]
    text = text.lower()
    words = _word.findall(text)
    if len(words) >= FEW_WORDS:
        return list(map(" ".join, zip(words, words[1:], words[2:], strict=False)))
    text = " ".join(text.split())
    return [text[i : i + SHINGLE_CHARS] for i in range(max(1, len(text) - SHINGLE_CHARS + 1))]


@lru_cache
def rows(threshold: float) -> int:
    """Slots of a band: the most (fewest chance candidates) that still find a pair at `threshold` with `RECALL`."""
    return max([r for r in range(1, SLOTS + 1) if 1 - (1 - threshold**r) ** (SLOTS // r) >= RECALL], default=1)


@lru_cache
def needed(threshold: float) -> int:
    """Equal slots from which two sketches are alike."""
    return max(1, math.ceil(threshold * SLOTS - 1e-9))


def sketch(text: str, threshold: float) -> Sketch:
    """Sketch of a text for comparing at `threshold`."""
    minhash = RMinHash(SLOTS, SEED)
    minhash.update(shingles(text))
    packed = struct.pack(f"<{SLOTS}I", *minhash.digest())
    step = 4 * rows(threshold)
    starts = range(0, 4 * SLOTS - step + 1, step)
    # The start value keeps equal slots of different bands apart.
    bands = [zlib.crc32(packed[start : start + step], start) for start in starts]
    return Sketch(packed[::4], struct.pack(f">{len(bands)}I", *bands))


def alike(a: Sketch, b: Sketch, threshold: float) -> bool:
    """Do both share a band and at least `needed` slots? Symmetric; the same test as in the Lua of the Redis buffer."""
    shared = any(a.bands[i : i + 4] == b.bands[i : i + 4] for i in range(0, len(a.bands), 4))
    return shared and sum(x == y for x, y in zip(a.slots, b.slots, strict=True)) >= needed(threshold)
