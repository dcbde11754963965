"""What SFT and DPO share: the model with its adapter, TRL's arguments, checkpoints that can be trusted, the curve.

Heavy imports: only the training process loads this module.
"""

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from streams.errors import HaypileError
from trainers.recipe import DpoRecipe, LoraRecipe, Recipe, SftRecipe
from trainers.reporting import configure
from trainers.rundir import Metrics

COMPLETE = "complete"
"""Marker in a checkpoint, written after everything else: one without it was cut short by a kill."""


class TrainingFailure(HaypileError):
    """The run cannot succeed; `reason` is a short code for `error.json`."""

    def __init__(self, reason: str, error: str) -> None:
        super().__init__(error)
        self.reason = reason


def load_tokenizer(base_model: str) -> PreTrainedTokenizerBase:
    """The base model's tokenizer. Raises `TrainingFailure` when it is missing or has no chat template."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base_model)
    except (OSError, ValueError) as error:
        raise TrainingFailure("model", f"cannot load the tokenizer of {base_model}: {_line(error)}") from None
    if not tokenizer.chat_template:
        raise TrainingFailure("model", f"{base_model} has no chat template: take an instruct model")
    return tokenizer


def load_base(base_model: str, recipe: Recipe) -> Any:
    """The frozen base model in the recipe's dtype, on the CPU (the trainer moves it)."""
    try:
        return AutoModelForCausalLM.from_pretrained(
            base_model, dtype=getattr(torch, recipe.dtype), use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise TrainingFailure("model", f"cannot load {base_model}: {_line(error)}") from None


def with_adapter(base: Any, adapter: Path | None, lora: LoraRecipe, seed: int) -> PeftModel:
    """The base with a trainable adapter: the one in the folder, or a new one whose effect is zero."""
    set_seed(seed)  # LoRA's A is random
    if adapter is None:
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
        )
        model: PeftModel = get_peft_model(base, config)
        return model
    try:
        return PeftModel.from_pretrained(base, str(adapter), is_trainable=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainingFailure("model", f"cannot start from the adapter {adapter}: {_line(error)}") from None


def arguments(name: str, phase: SftRecipe | DpoRecipe, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """What `SFTConfig` and `DPOConfig` are both given; `folder` is the phase's in the run's folder."""
    on_cpu = recipe.device == "cpu" or not torch.cuda.is_available()
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": phase.batch_size,
        "per_device_eval_batch_size": phase.batch_size,
        "gradient_accumulation_steps": phase.accumulation,
        "learning_rate": phase.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": phase.warmup,
        "num_train_epochs": phase.epochs,
        "max_steps": phase.max_steps or -1,
        "max_length": phase.max_length,
        "gradient_checkpointing": phase.gradient_checkpointing,
        "logging_steps": phase.logging_steps,
        "save_strategy": "steps",
        "save_steps": phase.save_steps,
        "save_total_limit": 2,
        "use_cpu": on_cpu,
        # TRL switches bf16 autocast on unless told otherwise; on a CPU it is slower and loses precision.
        "bf16": recipe.dtype == "bfloat16" and not on_cpu,
        "seed": recipe.seed,
        **configure(recipe, folder.parent, name),
        "disable_tqdm": True,
        "dataloader_pin_memory": not on_cpu,
    }


class Curve(TrainerCallback):
    """Appends each logged loss to the run's curve: `{"phase", "step", "steps", "loss" | "eval_loss", …, "ts"}`.

    `steps` is how many there will be. `tokens_per_s` is of all processes, prompts and answers, since the point before.
    """

    def __init__(self, phase: str, file: Path) -> None:
        self.phase = phase
        self.file = file
        self._point_before = time.monotonic(), 0.0
        """When, and how many tokens had been seen then: TRL counts from 0 in each process."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._point_before = time.monotonic(), 0.0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        wanted = ("loss", "eval_loss", "learning_rate", "grad_norm", "rewards/margins", "rewards/accuracies")
        point = {name: float(logs[name]) for name in wanted if logs and name in logs}
        if state.is_world_process_zero and ("loss" in point or "eval_loss" in point):
            if any(not math.isfinite(value) for name, value in point.items() if name.endswith("loss")):
                raise TrainingFailure("diverged", f"{self.phase}: the loss is not finite at step {state.global_step}")
            if logs and "loss" in point and "num_tokens" in logs:
                point["tokens_per_s"] = self._tokens_per_s(float(logs["num_tokens"]))
            step = {"step": state.global_step, "steps": state.max_steps}
            line = {"phase": self.phase, **step, **point, "ts": int(time.time() * 1000)}
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _tokens_per_s(self, tokens: float) -> float:
        now = time.monotonic()
        (then, tokens_then), self._point_before = self._point_before, (now, tokens)
        return round((tokens - tokens_then) / max(now - then, 1e-3), 1)


class MarkComplete(TrainerCallback):
    """Marks a checkpoint when all of it is there.

    DPO's frozen copy `ref/` is taken out first: with it there, `Trainer` would load *only* the subfolder on resume and
    silently go on from the weights before the checkpoint. The reference is rebuilt on resume anyway.
    """

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()  # each process writes the state of its own random numbers
        if state.is_world_process_zero:
            checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            shutil.rmtree(checkpoint / "ref", ignore_errors=True)
            (checkpoint / COMPLETE).touch()


def last_checkpoint(folder: Path) -> Path | None:
    """The latest complete checkpoint of a phase. Incomplete ones are removed by the main process."""
    complete: list[tuple[int, Path]] = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / COMPLETE).exists():
            complete.append((int(checkpoint.name.rsplit("-", 1)[1]), checkpoint))
        elif PartialState().is_main_process:
            shutil.rmtree(checkpoint, ignore_errors=True)
    return max(complete)[1] if complete else None


def fit(
    trainer: Trainer, phase: str, folder: Path, before: float | None, on_before: Callable[[float], None]
) -> Metrics:
    """Train from the last complete checkpoint, if any, and save the adapter to `folder/adapter`.

    `before` is the validation loss that an earlier attempt measured (it cannot be measured again after a resume);
    `on_before` gets it when it is measured here. Returns `<phase>_loss_before|after` (of the validation rows where
    there are any, else of the first and last point of the curve), `_steps`, `_seconds`. Under FSDP and DeepSpeed the
    loss of the validation rows before is null: `Trainer` measures such a model only once it trains it.
    """
    started = time.monotonic()
    checkpoint = last_checkpoint(folder)
    has_validation = trainer.eval_dataset is not None
    deepspeed = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    if deepspeed is not None and deepspeed.zero_stage == 3:
        raise TrainingFailure("recipe", "launch.config: ZeRO stage 3 cuts the adapter up: take stage 2, or fsdp")
    can_measure = not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)
    if has_validation and can_measure and before is None and checkpoint is None:
        before = float(trainer.evaluate()["eval_loss"])
        on_before(before)
    training = time.monotonic()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.args.report_to and has_validation:
        # TensorBoard names its files by the second: measured within one, the loss after would overwrite the curve.
        time.sleep(max(0.0, 1.1 - (time.monotonic() - training)))
    losses = [float(point["loss"]) for point in trainer.state.log_history if "loss" in point]
    after = float(trainer.evaluate()["eval_loss"]) if has_validation else (losses[-1] if losses else None)
    if not has_validation:
        before = losses[0] if losses else None
    _save(trainer, folder)
    return {
        f"{phase}_loss_before": before,
        f"{phase}_loss_after": after,
        f"{phase}_steps": trainer.state.global_step,
        f"{phase}_seconds": round(time.monotonic() - started, 1),
    }


def _save(trainer: Trainer, folder: Path) -> None:
    """The adapter alone (no reference, no optimizer), by rename. Weights that are not finite: `TrainingFailure`."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    weights = {name: p for name, p in model.named_parameters() if ".default." in name}
    if trainer.is_fsdp_enabled:
        # Each process has a share: together they put the adapter (all that is trained) into the main one's memory.
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        weights = get_model_state_dict(model, options=options)
    if any(not torch.isfinite(p).all() for p in weights.values()):
        raise TrainingFailure("diverged", "the adapter has weights that are not finite: lower the learning rate")
    state = PartialState()
    if state.is_main_process:
        scratch, target = folder / "adapter.tmp", folder / "adapter"
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        gathered = {"state_dict": weights} if trainer.is_fsdp_enabled else {}
        model.save_pretrained(str(scratch), selected_adapters=["default"], **gathered)
        scratch.rename(target)
    state.wait_for_everyone()


def as_dataset(rows: list[dict[str, list[dict[str, str]]]]) -> Dataset | None:
    """Rows for TRL; None for none."""
    return Dataset.from_list(rows) if rows else None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]
