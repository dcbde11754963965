"""A timer that decides, from the declared policy, whether to train now, and says why or why not.

Exactly one trigger acts: it holds a lease with a fencing number. A run is decided in three steps, each of which can be
repeated after a kill: the snapshot (published by rename), the request in the training state (written only under the
newest fencing number), the request in `train.requests` (the trainer takes a run id once).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from agents.rules.policy import DAY_MS, Decision, PolicyState, decide
from streams.buffer.base import Buffer, BufferStats
from streams.cancel import end
from streams.errors import Transient
from streams.lease import Lease
from streams.metrics import Metrics
from streams.producer import Producer
from streams.records import TrainEvent, TrainRequest, decode
from streams.retry import QUIET_S, OutageLog
from streams.settings import KafkaSettings, Settings
from streams.snapshots import SnapshotError, write_snapshot
from streams.topics import Topics
from streams.training_state import TrainingState, TrainingStateStore

log = logging.getLogger(__name__)

FINAL = ("done", "failed", "rejected")


class EndedRuns:
    """Which runs have ended: all of `train.events`, read outside of any consumer group."""

    def __init__(self, kafka: KafkaSettings, topics: Topics) -> None:
        self._kafka = kafka
        self._topic = topics.events
        self._consumer: AIOKafkaConsumer | None = None
        self._ended: set[str] = set()

    async def read(self) -> set[str]:
        """Run ids whose run is final, by all events up to now. Raises `Transient`."""
        try:
            # A consumer whose connection was cut may wait for ever; a new one does not. TimeoutError is an OSError.
            async with asyncio.timeout(QUIET_S) as patience:
                await self._read(lambda: patience.reschedule(asyncio.get_running_loop().time() + QUIET_S))
        except (KafkaError, OSError) as error:
            await self.close()
            raise Transient(f"Kafka at {self._kafka.bootstrap}: cannot read {self._topic} ({error!r})") from None
        return self._ended

    async def _read(self, progress: Callable[[], None]) -> None:
        if self._consumer is None:
            consumer = AIOKafkaConsumer(bootstrap_servers=self._kafka.bootstrap, enable_auto_commit=False)
            self._consumer = consumer
            await consumer.start()
            tp = TopicPartition(self._topic, 0)
            consumer.assign([tp])
            await consumer.seek_to_beginning(tp)
        [tp] = self._consumer.assignment()
        while True:
            batches = await self._consumer.getmany(tp, timeout_ms=1000)
            for message in batches.get(tp, []):
                self._take(message.value or b"")
            if batches:
                progress()
                continue
            high = self._consumer.highwater(tp)
            if high is not None and await self._consumer.position(tp) >= high:
                return

    async def close(self) -> None:
        """Ends the consumer."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            try:
                await asyncio.wait_for(consumer.stop(), QUIET_S)
            except TimeoutError:
                log.warning("%s: the consumer did not end in %g s", self._topic, QUIET_S)

    def _take(self, value: bytes) -> None:
        try:
            event = decode(TrainEvent, value)
        except msgspec.MsgspecError as error:
            log.warning("%s: an event that cannot be read is passed over: %s", self._topic, error)
            return
        if event.phase in FINAL:
            self._ended.add(event.run_id)


def policy_state(stats: BufferStats, state: TrainingState, running: bool, now_ms: int) -> PolicyState:
    """What the policy looks at, from the buffer and from what the trigger remembers."""
    return PolicyState(
        members=stats.size,
        answered=stats.answered,
        admitted_total=stats.admitted_total,
        admitted_at_last_run=state.admitted_total_at_last_run,
        last_run_ms=state.last_run_at_ms,
        runs_last_day=sum(1 for started in state.runs_ms if started > now_ms - DAY_MS),
        running=running,
        histogram=stats.histogram,
        histogram_at_last_run=state.histogram_at_last_run if state.judge_at_last_run == stats.judge else None,
        paused=state.paused,
    )


def is_running(state: TrainingState, ended: set[str]) -> bool:
    """Whether the last request's run has not ended."""
    return state.last_run_id is not None and state.last_run_id not in ended


def not_ahead(state: TrainingState, now_ms: int) -> None:
    """Takes times after `now_ms` for now: the clock was ahead when they were written, and has been put right.

    Otherwise the cooldown and the day's budget would last for as long as the clock was ahead, on top of their own.
    """
    if state.last_run_at_ms is not None:
        state.last_run_at_ms = min(state.last_run_at_ms, now_ms)
    state.runs_ms = [min(started, now_ms) for started in state.runs_ms]


class Trigger:
    """Decides every `trigger.interval_s`."""

    def __init__(
        self,
        settings: Settings,
        topics: Topics,
        *,
        main: Buffer,
        held_out: Buffer,
        store: TrainingStateStore,
        lease: Lease,
        ended: EndedRuns,
        base_model: str,
        champion: Callable[[], str | None],
        producer: Producer,
        metrics: Metrics,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self._settings = settings
        self._topics = topics
        self._main = main
        self._held_out = held_out
        self._store = store
        self._lease = lease
        self._ended = ended
        self._base_model = base_model
        self._champion = champion
        self._producer = producer
        self._metrics = metrics
        self._now_ms = now_ms
        self._outage = OutageLog("trigger", time.monotonic, metrics.health)

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop`; then gives the lease back. Raises only `Fatal`."""
        try:
            while not stop.is_set():
                try:
                    await self.once()
                    self._outage.worked()
                except (Transient, SnapshotError) as error:  # a full disk passes, too
                    self._metrics.retries.labels("trigger").inc()
                    self._outage.failed(error)
                try:
                    await asyncio.wait_for(stop.wait(), self._settings.trigger.interval_s)
                except TimeoutError:
                    pass
        finally:
            await self._ended.close()
            try:
                await self._lease.release()
            except Transient as error:
                log.warning("trigger: the lease runs out by itself: %s", error)

    async def once(self) -> Decision | None:
        """One decision, and what follows from it; None if another process holds the lease."""
        fencing = await self._lease.hold()
        self._metrics.trigger_leader.set(fencing is not None)
        if fencing is None:
            return None
        async with self._lease_kept():
            return await self._decide(fencing)

    @asynccontextmanager
    async def _lease_kept(self) -> AsyncIterator[None]:
        """A snapshot may take longer than the lease: two triggers would take it from each other for ever."""
        keeper = asyncio.create_task(self._keep_lease())
        try:
            yield
        finally:
            await end([keeper])

    async def _keep_lease(self) -> None:
        # A failure is left to the fencing number: what is written under an older one is refused.
        while True:
            await asyncio.sleep(self._settings.trigger.lease_s / 3)
            try:
                await self._lease.renew()
            except Transient as error:
                log.warning("trigger: the lease could not be prolonged: %s", error)

    async def _decide(self, fencing: int) -> Decision | None:
        state = await self._store.claim(fencing)
        if state is None:
            return None
        if state.pending is not None:
            await self._publish(state, fencing)  # a trigger died between its decision and its request
        running = is_running(state, await self._ended.read())
        stats = await self._main.stats()
        now = self._now_ms()
        not_ahead(state, now)
        decision = decide(self._settings.trigger, policy_state(stats, state, running, now), now)
        self._show(decision)
        state.answers_wanted = decision.blocked_by == ["answered_share"] and bool(decision.reasons)
        state.last_decision = msgspec.to_builtins(decision)
        if decision.train:
            await self._request(state, stats, decision, fencing, now)
        else:
            await self._store.save(state, fencing)
        return decision

    async def _request(
        self, state: TrainingState, stats: BufferStats, decision: Decision, fencing: int, now: int
    ) -> None:
        run_id = f"{datetime.fromtimestamp(now / 1000, UTC):%Y%m%dt%H%M%S}-{fencing}"
        snapshot = await write_snapshot(
            self._settings.training.snapshots,
            run_id,
            self._main,
            self._held_out,
            decision=msgspec.to_builtins(decision),
            settings=public_settings(self._settings),
            now_ms=now,
        )
        state.pending = TrainRequest(
            run_id=run_id,
            snapshot=snapshot,
            reasons=decision.reasons,
            base_model=self._base_model,
            parent_adapter=self._champion(),
            requested_at=now,
            fencing=fencing,
        )
        state.last_run_id = run_id
        state.last_run_at_ms = now
        state.admitted_total_at_last_run = stats.admitted_total
        state.histogram_at_last_run = list(stats.histogram)
        state.judge_at_last_run = stats.judge
        state.runs_ms = [started for started in state.runs_ms if started > now - DAY_MS] + [now]
        if await self._store.save(state, fencing):
            await self._publish(state, fencing)
            self._metrics.train_requests.inc()
            log.info("trigger: run %s requested: %s", run_id, ", ".join(decision.reasons))
        else:
            log.warning("trigger: the lease was lost while the snapshot was written; run %s is not requested", run_id)

    async def _publish(self, state: TrainingState, fencing: int) -> None:
        request = state.pending
        if request is None:
            raise RuntimeError("no request is pending")
        await self._producer.send(self._topics.requests, request, key=request.run_id)
        state.pending = None
        await self._store.save(state, fencing)

    def _show(self, decision: Decision) -> None:
        for condition in decision.conditions:
            self._metrics.trigger_condition.labels(condition.name).set(condition.holds)
            self._metrics.trigger_value.labels(condition.name).set(condition.value)


def public_settings(settings: Settings) -> dict[str, Any]:
    """The settings without secrets, as JSON values: what a snapshot's manifest keeps."""
    return settings.model_dump(mode="json", exclude={"redis": {"url"}})
