"""Direct preference optimization of the adapter that SFT made: thin over TRL's `DPOTrainer`.

What the policy is held to is the recipe's `dpo.reference`. TRL has one rule for a `PeftModel`: the reference is a copy
of the adapter that it is given. So it is given the *reference* first, copies it (or precomputes with it), and then the
policy's weights are put in place. For the base the reference is a new adapter, whose effect is zero.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from trainers.dataset import TrainingSet
from trainers.phase import (
    Curve,
    MarkComplete,
    TrainingFailure,
    arguments,
    as_dataset,
    fit,
    load_base,
    load_tokenizer,
    with_adapter,
)
from trainers.rundir import Metrics, Plan


def train(
    plan: Plan,
    data: TrainingSet,
    start: Path,
    folder: Path,
    curve: Path,
    before: float | None,
    on_before: Callable[[float], None],
) -> Metrics:
    """Train from the adapter in `start` and leave the result in `folder/adapter`."""
    return fit(make_trainer(plan, data, start, folder, curve), "dpo", folder, before, on_before)


def make_trainer(plan: Plan, data: TrainingSet, start: Path, folder: Path, curve: Path) -> DPOTrainer:
    """The policy is the adapter in `start`, the reference what the recipe says."""
    recipe = plan.recipe
    trainer = DPOTrainer(
        model=reference_model(plan, start),
        args=DPOConfig(
            **arguments("dpo", recipe.dpo, recipe, folder),
            beta=recipe.dpo.beta,
            precompute_ref_log_probs=recipe.dpo.precompute_ref_log_probs,
        ),
        train_dataset=as_dataset(data.pairs),
        eval_dataset=as_dataset(data.pairs_validation),
        processing_class=load_tokenizer(plan.base_model),
        callbacks=[Curve("dpo", curve), MarkComplete()],
    )
    set_peft_model_state_dict(trainer.model, load_file(start / "adapter_model.safetensors"), adapter_name="default")
    return trainer


def reference_model(plan: Plan, start: Path) -> PeftModel:
    """The base with the adapter that is DPO's reference, in the shape of the one in `start`."""
    recipe = plan.recipe
    base = load_base(plan.base_model, recipe)
    adapter = {"sft": str(start), "base": None, "parent": plan.parent, "champion": plan.champion}[recipe.dpo.reference]
    config: Any = PeftConfig.from_pretrained(str(start))
    config.inference_mode = False
    if adapter is None:
        model: PeftModel = get_peft_model(base, config)
        return model
    other: Any = PeftConfig.from_pretrained(adapter)
    if (other.r, other.lora_alpha, set(other.target_modules)) != (
        config.r,
        config.lora_alpha,
        set(config.target_modules),
    ):
        raise TrainingFailure(
            "reference",
            f"dpo.reference {recipe.dpo.reference}: its adapter has another shape (r {other.r}, ours {config.r})",
        )
    return with_adapter(base, Path(adapter), recipe.lora, recipe.seed)
