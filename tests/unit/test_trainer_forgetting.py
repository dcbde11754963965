"""Who has learned from what was forgotten, and a run in whose midst somebody asks for it."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from streams.errors import Fatal
from streams.forgotten import ForgottenList
from streams.snapshot_forget import forget_rows, forgotten_rows
from streams.snapshots import read_manifest, read_rows
from tests.support import fake_training
from tests.support.fake_vllm import FakeVllm
from tests.support.training import quick_recipe, write_snapshot_of_sums
from tests.unit.test_trainer_runner import Bench, ours
from trainers import launch, promotion, runner
from trainers.forgetting import clean_ancestor, clear_runs, forget_answers, learned, untold
from trainers.recipe import DataRecipe
from trainers.registry import Manifest
from trainers.run import prepare
from trainers.rundir import Plan
from trainers.runner import Runner


def version(number: int, parent: int | None = None, created_at: int = 1, **trained_on: str) -> Manifest:
    return Manifest(
        version=f"v{number}",
        run_id=f"r{number}",
        snapshot=next(iter(trained_on), "s0"),
        base_model="m",
        parent=None if parent is None else f"v{parent}",
        recipe={},
        judge=None,
        metrics={},
        created_at=created_at,
        sha256={},
        trained_on={name: state for name, state in trained_on.items() if state != "?"},
    )


def test_an_adapter_has_learned_by_its_snapshot_by_replay_or_from_its_parent() -> None:
    manifests = [
        version(1, s1="with"),
        version(2, s1="without"),
        version(3, s2="x", s1="with"),
        version(4, parent=3, s4="y"),
        version(5, parent=4, s5="z"),
        version(6, parent=2, s6="z"),
    ]
    found = {found.version: (found.how, found.source) for found in learned(manifests, {"s1": {"with"}}, {"s1": 5})}
    assert found == {
        "v1": ("trained", "s1"),
        "v3": ("replay", "s1"),
        "v4": ("parent", "v3"),
        "v5": ("parent", "v4"),
    }
    assert untold(manifests, {"s1", "s2", "s4", "s5"}) == ["v6"]


def test_of_a_version_that_does_not_say_what_it_read_its_age_tells() -> None:
    manifests = [version(1, s1="?", created_at=4), version(2, s1="?", created_at=6)]
    assert [f.version for f in learned(manifests, {"s1": {"with"}}, {"s1": 5})] == ["v1"]


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


class Asked:
    """`prompts.forgotten` of a test."""

    def __init__(self) -> None:
        self.known = ForgottenList()

    def ask(self, prompt_id: str) -> None:
        self.known.take(self.known.request("prompt", prompt_id, ends={}, future=False, now_ms=1))

    async def __call__(self) -> ForgottenList:
        return self.known


def runner_of(bench: Bench, asked: Asked) -> Runner:
    return Runner(
        bench.settings,
        bench.recipe,
        registry=bench.registry,
        publish=bench.publish,
        rewards=bench.rewards,
        metrics=bench.metrics,
        forget=asked,
    )


def one_of(bench: Bench, split: Any) -> str:
    return str(read_rows(bench.snapshot, split)[0]["prompt_id"])


async def test_a_run_starts_over_when_something_in_its_snapshot_is_forgotten_while_it_trains(bench: Bench) -> None:
    asked = Asked()
    before = read_manifest(bench.snapshot).train_sha256()
    publish = bench.publish

    async def forget_in_dpo(event: Any) -> None:
        await publish(event)
        if event.phase == "dpo":
            asked.ask(one_of(bench, "train"))
            forget_rows(bench.snapshot, asked.known.row, 1)

    bench.publish = forget_in_dpo  # type: ignore[method-assign]
    assert await runner_of(bench, asked).do(bench.request(), ours) == "done"
    assert bench.attempts() == 2
    manifest = bench.registry.of_run("run1")
    assert manifest is not None
    after = read_manifest(bench.snapshot).train_sha256()
    assert manifest.trained_on == {bench.snapshot: after} and after != before
    plan = bench.folder().read(Plan, "plan.json")
    assert plan is not None and len(plan.forgotten) == 1


@pytest.mark.parametrize("phase", ["gate", "promote"])
async def test_a_version_that_is_there_when_it_is_asked_for_is_not_promoted(bench: Bench, phase: str) -> None:
    asked = Asked()
    publish = bench.publish

    async def forget_then(event: Any) -> None:
        await publish(event)
        if event.phase == phase:
            asked.ask(one_of(bench, "train"))
            forget_rows(bench.snapshot, asked.known.row, 1)

    bench.publish = forget_then  # type: ignore[method-assign]
    # What is forgotten at `gate` is noticed before the pointer moves, too: the look after publishing came earlier.
    assert await runner_of(bench, asked).do(bench.request(), ours) == "failed"
    assert "forgotten" in str(bench.folder().record().reason)
    assert bench.registry.champion().version is None and bench.served() == set()
    assert not (bench.folder().path / "dpo").exists()
    manifest = bench.registry.of_run("run1")
    assert manifest is not None, "it can be listed"
    states = {bench.snapshot: {removal.before for removal in read_manifest(bench.snapshot).forgotten}}
    assert [f.version for f in learned(bench.registry.versions(), states, {})] == [manifest.version]
    assert clean_ancestor(bench.registry, manifest.version, {manifest.version}) is None
    with pytest.raises(Fatal, match="learned from what was forgotten"):
        await promotion.promote(bench.settings.serving, bench.registry, manifest.version, reason="r", by="b")


async def test_answers_to_a_prompt_that_is_forgotten_during_the_gate_do_not_stay(bench: Bench) -> None:
    asked = Asked()
    reward, gone = bench.rewards.reward, one_of(bench, "eval")

    async def forget_meanwhile(*args: Any) -> list[float]:
        asked.ask(gone)
        return await reward(*args)

    bench.rewards.reward = forget_meanwhile  # type: ignore[method-assign]
    assert await runner_of(bench, asked).do(bench.request(), ours) == "done"
    manifest = bench.registry.of_run("run1")
    assert manifest is not None and manifest.gate is not None
    report = json.loads((bench.registry.path(manifest.version) / "gate.json").read_text())
    assert gone not in {row["prompt_id"] for row in report["rows"]} and report["forgotten"] == 1
    assert len(report["rows"]) == manifest.gate["prompts"] - 1, "the figures stay as measured"


async def test_answers_and_checkpoints_of_runs_that_are_over_go(bench: Bench) -> None:
    bench.rewards.challenger = 2.0  # the page shows what was lost, with the texts
    assert await bench.do() == "rejected"
    manifest = bench.registry.of_run("run1")
    assert manifest is not None
    held_out = one_of(bench, "eval")
    page = bench.registry.path(manifest.version) / "gate.html"
    [text] = [r["messages"][0]["content"] for r in read_rows(bench.snapshot, "eval") if r["prompt_id"] == held_out]
    report = page.with_suffix(".json")
    assert text in page.read_text() and text in report.read_text()
    assert forget_answers(bench.registry, {held_out}, dry_run=True) == {manifest.version: 1}
    assert forget_answers(bench.registry, {held_out, "other"}) == {manifest.version: 1}
    assert forget_answers(bench.registry, {held_out}) == {}
    assert text not in page.read_text() + report.read_text() and "</html>" in page.read_text()
    bench.registry.verify(manifest.version)
    work_dir, states = bench.settings.training.work_dir, manifest.trained_on
    assert clear_runs(work_dir, {bench.snapshot: {"another state"}}) == []
    with_it = {path: {state} for path, state in states.items()}
    assert clear_runs(work_dir, with_it, dry_run=True) == ["run1"] and (bench.folder().path / "dpo").exists()
    assert clear_runs(work_dir, with_it) == ["run1"]
    assert not (bench.folder().path / "dpo").exists() and bench.folder().record().outcome == "rejected"
    assert clear_runs(work_dir, with_it) == []


async def test_rows_that_are_forgotten_are_not_trained_on_although_the_snapshot_still_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAYPILE_KAFKA__FORGET_KEY", "pepper")
    path = await write_snapshot_of_sums(tmp_path, "s1")
    earlier = await write_snapshot_of_sums(tmp_path, "s0", seed=2)
    from streams.settings import load_settings

    known = ForgottenList.of(load_settings().kafka)
    for snapshot in (path, earlier):
        for row in read_rows(snapshot, "train")[:10]:
            known.take(known.request("prompt", row["prompt_id"], ends={}, future=False, now_ms=1))
    recipe = quick_recipe(data={"replay_share": 0.5, "validation_rows": 0})
    plan = Plan(snapshot=path, base_model="m", recipe=recipe, earlier_snapshots=[earlier], forgotten=known.records())
    assert isinstance(recipe.data, DataRecipe)

    class Tokenizer:
        def apply_chat_template(self, turns: Any, **_: Any) -> list[int]:
            return [0]

    data = await asyncio.to_thread(prepare, plan, Tokenizer())
    gone = {row.prompt_id for snapshot in (path, earlier) for row in forgotten_rows(snapshot, known.row)}
    texts = {
        row["messages"][0]["content"]
        for snapshot in (path, earlier)
        for row in read_rows(snapshot, "train")
        if row["prompt_id"] in gone
    }
    assert len(texts) == 20 and data.left_out["forgotten"] == 10 and data.replayed == 38
    assert not texts & {row["prompt"][0]["content"] for row in data.sft}
    assert len(data.sft) == 38 + 38
