"""The shipped judge on prompts it was not trained on: the held-out fifth of each source, and the demo's prompts.

In this process, on a fixed draw of rows, a few minutes on two cores; ``trainers.judge_report`` makes
the same figures on all of them.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.support.real_vllm import base_model
from trainers.base_model import NAME, PACKAGE
from trainers.judge import Judge
from trainers.judge_data import all_prompts, held_out, split
from trainers.judge_report import Report, report

ROOT = Path(__file__).parents[2]
ADAPTER = ROOT / "trainers" / "judges" / "demo"
DATA = ROOT.parent / "shared" / "data"
DEMO = ROOT / "deploy" / "demo" / "prompts.jsonl"
ROWS = 16
"""Of each set, drawn by a fixed seed: two to three minutes of CPU time in all."""
MATH_ROWS = 60
CHARS = 500

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def judge() -> Judge:
    for package in ("torch", "transformers", "peft", "gguf", PACKAGE):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    return Judge.load(base_model(), ADAPTER)


@pytest.fixture(scope="module")
def found(judge: Judge) -> Report:
    return report(judge, DATA if DATA.is_dir() else None, DEMO, limit=ROWS, math_limit=MATH_ROWS, max_chars=CHARS)


def test_the_adapter_names_its_base_and_no_folder() -> None:
    config = json.loads((ADAPTER / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == NAME
    assert config["r"] <= 16
    assert (ADAPTER / "adapter_model.safetensors").stat().st_size < 12_000_000


def test_it_answers_with_labels(found: Report) -> None:
    assert found.label_mass > 0.9


@pytest.mark.parametrize("name", ["graded", "untouched"])
def test_it_ranks_prompts_of_all_domains(found: Report, name: str) -> None:
    figures = found.sets[name]
    assert figures.spearman is not None
    assert figures.spearman_length is not None
    assert figures.unreadable == 0
    assert figures.spearman.value > max(0.5, figures.spearman_length.value + 0.2)
    assert figures.auc.value > 0.8


def test_it_tells_hard_from_everyday(found: Report) -> None:
    if "hard against everyday" not in found.sets:
        pytest.skip(f"the labelled sets are not at {DATA}")
    figures = found.sets["hard against everyday"]
    assert figures.auc.value > max(0.8, figures.auc_length.value)


def test_it_ranks_levels_within_one_subject_better_than_the_length(found: Report) -> None:
    if "math" not in found.sets:
        pytest.skip(f"the labelled sets are not at {DATA}")
    figures = found.sets["math"]
    assert figures.spearman is not None
    assert figures.spearman_length is not None
    assert figures.spearman.value > figures.spearman_length.value


def test_it_knows_garbage(found: Report) -> None:
    assert found.sets["quality"].auc.value > 0.9


def test_it_knows_made_bad_answers(found: Report) -> None:
    if "answers" not in found.sets:
        pytest.skip(f"the labelled sets are not at {DATA}")
    assert found.sets["answers"].auc.value > 0.6


def test_it_names_categories(found: Report) -> None:
    assert min(found.categories.values()) > 0.5


def test_packing_does_not_change_a_rating(judge: Judge) -> None:
    """Many texts in one pass are rated as each alone."""
    texts = ["What is 2 + 2?", "Prove Fermat's last theorem for n = 3.", "asdf asdf", "a\n\n  b"]
    together = judge.rate(texts)
    for text, readings in zip(texts, together, strict=True):
        for question, reading in judge.rate([text])[0].items():
            assert readings[question].value == pytest.approx(reading.value, abs=1e-3)


def test_the_split_holds_a_fifth_of_each_source_and_is_fixed() -> None:
    assert split("What is the capital of France?") == split("what is  the capital of france")
    assert split("Add 3 and 4.") == split("Add 12 and 5.")
    rows = all_prompts(DATA if DATA.is_dir() else None)
    for source in {row.source for row in rows}:
        own = [row for row in rows if row.source == source]
        assert 0.12 < len(held_out(own)) / len(own) < 0.28
