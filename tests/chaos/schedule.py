"""Which faults, when, for how long: all from a seed, so that a run can be repeated.

Two lanes run side by side: what goes wrong around records, and what goes wrong around training. So a trainer may be
killed while Redis is away.
"""

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


Kinds = dict[str, tuple[Sequence[str], float, float]]
"""Kind: targets, shortest and longest duration in seconds."""

WORKERS = ("worker-1", "worker-2")
SERVERS = ("vllm-1", "vllm-2")
CLIENTS = ("everyone", "worker-1", "answerer", "triggers", "trainers")
"""Whose connections are cut or slowed."""

FLOW: Kinds = {
    "kill worker at ingest": (WORKERS, 0.5, 3),
    "kill worker at score": (WORKERS, 0.5, 3),
    "kill worker at curate": (WORKERS, 0.5, 3),
    "kill worker at answer": (("answerer",), 0.5, 3),
    "stop worker at ingest": (WORKERS, 1, 9),  # 6 s is the session time-out
    "stop worker at score": (WORKERS, 1, 9),
    "stop worker at curate": (WORKERS, 1, 9),
    "stop worker at answer": (("answerer",), 1, 9),
    "worker leaves and joins": (WORKERS, 0.5, 3),
    "worker joins and leaves": (("worker-3",), 6, 9),
    "kill redis": (("redis",), 0.5, 4),
    "stop redis": (("redis",), 1, 6),
    "redis comes back older": (("redis",), 1, 3),
    "cut redis": (CLIENTS, 0.5, 4),
    "slow redis": (CLIENTS, 1, 4),
    "stop kafka": (("kafka",), 1, 6),
    "cut kafka": (CLIENTS, 0.5, 5),
    "slow kafka": (CLIENTS, 1, 4),
    "kill vllm": (SERVERS, 0.5, 5),
    "stop vllm": (SERVERS, 1, 8),
    "cut vllm": (CLIENTS[:3] + CLIENTS[4:], 0.5, 5),
    "slow vllm": (CLIENTS[:3] + CLIENTS[4:], 1, 5),
    "vllm answers 400": (SERVERS, 1, 3),
    "vllm answers 429": (SERVERS, 1, 3),
    "vllm answers 500": (SERVERS, 1, 3),
    "vllm answers 503": (SERVERS, 1, 3),
    "vllm answers garbage": (SERVERS, 1, 3),
    "vllm answers half": (SERVERS, 1, 3),
    "vllm answers empty": (SERVERS, 1, 3),
    "vllm answers nothing": (SERVERS, 1, 3),
    "clock jumps": (("worker-2", "trigger-1", "trainer-1"), 2, 4),  # it is looked at once a second
}

TRAINING: Kinds = {
    "kill trainer in sft": (("trainers",), 0.5, 3),
    "kill trainer in dpo": (("trainers",), 0.5, 3),
    "kill trainer in gate": (("trainers",), 0.5, 3),
    "kill trainer in promote": (("trainers",), 0.5, 3),
    "stop trainer": (("trainers",), 2, 10),  # 6 s is its lease here
    "kill trigger": (("triggers",), 0.5, 3),
    "disk full: snapshot": (("triggers",), 1, 3),
    "disk full: training": (("trainers",), 0.5, 1),
    "disk full: registry": (("trainers",), 1, 3),
}

BROKER: Kinds = {"kill kafka": (("kafka",), 1, 6)}
"""Of an external Kafka for which the commands are given."""
LOCAL_BROKER = ("stop kafka", "cut kafka", "slow kafka")
"""Of the broker that the harness starts: it is paused and cut off, not killed, because it lives in memory."""


def schedule(seed: int, count: int, every_s: float, kinds: Kinds) -> list[Fault]:
    """`count` faults, one about every `every_s`; every kind comes before any comes a second time."""
    rng = random.Random(seed)
    faults: list[Fault] = []
    left: list[str] = []
    at = 0.0
    for _ in range(count):
        if not left:
            left = rng.sample(list(kinds), len(kinds))
        kind = left.pop()
        targets, least, most = kinds[kind]
        at += rng.uniform(0.6, 1.4) * every_s
        faults.append(Fault(kind, rng.choice(list(targets)), at, rng.uniform(least, most)))
    return faults
