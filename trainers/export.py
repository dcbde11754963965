"""An adapter, or the model merged from it, as a folder for the Hugging Face hub, with a card made from its lineage.

The card says what is known and nothing else. Prompts, answers and paths of this machine stay here.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from trainers.adapter_files import CONFIG, WEIGHTS
from trainers.lineage import Lineage, when
from trainers.merge import merge

RECIPE_SECTIONS = ("data", "lora", "sft", "dpo", "gate")


def export(lineage: Lineage, adapter: Path, folder: Path, *, base_model: str | None) -> None:
    """Fill `folder`: the adapter's two files, or with `base_model` (folder or hub name) the merged model; and the card.

    Raises `Fatal` where merging fails.
    """
    if base_model is None:
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(adapter / name, folder / name)
    else:
        merge(base_model, adapter, folder)
    (folder / "README.md").write_text(model_card(lineage, is_merged=base_model is not None), encoding="utf-8")


def model_card(lineage: Lineage, *, is_merged: bool) -> str:
    """The card: YAML front matter in the hub's terms, then Markdown."""
    from huggingface_hub import EvalResult, ModelCardData

    manifest = lineage.manifest
    gate = manifest.gate or {}
    results = None
    if gate.get("win_rate") is not None:
        results = [
            EvalResult(
                task_type="text-generation",
                dataset_type=_name(manifest.snapshot),
                dataset_name="prompts held out from training",
                metric_type="win_rate",
                metric_name=f"win rate against {gate.get('champion', 'the champion')}",
                metric_value=round(float(gate["win_rate"]), 4),
            )
        ]
    data = ModelCardData(
        base_model=manifest.base_model,
        library_name="transformers" if is_merged else "peft",
        pipeline_tag="text-generation",
        tags=["haypile", "sft", "dpo", "trl", *([] if is_merged else ["lora"])],
        model_name=manifest.version,
        eval_results=results,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {manifest.version}",
        _what(lineage, is_merged),
        "## Where it comes from",
        _table(("version", "snapshot", "prompts", "judge", "win rate"), _lineage_rows(lineage)),
        _data(lineage),
        "## Training",
        _training(manifest.metrics),
        f"```yaml\n{yaml.safe_dump(_recipe(manifest.recipe), sort_keys=False, width=100)}```",
        "## Comparison with the model that served",
        _gate(gate),
        "## Use",
        _use(manifest.base_model, is_merged),
        "## Limits",
        "Trained on prompts of a live stream that a model judged to be hard. The comparison above is by a model's "
        "rating, on prompts of the same stream. Nothing else was measured. The base model's licence and limits apply.",
    ]
    return "\n\n".join(parts) + "\n"


def _what(lineage: Lineage, is_merged: bool) -> str:
    manifest = lineage.manifest
    kind = "The full weights of" if is_merged else "A LoRA adapter for"
    return (
        f"{kind} `{manifest.base_model}`{' with an adapter merged in' if is_merged else ''}, trained by SFT on the "
        f"best-rewarded answer of each prompt and DPO on the best against a worse one. Made by run "
        f"`{manifest.run_id}`, {when(manifest.created_at)}."
    )


def _lineage_rows(lineage: Lineage) -> list[Sequence[object]]:
    rows: list[Sequence[object]] = []
    for step in lineage.ancestors:
        rate = "" if step.win_rate is None else f"{step.win_rate:.3f}"
        rows.append((step.version, _name(step.snapshot), step.prompts or "", step.judge or "", rate))
    rows.append((lineage.manifest.base_model, "", "", "", ""))
    return rows


def _data(lineage: Lineage) -> str:
    snapshot = lineage.snapshot
    if snapshot is None:
        return "Its own snapshot is no longer kept."
    rows = snapshot["rows"]
    reasons = ", ".join(str(reason) for reason in snapshot["reasons"] or []) or "not recorded"
    return (
        f"Its own snapshot is of {snapshot['created_at']}: {rows.get('train', 0)} prompts for training, "
        f"{rows.get('eval', 0)} held out. The run was decided because of: {reasons}."
    )


def _training(metrics: Mapping[str, Any]) -> str:
    rows = [(name, f"{value:g}" if isinstance(value, float) else value) for name, value in sorted(metrics.items())]
    return _table(("metric", "value"), rows) if rows else "No metrics were recorded."


def _recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Without the base model, which may be a path."""
    return {name: recipe[name] for name in ("dtype", "seed", *RECIPE_SECTIONS) if name in recipe}


def _gate(gate: Mapping[str, Any]) -> str:
    if not gate:
        return "There was none."
    return (
        f"Against `{gate.get('champion')}` on {gate.get('prompts')} held-out prompts: {gate.get('wins')} won, "
        f"{gate.get('losses')} lost, {gate.get('ties')} tied; win rate {gate.get('win_rate', 0):.3f} "
        f"[{gate.get('lower', 0):.3f}, {gate.get('upper', 0):.3f}] at {gate.get('confidence', 0):.0%}. "
        f"Verdict: {'promote' if gate.get('promote') else 'reject'} ({gate.get('reason')})."
    )


def _use(base_model: str, is_merged: bool) -> str:
    if is_merged:
        return "```\nvllm serve THIS_FOLDER\n```"
    return f"```\nvllm serve {base_model} --enable-lora --lora-modules tuned=THIS_FOLDER\n```"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _name(path: str) -> str:
    """The last part of a snapshot's path."""
    return path.rstrip("/").rsplit("/", 1)[-1]
