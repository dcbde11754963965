"""The learning curves for tools that a team has already: TensorBoard, MLflow, Weights & Biases. transformers writes to
them; here is what it needs to find its way. `curve.jsonl`, `train.events` and the metrics have the curves anyway."""

import importlib.util
import os
from pathlib import Path

from streams.errors import SettingsError
from trainers.recipe import Recipe

PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow",), "wandb": ("wandb",)}
"""Any one of them will do."""


def check(recipe: Recipe) -> None:
    """Raises `SettingsError` when the recipe reports to a tool whose package is not installed: better at the start of
    the service than in every run."""
    for tool in recipe.report_to:
        if not any(importlib.util.find_spec(package) for package in PACKAGES[tool]):
            raise SettingsError(f"recipe: report_to: {tool} is not installed: pip install {PACKAGES[tool][0]}")


def configure(recipe: Recipe, run_folder: Path, phase: str) -> dict[str, object]:
    """Arguments for `TrainingArguments`. The tools' own environment variables are only added to, never replaced.

    TensorBoard's files go to `<run>/tensorboard/<phase>`; a run of MLflow or W&B is called `<run id>-<phase>`.
    """
    if "tensorboard" in recipe.report_to:
        # The one way that transformers has for it; the next phase is to have a folder of its own.
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(run_folder / "tensorboard" / phase)
    for variable in ("MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT"):
        os.environ.setdefault(variable, "haypile")
    return {"report_to": list(recipe.report_to) or "none", "run_name": f"{run_folder.name}-{phase}"}
