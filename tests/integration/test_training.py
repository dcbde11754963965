"""Training by its effect: what moved and what did not, losses that fall, and a kill that changes nothing."""

import asyncio
import hashlib
import json
import math
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local.processes import free_port
from tests.support import attempts
from tests.support.real_vllm import base_model
from tests.support.stack import Process, wait_for
from tests.support.training import quick_recipe, run_folder, tiny_model, write_snapshot_of_sums
from trainers.recipe import Recipe
from trainers.rundir import Failure, RunFolder

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow

from safetensors.torch import load_file  # noqa: E402
from transformers import TrainerState  # noqa: E402

from trainers import join, launch, phase, run  # noqa: E402
from trainers.registry import Registry  # noqa: E402

LN2 = math.log(2)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two layers of 32 are not worth a second thread: where cores are shared, waiting for it is all they would do."""
    threads, before = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    torch.set_num_threads(threads)
    del os.environ["OMP_NUM_THREADS"]
    if before is not None:
        os.environ["OMP_NUM_THREADS"] = before


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(base_model(), tmp_path_factory.mktemp("tiny"), tokens=1000)


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("snapshots")
    now = asyncio.run(write_snapshot_of_sums(folder, "now", seed=1))
    return [now, asyncio.run(write_snapshot_of_sums(folder, "before", seed=2, train=20))]


def weights(folder: RunFolder, name: str) -> dict[str, Any]:
    return load_file(folder.adapter(name) / "adapter_model.safetensors")


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_both_phases_move_the_adapter_and_only_the_adapter(
    tmp_path: Path, tiny: Path, snapshots: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bases: list[Any] = []

    def load(*arguments: Any) -> Any:
        bases.append(original(*arguments))
        return bases[-1]

    original = phase.load_base
    for module in ("trainers.sft", "trainers.dpo"):
        monkeypatch.setattr(f"{module}.load_base", load)
    recipe = Recipe.model_validate(
        quick_recipe(data={"replay_share": 0.2}).model_dump() | {"report_to": ["tensorboard"]}
    )
    folder = run_folder(tmp_path / "run", snapshots[0], tiny, recipe, earlier_snapshots=[snapshots[1], "gone"])
    on_disk = digest(tiny)
    assert run.attempt(folder) == 0

    fresh = original(str(tiny), recipe).state_dict()
    for base in bases:
        trained = {k.replace(".base_layer", ""): v for k, v in base.state_dict().items() if "lora_" not in k}
        assert all(torch.equal(trained[name], value) for name, value in fresh.items())
    assert len(bases) == 2 and digest(tiny) == on_disk

    sft, dpo = weights(folder, "sft"), weights(folder, "dpo")
    assert sft and all("lora_" in name for name in sft), "nothing but the adapter is saved, and under its own names"
    moved = [name for name in sft if "lora_B" in name]
    assert moved and all(sft[name].abs().max() > 0 for name in moved), "B begins at zero"
    assert all(not torch.equal(sft[name], dpo[name]) for name in moved)
    assert sorted(f.name for f in folder.adapter("dpo").iterdir() if f.is_dir()) == [], "no ref/ for vLLM to find"

    metrics = folder.progress().metrics
    assert metrics["sft_loss_after"] < metrics["sft_loss_before"] - 0.1
    assert metrics["dpo_loss_before"] == pytest.approx(LN2, abs=1e-3), "the reference is the SFT result"
    assert metrics["dpo_loss_after"] < LN2 - 0.05
    assert (metrics["prompts"], metrics["sft_rows"], metrics["validation_rows"]) == (48, 56, 4)
    assert metrics["replayed"] == 12
    points = folder.points()
    assert [p["step"] for p in points if p["phase"] == "sft" and "loss" in p] == list(range(1, 7))
    assert [p["step"] for p in points if p["phase"] == "dpo" and "eval_loss" in p] == [0, 6]
    assert all(p["tokens_per_s"] > 0 and p["steps"] == 6 for p in points if "loss" in p)
    for name in ("sft", "dpo"):
        losses = {(p["step"], round(float(p["loss"]), 4)) for p in points if p["phase"] == name and "loss" in p}
        shown = {
            (step, round(value, 4)) for step, value in tensorboard(folder.path / "tensorboard" / name, "train/loss")
        }
        assert shown == losses, "TensorBoard has the same curve"
    assert folder.result() == folder.adapter("dpo")


def tensorboard(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Steps and values of a scalar in TensorBoard's event files: TFRecords of `Event` messages."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in folder.iterdir():
        content = file.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + size])
            found += [(event.step, value.simple_value) for value in event.summary.value if value.tag == tag]
            content = content[16 + size :]
    return found


KILLS, SEED = 4, 5
"""The seed draws both phases and three of the moments; `SEED` of one's own shows another four."""
MOMENTS = ("on_step_begin", "on_step_end", "on_log", "on_save")
"""`on_save`: the checkpoint is written and not yet marked as complete."""


def test_a_run_killed_at_any_step_ends_with_the_same_loss(
    tmp_path: Path, tiny: Path, snapshots: list[str], whole: RunFolder
) -> None:
    """SIGKILL at steps and moments that a seed draws, one after the other in one run; the last attempt is left alone.

    Same loss: within a ten-thousandth. (The sums are the same in the same order; what a checkpoint rounds is nothing.)
    """
    draw = random.Random(SEED)
    steps = draw.sample([(name, step) for name in ("dpo", "sft") for step in range(1, 6)], KILLS)
    kills = [(name, step, draw.choice(MOMENTS)) for name, step in sorted(steps, key=lambda s: (s[0] == "dpo", s[1]))]
    killed = run_folder(tmp_path / "killed", snapshots[0], tiny, quick_recipe())
    died = 0
    for name, step, moment in kills:
        at = (name, step + step % 2 if moment == "on_save" else step, moment)  # saved are the even steps
        code = attempts.attempt(killed, die_at=at)
        assert code == -signal.SIGKILL, f"{at}: ended with {code}"
        assert name not in killed.progress().completed
        died += 1
        # What a kill in the middle of a save leaves.
        (killed.phase(name) / "checkpoint-7").mkdir(parents=True)
    assert died == KILLS and run.attempt(killed) == 0

    ours, theirs = killed.progress().metrics, whole.progress().metrics
    for name in ("sft_loss_before", "sft_loss_after", "dpo_loss_before", "dpo_loss_after"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
    for name in ("sft", "dpo"):
        mine, other = weights(killed, name), weights(whole, name)
        assert all(torch.allclose(mine[key], other[key], atol=1e-5) for key in other), name
    assert [(p["phase"], p["step"]) for p in killed.points()] == [(p["phase"], p["step"]) for p in whole.points()]
    sft_after_dpo = [p["phase"] for p in map(json.loads, killed.curve.read_text().splitlines())]
    assert sft_after_dpo == sorted(sft_after_dpo, reverse=True), "a phase that is complete is not done again"


@pytest.fixture(scope="module")
def whole(tiny: Path, snapshots: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that nothing happened to."""
    folder = run_folder(tmp_path_factory.mktemp("runs") / "whole", snapshots[0], tiny, quick_recipe())
    assert run.attempt(folder) == 0
    return folder


def test_memory_that_is_not_there_ends_the_run_with_a_reason(tmp_path: Path, tiny: Path, snapshots: list[str]) -> None:
    """A real limit: the process may have 64 MB more than it starts with, and a batch needs several times that."""
    recipe = quick_recipe(sft={"batch_size": 48, "max_length": 512}, data={"validation_rows": 0})
    folder = run_folder(tmp_path / "run", snapshots[0], tiny, recipe)
    assert attempts.attempt(folder, spare_bytes=64_000_000) == 1
    failure = folder.read(Failure, "error.json")
    assert failure is not None and failure.reason == "out_of_memory"
    assert "lower batch_size" in failure.error and folder.progress().completed == []


def test_a_run_starts_from_its_parents_adapter(tmp_path: Path, tiny: Path, snapshots: list[str]) -> None:
    first = run_folder(tmp_path / "first", snapshots[1], tiny, quick_recipe(lora={"r": 4}))
    assert run.attempt(first) == 0
    parent = str(first.result())
    recipe = quick_recipe(
        sft={"max_steps": 1, "learning_rate": 1e-9},
        dpo={"max_steps": 1, "reference": "parent", "precompute_ref_log_probs": True},
    )
    second = run_folder(tmp_path / "second", snapshots[0], tiny, recipe, parent=parent)
    assert run.attempt(second) == 0
    ours, theirs = weights(second, "sft"), load_file(Path(parent) / "adapter_model.safetensors")
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-6) for key in theirs), "not a new adapter"
    assert second.progress().metrics["dpo_loss_before"] == pytest.approx(LN2, abs=1e-3)
    assert second.progress().metrics["sft_loss_before"] < first.progress().metrics["sft_loss_before"] - 0.1


@pytest.mark.parametrize(
    ("change", "reason", "says"),
    [
        (lambda plan: {"base_model": str(plan / "nothing")}, "model", "cannot load the tokenizer"),
        (lambda plan: {"snapshot_path": str(plan / "nothing")}, "snapshot", "cannot read"),
        (lambda plan: {"recipe": quick_recipe(data={"min_reward": 9.0})}, "no_rows", "48 low_reward"),
        (lambda plan: {"parent": str(plan / "nothing")}, "model", "cannot start from the adapter"),
    ],
)
def test_what_cannot_succeed_says_why(
    tmp_path: Path,
    tiny: Path,
    snapshots: list[str],
    change: Callable[[Path], dict[str, Any]],
    reason: str,
    says: str,
) -> None:
    changed = change(tmp_path)
    folder = run_folder(
        tmp_path / "run",
        changed.get("snapshot_path", snapshots[0]),
        Path(changed.get("base_model", tiny)),
        changed.get("recipe", quick_recipe()),
        parent=changed.get("parent"),
    )
    code = run.attempt(folder)
    failure = folder.read(Failure, "error.json")
    assert code == 1 and failure is not None
    assert failure.reason == reason and says in failure.error


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    curve = phase.Curve("sft", tmp_path / "curve.jsonl")
    state = TrainerState(global_step=3)
    curve.on_log(None, state, None, {"loss": 1.0})
    with pytest.raises(phase.TrainingFailure, match="sft: the loss is not finite at step 3") as raised:
        curve.on_log(None, state, None, {"loss": math.nan})
    assert raised.value.reason == "diverged"
    assert len((tmp_path / "curve.jsonl").read_text().splitlines()) == 1, "NaN is no JSON"


def test_a_second_process_leaves_a_run_that_is_being_trained_alone(
    tmp_path: Path, tiny: Path, snapshots: list[str]
) -> None:
    import fcntl

    folder = run_folder(tmp_path / "run", snapshots[0], tiny, quick_recipe())
    with (folder.path / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run.attempt(folder) == run.BUSY
    assert not (folder.path / "progress.json").exists()


def test_training_ends_with_whoever_started_it(tmp_path: Path, tiny: Path, snapshots: list[str]) -> None:
    folder = run_folder(tmp_path / "run", snapshots[0], tiny, quick_recipe(sft={"max_steps": 10_000, "epochs": 1e4}))
    code = (
        "import asyncio, sys; from pathlib import Path; from trainers.launch import TrainingProcess;"
        "from trainers.rundir import Plan, RunFolder\n"
        "async def main():\n"
        "    folder = RunFolder(Path(sys.argv[1]))\n"
        "    process = TrainingProcess(folder, folder.read(Plan, 'plan.json').recipe)\n"
        "    await process.start(); print(process._process.pid, flush=True); await process.wait(600)\n"
        "asyncio.run(main())"
    )
    service = Process(["-c", code, str(folder.path)], tmp_path / "service.log")
    try:
        wait_for("training", lambda: folder.points(), 120)
        pid = int(service.text().strip())
        service.signal(signal.SIGKILL)
        started = time.monotonic()
        wait_for("the end of training", lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid), 20)
        assert time.monotonic() - started < 20
    finally:
        service.kill()


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_the_real_model_learns_in_a_few_steps(tmp_path: Path, snapshots: list[str]) -> None:
    recipe = quick_recipe(
        sft={"max_steps": 3, "learning_rate": 2e-3, "save_steps": 3},
        dpo={"max_steps": 2, "learning_rate": 5e-4, "save_steps": 2},
        data={"validation_rows": 2},
    )
    folder = run_folder(tmp_path / "run", snapshots[0], base_model(), recipe)
    assert run.attempt(folder) == 0
    metrics = folder.progress().metrics
    assert metrics["sft_loss_after"] < metrics["sft_loss_before"] - 0.3
    assert metrics["dpo_loss_after"] < metrics["dpo_loss_before"]


async def test_two_machines_train_one_run(
    tmp_path: Path, tiny: Path, snapshots: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes over gloo, each started by `accelerate launch` as on a machine of its own: the service's, and one
    that joins. Every row is trained on once in an epoch, and one adapter comes of it."""
    real = launch.command

    def counted(*arguments: Any) -> list[str]:
        return ["tests.support.attempts" if word == "trainers.run" else word for word in real(*arguments)]

    monkeypatch.setattr(launch, "command", counted)
    monkeypatch.setattr(join, "LOOK_S", 0.2)
    machines = {"num_processes": 2, "num_machines": 2, "main_address": f"127.0.0.1:{free_port()}"}
    content = quick_recipe(sft={"max_steps": None, "epochs": 1, "save_steps": 10}, dpo={"max_steps": 2}).model_dump()
    recipe = Recipe.model_validate(content | {"launch": machines, "data": content["data"] | {"replay_share": 0}})
    folder = run_folder(tmp_path / "runs" / "two", snapshots[0], tiny, recipe)
    stop = asyncio.Event()
    second = asyncio.create_task(join.follow(tmp_path / "runs", 1, stop))
    first = launch.TrainingProcess(folder, recipe)
    try:
        await first.start()
        code = await first.wait(240)
        assert code == 0, folder.log_tail(40)
    finally:
        stop.set()
        await first.stop()
        await asyncio.wait_for(second, 60)

    assert folder.progress().completed == ["sft", "dpo"]
    seen = [(folder.path / f"rows-{rank}.jsonl").read_text().splitlines() for rank in (0, 1)]
    assert len(seen[0]) == len(seen[1]) == 22 and len({*seen[0], *seen[1]}) == 44, "44 rows, each once"
    points = [(p["phase"], p["step"]) for p in (json.loads(line) for line in folder.curve.read_text().splitlines())]
    assert len(points) == len({*points}) + 2, "one process writes; only a last step has two losses"
    metrics = folder.progress().metrics
    assert metrics["sft_steps"] == 11 and metrics["sft_loss_after"] < metrics["sft_loss_before"] - 0.1

    registry = Registry(tmp_path / "registry")
    facts: dict[str, Any] = {"run_id": "two", "snapshot": "s", "base_model": "m", "parent": None, "judge": None}
    version = registry.publish(folder.result(), recipe={}, metrics={}, now_ms=1, **facts).version
    published = load_file(registry.path(version) / "adapter_model.safetensors")
    assert all(torch.equal(published[name], value) for name, value in weights(folder, "dpo").items())
    assert len(registry.versions()) == 1 and all(value.abs().max() > 0 for value in published.values())
