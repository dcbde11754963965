"""`python -m tests.evidence [cpu|gpu|FILE] [--write]`, `make evidence`.

What is done already (ratings, runs that are complete) is kept under `var/evidence` and not done again.
"""

import argparse
import asyncio
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from streams.errors import HaypileError
from tests.curation.__main__ import replaced
from tests.curation.corpus import ROOT
from tests.evidence.experiment import Experiment, load
from tests.evidence.result import table
from tests.evidence.stream import Prompt, Stream, chosen, read_stream

DOCUMENT = ROOT / "docs" / "training.md"
WORK = ROOT / "var" / "evidence"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.evidence", description=__doc__)
    parser.add_argument("experiment", nargs="?", default="cpu", help="cpu, gpu or a file like tests/evidence/cpu.yaml")
    parser.add_argument("--write", action="store_true", help="into docs/training.md instead of the terminal")
    arguments = parser.parse_args()
    try:
        experiment = load(arguments.experiment)
        found = asyncio.run(measured(experiment, WORK / Path(arguments.experiment).stem))
    except HaypileError as error:
        print(f"evidence: {error}", file=sys.stderr)
        return 2
    if arguments.write:
        document = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(replaced(document, "evidence", found), encoding="utf-8")
    else:
        print(found)
    return 0


async def measured(experiment: Experiment, work: Path) -> str:
    """All runs of the experiment; Markdown."""
    from tests.evidence.measure import losses
    from tests.evidence.run import curated, train

    stream = read_stream(experiment)
    base = _base(experiment)
    sets = {"hard": stream.hard, "other": stream.other}

    def measure(adapter: Path | None, file: Path) -> dict[str, list[float]]:
        if not file.exists():
            values = {name: losses(base, adapter, prompts, experiment.recipe) for name, prompts in sets.items()}
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"ids": _ids(sets), "losses": values}), "utf-8")
        kept = json.loads(file.read_text("utf-8"))
        if kept["ids"] != _ids(sets):
            raise HaypileError(f"{file} was measured on other prompts: remove {work} and begin anew")
        found: dict[str, list[float]] = kept["losses"]
        return found

    untrained = measure(None, work / "base.json")
    kept = await curated(stream.offered, experiment.k)
    arms: dict[str, dict[str, list[list[float]]]] = {}
    about = []
    for arm in experiment.arms:
        arms[arm] = {name: [] for name in sets}
        tokens, difficulty = [], []
        for seed in experiment.seeds:
            prompts = kept if arm == "curated" else chosen(arm, stream.offered, experiment.k, seed)
            folder = work / f"{arm}-{seed}"
            recipe = experiment.recipe.model_copy(update={"seed": seed})
            metrics = await train(folder, prompts, base, recipe)
            print(f"evidence: {arm}, seed {seed}: {metrics}", file=sys.stderr)
            values = measure(folder / "run/sft/adapter", folder / "losses.json")
            for name in sets:
                arms[arm][name].append(values[name])
            tokens.append(statistics.mean(len(p.answer) for p in prompts))
            difficulty.append(statistics.mean(p.difficulty for p in prompts))
        about.append(
            f"{arm}: difficulty {statistics.mean(difficulty):.2f}, answers of {statistics.mean(tokens):.0f} characters"
        )
    return "\n".join([_described(experiment, stream), "", table(untrained, arms), "", "; ".join(about) + "."])


def _described(experiment: Experiment, stream: Stream) -> str:
    sft = experiment.recipe.sft
    return (
        f"{experiment.recipe.base_model}, LoRA, {sft.max_steps} steps of {sft.batch_size * sft.accumulation} rows, "
        f"seeds {', '.join(map(str, experiment.seeds))}; k = {experiment.k} of {len(stream.offered):,} prompts; loss "
        f"in nats a token on the answers of {len(stream.hard)} hard and {len(stream.other)} other prompts set aside."
    )


def _base(experiment: Experiment) -> Path | str:
    """The demo's model as a folder where the recipe names it, else what the recipe says."""
    from trainers.base_model import NAME, prepare_smollm2

    if experiment.recipe.base_model == NAME:
        return prepare_smollm2(ROOT / "var/local/base")
    return experiment.recipe.base_model


def _ids(sets: dict[str, list[Prompt]]) -> Any:
    return {name: [prompt.id for prompt in prompts] for name, prompts in sets.items()}


if __name__ == "__main__":
    sys.exit(main())
