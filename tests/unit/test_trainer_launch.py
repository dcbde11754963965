"""How the training process is started: what it may see of the machine, and through which launcher."""

import sys
from pathlib import Path

import pytest

from tests.support.training import quick_recipe
from trainers.launch import command, environment
from trainers.recipe import Recipe


def recipe(**changes: object) -> Recipe:
    return quick_recipe().model_copy(update=changes)


def test_one_process_is_plain_python_and_several_go_through_accelerate() -> None:
    target = ["-m", "trainers.run", "/runs/a", "--with-parent"]
    assert command(Path("/runs/a"), recipe()) == [sys.executable, *target]
    several = command(Path("/runs/a"), recipe(num_processes=4, device="auto"))
    assert several[1:3] == ["-m", "accelerate.commands.launch"] and several[-4:] == target
    assert {"--num_processes=4", "--multi_gpu"} <= set(several)


@pytest.mark.parametrize(
    ("changes", "visible", "sees"),
    [
        ({"device": "cpu"}, "0,1", ""),
        ({"device": "auto"}, None, "0"),
        ({"device": "auto"}, "3,2", "3"),
        ({"device": "auto", "num_processes": 2}, "3,2", "3,2"),
    ],
)
def test_a_process_sees_the_gpus_that_it_uses(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], visible: str | None, sees: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert environment(recipe(**changes))["CUDA_VISIBLE_DEVICES"] == sees
