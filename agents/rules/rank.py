"""The rank of a prompt: forward decay, so that it never needs updating."""

import math

ORIGIN_S = 1_767_225_600
"""2026-01-01T00:00:00Z. Any fixed origin ranks alike; a near one keeps the keys small."""


def rank_key(difficulty: float, ts_ms: int, half_life_s: float | None) -> float:
    """`ln(difficulty) + λ·t` with λ = ln 2 / half-life and t in seconds since `ORIGIN_S`.

    After one half-life a prompt ranks like a new one of half its difficulty (forward decay: Cormode et al., ICDE 2009).
    `half_life_s` None: λ = 0. `difficulty` is 1..9.
    """
    if not difficulty > 0:
        raise ValueError(f"difficulty must be positive, not {difficulty}")
    decay = 0.0 if half_life_s is None else math.log(2) / half_life_s
    return math.log(difficulty) + decay * (ts_ms / 1000 - ORIGIN_S)
