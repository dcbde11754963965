"""A timer that decides, from the declared policy, whether to train now, and says why or why not.

Exactly one trigger acts: it holds a lease with a fencing number. A run is decided in three steps, each of which can be
repeated after a kill: the snapshot (published by rename), the request in the training state (written only under the
newest fencing number, and only while nobody has paused training), the request in `train.requests` (the trainer takes a
run id once). A run that an operator asked for goes the same way; what was asked is taken off in the second step.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec

from agents.rules.policy import Decision, PolicyState, decide
from streams.buffer.base import Buffer, BufferStats
from streams.cancel import end
from streams.errors import Transient
from streams.lease import Lease
from streams.metrics import Metrics
from streams.producer import Producer
from streams.records import TrainRequest
from streams.retry import OutageLog
from streams.run_history import RunHistory, RunSpan
from streams.settings import Settings
from streams.snapshots import Forget, SnapshotError, write_snapshot
from streams.timetable import DAY_MS
from streams.topics import Topics
from streams.training_orders import AskedRun, Orders, TrainingOrders
from streams.training_state import TrainingState, TrainingStateStore

log = logging.getLogger(__name__)


def policy_state(
    stats: BufferStats, state: TrainingState, runs: Mapping[str, RunSpan], orders: Orders, now_ms: int
) -> PolicyState:
    """What the policy looks at: the buffer, what the trigger remembers, what became of runs, what operators ask."""
    running = state.last_run_id if is_running(state, runs) else None
    pause = orders.pause if orders.pause is not None and orders.pause.holds(now_ms) else None
    return PolicyState(
        members=stats.size,
        answered=stats.answered,
        admitted_total=stats.admitted_total,
        admitted_at_last_run=state.admitted_total_at_last_run,
        last_run_ms=state.last_run_at_ms,
        watched_since_ms=state.watched_since_ms,
        runs_ms=state.runs_ms,
        trained_ms=[(run.first_ms, now_ms if run_id == running else run.last_ms) for run_id, run in runs.items()],
        running=running,
        histogram=stats.histogram,
        histogram_at_last_run=state.histogram_at_last_run if state.judge_at_last_run == stats.judge else None,
        asked=[_signed(run.reason, run.by) for run in orders.asked],
        paused=None if pause is None else _signed(pause.reason, pause.by),
        paused_until_ms=None if pause is None else pause.until_ms,
    )


def is_running(state: TrainingState, runs: Mapping[str, RunSpan]) -> bool:
    """Whether the last request's run has not ended."""
    if state.last_run_id is None or state.last_run_ended:
        return False
    return state.last_run_id not in runs or not runs[state.last_run_id].ended


def not_ahead(state: TrainingState, now_ms: int) -> None:
    """Takes times after `now_ms` for now: the clock was ahead when they were written, and has been put right.

    Otherwise the cooldown and the day's budget would last for as long as the clock was ahead, on top of their own.
    """
    if state.last_run_at_ms is not None:
        state.last_run_at_ms = min(state.last_run_at_ms, now_ms)
    if state.watched_since_ms is not None:
        state.watched_since_ms = min(state.watched_since_ms, now_ms)
    state.runs_ms = [min(started, now_ms) for started in state.runs_ms]


def asked_by(run: AskedRun) -> str:
    """The reason that a run's request gives."""
    return f"asked: {_signed(run.reason, run.by)}"


def _signed(reason: str, by: str) -> str:
    return f"{reason} ({by})" if reason else f"by {by}"


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
        orders: TrainingOrders,
        history: RunHistory,
        base_model: str,
        champion: Callable[[], str | None],
        producer: Producer,
        metrics: Metrics,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
        forget: Forget | None = None,
    ) -> None:
        self._settings = settings
        self._topics = topics
        self._main = main
        self._held_out = held_out
        self._store = store
        self._lease = lease
        self._orders = orders
        self._history = history
        self._base_model = base_model
        self._champion = champion
        self._producer = producer
        self._metrics = metrics
        self._now_ms = now_ms
        self._changing: set[str] = set()
        """Conditions for which the metrics say when they change."""
        self._forget = forget
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
            await self._history.close()
            try:
                await self._lease.release()
            except Transient as error:
                log.warning("trigger: the lease runs out by itself: %s", error)

    async def once(self) -> Decision | None:
        """One decision, and what follows from it; None if another process holds the lease."""
        fencing = await self._lease.hold()
        self._metrics.trigger_leader.set(fencing is not None)
        if fencing is None:
            self._show(None)
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
        runs = await self._history.read()
        orders = await self._orders.read()  # before the snapshot is begun: what is asked for after it is not in it
        stats = await self._main.stats()
        now = self._now_ms()
        not_ahead(state, now)
        if state.watched_since_ms is None:
            state.watched_since_ms = now
        state.last_run_ended = state.last_run_id is not None and not is_running(state, runs)
        decision = decide(self._settings.trigger, policy_state(stats, state, runs, orders, now), now)
        self._show(decision)
        state.answers_wanted = decision.blocked_by == ["answered_share"] and bool(decision.reasons)
        state.last_decision = msgspec.to_builtins(decision)
        if decision.train:
            await self._request(state, stats, decision, orders.asked, fencing, now)
        else:
            await self._store.save(state, fencing)
        return decision

    async def _request(
        self,
        state: TrainingState,
        stats: BufferStats,
        decision: Decision,
        asked: list[AskedRun],
        fencing: int,
        now: int,
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
            forget=self._forget,
        )
        state.pending = TrainRequest(
            run_id=run_id,
            snapshot=snapshot,
            reasons=[asked_by(run) for run in asked] + [name for name in decision.reasons if name != "asked"],
            base_model=self._base_model,
            parent_adapter=self._champion(),
            requested_at=now,
            fencing=fencing,
        )
        state.last_run_id = run_id
        state.last_run_at_ms = now
        state.last_run_ended = False
        state.admitted_total_at_last_run = stats.admitted_total
        state.histogram_at_last_run = list(stats.histogram)
        state.judge_at_last_run = stats.judge
        state.runs_ms = [started for started in state.runs_ms if started > now - DAY_MS] + [now]
        match await self._store.decided(state, fencing, now, [run.id for run in asked]):
            case "stored":
                reasons = ", ".join(state.pending.reasons)
                await self._publish(state, fencing)
                self._metrics.train_requests.inc()
                log.info("trigger: run %s requested: %s", run_id, reasons)
            case "stale":
                log.warning("trigger: the lease was lost while the snapshot was written: run %s is not made", run_id)
            case "paused":
                log.info("trigger: training was paused while the snapshot was written: run %s is not made", run_id)
            case "withdrawn":
                log.info("trigger: it was taken back while the snapshot was written: run %s is not made", run_id)

    async def _publish(self, state: TrainingState, fencing: int) -> None:
        request = state.pending
        if request is None:
            raise RuntimeError("no request is pending")
        await self._producer.send(self._topics.requests, request, key=request.run_id)
        state.pending = None
        await self._store.save(state, fencing)

    def _show(self, decision: Decision | None) -> None:
        """The decision as metrics; only the one that decides has them."""
        gauges = self._metrics
        if decision is None:
            for gauge in (gauges.trigger_condition, gauges.trigger_value, gauges.trigger_bound, gauges.trigger_changes):
                gauge.clear()
            self._changing = set()
            return
        changing = {condition.name for condition in decision.conditions if condition.until_ms is not None}
        for name in self._changing - changing:
            gauges.trigger_changes.remove(name)
        self._changing = changing
        for condition in decision.conditions:
            gauges.trigger_condition.labels(condition.name).set(condition.holds)
            gauges.trigger_value.labels(condition.name).set(condition.value)
            if condition.bound is not None:
                gauges.trigger_bound.labels(condition.name).set(condition.bound)
            if condition.until_ms is not None:
                gauges.trigger_changes.labels(condition.name).set(condition.until_ms / 1000)


def public_settings(settings: Settings) -> dict[str, Any]:
    """The settings without secrets, as JSON values: what a snapshot's manifest keeps."""
    return settings.model_dump(mode="json", exclude={"redis": {"url"}})
