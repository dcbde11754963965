"""Training through our recipe and runner beside a plain TRL script, and our settings beside TRL's defaults.

The plain script is the shortest that does the same: the same model, adapter, rows, batches, learning rate and
checkpoints, with TRL's own trainers. Speed is taken from the log of the first step to that of the last: loading, and
the loss before and after, do not count. Tokens are those of prompts and answers, without padding (TRL's
`num_tokens`).

`python -m tests.benchmarks.training CONTESTANT FOLDER` trains the run in FOLDER and prints what it measured.
"""

import asyncio
import json
import random
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from streams.buffer.base import BufferRules, Offer
from streams.buffer.memory import MemoryBuffer
from streams.records import Candidate
from streams.snapshots import write_snapshot
from tests.benchmarks.harness import Effort, Goal, Row, Spread, ratio, take_turns
from tests.benchmarks.load import Texts, scored_prompt
from tests.benchmarks.services import report_of
from tests.support.real_vllm import base_model
from tests.support.training import run_folder, tiny_model
from trainers.recipe import Recipe, load_recipe
from trainers.rundir import Plan, RunFolder

ROWS = 96


def measure(effort: Effort) -> list[Row]:
    """Steps/s of both phases, tokens/s of SFT."""
    with TemporaryDirectory(prefix="haypile-bench-") as name:
        folder = Path(name)
        model = tiny_model(base_model(), folder / "tiny") if effort.quick else base_model()
        snapshot = asyncio.run(_snapshot(folder / "snapshots"))
        recipe = _recipe(effort)
        found: dict[str, list[dict[str, float]]] = {"haypile": [], "plain": [], "ours": [], "defaults": []}

        def run(contestant: str) -> float:
            place = folder / f"{contestant}-{len(found[contestant])}"
            run_folder(place, snapshot, model, recipe)
            found[contestant].append(report_of("tests.benchmarks.training", contestant, place))
            return 1.0

        take_turns({name: lambda name=name: run(name) for name in found}, effort.few_rounds, 0)  # type: ignore[misc]

    def spread(contestant: str, what: str) -> tuple[float, ...]:
        return tuple(report[what] for report in found[contestant])

    phases = [
        Row(
            question="training",
            haypile=f"steps/s of {phase.upper()}, SmolLM2-135M, the recipe `demo`",
            against="a plain TRL script, same data and settings",
            goal=Goal(at_least=0.98),
            ours=Spread(spread("haypile", phase), "/s"),
            theirs=Spread(spread("plain", phase), "/s"),
            measured=ratio(spread("haypile", phase), spread("plain", phase)),
        )
        for phase in ("sft", "dpo")
    ]
    tokens = Row(
        question="training",
        haypile="tokens/s of SFT with the settings of the recipe `demo`",
        against="TRL's defaults for the same rows (without bf16, which this processor emulates)",
        goal=Goal(at_least=1.3),
        ours=Spread(spread("ours", "tokens"), "/s"),
        theirs=Spread(spread("defaults", "tokens"), "/s"),
        measured=ratio(spread("ours", "tokens"), spread("defaults", "tokens")),
    )
    return [*phases, tokens]


def _recipe(effort: Effort) -> Recipe:
    """`demo` with a log of every step, without the loss before and after."""
    content = load_recipe("demo").model_dump()
    content["data"] |= {"validation_rows": 0}
    content["sft"] |= {"logging_steps": 1, "max_steps": effort.pick(9, 3)}
    content["dpo"] |= {"logging_steps": 1, "max_steps": effort.pick(9, 3)}
    return Recipe.model_validate(content)


async def _snapshot(dest: Path) -> str:
    """Prompts as long as the project's, with answers of some 20 to 150 tokens."""
    buffer, texts, rng = MemoryBuffer(BufferRules(ROWS)), Texts(1), random.Random(1)
    listed = [Offer(prompt=scored_prompt(f"t{i}", texts.ordinary(), 5.0), rank_key=float(i)) for i in range(ROWS)]
    await buffer.offer(listed, [])
    for offer in listed:
        candidates = [
            Candidate(text=texts.of(rng.randrange(80, 600)), reward=reward, origin="teacher", model="t")
            for reward in (8.0, 5.0, 2.0)
        ]
        await buffer.attach(offer.prompt.id, candidates)
    kept = MemoryBuffer(BufferRules(1))
    return await write_snapshot(str(dest), "rows", buffer, kept, decision={}, settings={}, now_ms=1)


def per_s(times: list[float]) -> float:
    """Steps/s from the moments of their logs."""
    return (len(times) - 1) / (times[-1] - times[0])


def haypile(folder: RunFolder) -> dict[str, float]:
    """The training process itself."""
    from trainers.run import attempt

    if attempt(folder):
        raise RuntimeError((folder.path / "error.json").read_text())
    points = folder.points()
    return {
        phase: per_s([point["ts"] / 1000 for point in points if point["phase"] == phase and "loss" in point])
        for phase in ("sft", "dpo")
    }


def plain(folder: RunFolder) -> dict[str, float]:
    """What somebody writes who has read TRL's pages on SFT and DPO with PEFT."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    plan, recipe = _plan(folder)
    tokenizer = AutoTokenizer.from_pretrained(plan.base_model)
    data = _data(plan, tokenizer)
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=recipe.lora.r, lora_alpha=recipe.lora.alpha, target_modules=recipe.lora.target_modules
    )
    sft_clock, dpo_clock = _clock(), _clock()
    sft = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(plan.base_model, dtype="float32"),
        args=SFTConfig(**_same(recipe.sft, recipe, folder.path / "sft")),
        train_dataset=Dataset.from_list(data.sft),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[sft_clock],
    )
    sft.train()
    dpo = DPOTrainer(
        model=sft.model,
        args=DPOConfig(**_same(recipe.dpo, recipe, folder.path / "dpo"), beta=recipe.dpo.beta),
        train_dataset=Dataset.from_list(data.pairs),
        processing_class=tokenizer,
        callbacks=[dpo_clock],
    )
    dpo.train()
    return {"sft": per_s(sft_clock.times), "dpo": per_s(dpo_clock.times)}


def _same(phase: Any, recipe: Recipe, folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": phase.batch_size,
        "learning_rate": phase.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": phase.warmup,
        "max_steps": phase.max_steps,
        "max_length": phase.max_length,
        "gradient_checkpointing": phase.gradient_checkpointing,
        "logging_steps": phase.logging_steps,
        "save_steps": phase.save_steps,
        "save_total_limit": 2,
        "use_cpu": True,
        "bf16": False,
        "seed": recipe.seed,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def ours(folder: RunFolder) -> dict[str, float]:
    """SFT with the recipe's settings."""
    plan, recipe = _plan(folder)
    return _tokens(plan, _same(recipe.sft, recipe, folder.path / "sft"))


def defaults(folder: RunFolder) -> dict[str, float]:
    """SFT with TRL's settings: only what makes it run here, log and end is set."""
    plan, _ = _plan(folder)
    needed = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "logging_steps": 1}
    return _tokens(plan, {"output_dir": str(folder.path / "sft"), "max_steps": 4, **needed})


def _tokens(plan: Plan, arguments: dict[str, Any]) -> dict[str, float]:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(plan.base_model)
    clock = _clock()
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(plan.base_model, dtype="float32"),
        args=SFTConfig(**arguments),
        train_dataset=Dataset.from_list(_data(plan, tokenizer).sft),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear"),
        callbacks=[clock],
    )
    trainer.train()
    return {"tokens": (clock.tokens[-1] - clock.tokens[0]) / (clock.times[-1] - clock.times[0])}


def _clock() -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """The moment of each step's log, and the tokens until then."""

        def __init__(self) -> None:
            self.times: list[float] = []
            self.tokens: list[float] = []

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                self.times.append(time.time())
                self.tokens.append(float(logs.get("num_tokens", 0)))

    return Clock()


def _plan(folder: RunFolder) -> tuple[Plan, Recipe]:
    plan = folder.read(Plan, "plan.json")
    if plan is None:
        raise RuntimeError(f"no plan in {folder.path}")
    return plan, plan.recipe


def _data(plan: Plan, tokenizer: Any) -> Any:
    from trainers.run import prepare

    return prepare(plan, tokenizer)


CONTESTANTS = {"haypile": haypile, "plain": plain, "ours": ours, "defaults": defaults}

if __name__ == "__main__":
    print(json.dumps(CONTESTANTS[sys.argv[1]](RunFolder(Path(sys.argv[2])))))
