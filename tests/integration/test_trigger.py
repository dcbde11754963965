"""The trigger over a real Redis: one run for one decision, whoever dies when."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from agents.trigger import Trigger, is_running
from streams.buffer.base import BufferRules, BufferStats, Offer
from streams.buffer.memory import MemoryBuffer
from streams.errors import Transient
from streams.lease import Lease
from streams.metrics import Metrics
from streams.records import Candidate, Message, ScoredPrompt, TrainRequest
from streams.redis_client import connect
from streams.run_history import RunSpan
from streams.settings import RedisSettings, Settings
from streams.snapshots import read_manifest, read_rows
from streams.topics import topic_names
from streams.training_orders import Pause, TrainingOrders, request_run
from streams.training_state import TrainingState, TrainingStateStore


class Producer:
    def __init__(self) -> None:
        self.sent: list[TrainRequest] = []
        self.broken = False

    async def send(self, topic: str, record: msgspec.Struct, key: str, headers: object = None) -> None:
        if self.broken:
            raise Transient("broker away")
        assert topic == "train.requests"
        assert isinstance(record, TrainRequest)
        assert key == record.run_id
        self.sent.append(record)


class History:
    def __init__(self) -> None:
        self.runs: dict[str, RunSpan] = {}

    def end(self, run_id: str, first_ms: int = 0, last_ms: int = 0) -> None:
        self.runs[run_id] = RunSpan(first_ms, last_ms, ended=True)

    async def read(self) -> dict[str, RunSpan]:
        return self.runs

    async def close(self) -> None:
        pass


class Bench:
    """Two triggers may share everything but their lease's token."""

    def __init__(self, client: Redis, namespace: str, folder: Path, **trigger: object) -> None:
        base = {"min_members": 3, "min_new": 3, "min_answered": 0.5, "cooldown_s": 0, "lease_s": 5}
        self.settings = Settings.model_validate(
            {"trigger": {**base, **trigger}, "training": {"snapshots": str(folder / "snapshots")}}
        )
        self.client, self.namespace = client, namespace
        self.main, self.held_out = (MemoryBuffer(BufferRules(100), time.time) for _ in range(2))
        self.store = TrainingStateStore(client, namespace)
        self.orders = TrainingOrders(client, namespace)
        self.producer, self.history = Producer(), History()
        self.now = 1_790_000_000_000

    def trigger(self) -> Trigger:
        return Trigger(
            self.settings,
            topic_names(self.settings.kafka),
            main=self.main,
            held_out=self.held_out,
            store=self.store,
            lease=Lease(self.client, self.namespace, "trigger", self.settings.trigger.lease_s),
            orders=self.orders,
            history=self.history,  # type: ignore[arg-type]
            base_model="base-model",
            champion=lambda: "v0001-x",
            producer=self.producer,  # type: ignore[arg-type]
            metrics=Metrics(CollectorRegistry()),
            now_ms=lambda: self.now,
        )

    async def fill(self, first: int, count: int, answered: bool = True) -> None:
        for i in range(first, first + count):
            prompt = ScoredPrompt(
                id=f"p{i}",
                prompt_id=f"{i}",
                messages=[Message("user", f"question {i}")],
                ts=0,
                difficulty=1 + i % 8,
                quality=9,
                category="math",
                label_mass=1,
                judge="j",
            )
            await self.main.offer([Offer(prompt=prompt, rank_key=prompt.difficulty)], [])
            if answered:
                candidates = [Candidate(text=t, reward=r, origin="teacher") for t, r in (("good", 8.0), ("bad", 2.0))]
                await self.main.attach(prompt.id, candidates)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    client = connect(RedisSettings(url=redis_url))
    yield client
    await client.aclose()


async def test_a_decision_makes_a_snapshot_and_one_request(client: Redis, namespace: str, tmp_path: Path) -> None:
    bench = Bench(client, namespace, tmp_path)
    await bench.fill(0, 5)
    trigger = bench.trigger()
    decision = await trigger.once()
    assert decision is not None
    assert decision.train
    [request] = bench.producer.sent
    assert (request.reasons, request.base_model, request.parent_adapter) == (["new_members"], "base-model", "v0001-x")
    manifest = read_manifest(request.snapshot)
    assert manifest.run_id == request.run_id
    assert sorted(manifest.files["train.parquet"].ids) == [f"p{i}" for i in range(5)]
    rows = read_rows(request.snapshot, "train")
    assert [c["text"] for c in rows[0]["candidates"]] == ["good", "bad"]
    state = await bench.store.load()
    assert (state.last_run_id, state.pending, state.runs_ms) == (request.run_id, None, [bench.now])
    assert "url" not in manifest.settings["redis"], "it may hold a password"


async def test_no_second_run_while_one_is_going_and_the_next_needs_new_members(
    client: Redis, namespace: str, tmp_path: Path
) -> None:
    bench = Bench(client, namespace, tmp_path)
    await bench.fill(0, 5)
    trigger = bench.trigger()
    await trigger.once()
    await bench.fill(5, 5)
    decision = await trigger.once()
    assert decision is not None
    assert decision.blocked_by == ["no_run_in_progress"]
    bench.history.end(bench.producer.sent[0].run_id)
    bench.now += 1000
    assert (await trigger.once()).train  # type: ignore[union-attr]
    bench.history.end(bench.producer.sent[1].run_id)
    bench.now += 1000
    last = await trigger.once()
    assert last is not None
    assert (last.train, last.reasons) == (False, [])
    assert len({request.run_id for request in bench.producer.sent}) == len(bench.producer.sent) == 2


async def test_a_clock_that_was_ahead_for_a_while_does_not_hold_up_training(
    client: Redis, namespace: str, tmp_path: Path
) -> None:
    bench = Bench(client, namespace, tmp_path, cooldown_s=60, max_runs_per_day=2)
    await bench.fill(0, 5)
    trigger = bench.trigger()
    bench.now += 7_200_000
    await trigger.once()
    bench.history.end(bench.producer.sent[0].run_id)
    bench.now -= 7_200_000
    await bench.fill(5, 5)
    decision = await trigger.once()
    assert decision is not None
    assert decision.blocked_by == ["cooldown_s"], "the run counts as one of just now"
    bench.now += 61_000
    decision = await trigger.once()
    assert decision is not None
    assert decision.train


async def test_of_two_triggers_one_acts(client: Redis, namespace: str, tmp_path: Path) -> None:
    bench = Bench(client, namespace, tmp_path)
    await bench.fill(0, 5)
    first, second = bench.trigger(), bench.trigger()
    assert await first.once() is not None
    assert await second.once() is None
    assert len(bench.producer.sent) == 1


async def test_a_request_that_was_decided_but_not_sent_is_sent_by_the_next_trigger(
    client: Redis, namespace: str, tmp_path: Path
) -> None:
    bench = Bench(client, namespace, tmp_path, lease_s=3)
    await bench.fill(0, 5)
    bench.producer.broken = True
    first = bench.trigger()
    with pytest.raises(Transient):
        await first.once()
    pending = (await bench.store.load()).pending
    assert pending is not None
    bench.producer.broken = False
    second = bench.trigger()
    assert await second.once() is None, "the dead one still holds the lease"
    await asyncio.sleep(3.1)
    await second.once()
    assert [request.run_id for request in bench.producer.sent] == [pending.run_id]


async def test_a_trigger_that_lost_its_lease_while_it_wrote_requests_nothing(
    client: Redis, namespace: str, tmp_path: Path
) -> None:
    bench = Bench(client, namespace, tmp_path)
    await bench.fill(0, 5)

    class Slow(MemoryBuffer):
        """While it is read for the snapshot, somebody else writes under a newer number."""

        async def stats(self):  # type: ignore[no-untyped-def]
            stats = await super().stats()
            assert await bench.store.save(TrainingState(), fencing=99)
            return stats

    slow = Slow(BufferRules(100), time.time)
    await bench.fill(0, 5)
    slow.__dict__.update(bench.main.__dict__)
    bench.main = slow
    await bench.trigger().once()
    assert bench.producer.sent == []


class Gate(MemoryBuffer):
    """Its figures are to be had when `open` is set; `reached` says that somebody waits for them."""

    def __init__(self, like: MemoryBuffer) -> None:
        super().__init__(like.rules)
        self.__dict__.update(like.__dict__)
        self.reached, self.open = asyncio.Event(), asyncio.Event()

    async def stats(self) -> BufferStats:
        self.reached.set()
        await self.open.wait()
        return await super().stats()


async def test_of_two_triggers_that_decide_at_once_the_one_with_the_lease_requests(
    client: Redis, namespace: str, tmp_path: Path
) -> None:
    bench = Bench(client, namespace, tmp_path)
    await bench.fill(0, 5)
    members = bench.main
    gates = [Gate(members), Gate(members)]
    tasks = []
    for gate in gates:
        bench.main = gate
        tasks.append(asyncio.create_task(bench.trigger().once()))
        await gate.reached.wait()
        # The process of the first stands still until its lease has run out, which the second takes.
        await client.delete(f"{{{namespace}}}:lease:trigger")
    for gate, task in zip(gates, tasks, strict=True):
        gate.open.set()
        await task
    assert [request.fencing for request in bench.producer.sent] == [2]


async def test_the_lease_is_kept_while_a_long_snapshot_is_written(
    client: Redis, namespace: str, tmp_path: Path
) -> None:
    bench = Bench(client, namespace, tmp_path, lease_s=3)
    await bench.fill(0, 5)
    second = bench.trigger()
    gate = bench.main = Gate(bench.main)
    first = asyncio.create_task(bench.trigger().once())
    await gate.reached.wait()
    for _ in range(8):
        await asyncio.sleep(0.8)
        assert await second.once() is None
    gate.open.set()
    await first
    assert len(bench.producer.sent) == 1


async def test_answers_are_asked_for_when_nothing_else_is_missing(
    client: Redis, namespace: str, tmp_path: Path
) -> None:
    bench = Bench(client, namespace, tmp_path)
    await bench.fill(0, 2, answered=False)
    trigger = bench.trigger()
    await trigger.once()
    assert not (await bench.store.load()).answers_wanted, "too few members"
    await bench.fill(2, 3, answered=False)
    decision = await trigger.once()
    assert decision is not None
    assert decision.blocked_by == ["answered_share"]
    assert (await bench.store.load()).answers_wanted


def test_a_run_is_running_until_its_last_event() -> None:
    assert not is_running(TrainingState(), {})
    assert is_running(TrainingState(last_run_id="r"), {"q": RunSpan(1, 2, True)})
    assert is_running(TrainingState(last_run_id="r"), {"r": RunSpan(1, 2, False)})
    assert not is_running(TrainingState(last_run_id="r"), {"r": RunSpan(1, 2, True)})
    assert not is_running(TrainingState(last_run_id="r", last_run_ended=True), {}), "events are not kept for ever"


async def test_the_end_of_a_run_is_remembered_when_its_events_are_gone(
    client: Redis, namespace: str, tmp_path: Path
) -> None:
    bench = Bench(client, namespace, tmp_path)
    await bench.fill(0, 5)
    trigger = bench.trigger()
    await trigger.once()
    bench.history.end(bench.producer.sent[0].run_id)
    await trigger.once()
    bench.history.runs.clear()
    await bench.fill(5, 5)
    bench.now += 1000
    assert (await trigger.once()).train  # type: ignore[union-attr]
    decision = await trigger.once()
    assert decision is not None
    assert decision.blocked_by == ["no_run_in_progress"], "of the new run nothing was heard yet"


async def test_a_run_that_is_asked_for_is_made_once_without_a_reason_and_past_the_guards(
    client: Redis, namespace: str, tmp_path: Path
) -> None:
    bench = Bench(client, namespace, tmp_path, min_members=1000, min_new=1000, cooldown_s=3600)
    await bench.fill(0, 5)
    trigger = bench.trigger()
    assert (await trigger.once()).blocked_by == ["members"]  # type: ignore[union-attr]
    await request_run(client, namespace, "the judge is new", by="joe@host")
    await request_run(client, namespace, "", by="cron")
    decision = await trigger.once()
    assert decision is not None
    assert (decision.train, decision.reasons, decision.skipped) == (True, ["asked"], ["members"])
    [request] = bench.producer.sent
    assert sorted(request.reasons) == ["asked: by cron", "asked: the judge is new (joe@host)"]
    assert (await bench.orders.read()).asked == []
    bench.history.end(request.run_id)
    bench.now += 1000
    decision = await trigger.once()
    assert decision is not None
    assert (decision.train, decision.reasons) == (False, [])
    assert decision.blocked_by == ["members", "cooldown_s"], "it counts like any other run"
    assert len(bench.producer.sent) == 1


async def test_what_is_asked_for_while_a_snapshot_is_written_is_for_the_next_run(
    client: Redis, namespace: str, tmp_path: Path
) -> None:
    bench = Bench(client, namespace, tmp_path)
    await bench.fill(0, 5)
    await request_run(client, namespace, "first")
    gate = bench.main = Gate(bench.main)
    trigger = bench.trigger()
    first = asyncio.create_task(trigger.once())
    await gate.reached.wait()  # it has read what is asked for, and is about to read the members
    late = await request_run(client, namespace, "without the prompt that was forgotten just now")
    gate.open.set()
    await first
    assert (await bench.orders.read()).asked == [late]
    bench.history.end(bench.producer.sent[0].run_id)
    bench.now += 1000
    await trigger.once()
    assert [request.reasons[0].split(" (")[0] for request in bench.producer.sent] == [
        "asked: first",
        "asked: without the prompt that was forgotten just now",
    ]


class Killed(BaseException):
    """SIGKILL, as far as Redis and Kafka can see: nothing is done after it, the lease is not given back."""


@pytest.mark.parametrize("where", ["before the run is stored", "before it is sent", "after it is sent"])
async def test_one_run_is_made_of_a_request_wherever_the_trigger_is_killed(
    client: Redis, namespace: str, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(client, namespace, tmp_path, min_members=1000)
    await bench.fill(0, 5)
    asked = await request_run(client, namespace, "now")

    async def killed(*_: object, **__: object) -> None:
        raise Killed

    if where == "before the run is stored":
        monkeypatch.setattr(bench.store, "decided", killed)
    elif where == "before it is sent":
        monkeypatch.setattr(bench.producer, "send", killed)
    else:
        monkeypatch.setattr(bench.store, "save", killed)
    with pytest.raises(Killed):
        await bench.trigger().once()
    monkeypatch.undo()
    assert [run.id for run in (await bench.orders.read()).asked] == (
        [asked.id] if where == "before the run is stored" else []
    )
    await client.delete(f"{{{namespace}}}:lease:trigger")  # it has run out
    second = bench.trigger()
    for _ in range(3):
        bench.now += 1000
        await second.once()
    # After it was sent it is sent again under the same id, which a trainer takes once.
    assert len({request.run_id for request in bench.producer.sent}) == 1
    assert len(bench.producer.sent) == (2 if where == "after it is sent" else 1)
    assert (await bench.orders.read()).asked == []


async def test_a_pause_holds_for_requests_too_and_ends_by_itself(client: Redis, namespace: str, tmp_path: Path) -> None:
    bench = Bench(client, namespace, tmp_path)
    await bench.fill(0, 5)
    trigger = bench.trigger()
    await request_run(client, namespace, "")
    await bench.orders.pause(Pause(since_ms=bench.now, until_ms=bench.now + 5000, reason="move", by="joe"))
    decision = await trigger.once()
    assert decision is not None
    assert (decision.train, decision.blocked_by) == (False, ["not_paused"])
    assert decision.not_before_ms == bench.now + 5000
    bench.now += 5000
    assert (await trigger.once()).train  # type: ignore[union-attr]


async def test_after_a_pause_no_run_is_decided_although_its_snapshot_was_begun(
    client: Redis, namespace: str, tmp_path: Path
) -> None:
    bench = Bench(client, namespace, tmp_path)
    await bench.fill(0, 5)
    asked = await request_run(client, namespace, "now")
    gate = bench.main = Gate(bench.main)
    trigger = bench.trigger()
    task = asyncio.create_task(trigger.once())
    await gate.reached.wait()
    await bench.orders.pause(Pause(since_ms=bench.now, reason="stop", by="joe"))
    gate.open.set()
    await task
    assert bench.producer.sent == []
    assert (await bench.store.load()).pending is None
    assert (await bench.orders.read()).asked == [asked]
    await bench.orders.resume()
    bench.now += 1000
    await trigger.once()
    assert len(bench.producer.sent) == 1


async def test_each_condition_is_a_metric_of_the_one_that_decides(
    client: Redis, namespace: str, tmp_path: Path
) -> None:
    bench = Bench(client, namespace, tmp_path, cooldown_s=60, min_shift=None)
    await bench.fill(0, 5)
    trigger = bench.trigger()
    await trigger.once()
    registry = trigger._metrics.registry

    def sample(name: str, condition: str) -> float | None:
        return registry.get_sample_value(f"haypile_trigger_{name}", {"condition": condition})

    decision = await trigger.once()
    assert decision is not None
    for condition in decision.conditions:
        assert sample("condition", condition.name) == condition.holds
        assert sample("value", condition.name) == condition.value
        assert sample("bound", condition.name) == condition.bound
    assert sample("changes_timestamp_seconds", "cooldown_s") == bench.now / 1000 + 60
    bench.now += 60_000
    await trigger.once()
    assert sample("changes_timestamp_seconds", "cooldown_s") is None
    await client.hset(f"{{{namespace}}}:lease:trigger", "token", "somebody else's")
    assert await trigger.once() is None
    assert sample("condition", "cooldown_s") is None
    assert sample("bound", "members") is None
