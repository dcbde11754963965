"""The experiment's settings: `cpu.yaml`, `gpu.yaml` or a file of your own."""

from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from streams.errors import SettingsError
from trainers.recipe import Recipe

FOLDER = Path(__file__).parent
Arm = Literal["curated", "random", "longest"]
NAMES: tuple[Arm, ...] = ("curated", "random", "longest")


class Experiment(BaseModel):
    """Same model, same number of steps, same stream; only the choice of the k prompts differs."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    stream: Path | None = None
    """JSON lines with `prompt` and `response`; null: GSM8K and self-instruct of `../shared/data`, with answers."""
    prompts: int | None = Field(None, ge=1)
    """At most so many of them, by hash; null: all."""
    judge: Literal["demo", "vllm"] = "demo"
    """`demo`: the demo's judge in this process. `vllm`: that of haypile's settings (`judge.urls`, `judge.model`)."""
    arms: list[Arm] = list(NAMES)
    """`curated`: the k that the buffer keeps by difficulty. `random`: a draw, another for each seed. `longest`: the k
    longest prompts, since difficulty goes with length and must be worth more than it."""
    k: int = Field(ge=2)
    """Prompts to train on."""
    held_out: int = Field(ge=2)
    """Prompts to measure on, half of them the hardest of those set aside."""
    aside: float = Field(0.2, gt=0, lt=1)
    """Share of the stream that is set aside, by hash: never offered to any arm."""
    seeds: list[int] = Field(min_length=2)
    """Of the run (order, adapter's start) and of the random draw."""
    recipe: Recipe
    """Of `trainers`; only SFT happens, as each prompt has one answer."""

    @model_validator(mode="after")
    def _steps_are_given(self) -> Self:
        if self.recipe.sft.max_steps is None:
            raise ValueError("recipe.sft.max_steps must be given: all arms take the same number of steps")
        return self


def load(name: str) -> Experiment:
    """The experiment `name` of this folder or in a file. Raises `SettingsError`."""
    file = FOLDER / f"{name}.yaml" if (FOLDER / f"{name}.yaml").exists() else Path(name)
    try:
        return Experiment.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"evidence: cannot read {file}: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise SettingsError(f"evidence: {file}: {problems}") from None
