"""A recipe: everything about a run that is a choice of the person who trains, in one YAML file.

Recipes of the project lie in ``trainers/recipes``; a path to a file of your own is as good. A recipe is copied into the
run's folder when the run starts, so that editing the file never changes a run halfway.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from streams.errors import SettingsError

FOLDER = Path(__file__).parent / "recipes"
LAUNCH_FOLDER = Path(__file__).parent / "accelerate"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class RipRecipe(_Section):
    """What `data.pairing: rip` keeps (RIP, arXiv 2501.18578): a poor or short rejected answer, or a wide gap, is the
    mark of a poor prompt. A bound is a value, or where that is null a quantile over the pairs of the set, replay
    included. The paper kept 4,500 of 20,000 prompts; the halves here are ours, and keep half of the pairs at most."""

    min_rejected: float | None = None
    """Least reward of the rejected answer; null: the quantile decides."""
    min_rejected_quantile: float = Field(0.5, ge=0, le=1)
    """0.5: the half with the better rejected answers."""
    min_rejected_chars: int | None = Field(None, ge=0)
    """Least length of the rejected answer in characters; null: the quantile decides."""
    min_rejected_chars_quantile: float = Field(0.5, ge=0, le=1)
    """0.5: the half with the longer rejected answers."""
    max_gap: float | None = Field(None, ge=0)
    """Most that the two rewards may differ by; null: the quantile decides."""
    max_gap_quantile: float = Field(0.5, ge=0, le=1)
    """0.5: the half with the smaller gaps."""


class DataRecipe(_Section):
    """From the rows of a snapshot to training rows."""

    pairing: Literal["max_min", "max_median", "margin", "rip"] = "max_min"
    """`max_min`: best against worst answer (PiKa, Magpie). `max_median`: best against the median one, a closer pair.
    `margin`: best against the best of those that are worse by `min_margin`, the closest pair whose order is not noise.
    `rip`: as `max_min`, and only pairs that `rip` keeps."""
    rip: RipRecipe = RipRecipe()
    """Bounds of `pairing: rip`."""
    min_margin: float = Field(0.5, ge=0)
    """Least difference of the two rewards (the judge's scale is 1..9): below it the order of a pair is noise."""
    min_reward: float | None = None
    """SFT target must have at least this reward; null: the best answer is taken whatever it is worth."""
    max_rows: int | None = Field(None, ge=1)
    """At most so many prompts of the snapshot, hardest first; null: all."""
    replay_share: float = Field(0.1, ge=0, lt=1)
    """Share of the training prompts that comes from earlier snapshots (against forgetting)."""
    replay_snapshots: int = Field(3, ge=0)
    """How many earlier snapshots of the adapter's lineage are drawn from."""
    validation_rows: int = Field(64, ge=0)
    """Prompts kept out of training to measure the loss before and after (chosen by hash; at most a tenth of all)."""


class LoraRecipe(_Section):
    """The adapter. Used for a new one; a run that starts from the champion keeps the champion's shape."""

    r: int = Field(16, ge=1)
    """Rank. At most `max_lora_rank`."""
    alpha: int = Field(32, ge=1)
    """Scale: updates count alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """On the adapter's input."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Layers with an adapter; `all-linear` is every linear layer except the output."""
    max_lora_rank: int = Field(16, ge=1)
    """What the vLLM servers are started with (`--max-lora-rank`, 16 by default): a larger adapter would not load."""

    @model_validator(mode="after")
    def _rank_fits(self) -> LoraRecipe:
        if self.r > self.max_lora_rank:
            raise ValueError(
                f"r is {self.r}, but vLLM loads adapters up to rank {self.max_lora_rank}: start it with "
                f"--max-lora-rank {self.r} and set lora.max_lora_rank to the same"
            )
        return self


class _PhaseRecipe(_Section):
    """What SFT and DPO have in common."""

    learning_rate: float = Field(gt=0, lt=1)
    """Peak of the schedule (cosine)."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    epochs: float = Field(1, gt=0)
    """Passes over the rows."""
    max_steps: int | None = Field(None, ge=1)
    """Ends earlier after so many optimizer steps; null: epochs decide."""
    batch_size: int = Field(1, ge=1)
    """Rows at once on one device."""
    accumulation: int = Field(1, ge=1)
    """Batches an optimizer step: rows a step = batch_size x accumulation x num_processes."""
    max_length: int = Field(2048, ge=16)
    """Tokens of prompt and answer together; a longer row is left out and counted, never cut."""
    save_steps: int = Field(50, ge=1)
    """A checkpoint every so many steps: what a killed run loses at most."""
    logging_steps: int = Field(10, ge=1)
    """A point of the learning curve every so many steps."""
    gradient_checkpointing: bool = True
    """Recompute activations: about 20 % slower, much less memory."""


class SftRecipe(_PhaseRecipe):
    """Supervised fine-tuning on the best-rewarded answer."""

    packing: bool = False
    """Several rows in one sequence of at most `max_length` tokens, without padding; a batch then counts such sequences.
    Rows never see each other (the attention mask is a block each), so the loss is the same."""


class DpoRecipe(_PhaseRecipe):
    """Direct preference optimization (arXiv 2305.18290)."""

    beta: float = Field(0.1, gt=0)
    """How strongly the policy is held to the reference."""
    reference: Literal["sft", "base", "parent", "champion"] = "sft"
    """What it is held to: the run's own SFT result (TRL's default; the anchor moves with each run), the base model,
    the adapter that the run started from, or the champion when DPO starts. The last two mean the base where none is."""
    precompute_ref_log_probs: bool = False
    """One pass of the reference before training instead of one in every step: pays from two epochs on."""


class EverydayRecipe(_Section):
    """The guard against forgetting: ordinary prompts, on which the challenger must not be much worse."""

    prompts: int = Field(60, ge=0)
    """At most so many, in the order of the file (`training.everyday`); 0: no such comparison."""
    min_lower_bound: float = Field(0.3, ge=0, le=1)
    """The lower end of the challenger's win rate on them must be at least this. With 60 prompts and no ties 0.3 stops
    an equal model in 8 % of all gates, and lets one that wins 30 % of them through in 4 %."""


class GateRecipe(_Section):
    """Champion against challenger on held-out prompts."""

    by: Literal["reward", "judge_pairs"] = "reward"
    """`reward`: each answer is rated alone (`reward.kind`), the higher reward wins. `judge_pairs`: the judge sees both
    answers, in both orders, and says which is better."""
    prompts: int = Field(500, ge=1)
    """At most so many, hardest first."""
    min_prompts: int = Field(30, ge=1)
    """With fewer there is no comparison: see `too_few`."""
    too_few: Literal["reject", "promote"] = "reject"
    """The verdict when there are fewer than `min_prompts`."""
    max_tokens: int = Field(1024, ge=1)
    """Of one answer."""
    temperature: float = Field(0.0, ge=0, le=2)
    """0: the same answer every time."""
    tie_margin: float = Field(0.1, ge=0)
    """By `reward`: rewards closer than this are a tie."""
    tie_preference: float = Field(0.02, ge=0, lt=0.5)
    """By `judge_pairs`: a preference this close to one half is a tie."""
    length_control: bool = False
    """Decide on the win rate at equal length (`trainers/length_control.py`), so that longer is not simply better. Both
    are reported. It needs some hundred prompts: with few, what length explains is hardly known, and the interval is
    wide."""
    min_win_rate: float = Field(0.5, ge=0, le=1)
    """The challenger's win rate (ties count half) must be above this."""
    min_lower_bound: float = Field(0.5, ge=0, le=1)
    """The lower end of its confidence interval must be at least this."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of the interval (two-sided)."""
    concurrency: int = Field(16, ge=1)
    """Prompts in flight."""
    everyday: EverydayRecipe = EverydayRecipe()


class LaunchRecipe(_Section):
    """How many processes train a run, and how they share the model (`accelerate launch`)."""

    num_processes: int = Field(1, ge=1)
    """All machines together, one a GPU. 1: plain python, nothing is launched. Each trains on its share of the rows; the
    last step of an epoch is filled up with rows from the epoch's beginning (accelerate's `even_batches`)."""
    num_machines: int = Field(1, ge=1)
    """The trainer service is the first; each other one runs `haypile trainer --join RANK` (1, 2, …). All see the same
    files under `training.work_dir`, the registry and the snapshots."""
    main_address: str | None = Field(None, pattern=r"^[^:/ ]+:\d+$")
    """`host:port` of the first machine, where the others find it; needed from two machines on."""
    config: str = Field("ddp", min_length=1)
    """A file of accelerate: `ddp` (every GPU has the whole model), `fsdp` (a share each), `deepspeed` (ZeRO stage 2:
    the optimizer's state is shared), or the path of one of your own."""

    @model_validator(mode="after")
    def _machines_fit(self) -> LaunchRecipe:
        if self.num_processes % self.num_machines:
            raise ValueError(
                f"num_processes {self.num_processes} is not a multiple of num_machines {self.num_machines}"
            )
        if self.num_machines > 1 and self.main_address is None:
            raise ValueError("several machines need main_address (host:port of the first)")
        return self

    def config_file(self) -> Path:
        """The file that `config` names."""
        is_path = "/" in self.config or self.config.endswith((".yaml", ".yml", ".json"))
        return Path(self.config).absolute() if is_path else LAUNCH_FOLDER / f"{self.config}.yaml"


class Recipe(_Section):
    """A whole recipe."""

    base_model: str = Field(min_length=1)
    """Folder or hub name; `training.base_model` in the settings beats it."""
    device: Literal["auto", "cpu"] = "auto"
    """`cpu` keeps away from a GPU that is there."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the frozen base model. The adapter is always float32."""
    start: Literal["champion", "base"] = "champion"
    """What a run trains on from: the adapter that serves (the base model where none does), or always the base model."""
    seed: int = 17
    """Of initialisation, order and validation split."""
    report_to: list[Literal["tensorboard", "mlflow", "wandb"]] = []
    """Where the learning curves go as well. TensorBoard: files in the run's folder; the other two are set by their own
    environment variables (`MLFLOW_TRACKING_URI`, `WANDB_API_KEY`, …). The package must be installed."""
    launch: LaunchRecipe = LaunchRecipe()
    data: DataRecipe = DataRecipe()
    lora: LoraRecipe = LoraRecipe()
    sft: SftRecipe
    dpo: DpoRecipe
    gate: GateRecipe = GateRecipe()


def names() -> list[str]:
    """Recipes of the project."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """The recipe `name` of the project, or the file at the path `name` (it ends in .yaml or .yml, or has a slash).

    Raises `SettingsError`: one line with the file, the key and what is wrong.
    """
    is_path = "/" in name or name.endswith((".yaml", ".yml"))
    file = Path(name) if is_path else FOLDER / f"{name}.yaml"
    if not is_path and not file.is_file():
        raise SettingsError(f"training.recipe: there is no recipe {name!r} (there are {', '.join(names())})")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"training.recipe: cannot read {file}: {error}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"training.recipe: {file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise SettingsError(f"training.recipe: {file} must be a mapping")
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(_problem(e["loc"], e["msg"], e["type"]) for e in error.errors())
        raise SettingsError(f"recipe {file}: {problems}") from None
    if not recipe.launch.config_file().is_file():
        ours = ", ".join(sorted(config.stem for config in LAUNCH_FOLDER.glob("*.yaml")))
        raise SettingsError(f"recipe {file}: launch.config: no file {recipe.launch.config_file()} (there are {ours})")
    return recipe


def _problem(loc: tuple[int | str, ...], message: str, kind: str) -> str:
    key = ".".join(str(part) for part in loc) or "recipe"
    if kind == "extra_forbidden":
        return f"{key} is not a key of a recipe"
    return f"{key}: {message.removeprefix('Value error, ')}"
