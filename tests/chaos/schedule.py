"""Which faults, when, for how long: all from a seed, so that a run can be repeated."""

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong at `at_s` (seconds from the start) for `for_s`."""

    kind: str
    target: str
    at_s: float
    for_s: float


KINDS: dict[str, tuple[Sequence[str], float, float]] = {
    # kind: targets, shortest and longest duration in seconds
    "kill worker": (("worker-1", "worker-2", "answerer"), 0.5, 3),
    "stop worker": (("worker-1", "worker-2", "answerer"), 1, 9),  # 6 s is the session time-out
    "worker leaves and joins": (("worker-1", "worker-2"), 0.5, 3),
    "worker joins": (("worker-3",), 6, 12),
    "kill redis": (("redis",), 0.5, 4),
    "stop redis": (("redis",), 1, 6),
    "redis comes back older": (("redis",), 1, 3),
    "cut redis": (("redis",), 0.5, 4),
    "slow redis": (("redis",), 1, 4),
    "stop kafka": (("kafka",), 1, 6),
    "cut kafka": (("kafka",), 0.5, 5),
    "slow kafka": (("kafka",), 1, 4),
    "kill vllm": (("vllm-1", "vllm-2"), 0.5, 5),
    "stop vllm": (("vllm-1", "vllm-2"), 1, 8),
    "cut vllm": (("vllm-1", "vllm-2"), 0.5, 5),
    "slow vllm": (("vllm-1", "vllm-2"), 1, 5),
    "vllm answers 400": (("vllm-1", "vllm-2"), 0, 0),
    "vllm answers 429": (("vllm-1", "vllm-2"), 0, 0),
    "vllm answers 500": (("vllm-1", "vllm-2"), 0, 0),
    "vllm answers 503": (("vllm-1", "vllm-2"), 0, 0),
    "vllm answers garbage": (("vllm-1", "vllm-2"), 0, 0),
    "vllm answers half": (("vllm-1", "vllm-2"), 0, 0),
    "vllm answers nothing": (("vllm-1", "vllm-2"), 0, 0),
    "clock jumps": (("worker-1", "worker-2"), 0.5, 2),
}


def schedule(seed: int, count: int, every_s: float) -> list[Fault]:
    """`count` faults, one about every `every_s`; every kind comes before any comes a second time."""
    rng = random.Random(seed)
    faults: list[Fault] = []
    kinds: list[str] = []
    at = 0.0
    for _ in range(count):
        if not kinds:
            kinds = rng.sample(list(KINDS), len(KINDS))
        kind = kinds.pop()
        targets, least, most = KINDS[kind]
        at += rng.uniform(0.6, 1.4) * every_s
        faults.append(Fault(kind, rng.choice(list(targets)), at, rng.uniform(least, most)))
    return faults
