"""Supervised fine-tuning of the adapter on the best-rewarded answers: thin over TRL's `SFTTrainer`."""

from collections.abc import Callable
from pathlib import Path

from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from trainers.dataset import TrainingSet
from trainers.phase import Curve, MarkComplete, arguments, as_dataset, fit, load_base, load_tokenizer, with_adapter
from trainers.rundir import Metrics, Plan


def train(
    plan: Plan, data: TrainingSet, folder: Path, curve: Path, before: float | None, on_before: Callable[[float], None]
) -> Metrics:
    """Train and leave the adapter in `folder/adapter`."""
    return fit(make_trainer(plan, data, folder, curve), "sft", folder, before, on_before)


def make_trainer(plan: Plan, data: TrainingSet, folder: Path, curve: Path) -> SFTTrainer:
    """Starts from the parent's adapter, or a new one.

    The rows are TRL's conversational prompt-completion format: it applies the model's chat template and takes the loss
    of the completion only.
    """
    recipe = plan.recipe
    model = with_adapter(
        load_base(plan.base_model, recipe), Path(plan.parent) if plan.parent else None, recipe.lora, recipe.seed
    )
    args = arguments("sft", recipe.sft, recipe, folder)
    return SFTTrainer(
        model=model,
        args=SFTConfig(**args, packing=recipe.sft.packing, completion_only_loss=True),
        train_dataset=as_dataset(data.sft),
        eval_dataset=as_dataset(data.sft_validation),
        processing_class=load_tokenizer(plan.base_model),
        callbacks=[Curve("sft", curve), MarkComplete()],
    )
