"""The total order of members: rank key, then a hash of the prompt, then a hash of the id.

All of it is bytes that compare like numbers (memcmp), because that is how Redis compares members of equal score.
"""

import hashlib
import struct

SIGN = 1 << 63
ALL = (1 << 64) - 1


def member_key(id: str) -> bytes:
    """8 bytes that stand for the id inside the buffer.

    Among 30,000 members an offer meets another id's key with a chance of 1 in 6e14; it would then count as a replay.
    """
    return hashlib.blake2b(id.encode(), digest_size=8).digest()


def tie(prompt_id: str) -> bytes:
    """4 bytes that break ties of the rank key independently of arrival."""
    return hashlib.blake2b(prompt_id.encode(), digest_size=4).digest()


def sortable(rank_key: float) -> bytes:
    """8 bytes in the order of the (finite) numbers: IEEE 754 big-endian, sign flipped, negatives inverted."""
    (bits,) = struct.unpack(">Q", struct.pack(">d", rank_key + 0.0))  # -0.0 + 0.0 is 0.0
    return struct.pack(">Q", bits ^ (ALL if bits & SIGN else SIGN))


def order(rank_key: float, prompt_id: str, id: str) -> bytes:
    """20 bytes; of two members the harder one has the greater."""
    return sortable(rank_key) + tie(prompt_id) + member_key(id)
