"""`haypile forget`: a user or a prompt leaves everything that is stored.

    ask        the deletion record is in `prompts.forgotten`: from here on nobody uses what it names
    Redis      buffers, waiting outcomes, sightings; once more when every worker must have read the record
    reports    answers to its prompts, in the gates' reports
    snapshots  after the reports, because they tell which prompts those are about; their manifests keep what left when
    runs       checkpoints and adapters in the folders of runs that learned from it
    adapters   that learned from it are listed; with `retrain` one that did not serves, and a run is asked for
    look       everything is searched again; only when nothing is found the request counts as done

Each step again changes nothing, so a forget that was killed is done again, by the same command or by `resume`, which
needs no id: the deletion record is enough to find everything.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from agents.forget import Sweeper, Swept
from agents.ingest import Seen
from deploy.kafka import ends_of, forgotten_of
from deploy.remains import Remains, Sightings, scan
from streams.buffer.base import rules
from streams.buffer.redis_generations import RedisGenerations
from streams.errors import Fatal, HaypileError
from streams.forgotten import ForgottenList
from streams.forgotten_log import REFRESH_S
from streams.lease import Lease
from streams.producer import Producer
from streams.records import Forgotten
from streams.redis_client import connect
from streams.settings import Settings
from streams.snapshot_forget import ForgottenRow, forget_rows, forgotten_rows, remove_unfinished, states_with
from streams.snapshots import SnapshotError, list_snapshots, read_manifest
from streams.topics import create_topics, topic_names
from trainers.forgetting import Learned, clean_ancestor, clear_runs, family, forget_answers, learned, untold
from trainers.promotion import Servers, move
from trainers.registry import Registry

LEASE_S = 15.0
"""One forget at a time; one that was killed is waited for so long."""
SETTLE_S = 3 * REFRESH_S
"""After this every worker that can read Kafka has the deletion record, and is done with what it had in its hands."""

Say = Callable[[str], None]


@dataclass
class Report:
    """What was forgotten and where; with `dry_run` what would be."""

    requests: list[str]
    """Digests of the deletion records that this was done for."""
    dry_run: bool = False
    members: dict[str, int] = field(default_factory=dict)
    """Of the main and of the held-out buffer."""
    sightings: int = 0
    """Prompts that would have been refused as exact repeats."""
    outcomes: int = 0
    """Evictions that waited to be published."""
    snapshots: dict[str, dict[str, int]] = field(default_factory=dict)
    """Snapshot → rows of each split."""
    reports: dict[str, int] = field(default_factory=dict)
    """Version → prompts in its gate's report."""
    runs: list[str] = field(default_factory=list)
    """Whose checkpoints and adapters were deleted from `training.work_dir`."""
    adapters: list[Learned] = field(default_factory=list)
    """That learned from it, and still are in the registry."""
    untold: list[str] = field(default_factory=list)
    """Versions whose snapshots are gone: nobody can tell."""
    champion: str | None = None
    """The one that serves at the end; null: the base model."""
    rolled_back_from: str | None = None
    run_asked: bool = False
    remains: list[Remains] = field(default_factory=list)
    """What Kafka keeps until its retention; no hop, replay or command uses it any more."""
    left: list[str] = field(default_factory=list)
    """What was found again at the end. Empty, or it is not done."""

    @property
    def tainted(self) -> bool:
        """Whether the champion learned from it."""
        return self.champion in {adapter.version for adapter in self.adapters}


class Forgetter:
    """One run of the command. Its methods raise what Redis, Kafka, snapshots and registry raise."""

    def __init__(
        self,
        settings: Settings,
        say: Say = lambda line: None,
        settle_s: float = SETTLE_S,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self._settings = settings
        self._now_ms = now_ms
        self._say = say
        self._settle_s = settle_s
        self._registry = Registry(settings.training.registry)

    async def forget(self, kind: str, id: str, *, future: bool, retrain: bool, dry_run: bool) -> Report:
        """Ask for it, and do it."""
        known = await self._known(dry_run)
        raw = topic_names(self._settings.kafka).raw
        found = await asyncio.to_thread(ends_of, self._settings.kafka, raw)
        ends = {f"{raw}:{partition}": end for partition, end in found.items()}
        record = known.request(kind, id, ends=ends, future=future, now_ms=self._now_ms())
        if dry_run:
            known = ForgottenList.of(self._settings.kafka)
            known.take(record)
            return await self._would(known, record)
        async with self._opened() as parts:
            await self._publish(parts.producer, record)
            self._say("asked: from here on nothing new is made of it")
            return await self._all(parts, retrain)

    async def resume(self, *, retrain: bool) -> Report | None:
        """Finish what was asked for and not finished; None when there is nothing."""
        if not (await self._known(dry_run=False)).unfinished():
            return None
        async with self._opened() as parts:
            return await self._all(parts, retrain)

    async def _known(self, dry_run: bool) -> ForgottenList:
        if not dry_run:
            await asyncio.to_thread(create_topics, self._settings.kafka)
        return await asyncio.to_thread(forgotten_of, self._settings.kafka)

    async def _publish(self, producer: Producer, record: Forgotten) -> None:
        topic = topic_names(self._settings.kafka).forgotten
        await producer.send(topic, record, key=f"{record.kind}:{record.digest}")

    @asynccontextmanager
    async def _opened(self) -> "AsyncIterator[_Parts]":
        settings = self._settings
        async with AsyncExitStack() as stack:
            producer = await stack.enter_async_context(Producer(settings.kafka))
            sweeper = await stack.enter_async_context(_sweeper(settings))
            client = connect(settings.redis)
            stack.push_async_callback(client.aclose)
            lease = Lease(client, settings.redis.namespace, "forget", LEASE_S)
            await self._alone(lease)
            stack.push_async_callback(lease.release)
            keeper = asyncio.create_task(_keep(lease))
            stack.callback(keeper.cancel)
            yield _Parts(producer, sweeper)

    async def _alone(self, lease: Lease) -> None:
        deadline = time.monotonic() + 2 * LEASE_S
        while await lease.hold() is None:
            if time.monotonic() > deadline:
                raise Fatal("another `haypile forget` is at work: wait for its end")
            self._say("another one is at work, or was killed just now: waiting for it")
            await asyncio.sleep(1)

    async def _all(self, parts: "_Parts", retrain: bool) -> Report:
        settings = self._settings
        known = await self._known(dry_run=False)
        open_requests = known.unfinished()
        digests = {record.digest for record in open_requests}
        report = Report(sorted(digests))
        self._add(report, await parts.sweeper.sweep(known))
        self._say("Redis: members are out; waiting until every worker knows")
        await asyncio.sleep(self._settle_s)
        report.remains, sightings = await asyncio.to_thread(scan, settings.kafka, known, self._say)
        self._add(report, await parts.sweeper.sweep(known, sightings.prompts))
        for id in sorted(sightings.feedback):  # compacted, and kept for ever otherwise
            await parts.producer.bury(topic_names(settings.kafka).feedback, id)
        await asyncio.to_thread(self._files, known, digests, sightings, report)
        if retrain:
            await self._retrain(report)
        report.champion = self._registry.champion().version
        await self._look(parts.sweeper, known, report)
        if not report.left:
            for record in open_requests:
                record.done = self._now_ms()
                await self._publish(parts.producer, record)
        return report

    def _add(self, report: Report, swept: Swept) -> None:
        for name, count in swept.members.items():
            report.members[name] = report.members.get(name, 0) + count
        report.sightings += swept.seen
        report.outcomes += swept.outbox

    def _files(self, known: ForgottenList, digests: set[str], sightings: Sightings, report: Report) -> None:
        paths = list_snapshots(self._settings.training.snapshots)
        prompts = {prompt_id for prompt_id, _ in sightings.prompts}
        prompts |= {row.prompt_id for path in paths for row in self._rows(path, known)}
        report.reports = forget_answers(self._registry, prompts)
        self._say(f"{len(paths)} snapshots to look through")
        for path in paths:
            try:
                gone = forget_rows(path, known.row, self._now_ms())
            except SnapshotError:
                if path in list_snapshots(self._settings.training.snapshots):
                    raise
                continue  # retention took it meanwhile
            if gone:
                report.snapshots[path] = _by_split(gone)
        remove_unfinished(self._settings.training.snapshots)
        # After the snapshots, so that no run can have begun on what they were: see `Runner`.
        states, removed_at = self._states(paths, digests)
        report.runs = clear_runs(self._settings.training.work_dir, states)
        self._adapters(report, states, removed_at, paths)

    def _rows(self, path: str, known: ForgottenList) -> list[ForgottenRow]:
        try:
            return forgotten_rows(path, known.row)
        except SnapshotError:
            if path in list_snapshots(self._settings.training.snapshots):
                raise
            return []

    def _states(self, paths: list[str], digests: set[str]) -> tuple[dict[str, set[str]], dict[str, int]]:
        states: dict[str, set[str]] = {}
        removed_at: dict[str, int] = {}
        for path in paths:
            try:
                manifest = read_manifest(path)
            except SnapshotError:
                continue
            states[path] = states_with(manifest.forgotten, digests)
            removed_at[path] = max((r.at for r in manifest.forgotten if r.request in digests), default=0)
        return {path: found for path, found in states.items() if found}, removed_at

    def _adapters(
        self, report: Report, states: dict[str, set[str]], removed_at: dict[str, int], paths: list[str]
    ) -> None:
        manifests = self._registry.versions()
        there = {manifest.version for manifest in manifests}
        found = learned(family(self._registry), states, removed_at)
        report.adapters = [adapter for adapter in found if adapter.version in there]
        known = {adapter.version for adapter in report.adapters}
        report.untold = [version for version in untold(manifests, paths) if version not in known]
        report.champion = self._registry.champion().version

    async def _retrain(self, report: Report) -> None:
        """The newest ancestor of the champion that did not learn from it serves, and a run is asked for."""
        from streams.training_orders import request_run

        settings = self._settings
        because = f"haypile forget {report.requests[0][:12]}" if report.requests else "haypile forget"
        if report.tainted:
            tainted = {adapter.version for adapter in report.adapters} | set(report.untold)
            ancestor = clean_ancestor(self._registry, report.champion, tainted)
            async with Servers(settings.serving) as servers:
                await move(servers, self._registry, ancestor, reason=because, by="haypile forget", kind="rollback")
            report.rolled_back_from = report.champion
            self._say(f"{ancestor or 'the base model'} serves instead of {report.rolled_back_from}")
        client = connect(settings.redis)
        try:
            await request_run(client, settings.redis.namespace, because)
        finally:
            await client.aclose()
        report.run_asked = True

    async def _look(self, sweeper: Sweeper, known: ForgottenList, report: Report) -> None:
        """Search everything again."""
        members = sum((await sweeper.count(known)).values())
        if members:
            report.left.append(f"{members} members of the buffers")
        paths = await asyncio.to_thread(list_snapshots, self._settings.training.snapshots)
        for path in paths:
            rows = await asyncio.to_thread(self._rows, path, known)
            if rows:
                report.left.append(f"{len(rows)} rows of {path}")

    async def _would(self, known: ForgottenList, record: Forgotten) -> Report:
        settings = self._settings
        report = Report([record.digest], dry_run=True)
        async with _sweeper(settings) as sweeper:
            report.members = await sweeper.count(known)
        report.remains, sightings = await asyncio.to_thread(scan, settings.kafka, known, self._say)
        prompts = {prompt_id for prompt_id, _ in sightings.prompts}
        paths = await asyncio.to_thread(list_snapshots, settings.training.snapshots)
        states: dict[str, set[str]] = {}
        for path in paths:
            rows = await asyncio.to_thread(self._rows, path, known)
            prompts |= {row.prompt_id for row in rows}
            if rows:
                report.snapshots[path] = _by_split(rows)
            manifest = await asyncio.to_thread(read_manifest, path)
            if any(row.split == "train" for row in rows):
                states[path] = {manifest.train_sha256(), *(removal.before for removal in manifest.forgotten)}
        report.reports = forget_answers(self._registry, prompts, dry_run=True)
        report.runs = clear_runs(settings.training.work_dir, states, dry_run=True)
        self._adapters(report, states, dict.fromkeys(states, self._now_ms()), paths)
        return report


@dataclass(frozen=True)
class _Parts:
    producer: Producer
    sweeper: Sweeper


@asynccontextmanager
async def _sweeper(settings: Settings) -> AsyncIterator[Sweeper]:
    client = connect(settings.redis)
    try:
        namespace = settings.redis.namespace
        generations = RedisGenerations(
            client, namespace, rules(settings.buffer, "main"), rules(settings.buffer, "eval")
        )
        yield Sweeper(client, namespace, generations, Seen(client, namespace, settings.ingest.repeat_window_s))
    finally:
        await client.aclose()


async def _keep(lease: Lease) -> None:
    while True:
        await asyncio.sleep(LEASE_S / 3)
        try:
            await lease.renew()
        except HaypileError:
            continue  # what is done twice changes nothing


def _by_split(rows: list[ForgottenRow]) -> dict[str, int]:
    return {split: sum(row.split == split for row in rows) for split in ("train", "eval")}
