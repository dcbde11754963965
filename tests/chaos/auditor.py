"""Accounts for every raw record by id, and compares the buffer with the in-memory reference fed from the log."""

import asyncio
import base64
import json
import time
from collections import Counter
from dataclasses import dataclass, field

from agents.curate import Curator, read_scored
from streams.buffer.base import BufferRules
from streams.buffer.memory import MemoryBuffer
from streams.buffer.redis import RedisBuffer
from streams.redis_client import connect
from streams.settings import BufferSettings, RedisSettings
from tests.support.stack import Topics

REFUSED = {"below_threshold", "low_quality", "near_duplicate", "category_full", "exact_repeat", "contaminated"}
OWN = REFUSED | {"admitted", "held_out"}


@dataclass
class Audit:
    """What became of the records."""

    sent: int
    missing: list[str]
    """Neither an outcome nor a dead letter."""
    dead: Counter[str]
    """Dead letters by reason, each record once."""
    contradictory: list[str]
    """An outcome and a dead letter too. (Not counted: a refusal by vLLM that was made up, and not repeated when the
    record was delivered again.)"""
    repeated_on_wire: dict[str, int]
    """Records that are in a topic more often than once, by topic."""
    not_in_reference: set[str] = field(default_factory=set)
    not_in_buffer: set[str] = field(default_factory=set)
    members: int = 0

    @property
    def clean(self) -> bool:
        """Nothing lost, nothing twice in effect."""
        return not (self.missing or self.contradictory or self.not_in_reference or self.not_in_buffer)


def accounted(topics: Topics, ids: set[str]) -> int:
    """How many of the ids have an outcome or a dead letter by now."""
    return len(ids & (_outcomes(topics).keys() | _dead(topics).keys()))


def audit(topics: Topics, ids: set[str], bad: int, redis_url: str, namespace: str, capacity: int) -> Audit:
    """Reads all topics and the buffer."""
    outcomes, dead = _outcomes(topics), _dead(topics)
    reasons = Counter(reason for reason, _ in dead.values())
    result = Audit(
        sent=len(ids) + bad,
        missing=sorted(ids - outcomes.keys() - dead.keys()),
        dead=reasons,
        contradictory=sorted(i for i in ids & dead.keys() & outcomes.keys() if dead[i][0] != "judge_refused"),
        repeated_on_wire=_repeats(topics),
    )
    unreadable = sum(count for reason, count in reasons.items() if reason not in ("judge_refused", "poison"))
    if unreadable < bad:
        result.missing.append(f"{bad - unreadable} of {bad} malformed records are no dead letters")
    have, want = asyncio.run(_members(topics, redis_url, namespace, capacity))
    result.members = len(have)
    result.not_in_reference = have - want
    result.not_in_buffer = want - have
    return result


def _outcomes(topics: Topics) -> dict[str, str]:
    return {r["id"]: r["outcome"] for r in topics.json(topics.names.curated) if r["outcome"] in OWN}


def _dead(topics: Topics) -> dict[str, tuple[str, str]]:
    """By id where the record has one, else by its place: reason and source topic."""
    found = {}
    for letter in topics.json(topics.names.dead):
        position = f"{letter['topic']}:{letter['partition']}:{letter['offset']}"
        try:
            id = json.loads(base64.b64decode(letter["value"]))["id"]
        except (ValueError, KeyError, TypeError):
            id = position
        found[id] = (letter["reason"], letter["topic"])
    return found


def _repeats(topics: Topics) -> dict[str, int]:
    names = topics.names
    found = {}
    for topic in (names.accepted, names.scored, names.curated):
        rows = topics.json(topic)
        keys = Counter((row["id"], row.get("outcome") == "evicted") for row in rows)
        found[topic.partition(".")[2]] = sum(count - 1 for count in keys.values())
    return found


async def _members(topics: Topics, redis_url: str, namespace: str, capacity: int) -> tuple[set[str], set[str]]:
    rules = BufferRules(capacity, 1.0, None)
    main, held_out = MemoryBuffer(rules, time.time), MemoryBuffer(rules, time.time)
    curator = Curator(BufferSettings(capacity=capacity, near_duplicate=None), main, held_out, lambda: 0)
    for row in topics.read(topics.names.scored):
        await curator.apply([read_scored(*row)], [])
    want = {member.prompt.id for member in await main.top(capacity)}
    client = connect(RedisSettings(url=redis_url))
    have = {member.prompt.id for member in await RedisBuffer(client, namespace, "main", rules).top(capacity)}
    await client.aclose()
    return have, want
