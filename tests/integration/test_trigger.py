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
from streams.settings import RedisSettings, Settings
from streams.snapshots import read_manifest, read_rows
from streams.topics import topic_names
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


class Ended:
    def __init__(self) -> None:
        self.runs: set[str] = set()

    async def read(self) -> set[str]:
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
        self.producer, self.ended = Producer(), Ended()
        self.now = 1_790_000_000_000

    def trigger(self) -> Trigger:
        return Trigger(
            self.settings,
            topic_names(self.settings.kafka),
            main=self.main,
            held_out=self.held_out,
            store=self.store,
            lease=Lease(self.client, self.namespace, "trigger", self.settings.trigger.lease_s),
            ended=self.ended,  # type: ignore[arg-type]
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
    bench.ended.runs.add(bench.producer.sent[0].run_id)
    bench.now += 1000
    assert (await trigger.once()).train  # type: ignore[union-attr]
    bench.ended.runs.add(bench.producer.sent[1].run_id)
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
    bench.ended.runs.add(bench.producer.sent[0].run_id)
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
    assert not is_running(TrainingState(), set())
    assert is_running(TrainingState(last_run_id="r"), {"q"})
    assert not is_running(TrainingState(last_run_id="r"), {"r"})
