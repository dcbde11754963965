"""Training by its effect: what moved and what did not, losses that fall, and a kill that changes nothing."""

import asyncio
import hashlib
import json
import math
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.real_vllm import base_model
from tests.support.stack import Process, wait_for
from tests.support.training import quick_recipe, run_folder, tiny_model, write_snapshot_of_sums
from trainers.recipe import Recipe
from trainers.rundir import Failure, RunFolder

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow

from safetensors.torch import load_file  # noqa: E402
from transformers import TrainerState  # noqa: E402

from trainers import phase, run  # noqa: E402

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
    return tiny_model(base_model(), tmp_path_factory.mktemp("tiny"))


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
    recipe = quick_recipe(data={"replay_share": 0.2})
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
    assert folder.result() == folder.adapter("dpo")


def test_a_killed_run_goes_on_from_its_checkpoint_and_ends_the_same(
    tmp_path: Path, tiny: Path, snapshots: list[str]
) -> None:
    recipe = quick_recipe()
    whole = run_folder(tmp_path / "whole", snapshots[0], tiny, recipe)
    assert run.attempt(whole) == 0

    killed = run_folder(tmp_path / "killed", snapshots[0], tiny, recipe)

    def start() -> Process:
        return Process(["-m", "trainers.run", str(killed.path)], tmp_path / "train.log")

    for name in ("sft", "dpo"):
        process = start()
        try:
            wait_for(f"a checkpoint of {name}", lambda n=name: list(killed.phase(n).glob("*/complete")), 120, 0.01)
        finally:
            process.kill()
        assert name not in killed.progress().completed, "killed too late to prove anything"
    # What a kill in the middle of a save leaves.
    (killed.phase("dpo") / "checkpoint-5").mkdir()
    assert start().popen.wait(180) == 0, (tmp_path / "train.log").read_text()[-3000:]

    for name in ("sft", "dpo"):
        ours, theirs = weights(killed, name), weights(whole, name)
        assert all(torch.allclose(ours[key], theirs[key], atol=1e-5) for key in theirs), name
    assert killed.progress().metrics["dpo_loss_before"] == pytest.approx(LN2, abs=1e-3)
    assert (tmp_path / "train.log").read_text().count("trainers.run: sft: {") == 1, "a complete phase is skipped"


@pytest.mark.parametrize(("reference", "precompute"), [("base", False), ("parent", True)])
def test_the_reference_is_what_the_recipe_says(
    tmp_path: Path, tiny: Path, snapshots: list[str], reference: str, precompute: bool
) -> None:
    recipe = quick_recipe(
        sft={"max_steps": 2}, dpo={"max_steps": 1, "reference": reference, "precompute_ref_log_probs": precompute}
    )
    folder = run_folder(tmp_path / "run", snapshots[0], tiny, recipe)
    assert run.attempt(folder) == 0
    first = folder.progress().metrics["dpo_loss_before"]
    # Without a parent that is the base too: SFT has moved away from it, so the loss does not begin at ln 2.
    assert abs(first - LN2) > 1e-3
    assert first == pytest.approx(expected_loss(recipe, tiny, snapshots[0], folder), rel=1e-3)


def expected_loss(recipe: Recipe, tiny: Path, snapshot_path: str, folder: RunFolder) -> float:
    """DPO's loss of the SFT adapter against the base on the validation pairs, by the formula (arXiv 2305.18290, 7)."""
    from peft import PeftModel

    plan = folder.read(run.Plan, "plan.json")
    assert plan is not None
    tokenizer = phase.load_tokenizer(str(tiny))
    pairs = run.prepare(plan, tokenizer).pairs_validation
    model = PeftModel.from_pretrained(phase.load_base(str(tiny), recipe), str(folder.adapter("sft")))
    model.eval()

    def logp(turns: list[dict[str, str]], answer: list[dict[str, str]]) -> Any:
        head = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        ids = tokenizer.apply_chat_template(turns + answer, return_dict=False)
        logits = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        return logits.gather(1, torch.tensor(ids[1:])[:, None])[len(head) - 1 :].sum()

    losses = []
    with torch.no_grad():
        for pair in pairs:
            chosen, rejected = (logp(pair["prompt"], pair[side]) for side in ("chosen", "rejected"))
            with model.disable_adapter():
                ref = [logp(pair["prompt"], pair[side]) for side in ("chosen", "rejected")]
            margin = recipe.dpo.beta * ((chosen - ref[0]) - (rejected - ref[1]))
            losses.append(-torch.nn.functional.logsigmoid(margin))
    return float(sum(losses) / len(losses))


def test_a_run_starts_from_its_parents_adapter(tmp_path: Path, tiny: Path, snapshots: list[str]) -> None:
    first = run_folder(tmp_path / "first", snapshots[1], tiny, quick_recipe(lora={"r": 4}))
    assert run.attempt(first) == 0
    parent = str(first.result())
    recipe = quick_recipe(sft={"max_steps": 1, "learning_rate": 1e-9}, dpo={"max_steps": 1, "reference": "parent"})
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


def test_two_processes_share_the_batches(tmp_path: Path, tiny: Path, snapshots: list[str]) -> None:
    """As `accelerate launch` starts them on GPUs; here over gloo, because accelerate starts one on a CPU."""
    recipe = quick_recipe(sft={"max_steps": 2}, dpo={"max_steps": 2})
    folder = run_folder(tmp_path / "run", snapshots[0], tiny, recipe)
    log = tmp_path / "train.log"
    arguments = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "trainers.run"]
    process = Process([*arguments, str(folder.path)], log)
    try:
        assert process.popen.wait(300) == 0, process.text()[-3000:]
    finally:
        process.kill()
    assert folder.progress().completed == ["sft", "dpo"]
    points = [(p["phase"], p["step"]) for p in (json.loads(line) for line in folder.curve.read_text().splitlines())]
    assert len(points) == len({*points}) + 2, "one process writes; only a last step has two losses"
    # The first step saw 123 tokens where one process trains on batches of two.
    [first, *_] = re.findall(r"'num_tokens': '(\d+)'", process.text().split("'loss'", 1)[1])
    assert int(first) > 200
