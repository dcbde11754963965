"""Recipes: those of the project are sound, and a wrong one is one line that names file and key."""

from pathlib import Path

import pytest
import yaml

from streams.errors import SettingsError
from trainers.recipe import FOLDER, Recipe, load_recipe, names


def test_the_recipes_of_the_project() -> None:
    assert names() == ["demo", "llama-3-8b", "qwen2.5-0.5b", "qwen2.5-7b"]
    for name in names():
        recipe = load_recipe(name)
        assert recipe.lora.r <= 16, "vLLM's default --max-lora-rank"
        assert recipe.gate.temperature == 0


def test_every_field_is_documented() -> None:
    def fields(model: type) -> list[tuple[str, str | None]]:
        found = []
        for name, field in model.model_fields.items():  # type: ignore[attr-defined]
            nested = field.annotation
            if isinstance(nested, type) and hasattr(nested, "model_fields"):
                found += fields(nested)
            else:
                found.append((f"{model.__name__}.{name}", field.description))
        return found

    assert [name for name, text in fields(Recipe) if not text] == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("sft: {learning_rate: 0.0001, epoch: 2}", "sft.epoch is not a key of a recipe"),
        ("dpo: {learning_rate: 0.0001, beta: 0}", "dpo.beta"),
        ("lora: {r: 64}", "--max-lora-rank 64"),
        ("gate: {confidence: 95}", "gate.confidence"),
        ("data: {replay_share: .nan}", "data.replay_share"),
        ("base_model: ''", "base_model"),
        ("num_processes: 2", "num_processes is not a key of a recipe"),
        ("launch: {num_processes: 3, num_machines: 2}", "not a multiple of num_machines"),
        ("launch: {num_processes: 4, num_machines: 2}", "need main_address"),
        ("launch: {main_address: gpu-1}", "launch.main_address"),
        ("launch: {config: fsdq}", "launch.config: no file"),
        ("report_to: [neptune]", "report_to.0"),
        ("data: {pairing: best}", "data.pairing"),
        ("{", "is not YAML"),
        ("[]", "must be a mapping"),
    ],
)
def test_a_wrong_recipe_is_one_line_with_file_and_key(tmp_path: Path, change: str, says: str) -> None:
    file = tmp_path / "mine.yaml"
    if change in ("{", "[]"):
        file.write_text(change)
    else:
        content = yaml.safe_load((FOLDER / "demo.yaml").read_text())
        file.write_text(yaml.safe_dump(content | yaml.safe_load(change)))
    with pytest.raises(SettingsError) as raised:
        load_recipe(str(file))
    message = str(raised.value)
    assert "\n" not in message and str(file) in message and says in message


def test_an_unknown_recipe_names_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no recipe 'dmeo' \(there are demo, "):
        load_recipe("dmeo")
    with pytest.raises(SettingsError, match="cannot read"):
        load_recipe(str(tmp_path / "nothing.yaml"))


def test_a_rank_above_16_is_taken_when_vllm_allows_it(tmp_path: Path) -> None:
    content = yaml.safe_load((FOLDER / "demo.yaml").read_text()) | {"lora": {"r": 64, "max_lora_rank": 64}}
    (tmp_path / "wide.yaml").write_text(yaml.safe_dump(content))
    assert load_recipe(str(tmp_path / "wide.yaml")).lora.r == 64
