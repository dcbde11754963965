"""Merged weights are base and adapter, to rounding; as files that transformers loads."""

from pathlib import Path
from typing import Any

import pytest

from streams.errors import Fatal
from tests.support.real_vllm import base_model
from tests.support.training import tiny_model
from trainers.folders import new_folder
from trainers.merge import merge

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow

TURNS = [{"role": "user", "content": "What is 2 plus 3?"}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(base_model(), tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: a new adapter's B is zero, which would change nothing."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data *= 3  # an effect that no rounding hides
    model.save_pretrained(folder)
    return folder


def logits(model: Any, folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(TURNS, add_generation_prompt=True, return_dict=False)
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits


def test_the_merged_model_says_what_base_and_adapter_say(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "merged"
    with new_folder(out) as folder:
        merge(str(tiny), adapter, folder)
    merged = AutoModelForCausalLM.from_pretrained(out)
    base = AutoModelForCausalLM.from_pretrained(tiny)
    before = logits(base, tiny)
    expected = logits(PeftModel.from_pretrained(base, adapter), tiny)
    found = logits(merged, out)
    assert torch.allclose(found, expected, atol=1e-4)
    assert (expected - before).abs().max() > 0.1, "the adapter does something"
    assert AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(tiny).chat_template
    names = {file.name for file in out.iterdir()}
    assert "model.safetensors" in names and not [name for name in names if "adapter" in name or name.endswith(".bin")]
    assert str(tiny) not in (out / "config.json").read_text()
    assert merged.dtype == base.dtype


def test_what_does_not_fit_together_is_said_in_one_line(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    for base, other in ((str(tmp_path / "nothing"), adapter), (str(tiny), tmp_path / "broken")):
        with pytest.raises(Fatal, match="cannot merge") as raised:
            merge(base, other, tmp_path / "out")
        assert "\n" not in str(raised.value)


def test_weights_that_are_not_finite_are_not_merged(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    (tmp_path / "nan").mkdir()
    (tmp_path / "nan" / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    weights = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_B" in name)
    save_file(weights | {name: weights[name] * float("nan")}, tmp_path / "nan" / "adapter_model.safetensors")
    with pytest.raises(Fatal, match="cannot merge nan"):
        merge(str(tiny), tmp_path / "nan", tmp_path / "out")
