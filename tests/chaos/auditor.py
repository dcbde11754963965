"""Accounts for every raw record by id, compares the buffer with the reference, and follows every run to its end.

`collect` reads; `audit` is pure, so that tests can show it a log with a lie in it.
"""

import asyncio
import base64
import json
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agents.curate import Curator
from agents.scored_log import read_scored
from streams.buffer.base import BufferRules
from streams.buffer.memory import MemoryBuffer
from streams.buffer.minhash import alike, conversation_text, sketch
from streams.buffer.redis import RedisBuffer
from streams.errors import HaypileError
from streams.records import Member, TrainEvent, TrainRequest, decode
from streams.redis_client import connect
from streams.settings import BufferSettings, RedisSettings
from streams.snapshots import SPLITS, read_rows
from tests.chaos.system import System
from tests.support.stack import Topics
from trainers.history import Champion
from trainers.registry import Manifest
from trainers.rundir import FINAL

MADE_UP = "judge_refused"
"""Dead letters of a 400 that the harness made up: not repeated when the record is delivered again, so that the record
may have an outcome too."""

Row = tuple[int, int, bytes]
"""Partition, offset, value."""


@dataclass
class Training:
    """What there is to know about the runs."""

    requests: Sequence[TrainRequest] = ()
    events: Sequence[TrainEvent] = ()
    """In the order of the topic."""
    champion: Champion = field(default_factory=Champion)
    manifests: Sequence[Manifest] = ()
    served: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Model names by server."""
    damaged: Sequence[str] = ()
    """Snapshots and adapters with their final name that are not whole, and what was read half written."""
    holders: Mapping[str, int] = field(default_factory=dict)
    """Processes that say that they hold a lease once all is calm, by lease."""
    prefix: str = "haypile"
    """Of the names under which adapters are served."""


@dataclass
class Evidence:
    """All that a run has left behind."""

    raw_topic: str
    sent: Sequence[bytes]
    """The records that the broker took."""
    raw: Sequence[Row]
    accepted: Sequence[dict[str, object]]
    scored: Sequence[dict[str, object]]
    curated: Sequence[dict[str, object]]
    dead: Sequence[dict[str, object]]
    members: Sequence[Member]
    rules: BufferRules
    reference: frozenset[str] | None
    """Ids of the in-memory reference that was fed with `prompts.scored`; None where the order decides."""
    training: Training | None = None


@dataclass
class Audit:
    """What became of the records. Lists hold ids or sentences; all empty: nothing lost, nothing twice."""

    records: int
    """Different raw records."""
    account: Counter[str]
    """How they ended: each record once."""
    missing: list[str]
    """Neither an outcome nor a dead letter; or sent, and not in `prompts.raw`."""
    contradictory: list[str]
    """An outcome and a dead letter too, or one that the record's place in the buffer belies."""
    not_in_reference: list[str]
    not_in_buffer: list[str]
    broken_rules: list[str]
    unfinished_runs: list[str]
    """Requests without a final event."""
    broken_runs: list[str]
    """Runs that ended in two ways, or whose effect is not what their end says."""
    repeated_on_wire: dict[str, int]
    """Records that are in a topic more often than once, by topic."""
    members: int
    runs: Counter[str]

    @property
    def lost(self) -> int:
        """Records, members and runs that are gone."""
        return len(self.missing) + len(self.not_in_buffer) + len(self.unfinished_runs)

    @property
    def twice(self) -> int:
        """Records and runs that count more than once, or for something they are not."""
        return len(self.contradictory) + len(self.not_in_reference) + len(self.broken_rules) + len(self.broken_runs)

    @property
    def clean(self) -> bool:
        """Nothing lost, nothing twice in effect."""
        return not (self.lost or self.twice)

    def findings(self) -> list[str]:
        """What is wrong, the first ten of each sort."""
        sorts = {
            "missing": self.missing,
            "contradictory": self.contradictory,
            "in the buffer, not in the reference": self.not_in_reference,
            "in the reference, not in the buffer": self.not_in_buffer,
            "rule": self.broken_rules,
            "run without an end": self.unfinished_runs,
            "run": self.broken_runs,
        }
        return [f"{sort}: {finding}" for sort, found in sorts.items() for finding in found[:10]]


# -- the pure part -------------------------------------------------------------------------------------------------


def audit(evidence: Evidence) -> Audit:
    """The account."""
    ids = [raw_id(evidence.raw_topic, row) for row in evidence.raw]
    outcomes = outcomes_of(evidence.curated)
    dead = dead_of(evidence.dead)
    members = {member.prompt.id for member in evidence.members}
    account: Counter[str] = Counter()
    gone = Counter(evidence.sent) - Counter(value for _, _, value in evidence.raw)
    missing = [f"sent, and not in prompts.raw: {value!r}" for value in gone.elements()]
    contradictory = []
    for id in dict.fromkeys(ids):
        own, letter = outcomes.get(id, set()), dead.get(id)
        if not own and letter is None:
            missing.append(id)
        elif letter is not None and letter != MADE_UP and (own or id in members):
            contradictory.append(f"{id}: {sorted(own)} and a dead letter ({letter})")
        elif id in members and "admitted" not in own:
            contradictory.append(f"{id}: a member, but {sorted(own)}")
        account[_end(id, own, letter, members)] += 1
    known = set(ids)
    contradictory += [f"{id}: came from nowhere" for id in sorted((members | outcomes.keys() | dead.keys()) - known)]
    reference = evidence.reference
    unfinished, broken, runs = ([], [], Counter()) if evidence.training is None else follow_runs(evidence.training)
    return Audit(
        records=len(known),
        account=account,
        missing=missing,
        contradictory=contradictory,
        not_in_reference=[] if reference is None else sorted(members - reference),
        not_in_buffer=[] if reference is None else sorted(reference - members),
        broken_rules=check_rules(evidence.members, evidence.rules, evidence.scored),
        unfinished_runs=unfinished,
        broken_runs=broken,
        repeated_on_wire=repeats(evidence, ids),
        members=len(evidence.members),
        runs=runs,
    )


def _end(id: str, own: set[str], letter: str | None, members: set[str]) -> str:
    if id in members:
        return "in the buffer"
    if "admitted" in own:
        return "evicted"
    if own:
        return "held out" if "held_out" in own else "refused: " + min(own)
    return f"dead letter: {letter}" if letter else "lost"


def raw_id(topic: str, row: Row) -> str:
    """The id of a raw record: the given one, else its place. (Of malformed ones the place counts.)"""
    partition, offset, value = row
    return given_id(value) or f"{topic}:{partition}:{offset}"


def given_id(value: bytes) -> str | None:
    """The id in a JSON object, if there is one."""
    try:
        found = json.loads(value)["id"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def outcomes_of(curated: Sequence[dict[str, object]]) -> dict[str, set[str]]:
    """Own outcomes of each id (an eviction is told when another record comes in)."""
    found: dict[str, set[str]] = defaultdict(set)
    for row in curated:
        if row["outcome"] != "evicted":
            found[str(row["id"])].add(str(row["outcome"]))
    return dict(found)


def dead_of(letters: Sequence[dict[str, object]]) -> dict[str, str]:
    """Reason of each id's dead letter: by the id in its bytes, else by its place."""
    found = {}
    for letter in letters:
        place = f"{letter['topic']}:{letter['partition']}:{letter['offset']}"
        found[given_id(base64.b64decode(str(letter["value"]))) or place] = str(letter["reason"])
    return found


def check_rules(members: Sequence[Member], rules: BufferRules, scored: Sequence[dict[str, object]]) -> list[str]:
    """Every rule of the buffer that its members break."""
    found = []
    if len(members) > rules.capacity:
        found.append(f"{len(members)} members, capacity {rules.capacity}")
    for category, count in Counter(member.prompt.category for member in members).items():
        if count > rules.category_cap:
            found.append(f"{count} members of category {category}, at most {rules.category_cap}")
    for id, count in Counter(member.prompt.id for member in members).items():
        if count > 1:
            found.append(f"{id} is a member {count} times")
    known = {str(row["id"]) for row in scored}
    found += [f"{member.prompt.id} was never rated" for member in members if member.prompt.id not in known]
    for member in members:
        texts = [candidate.text for candidate in member.candidates]
        if len(texts) not in (0, 2) or len(set(texts)) != len(texts):
            found.append(f"{member.prompt.id} has {len(texts)} answers, {len(set(texts))} different ones, instead of 2")
    threshold = rules.near_duplicate
    if threshold is not None:
        sketches = [(m.prompt.id, sketch(conversation_text(m.prompt.messages), threshold)) for m in members]
        for i, (first, one) in enumerate(sketches):
            found += [f"{first} and {second} are alike" for second, two in sketches[:i] if alike(one, two, threshold)]
    return found


def repeats(evidence: Evidence, ids: Sequence[str]) -> dict[str, int]:
    """Rows of each topic that were there before."""

    def again(keys: Sequence[object]) -> int:
        return len(keys) - len(set(keys))

    found = {
        "prompts.raw": again(ids),
        "prompts.accepted": again([row["id"] for row in evidence.accepted]),
        "prompts.scored": again([row["id"] for row in evidence.scored]),
        "prompts.curated": again([(row["id"], row["outcome"] == "evicted") for row in evidence.curated]),
        "prompts.dead": again([(row["topic"], row["partition"], row["offset"]) for row in evidence.dead]),
    }
    if evidence.training is not None:
        found["train.requests"] = again([request.run_id for request in evidence.training.requests])
        found["train.events"] = again([(event.run_id, event.phase) for event in evidence.training.events])
    return found


def follow_runs(training: Training) -> tuple[list[str], list[str], Counter[str]]:
    """Runs without an end; what is wrong with the others and with the champion; how the runs ended."""
    ends: dict[str, set[str]] = defaultdict(set)
    for event in training.events:
        if event.phase in FINAL:
            ends[event.run_id].add(event.phase)
    asked = {request.run_id: request for request in training.requests}
    unfinished = sorted(asked.keys() - ends.keys())
    broken = [f"{run}: ended as {' and as '.join(sorted(found))}" for run, found in ends.items() if len(found) > 1]
    broken += [f"{run}: was never requested" for run in sorted(ends.keys() - asked.keys())]
    for request in training.requests:
        if request != asked[request.run_id]:
            broken.append(f"{request.run_id}: requested twice, for different things")
    broken += _order(training.events) + _champion(training, ends) + list(training.damaged)
    broken += [f"{count} processes hold the lease of {name}" for name, count in training.holders.items() if count != 1]
    return unfinished, broken, Counter(phase for found in ends.values() for phase in found)


def _order(events: Sequence[TrainEvent]) -> list[str]:
    """One run at a time: none begins to train before the one before it has ended, none goes on after its end."""
    found = []
    open_run: str | None = None
    ended: set[str] = set()
    seen: set[tuple[str, str]] = set()
    for event in events:
        key = (event.run_id, event.phase)
        if key in seen:
            continue  # repeated on the wire
        seen.add(key)
        if event.run_id in ended:
            found.append(f"{event.run_id}: {event.phase} after its end")
        elif event.phase in FINAL:
            ended.add(event.run_id)
            open_run = None if open_run == event.run_id else open_run
        elif open_run not in (None, event.run_id):
            found.append(f"{event.run_id}: {event.phase} while {open_run} had not ended")
        else:
            open_run = event.run_id
    return found


def _champion(training: Training, ends: Mapping[str, set[str]]) -> list[str]:
    """The pointer, its history, the registry and the servers tell the same story as the events."""
    found = []
    champion, history = training.champion, [change.version for change in training.champion.history]
    by_run: dict[str, list[str]] = defaultdict(list)
    for manifest in training.manifests:
        by_run[manifest.run_id].append(manifest.version)
    found += [f"{run}: published as {' and '.join(v)}" for run, v in by_run.items() if len(v) > 1]
    if champion.version != (history[-1] if history else None):
        found.append(f"the champion is {champion.version}, its history ends with {history[-1:]}")
    run_of = {manifest.version: manifest.run_id for manifest in training.manifests}
    found += [f"the champion's history names {version}, which is not there" for version in set(history) - run_of.keys()]
    found += [f"{version} was promoted {count} times" for version, count in Counter(history).items() if count > 1]
    promoted = {run_of[version] for version in history if version in run_of}
    for run, how in ends.items():
        if ("done" in how) != (run in promoted):
            was = "was" if run in promoted else "was not"
            found.append(f"{run}: ended as {', '.join(sorted(how))}, but {was} promoted")
    over = {manifest.version for manifest in training.manifests if manifest.gate and not manifest.gate.get("promote")}
    over |= {version for version in history if version is not None}
    former = {f"{training.prefix}-{version}" for version in over - {champion.version}}
    for server, names in training.served.items():
        if champion.version is not None and f"{training.prefix}-{champion.version}" not in names:
            found.append(f"{server} does not serve the champion {champion.version}: {', '.join(names)}")
        found += [f"{server} still serves {name}" for name in sorted(former & set(names))]
    return found


# -- reading -------------------------------------------------------------------------------------------------------


def unaccounted(topics: Topics) -> list[str]:
    """Raw records that have neither an outcome nor a dead letter yet."""
    ids = {raw_id(topics.names.raw, row) for row in topics.read(topics.names.raw)}
    ended = outcomes_of(topics.json(topics.names.curated)).keys() | dead_of(topics.json(topics.names.dead)).keys()
    return sorted(ids - ended)


def unfinished(topics: Topics) -> list[str]:
    """Requests whose run has no final event yet."""
    requests = {decode(TrainRequest, value).run_id for _, _, value in topics.read(topics.names.requests)}
    events = [decode(TrainEvent, value) for _, _, value in topics.read(topics.names.events)]
    return sorted(requests - {event.run_id for event in events if event.phase in FINAL})


def collect(system: System, sent: Sequence[bytes], training: Training | None) -> Evidence:
    """Reads all topics and the buffer."""
    topics, names = system.topics, system.topics.names
    scored = topics.read(names.scored)
    return Evidence(
        raw_topic=names.raw,
        sent=sent,
        raw=topics.read(names.raw),
        accepted=topics.json(names.accepted),
        scored=[json.loads(value) for _, _, value in scored],
        curated=topics.json(names.curated),
        dead=topics.json(names.dead),
        members=asyncio.run(_members(system)),
        rules=system.rules,
        reference=asyncio.run(_reference(scored, system.rules)) if system.rules.near_duplicate is None else None,
        training=training,
    )


def collect_training(system: System, holders: Mapping[str, int]) -> Training:
    """What there is to know about the runs, while trainers and servers still live."""
    topics, names = system.topics, system.topics.names
    events = sorted(topics.read(names.events))
    return Training(
        requests=[decode(TrainRequest, value) for _, _, value in sorted(topics.read(names.requests))],
        events=[decode(TrainEvent, value) for _, _, value in events],
        champion=system.registry.champion(),
        manifests=system.registry.versions(),
        served=system.served(),
        damaged=[*system.half_read(), *_damaged(system)],
        holders=holders,
    )


def _damaged(system: System) -> list[str]:
    found = []
    for folder in (system.folder / "snapshots").glob("[!.]*"):
        try:
            for split in SPLITS:
                read_rows(str(folder), split)
        except HaypileError as error:
            found.append(str(error))
    for manifest in system.registry.versions():
        try:
            system.registry.verify(manifest.version)
        except HaypileError as error:
            found.append(str(error))
    return found


async def _members(system: System) -> list[Member]:
    client = connect(RedisSettings(url=system.redis.url))
    try:
        buffer = RedisBuffer(client, "haypile", "main", system.rules)
        return [member async for chunk in buffer.iterate() for member in chunk]
    finally:
        await client.aclose()


async def _reference(scored: Sequence[Row], rules: BufferRules) -> frozenset[str]:
    main, held_out = MemoryBuffer(rules, time.time), MemoryBuffer(rules, time.time)
    curator = Curator(BufferSettings(capacity=rules.capacity, near_duplicate=None), main, held_out, lambda: 0)
    for row in scored:
        await curator.apply([read_scored(*row)], [])
    return frozenset(member.prompt.id for member in await main.top(rules.capacity))
