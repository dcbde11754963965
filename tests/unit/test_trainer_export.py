"""What is told of a version, the folder for the hub, and folders that are whole or not there."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from streams.errors import Fatal, SettingsError, Transient
from tests.support.cluster import publish
from tests.support.training import quick_recipe, write_snapshot_of_sums
from trainers.export import export, model_card
from trainers.folders import new_folder
from trainers.lineage import Lineage, lineage_of
from trainers.registry import Registry, UnknownVersion

GATE = {
    "champion": "base",
    "challenger": "haypile-v0001-a",
    "prompts": 40,
    "wins": 24,
    "losses": 12,
    "ties": 4,
    "win_rate": 0.65,
    "lower": 0.5,
    "upper": 0.78,
    "confidence": 0.95,
    "promote": True,
    "reason": "win rate 0.650: better | as the recipe asks",
}


@pytest.fixture
async def registry(tmp_path: Path) -> Registry:
    """Two generations; the second serves."""
    registry = Registry(tmp_path / "registry")
    recipe = quick_recipe().model_dump(mode="json") | {"base_model": "/secret/folder"}
    parent = None
    for name in "ab":
        snapshot = await write_snapshot_of_sums(tmp_path / "secret-snapshots", name, train=3, held_out=2)
        version = publish(
            registry,
            tmp_path,
            name,
            snapshot=snapshot,
            parent=parent,
            base_model="org/model",
            recipe=recipe,
            judge="judge-1",
            metrics={"prompts": 3, "sft_loss_after": 1.25},
            now_ms=1_790_000_000_000,
        )
        registry.set_gate(version, GATE | {"rows": []})
        registry.set_champion(version, reason="gate", by="trainer")
        parent = version
    return registry


def lineage(registry: Registry) -> Lineage:
    return lineage_of(registry, "v0002-b")


async def test_lineage_tells_snapshot_prompts_judge_recipe_parents_gate_and_history(registry: Registry) -> None:
    found = lineage(registry)
    assert found.is_champion
    assert [(a.version, a.prompts, a.judge, a.win_rate, a.removed) for a in found.ancestors] == [
        ("v0002-b", 3, "judge-1", 0.65, False),
        ("v0001-a", 3, "judge-1", 0.65, False),
    ]
    assert found.snapshot is not None and found.snapshot["rows"] == {"train": 3, "eval": 2}
    assert [change.version for change in found.history] == ["v0002-b"]
    registry.set_champion("v0001-a", reason="bad", by="me", kind="rollback")
    assert [change.kind for change in lineage(registry).history] == ["promote", "rollback"]
    registry.remove("v0002-b", now_ms=5)
    assert lineage(registry).manifest.pruned_at == 5
    assert lineage_of(registry, "v0001-a").ancestors[0].removed is False


async def test_the_card_is_one_that_the_hub_reads_and_says_what_is_known(registry: Registry) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard(model_card(lineage(registry), is_merged=False))
    data = card.data
    assert (data.base_model, data.library_name, data.pipeline_tag) == ("org/model", "peft", "text-generation")
    [result] = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_type) == ("win_rate", 0.65, "b")
    for text in (
        "| v0002-b | b | 3 | judge-1 | 0.650 |",
        "| v0001-a | a | 3 | judge-1 | 0.650 |",
        "3 prompts for training, 2 held out",
        "| sft_loss_after | 1.25 |",
        "24 won, 12 lost, 4 tied; win rate 0.650 [0.500, 0.780] at 95%",
    ):
        assert text in card.text
    recipe = yaml.safe_load(card.text.split("```yaml\n")[1].split("```")[0])
    assert recipe["sft"]["max_steps"] == 6
    merged = ModelCard(model_card(lineage(registry), is_merged=True))
    assert merged.data.library_name == "transformers" and "lora" not in merged.data.tags


async def test_nothing_of_this_machine_is_in_the_card(registry: Registry, tmp_path: Path) -> None:
    text = model_card(lineage(registry), is_merged=False)
    assert "secret" not in text and str(tmp_path) not in text


async def test_an_exported_adapter_is_its_two_files_and_the_card(registry: Registry, tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as folder:
        export(lineage(registry), registry.path("v0002-b"), folder, base_model=None)
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/model"


@pytest.mark.parametrize("there", ["file", "folder"])
def test_nothing_is_overwritten(tmp_path: Path, there: str) -> None:
    out = tmp_path / "out"
    if there == "file":
        out.write_text("x")
    else:
        out.mkdir()
        (out / "x").write_text("x")
    with pytest.raises(SettingsError, match="exists"), new_folder(out):
        pytest.fail("not reached")
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise ValueError

    with pytest.raises(ValueError), new_folder(tmp_path / "deep" / "out") as folder:
        fail(folder)
    assert list((tmp_path / "deep").iterdir()) == []
    (tmp_path / "deep" / "out").mkdir()  # empty is fine
    with new_folder(tmp_path / "deep" / "out") as folder:
        (folder / "whole").write_text("x")
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["out"]
    assert (tmp_path / "deep" / "out").stat().st_mode & 0o005 == 0o005


class Told:
    """What a command prints."""

    def __init__(self, registry: Registry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HAYPILE_TRAINING__REGISTRY", str(registry.root))
        monkeypatch.chdir(registry.root)
        self.capsys = capsys

    def of(self, command: Any, *arguments: Any, **options: Any) -> str:
        command(*arguments, **options)
        return self.capsys.readouterr().out


async def test_show_tells_it_to_people_and_to_scripts(
    registry: Registry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploy.commands import models

    told = Told(registry, capsys, monkeypatch)
    text = told.of(models.show, "champion")
    for part in ("v0002-b (the champion)", "parent       v0001-a", "judge        judge-1", "3 prompts, 2 held out",
                 "promote: win rate 0.650", "served from here on: promote by trainer (gate)"):  # fmt: skip
        assert part in text
    found = json.loads(told.of(models.show, "v0001-a", as_json=True))
    assert found["manifest"]["version"] == "v0001-a" and found["snapshot"]["rows"]["train"] == 3


async def test_another_base_model_is_not_merged(
    registry: Registry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from deploy.commands import models

    Told(registry, capsys, monkeypatch)
    with pytest.raises(Fatal, match="was trained on org/model, and org/other is org/other"):
        models.merge("v0002-b", out=tmp_path / "out", base="org/other")
    assert not (tmp_path / "out").exists()


def test_a_refused_version_is_promoted_by_force_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploy.commands import models

    registry = Registry(tmp_path / "registry")
    by_gate, by_canary = (publish(registry, tmp_path, name) for name in "ab")
    registry.set_gate(by_gate, {"promote": False})
    registry.set_gate(by_canary, {"promote": True})
    registry.set_canary(by_canary, {"passed": False, "reason": "is empty", "probes": []})
    told = Told(registry, capsys, monkeypatch)
    monkeypatch.setenv("HAYPILE_SERVING__URLS", '["http://127.0.0.1:1"]')
    for version in (by_gate, by_canary):
        with pytest.raises(Fatal, match="was refused"):
            models.promote(version)
        with pytest.raises(Transient, match="not reachable"):  # so it tried
            models.promote(version, force=True)
    with pytest.raises(UnknownVersion):
        models.promote("v0009-x")
    assert "failed the canary" in told.of(models.list_) and registry.champion().history == []
