"""A long life, told in days: new prompts every day, a run and a gate, and everything that can come in between.

Time is injected, training is a stand-in that is given the real rows of its plan; broker, Redis, snapshots, registry,
policy, gate and the forgetting are the real ones. What must hold at the end: the lineage of what serves is complete,
and no row that it ever learned from was held out or forgotten.
"""

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from agents.curate import Curator
from agents.scored_log import Scored
from agents.trigger import Trigger
from deploy.forget import Forgetter
from streams.buffer.base import Position, rules
from streams.buffer.redis_generations import RedisGenerations
from streams.forgotten_log import ForgottenLog
from streams.lease import Lease
from streams.metrics import Metrics, TrainerMetrics
from streams.records import Candidate, Message, ScoredPrompt, Split, TrainEvent, TrainRequest
from streams.redis_client import connect
from streams.settings import RedisSettings, Settings
from streams.snapshots import list_snapshots, read_manifest, read_rows
from streams.topics import topic_names
from streams.training_orders import TrainingOrders
from streams.training_state import TrainingStateStore
from tests.integration.test_trigger import History
from tests.support.fake_vllm import FakeVllm
from tests.support.stack import Topics
from tests.support.training import quick_recipe
from trainers import promotion, runner
from trainers.recipe import Recipe
from trainers.registry import Registry
from trainers.run import prepare
from trainers.rundir import Failure, Plan, RunFolder
from trainers.runner import Runner

DAY_MS = 86_400_000
A_DAY = 24
"""Prompts that come in a day."""
ZOE_COMES = 5
"""The day since which she sends prompts."""


class Words:
    """A tokenizer whose tokens are words."""

    def apply_chat_template(self, turns: Sequence[dict[str, str]], **_: Any) -> list[int]:
        return [0] * sum(len(turn["content"].split()) for turn in turns)


class Learner:
    """Stands for the training process, in a thread: its adapter is a digest of its parent's and of the rows.

    `behaviour` of a run: `ok`, `oom`, `hangs` (the first attempt waits after SFT until it is ended).
    """

    behaviour: ClassVar[dict[str, str]] = {}

    def __init__(self, folder: RunFolder, recipe: Recipe) -> None:
        self._folder = folder
        self._ended = threading.Event()

    async def start(self) -> None:
        self._work = asyncio.ensure_future(asyncio.to_thread(self._learn))

    async def wait(self, timeout_s: float) -> int | None:
        done, _ = await asyncio.wait({self._work}, timeout=timeout_s)
        return self._work.result() if done else None

    async def stop(self) -> None:
        self._ended.set()
        await self._work

    def _learn(self) -> int:
        folder, behaviour = self._folder, self.behaviour.get(self._folder.path.name, "ok")
        plan = folder.read(Plan, "plan.json")
        assert plan is not None
        data = prepare(plan, Words())
        with (folder.path / "rows.jsonl").open("a") as file:
            for row in data.sft:
                file.write(json.dumps(row["prompt"][-1]["content"]) + "\n")
        if behaviour == "oom":
            folder.write("error.json", Failure(reason="out_of_memory", error="lower batch_size"))
            return 1
        progress = folder.progress()
        for phase in ("sft", "dpo"):
            if phase in progress.completed:
                continue
            if phase == "dpo" and behaviour == "hangs" and not (folder.path / "again").exists():
                (folder.path / "again").touch()
                self._ended.wait(60)
                return 1
            progress.phase = phase
            before = (Path(plan.parent) / "adapter_model.safetensors").read_bytes() if plan.parent else b""
            adapter = folder.adapter(phase)
            adapter.mkdir(parents=True, exist_ok=True)
            (adapter / "adapter_config.json").write_text(json.dumps({"r": 8}))
            learned = hashlib.sha256(before + json.dumps(data.sft).encode() + phase.encode())
            (adapter / "adapter_model.safetensors").write_bytes(learned.digest())
            progress.completed.append(phase)
            progress.metrics |= {"sft_rows": len(data.sft), "replayed": data.replayed, **data.left_out}
            folder.write("progress.json", progress)
        return 0


class Requests:
    """Stands for the producer: the trainer of this test is told what is requested."""

    def __init__(self) -> None:
        self.sent: list[TrainRequest] = []

    async def send(self, topic: str, record: TrainRequest, key: str) -> None:
        self.sent.append(record)


class Rewards:
    """The challenger is better, or worse."""

    challenger = 8.0

    async def reward(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        return [5.0, self.challenger]


async def ours() -> None:
    pass


class Life:
    """The system, and its days."""

    def __init__(self, folder: Path, client: Redis, settings: Settings) -> None:
        self.settings, self.client = settings, client
        self.now = 1_790_000_000_000
        self.day = 0
        self.offset = 0
        self.registry = Registry(settings.training.registry)
        self.generations = RedisGenerations(
            client,
            settings.redis.namespace,
            rules(settings.buffer, "main"),
            rules(settings.buffer, "eval"),
            lambda: self.now / 1000,
        )
        self.forgotten = ForgottenLog(settings.kafka)
        self.curator = Curator(
            settings.buffer,
            self.generations.main,
            self.generations.held_out,
            lambda: self.now,
            generations=self.generations,
            forgotten=self.forgotten.known,
            refresh=self.forgotten.refresh,
        )
        self.requests, self.history, self.rewards = Requests(), History(), Rewards()
        self.events: list[TrainEvent] = []
        self.prompts: dict[str, ScoredPrompt] = {}
        """All that ever came, by text."""
        self.ever_held_out: set[str] = set()

    async def new_prompts(self) -> None:
        """A day's prompts, each with answers: of five users, and of Zoe since she has come."""
        self.day += 1
        self.now += DAY_MS
        records = []
        for i in range(A_DAY):
            user = "zoe" if self.day >= ZOE_COMES and i % 6 == 1 else f"user-{i % 5}"
            records.append(self._scored(f"{self.day}-{i}", user, "eval" if i % 4 == 0 else "train"))
        # The share that is held out was changed meanwhile: a prompt of it comes again, to be trained on.
        again = self._scored(f"{self.day}-again", "user-0", "train")
        again.messages, again.prompt_id = records[0].messages, records[0].prompt_id
        first = self.offset
        scored = [Scored(0, first + at, prompt) for at, prompt in enumerate([*records, again])]
        self.offset += len(scored)
        await self.curator.apply(scored, [Position(0, first, self.offset - 1)])
        for prompt in [*records, again]:
            answers = [
                Candidate(text=f"{quality} answer to {prompt.id}", reward=reward, origin="teacher")
                for quality, reward in (("a good", 8.0), ("a bad", 2.0))
            ]
            await self.generations.main.attach(prompt.id, answers)

    def _scored(self, id: str, user: str, split: Split) -> ScoredPrompt:
        text = f"question {id} of {user}"
        prompt = ScoredPrompt(
            id=id,
            prompt_id=hashlib.sha256(text.encode()).hexdigest(),
            messages=[Message("user", text)],
            split=split,
            ts=self.now,
            user_id=user,
            origin=f"{topic_names(self.settings.kafka).raw}:0:{self.offset}",
            # The newest are the hardest: the buffer is always of the last days.
            difficulty=1 + self.day * 0.5 + int(hashlib.sha256(id.encode()).hexdigest()[:4], 16) / 2**16,
            quality=9,
            category="math",
            label_mass=1,
            judge="j",
        )
        self.prompts.setdefault(text, prompt)
        return prompt

    async def decide(self) -> TrainRequest | None:
        """What the trigger does today."""
        trigger = Trigger(
            self.settings,
            topic_names(self.settings.kafka),
            main=self.generations.main,
            held_out=self.generations.held_out,
            store=TrainingStateStore(self.client, self.settings.redis.namespace),
            lease=Lease(self.client, self.settings.redis.namespace, f"trigger-{self.now}", 60),
            orders=TrainingOrders(self.client, self.settings.redis.namespace),
            history=self.history,  # type: ignore[arg-type]
            base_model="org/model",
            champion=lambda: self.registry.champion().version,
            producer=self.requests,  # type: ignore[arg-type]
            metrics=Metrics(CollectorRegistry()),
            now_ms=lambda: self.now,
            forget=self.forgotten.refresh,
        )
        before = len(self.requests.sent)
        await trigger.once()
        return self.requests.sent[-1] if len(self.requests.sent) > before else None

    def runner(self) -> Runner:
        return Runner(
            self.settings,
            Recipe.model_validate_json(Path(self.settings.training.recipe).read_bytes()),
            registry=self.registry,
            publish=self._publish,
            rewards=self.rewards,
            metrics=TrainerMetrics(CollectorRegistry()),
            forget=self.forgotten.refresh,
        )

    async def _publish(self, event: TrainEvent) -> None:
        self.events.append(event)

    async def run(self, request: TrainRequest | None, behaviour: str = "ok", challenger: float = 8.0) -> str:
        """Does what was requested, to its end."""
        assert request is not None
        for snapshot in list_snapshots(self.settings.training.snapshots):
            self.ever_held_out |= {str(row["prompt_id"]) for row in read_rows(snapshot, "eval")}
        Learner.behaviour[request.run_id] = behaviour
        self.rewards.challenger = challenger
        if behaviour == "hangs":
            killed = asyncio.create_task(self.runner().do(request, ours))
            while not (self.folder(request.run_id).path / "again").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            killed.cancel()
            await asyncio.gather(killed, return_exceptions=True)
            assert not self.folder(request.run_id).is_final()
        outcome = await self.runner().do(request, ours)
        self.history.end(request.run_id)
        return outcome

    def folder(self, run_id: str) -> RunFolder:
        return RunFolder.of(self.settings.training.work_dir, run_id)

    async def a_day(self, behaviour: str = "ok", challenger: float = 8.0) -> str:
        await self.new_prompts()
        return await self.run(await self.decide(), behaviour, challenger)

    def learned(self, run_id: str) -> list[ScoredPrompt]:
        """What the rows of a run's attempts were made of."""
        file = self.folder(run_id).path / "rows.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []  # it was refused before it began
        return [self.prompts[json.loads(line)] for line in lines]

    def forgetter(self) -> Forgetter:
        return Forgetter(self.settings, settle_s=0, now_ms=lambda: self.now)


@pytest.fixture
async def life(
    tmp_path: Path, topics: Topics, redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Life]:
    monkeypatch.setattr(runner, "TrainingProcess", Learner)
    monkeypatch.setattr(runner, "FOLLOW_S", 0.02)
    recipe = quick_recipe(
        data={"replay_share": 0.3, "replay_snapshots": 2, "validation_rows": 0},
        gate={"min_prompts": 4, "prompts": 8, "min_lower_bound": 0.5},
    )
    (tmp_path / "recipe.yaml").write_text(recipe.model_dump_json())
    vllm = FakeVllm()
    server = TestServer(vllm.app)
    await server.start_server()
    client = connect(RedisSettings(url=redis_url))
    settings = Settings.model_validate(
        {
            "kafka": topics.kafka.model_dump() | {"idempotence": False},
            "redis": {"url": redis_url, "namespace": namespace},
            "buffer": {"capacity": 60, "eval_capacity": 20, "near_duplicate": None, "category_share": 1},
            "trigger": {"min_members": 15, "min_new": 10, "min_answered": 0.9, "cooldown_s": 3600},
            "serving": {"urls": [str(server.make_url("")).rstrip("/")]},
            "training": {
                "recipe": str(tmp_path / "recipe.yaml"),
                "snapshots": str(tmp_path / "snapshots"),
                "registry": str(tmp_path / "registry"),
                "work_dir": str(tmp_path / "runs"),
            },
        }
    )
    found = Life(tmp_path, client, settings)
    yield found
    await found.forgotten.close()
    await client.aclose()
    await server.close()


async def test_twelve_days(life: Life) -> None:
    serving: list[str | None] = []

    def serves() -> str | None:
        serving.append(life.registry.champion().version)
        return serving[-1]

    assert await life.a_day() == "done" and serves() is not None
    assert await life.a_day() == "done"
    second = serves()
    assert await life.a_day("oom") == "failed" and serves() == second
    assert await life.a_day(challenger=2.0) == "rejected" and serves() == second
    assert await life.a_day() == "done"
    with_zoe = serves()
    assert await life.a_day("hangs") == "done"
    assert len([e for e in life.events if e.run_id == life.requests.sent[-1].run_id and e.phase == "done"]) == 1
    killed = serves()
    assert await life.a_day() == "done"
    assert serves() not in (killed, None)
    await promotion.rollback(life.settings.serving, life.registry, reason="worse on Mondays", by="test")
    assert serves() == killed
    assert await life.a_day() == "done", "and goes on from there"
    assert life.registry.show(str(serves())).parent == killed

    # Day 9: Zoe asks to be forgotten, while a run is on its way.
    await life.new_prompts()
    request = await life.decide()
    assert request is not None
    with_her = {row["user_id"] for row in read_rows(request.snapshot, "train")}
    assert "zoe" in with_her
    report = await life.forgetter().forget("user", "zoe", future=False, retrain=True, dry_run=False)
    assert report.left == [] and report.members["main"] > 0 and report.members["eval"] == 0
    assert with_zoe in {adapter.version for adapter in report.adapters}
    assert second not in {adapter.version for adapter in report.adapters}
    assert serves() == second, "the newest that has not learned from her"
    life.now += DAY_MS
    # What was requested before goes on from an adapter that learned from her: its end is no champion.
    assert await life.run(request) == "failed" and serves() == second
    asked = await life.decide()
    assert asked is not None and asked.parent_adapter == second and asked.reasons[0].startswith("asked")
    assert await life.run(asked) == "done" and serves() != second

    # Days 10 to 12: she comes back with new prompts, which are hers to give; one prompt of somebody else is forgotten.
    assert await life.a_day() == "done"
    gone = next(p for p in life.learned(life.requests.sent[-1].run_id) if p.user_id == "user-2")
    report = await life.forgetter().forget("prompt", gone.prompt_id, future=False, retrain=True, dry_run=False)
    assert report.tainted is False and report.rolled_back_from is not None
    assert await life.a_day() == "done"
    assert await life.a_day() == "done"
    assert life.day == 12
    champion = serves()

    # The lineage of what serves is complete, down to the base model.
    lineage = life.registry.lineage(champion)
    assert lineage[-1].parent is None and [m.version for m in lineage[:-1]] == [
        m.version for m in life.registry.versions()[::-1] if m.version in {x.version for x in lineage[:-1]}
    ]
    assert second in {m.version for m in lineage} and with_zoe not in {m.version for m in lineage}
    for manifest in lineage:
        life.registry.verify(manifest.version)
        assert manifest.gate is not None and manifest.gate["promote"]
        assert read_manifest(manifest.snapshot).run_id == manifest.run_id
        assert life.folder(manifest.run_id).record().outcome == "done"
        assert set(manifest.trained_on) <= set(list_snapshots(life.settings.training.snapshots))
    ends = [event for event in life.events if event.phase in ("done", "failed", "rejected")]
    assert len(ends) == len(life.requests.sent) == len({event.run_id for event in ends})
    assert [change.kind for change in life.registry.champion().history].count("rollback") == 3

    # Nothing that was held out was ever trained on; and in what serves there is nothing that was forgotten.
    zoe_asked = next(record for record in life.forgotten.known.records())
    for request in life.requests.sent:
        learned = life.learned(request.run_id)
        assert not {prompt.prompt_id for prompt in learned} & life.ever_held_out
    assert sum(not life.learned(request.run_id) for request in life.requests.sent) == 1
    replayed = 0
    for manifest in lineage:
        replayed += manifest.metrics["replayed"]
        for prompt in life.learned(manifest.run_id):
            assert prompt.user_id != "zoe" or prompt.ts > zoe_asked.until
            assert prompt.prompt_id != gone.prompt_id
    print([(m.version, m.metrics, sorted({p.user_id for p in life.learned(m.run_id)})) for m in lineage])
    print(sorted({(p.user_id, p.ts) for p in life.prompts.values() if p.user_id == "zoe"}), zoe_asked, life.now)
    for s in list_snapshots(life.settings.training.snapshots):
        print(
            s,
            [len(read_rows(s, x)) for x in ("train", "eval")],
            sorted({(r["user_id"], r["ts"]) for r in read_rows(s, "train") if r["user_id"] == "zoe"}),
        )
    assert replayed > 0 and any(p.user_id == "zoe" for m in lineage for p in life.learned(m.run_id))
    for snapshot in list_snapshots(life.settings.training.snapshots):
        for split in ("train", "eval"):
            for row in read_rows(snapshot, split):  # type: ignore[arg-type]
                assert (row["user_id"] != "zoe" or row["ts"] > zoe_asked.until) and row["prompt_id"] != gone.prompt_id
