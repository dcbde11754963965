"""`haypile judge train` on a labelled file: a model of two layers with SmolLM2's tokenizer, a budget of seconds."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.real_vllm import base_model
from tests.support.training import tiny_model
from trainers.judge import Plan
from trainers.judge_check import BadLabels
from trainers.judge_own import LEAST_ROWS, divided, examples, train_own

ROOT = Path(__file__).parents[2]


def labelled(folder: Path, count: int, seed: int = 1) -> Path:
    """Sums are easy, proofs are hard."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        number, hard = draw.randint(10, 9999), i % 2
        text = f"prove the theorem of {number} rigorously" if hard else f"add the numbers in {number} please"
        words = " ".join(draw.choices(["lamp", "river", "stone", "cloud", "bread", "table", "violin", "garden"], k=6))
        rows.append({"prompt": f"{text} {words}", "difficulty": 8 if hard else 2})
    file = folder / "own.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def tiny(folder: Path) -> Path:
    """Random weights whose embeddings are large enough that a label can become likely at all."""
    import torch
    from transformers import AutoModelForCausalLM

    base = tiny_model(base_model(), folder)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(20)
    model.save_pretrained(base)
    return base


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Matrices of 32 rows are faster in one thread, the more so on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_judge_learns_from_ones_own_labels_and_its_card_says_what_it_is_worth(tmp_path: Path) -> None:
    base = tiny(tmp_path / "tiny")
    plan = Plan(epochs=60, chores=2, garbage=4, cpu_minutes=0.5, warmup=2, lr=5e-3)
    found = train_own(labelled(tmp_path, 60), base, tmp_path / "judge", plan=plan, mixed_in=6, name="tiny")
    assert found.held_out == 12 and found.trained_on + found.left_out == 48
    assert found.before.rows == 0, "random weights do not even name a label"
    assert found.after.rows == 12 and found.after.auc.value > 0.9, "the held-out rows are told apart"
    card = (tmp_path / "judge" / "README.md").read_text()
    assert f"| this judge | {found.after.spearman.value:.2f}" in card  # type: ignore[union-attr]
    assert found.digest in card and str(tmp_path) not in card
    config = json.loads((tmp_path / "judge" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"


def test_what_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    rows = examples(labelled(tmp_path, 60))
    learned, held = divided(rows)
    assert len(held) == 12 and not {r.text for r in held} & {r.text for r in learned}
    assert [r.text for r in divided(list(reversed(rows)))[1]] == [r.text for r in held], "whatever the order"
    near = [*rows, *(type(r)(r.text + " now", "own", r.level, targets=r.targets) for r in held)]
    learned, held = divided(near)
    texts = {r.text.removesuffix(" now") for r in held}
    assert not texts & {r.text.removesuffix(" now") for r in learned}


def test_hard_and_easy_are_labels_too(tmp_path: Path) -> None:
    file = tmp_path / "two.jsonl"
    file.write_text(
        "\n".join(json.dumps({"prompt": f"p {i}", "label": "hard" if i % 2 else "easy"}) for i in range(30))
    )
    assert {row.level for row in examples(file)} == {2.5, 7.5}


@pytest.mark.parametrize("count", [3, LEAST_ROWS - 1])
def test_too_few_rows_are_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(BadLabels, match="at least 20 are needed"):
        divided(examples(labelled(tmp_path, count)))


def haypile(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli", "judge", *arguments],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_bad_use_is_one_line(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    scale = tmp_path / "scale.jsonl"
    scale.write_text('{"prompt": "a", "difficulty": 3}\n{"prompt": "b", "difficulty": 70}')
    # A package that cannot be imported: as on a machine without the extra.
    (tmp_path / "none" / "scipy").mkdir(parents=True)
    (tmp_path / "none" / "scipy" / "__init__.py").write_text("raise ModuleNotFoundError('no', name='scipy')")
    path = os.pathsep.join([str(tmp_path / "none"), str(ROOT)])
    for code, line, done in (
        (2, "cannot read", haypile("train", str(tmp_path / "no.jsonl"), "--out", out)),
        (2, "exists already", haypile("train", str(scale), "--out", str(tmp_path))),
        (1, "difficulty 70 is not on the scale from 1 to 9", haypile("train", str(scale), "--out", out)),
        (1, "pip install 'haypile[trainer]'", haypile("train", str(scale), "--out", out, PYTHONPATH=path)),
        (1, "pip install 'haypile[trainer]'", haypile("check", str(scale), PYTHONPATH=path)),
    ):
        assert done.returncode == code, done.stderr
        assert line in done.stderr and done.stderr.count("\n") == 1
    assert not Path(out).exists()
