"""A run from request to outcome, with a training process that costs nothing: every step once, whatever dies between."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry

from streams.errors import InvalidRecord, Transient
from streams.metrics import TrainerMetrics
from streams.records import Message, TrainEvent, TrainRequest
from streams.settings import Settings
from tests.support import fake_training
from tests.support.fake_vllm import FakeVllm
from tests.support.training import quick_recipe, write_snapshot_of_sums
from trainers import launch, runner
from trainers.promotion import adapter_name
from trainers.recipe import Recipe
from trainers.registry import Registry
from trainers.rundir import Progress, RunFolder
from trainers.runner import LeaseLost, Runner, base_name


class Rewards:
    """The challenger's answers are worth more, or less."""

    def __init__(self) -> None:
        self.challenger = 8.0
        self.asked = 0

    async def reward(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        self.asked += 1
        # The fake server's answers begin with the model's name; the second is the challenger's.
        assert answers[1].startswith("haypile-v")
        return [5.0, self.challenger]


class Bench:
    def __init__(self, folder: Path, url: str, vllm: FakeVllm, snapshot: str) -> None:
        self.settings = Settings.model_validate(
            {
                "training": {"work_dir": str(folder / "runs"), "registry": str(folder / "registry")},
                "serving": {"urls": [url]},
            }
        )
        self.vllm = vllm
        self.snapshot = snapshot
        self.registry = Registry(folder / "registry")
        self.rewards = Rewards()
        self.events: list[TrainEvent] = []
        self.metrics = TrainerMetrics(CollectorRegistry())
        self.die_at: str | None = None
        self.recipe = quick_recipe(gate={"min_prompts": 4, "min_lower_bound": 0.5})

    async def reached(self, phase: str) -> None:
        while phase not in self.phases():  # noqa: ASYNC110 (the runner knows no events but these)
            await asyncio.sleep(0.02)

    async def publish(self, event: TrainEvent) -> None:
        if event.phase == self.die_at:
            raise asyncio.CancelledError  # stands for a kill at this point: nothing after it happens
        self.events.append(event)

    def runner(self) -> Runner:
        """A new one, as after a restart: it knows only what is in files."""
        return Runner(
            self.settings,
            self.recipe,
            registry=self.registry,
            publish=self.publish,
            rewards=self.rewards,
            metrics=self.metrics,
        )

    def request(self, run_id: str = "run1", **changes: Any) -> TrainRequest:
        given: dict[str, Any] = {
            "run_id": run_id,
            "snapshot": self.snapshot,
            "reasons": ["new"],
            "base_model": "org/model",
            "requested_at": 1,
        }
        return TrainRequest(**(given | changes))

    async def do(self, run_id: str = "run1", **changes: Any) -> str:
        return await self.runner().do(self.request(run_id, **changes), ours)

    def phases(self) -> list[str]:
        return [event.phase for event in self.events]

    def folder(self, run_id: str = "run1") -> RunFolder:
        return RunFolder.of(self.settings.training.work_dir, run_id)

    def attempts(self) -> int:
        return len((self.folder().path / "attempts").read_text())

    def served(self) -> set[str]:
        return set(self.vllm.adapters)


async def ours() -> None:
    pass


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(launch, "command", fake_training.command)
    monkeypatch.setattr(runner, "FOLLOW_S", 0.05)
    monkeypatch.setattr(runner, "AGAIN_S", 0.01)
    vllm = FakeVllm()
    server = TestServer(vllm.app)
    await server.start_server()
    snapshot = await write_snapshot_of_sums(tmp_path / "snapshots", "s1")
    yield Bench(tmp_path, str(server.make_url("")).rstrip("/"), vllm, snapshot)
    await server.close()


async def test_a_better_challenger_is_promoted(bench: Bench) -> None:
    assert await bench.do() == "done"
    assert bench.phases() == ["queued", "sft", "dpo", "gate", "promote", "done"]
    version = "v0001-run1"
    assert bench.registry.champion().version == version
    assert bench.served() == {adapter_name(bench.settings.serving, version)}
    last = bench.events[-1].metrics
    assert (last["sft_loss_before"], last["dpo_loss_after"], last["gate_win_rate"]) == (2.0, 1.0, 1.0)
    assert last["served_as"] == f"haypile-{version}" and last["gate_prompts"] == 8
    assert "better than the champion" in str(last["reason"])
    manifest = bench.registry.show(version)
    assert manifest.judge == "judge-1" and manifest.gate is not None and manifest.gate["promote"]
    assert (bench.registry.path(version) / "adapter_model.safetensors").read_bytes() == b"dpo"
    assert bench.metrics.registry.get_sample_value("haypile_training_runs_total", {"outcome": "done"}) == 1
    assert bench.metrics.registry.get_sample_value("haypile_training_phase", {"phase": "gate"}) == 0


async def test_a_worse_challenger_is_rejected_and_unloaded(bench: Bench) -> None:
    await bench.do()
    bench.rewards.challenger = 2.0
    assert await bench.do("run2", parent_adapter="v0001-run1") == "rejected"
    assert bench.phases()[-5:] == ["queued", "sft", "dpo", "gate", "rejected"]
    assert "not above gate.min_win_rate" in str(bench.events[-1].metrics["reason"])
    assert bench.registry.champion().version == "v0001-run1"
    assert bench.served() == {"haypile-v0001-run1"}
    assert bench.registry.show("v0002-run2").parent == "v0001-run1"
    gate = json.loads((bench.registry.path("v0002-run2") / "gate.json").read_text())
    assert gate["champion"] == "haypile-v0001-run1" and len(gate["rows"]) == 8
    page = (bench.registry.path("v0002-run2") / "gate.html").read_text()
    assert "<b>Reject</b>" in page and "haypile-v0002-run2 against haypile-v0001-run1" in page


async def test_a_challenger_that_fails_the_canary_is_rejected_and_says_why(bench: Bench) -> None:
    await bench.do()
    bench.vllm.answers["haypile-v0002-run2"] = {"text": "haypile-v0002-run2", "tokens": ["la"] * 24}
    assert await bench.do("run2", parent_adapter="v0001-run1") == "rejected"
    assert bench.phases()[-6:] == ["queued", "sft", "dpo", "gate", "promote", "rejected"]
    reason = str(bench.events[-1].metrics["reason"])
    assert "the canary failed" in reason and "says 'la' 24 times" in reason and "the gate had said: win rate" in reason
    assert bench.registry.champion().version == "v0001-run1" and bench.served() == {"haypile-v0001-run1"}
    assert await bench.do("run2", parent_adapter="v0001-run1") == "rejected"


async def test_a_run_that_has_ended_is_not_run_again(bench: Bench) -> None:
    await bench.do()
    before = list(bench.events)
    assert await bench.do() == "done"
    assert bench.events == before and bench.attempts() == 1


@pytest.mark.parametrize("phase", ["queued", "sft", "dpo", "gate", "promote", "done"])
async def test_a_kill_at_any_event_repeats_nothing_that_can_be_seen(bench: Bench, phase: str) -> None:
    bench.die_at = phase
    with pytest.raises(asyncio.CancelledError):
        await bench.do()
    bench.die_at = None
    asked = bench.rewards.asked
    assert await bench.do() == "done"
    assert bench.phases() == ["queued", "sft", "dpo", "gate", "promote", "done"]
    assert [m.version for m in bench.registry.versions()] == ["v0001-run1"]
    assert len(bench.registry.champion().history) == 1
    if phase in ("promote", "done"):
        assert bench.rewards.asked == asked, "the gate is not held twice"


async def test_training_that_dies_goes_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fake_training.VARIABLE, "crash 2")
    assert await bench.do() == "done"
    assert bench.attempts() == 3


async def test_training_that_always_dies_fails_and_says_how(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fake_training.VARIABLE, "crash 99")
    assert await bench.do() == "failed"
    reason = str(bench.events[-1].metrics["reason"])
    assert "training died 3 times" in reason and "about to die" in reason
    assert "ended with -9 (SIGKILL: by the kernel when memory is short" in reason
    assert bench.phases() == ["queued", "failed"] and bench.registry.versions() == []


async def test_a_reason_ends_the_run_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fake_training.VARIABLE, "oom")
    assert await bench.do() == "failed"
    assert bench.events[-1].metrics["reason"] == "out_of_memory: lower batch_size"
    assert bench.attempts() == 1


async def test_cancelling_ends_the_training_process(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fake_training.VARIABLE, "slow")
    task = asyncio.create_task(bench.do())
    await asyncio.wait_for(bench.reached("sft"), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)
    running = [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(bench.folder().path).encode() in read(p)]
    assert running == [] and bench.folder().record().outcome is None
    monkeypatch.setenv(fake_training.VARIABLE, "ok")
    assert await bench.do() == "done"


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


async def test_a_server_that_forgets_the_challenger_during_the_gate_gets_it_again(bench: Bench) -> None:
    forgotten = False
    reward = bench.rewards.reward

    async def restart_once(messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        nonlocal forgotten
        if not forgotten:
            forgotten = True
            bench.vllm.adapters.clear()
        return await reward(messages, answers)

    bench.rewards.reward = restart_once  # type: ignore[method-assign]
    bench.recipe = quick_recipe(gate={"min_prompts": 4, "concurrency": 1})
    assert await bench.do() == "done" and forgotten


async def test_an_outage_of_vllm_is_waited_out(bench: Bench) -> None:
    bench.vllm.fault("503", 6)
    assert await bench.do() == "done"


async def test_whoever_lost_the_lease_promotes_nothing_and_fails_nothing(bench: Bench) -> None:
    async def lost() -> None:
        raise LeaseLost("another")

    with pytest.raises(LeaseLost):
        await bench.runner().do(bench.request(), lost)
    assert bench.registry.champion().version is None and bench.folder().record().outcome is None
    assert await bench.do() == "done"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"parent_adapter": "v0007-gone"}, "no adapter 'v0007-gone'"),
        ({"parent_adapter": "../../etc"}, "no adapter"),
        ({"snapshot": "/nowhere"}, "cannot read /nowhere"),
    ],
)
async def test_a_request_that_cannot_be_met_fails(bench: Bench, changes: dict[str, Any], says: str) -> None:
    assert await bench.do(**changes) == "failed"
    assert says in str(bench.events[-1].metrics["reason"])


async def test_a_parent_of_another_base_model_fails_the_run(bench: Bench) -> None:
    await bench.do()
    assert await bench.do("run2", parent_adapter="v0001-run1", base_model="org/other") == "failed"
    assert "v0001-run1 was trained on org/model" in str(bench.events[-1].metrics["reason"])


@pytest.mark.parametrize("run_id", ["../x", "", "a/b"])
async def test_a_run_id_that_is_no_name_touches_nothing(bench: Bench, run_id: str) -> None:
    with pytest.raises(InvalidRecord):
        await bench.do(run_id)
    assert not bench.settings.training.work_dir.exists()


async def test_replay_comes_from_the_snapshots_of_the_lineage(bench: Bench) -> None:
    await bench.do()
    bench.snapshot = await write_snapshot_of_sums(Path(bench.snapshot).parent, "s2", seed=2)
    await bench.do("run2", parent_adapter="v0001-run1")
    plan = bench.folder("run2").read(runner.Plan, "plan.json")
    assert plan is not None and [Path(s).name for s in plan.earlier_snapshots] == ["s1"]
    assert plan.parent == str(bench.registry.path("v0001-run1")) == plan.champion


async def test_a_run_from_the_base_has_no_parent_and_still_the_replay_and_the_held_out_of_those_before(
    bench: Bench,
) -> None:
    await bench.do()
    bench.rewards.challenger = 2.0
    first, folder = bench.snapshot, Path(bench.snapshot).parent
    bench.snapshot = await write_snapshot_of_sums(folder, "s2", seed=2)
    assert await bench.do("run2", parent_adapter="v0001-run1") == "rejected"
    second, bench.rewards.challenger = bench.snapshot, 8.0
    bench.snapshot = await write_snapshot_of_sums(folder, "s3", seed=3)
    bench.recipe = Recipe.model_validate(bench.recipe.model_dump() | {"start": "base"})
    assert await bench.do("run3", parent_adapter="v0001-run1") == "done"
    plan = bench.folder("run3").read(runner.Plan, "plan.json")
    assert plan is not None and (plan.parent, plan.champion) == (None, str(bench.registry.path("v0001-run1")))
    assert (plan.earlier_snapshots, plan.held_out_snapshots) == ([first], sorted([first, second]))
    manifest = bench.registry.show("v0003-run3")
    assert manifest.parent is None and manifest.metrics["earlier_snapshots"] == [first]

    third = bench.snapshot
    bench.snapshot = await write_snapshot_of_sums(folder, "s4", seed=4)
    await bench.do("run4", parent_adapter="v0003-run3")
    plan = bench.folder("run4").read(runner.Plan, "plan.json")
    assert plan is not None and plan.earlier_snapshots == [third, first], "what the one before learned from, too"


async def test_the_learning_curve_is_told_as_it_grows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "POINT_S", 0.0)
    assert await bench.do() == "done"
    points = [(e.phase, e.metrics) for e in bench.events if e.phase in ("sft", "dpo") and "step" in e.metrics]
    point = {"step": 1, "steps": 1, "loss": 1.5, "tokens_per_s": 100.0, "learning_rate": 0.01}
    assert points[-1] == ("dpo", point), "and nothing else: the metrics of the run are in the phase's first event"
    value = bench.metrics.registry.get_sample_value
    for name, shown in (("loss", 1.5), ("step", 1), ("steps", 1), ("learning_rate", 0.01), ("tokens_per_second", 100)):
        assert value(f"haypile_training_{name}", {"phase": "dpo"}) == shown


async def test_a_point_is_sent_once_and_not_more_often_than_it_may_be(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bench.folder()
    folder.path.mkdir(parents=True)
    now = [0.0]
    monkeypatch.setattr(runner.time, "monotonic", lambda: now[0])

    def of_run() -> Any:
        return runner._Run(folder, bench.request(), bench.publish, bench.metrics)

    run = of_run()
    await run.point({"phase": "sft", "step": 1, "loss": 9.0})
    assert bench.events == [], "the phase is not announced yet"
    await run.announce("sft", {})
    for step, at in ((1, 1.0), (2, 16.0), (2, 40.0), (3, 41.0), (4, 60.0)):
        now[0] = at
        await run.point({"phase": "sft", "step": step, "loss": 1.0 / step})
    again = of_run()  # after a restart
    now[0] = 100.0
    await again.point({"phase": "sft", "step": 4, "loss": 0.25})
    assert [e.metrics["step"] for e in bench.events[1:]] == [2, 3, 4]


async def test_what_was_left_out_reaches_events_metrics_and_the_manifest(bench: Bench) -> None:
    folder = bench.folder()
    folder.path.mkdir(parents=True)
    counts: dict[str, float | int | str | bool | None] = {
        "prompts": 9,
        "sft_rows": 5,
        "dpo_pairs": 4,
        "left_out_sft_too_long": 3,
        "left_out_small_margin": 1,
    }
    folder.write("progress.json", Progress(metrics=counts))
    await bench.do()
    assert {**bench.events[-1].metrics, **counts} == bench.events[-1].metrics
    assert bench.registry.show("v0001-run1").metrics["left_out_sft_too_long"] == 3
    value = bench.metrics.registry.get_sample_value
    assert value("haypile_training_rows_left_out", {"reason": "sft_too_long"}) == 3
    assert value("haypile_training_rows", {"set": "sft_rows"}) == 5
    bench.metrics.show_rows({"sft_rows": 8, "left_out_held_out": 2})
    assert value("haypile_training_rows_left_out", {"reason": "sft_too_long"}) is None, "that was the run before"


async def test_the_recipe_of_a_run_does_not_change_under_it(bench: Bench) -> None:
    bench.die_at = "gate"
    with pytest.raises(asyncio.CancelledError):
        await bench.do()
    bench.die_at = None
    bench.recipe = quick_recipe(gate={"min_prompts": 400})
    assert await bench.do() == "done"


async def test_an_event_is_sent_again_until_the_broker_has_it(bench: Bench) -> None:
    failures = 3
    publish = bench.publish

    async def shaky(event: TrainEvent) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise Transient("broker away")
        await publish(event)

    bench.publish = shaky  # type: ignore[method-assign]
    assert await bench.do() == "done"
    assert bench.phases() == ["queued", "sft", "dpo", "gate", "promote", "done"]


def test_the_name_of_the_base_is_not_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    assert base_name("org/model") == "org/model"
    assert base_name(str(folder)) == "base"
    (folder / "haypile-base.json").write_text(json.dumps({"format": 1, "model": "org/real"}))
    assert base_name(str(folder)) == "org/real"


async def test_a_trainer_that_slept_through_its_lease_does_not_undo_an_end(bench: Bench) -> None:
    """It was stopped in the gate; meanwhile another ended its run and the next one, which is the champion now."""

    async def publish(event: TrainEvent) -> None:
        bench.events.append(event)
        if event.phase == "gate":
            sleeper._publish = bench.publish
            assert await bench.do() == "done"
            assert await bench.do("run2") == "done"

    sleeper = bench.runner()
    sleeper._publish = publish
    with pytest.raises(LeaseLost):
        await sleeper.do(bench.request(), ours)
    assert bench.folder().record().outcome == "done"
    assert await bench.do() == "done", "it is over for whoever gets the request now"
    assert bench.registry.champion().version == "v0002-run2"
    assert len(bench.registry.champion().history) == 2
