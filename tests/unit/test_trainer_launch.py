"""How the training process is started: what it may see of the machine, and through which launcher."""

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

from streams.errors import SettingsError
from tests.support.training import quick_recipe
from trainers import reporting
from trainers.launch import check, command, environment
from trainers.recipe import LAUNCH_FOLDER, Recipe


def recipe(device: str = "cpu", **launch: object) -> Recipe:
    changed = quick_recipe().model_dump() | {"device": device, "launch": launch}
    return Recipe.model_validate(changed)


def accelerates_reading(of: Recipe, rank: int = 0) -> argparse.Namespace:
    """What accelerate makes of the command, files and all."""
    launch = pytest.importorskip("accelerate.commands.launch")
    words = command(Path("/runs/a"), of, rank)
    assert words[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    parsed, _, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(words[3:]))
    found: argparse.Namespace = parsed
    return found


def test_one_process_is_plain_python() -> None:
    assert command(Path("/runs/a"), recipe()) == [sys.executable, "-m", "trainers.run", "/runs/a", "--with-parent"]


@pytest.mark.parametrize("config", sorted(file.stem for file in LAUNCH_FOLDER.glob("*.yaml")))
def test_accelerate_understands_our_files_and_the_recipe_decides_how_many(config: str) -> None:
    here = accelerates_reading(recipe("auto", num_processes=4, config=config))
    assert (here.num_processes, here.num_machines, here.machine_rank) == (4, 1, 0)
    assert (here.module, here.training_script, here.training_script_args) == (
        True,
        "trainers.run",
        ["/runs/a", "--with-parent"],
    )
    assert here.mixed_precision == "no" and not here.use_cpu and here.main_process_port == 0
    kinds = {"ddp": here.multi_gpu, "fsdp": here.use_fsdp, "deepspeed": here.use_deepspeed}
    assert [name for name, is_used in kinds.items() if is_used] == [config]

    second = accelerates_reading(
        recipe("auto", num_processes=16, num_machines=2, main_address="gpu-1:29500", config=config), rank=1
    )
    assert (second.num_processes, second.num_machines, second.machine_rank) == (16, 2, 1)
    assert (second.main_process_ip, second.main_process_port) == ("gpu-1", 29500)


def test_what_the_files_say_of_sharing_the_model() -> None:
    fsdp = accelerates_reading(recipe("auto", num_processes=2, config="fsdp"))
    assert int(fsdp.fsdp_version) == 2 and fsdp.fsdp_state_dict_type == "SHARDED_STATE_DICT"
    deepspeed = accelerates_reading(recipe("auto", num_processes=2, config="deepspeed"))
    assert deepspeed.zero_stage == 2 and not deepspeed.zero3_init_flag


def test_a_file_of_ones_own_is_taken_as_it_is(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text((LAUNCH_FOLDER / "fsdp.yaml").read_text().replace("offload_params: false", "offload_params: true"))
    assert accelerates_reading(recipe("auto", num_processes=2, config=str(own))).fsdp_offload_params is True


def test_what_a_launch_needs_is_asked_for_before_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(recipe("auto", num_processes=2))
    check(recipe("auto", config="nothing-that-one-process-needs.yaml"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"launch\.config: deepspeed is not installed: pip install deepspeed"):
        check(recipe("auto", num_processes=2, config="deepspeed"))
    own = tmp_path / "own.yaml"
    for content, says in (("[", "cannot read"), ("a: 1", "has no distributed_type"), ("", "has no distributed_type")):
        own.write_text(content)
        with pytest.raises(SettingsError, match=says):
            check(recipe("auto", num_processes=2, config=str(own)))


@pytest.mark.parametrize("tool", ["mlflow", "wandb", "tensorboard"])
def test_a_curve_cannot_go_to_a_tool_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tool: str) -> None:
    asked = Recipe.model_validate(quick_recipe().model_dump() | {"report_to": [tool]})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    reporting.check(quick_recipe())
    with pytest.raises(SettingsError, match=f"report_to: {tool} is not installed: pip install {tool}"):
        reporting.check(asked)


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
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], visible: str | None, sees: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert environment(recipe(**changes))["CUDA_VISIBLE_DEVICES"] == sees
