"""Does the gate reject a deliberately worse challenger and promote a deliberately better one, with a real judge on a
real vLLM? `make gate` (about ten minutes on two cores; GATE="--by judge_pairs" for the other way of comparing).

SmolLM2-135M against itself with an adapter of random weights: in each run, on prompts that no other run has, once with
the damaged one as the challenger, once as the champion. What was asked is kept in var/gate-power.json, so that a run
that ended goes on.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import save_file

from streams.errors import Transient
from streams.intervals import wilson
from streams.pairs import PairJudge
from streams.rewards import Rewarder
from streams.rubric import RUBRIC
from streams.settings import load_settings
from streams.vllm import VllmPool
from tests.support.real_vllm import ROOT, base_model, running_vllm
from trainers.gate import evaluate
from trainers.recipe import EverydayRecipe, GateRecipe

KEPT = ROOT / "var" / "gate-power.json"
SOURCES = ("deploy/demo/prompts.jsonl", "trainers/data/everyday.jsonl", "agents/data/anchors.jsonl")
MAX_PROMPT_CHARS = 1_200
"""Longer prompts cost more prefill than they tell."""
SHAPES = {
    "q_proj": ("h", "h"),
    "o_proj": ("h", "h"),
    "gate_proj": ("h", "i"),
    "up_proj": ("h", "i"),
    "down_proj": ("i", "h"),
}
"""Damaged layers: width in and out, of the hidden state or of the intermediate one."""


class Remembering(VllmPool):
    """Asks the same thing once: the two directions of a run share their answers and ratings."""

    known: dict[str, Any]

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        key = json.dumps([path, body], sort_keys=True)
        if key not in self.known:
            self.known[key] = await super()._post(path, body)
        return self.known[key]


def damaged(folder: Path, model: Path, deviation: float) -> None:
    """A LoRA of rank 8 with normal weights in both factors: every damaged layer gets noise of deviation²·√8·2."""
    config = json.loads((model / "config.json").read_text())
    sizes = {"h": config["hidden_size"], "i": config["intermediate_size"]}
    draw = numpy.random.default_rng(7)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for name, (width_in, width_out) in SHAPES.items():
            part = "self_attn" if name in ("q_proj", "o_proj") else "mlp"
            prefix = f"base_model.model.model.layers.{layer}.{part}.{name}"
            for factor, shape in (("lora_A", (8, sizes[width_in])), ("lora_B", (sizes[width_out], 8))):
                weights[f"{prefix}.{factor}.weight"] = draw.normal(0, deviation, shape).astype("float32")
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    adapter = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "bias": "none"}
    adapter |= {"target_modules": list(SHAPES), "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))


def prompts(count: int) -> list[dict[str, Any]]:
    """`count` different prompts of the project, in an order that is drawn once."""
    texts: dict[str, None] = {}
    for source in SOURCES:
        with (ROOT / source).open(encoding="utf-8") as lines:
            texts |= {str(json.loads(line).get("prompt", "")): None for line in lines}
    chosen = [text for text in texts if 20 <= len(text) <= MAX_PROMPT_CHARS]
    random.Random(3).shuffle(chosen)
    if len(chosen) < count:
        sys.exit(f"only {len(chosen)} prompts: fewer runs, or fewer prompts a run")
    return [
        {"prompt_id": text, "difficulty": 5.0, "messages": [{"role": "user", "content": text}]}
        for text in chosen[:count]
    ]


async def measure(url: str, adapter: Path, options: argparse.Namespace) -> None:
    # The demo's judge was not trained on pairs: half of its probability is not on A and B.
    mass = 0.5 if options.by == "reward" else 0.2
    settings = load_settings({"judge": {"urls": [url], "min_label_mass": mass}})
    recipe = GateRecipe(
        by=options.by,
        prompts=options.prompts,
        min_prompts=options.prompts // 2,
        max_tokens=options.tokens,
        tie_margin=0.05,
        concurrency=16,
        everyday=EverydayRecipe(prompts=0),
    )
    rows = prompts(options.runs * options.prompts)
    name = f"damaged-{options.deviation:g}"
    started = time.monotonic()
    promoted = {"worse": 0, "better": 0}
    rates, agree = [], []
    async with Remembering([url], timeout_s=120) as pool:
        pool.known = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        await pool.load_adapter(url, name, str(adapter))
        try:
            for run in range(options.runs):
                if time.monotonic() - started > 60 * options.minutes:
                    print(f"after {run} of {options.runs} runs the time is over: run again to go on")
                    break
                mine = rows[run * options.prompts : (run + 1) * options.prompts]
                for direction, pair in (("worse", ("base", name)), ("better", (name, "base"))):
                    report = await evaluate(
                        mine,
                        pool=pool,
                        champion=pair[0],
                        challenger=pair[1],
                        rewards=Rewarder(pool, settings, RUBRIC),
                        pairs=PairJudge(pool, settings, RUBRIC),
                        recipe=recipe,
                    )
                    promoted[direction] += report.promote
                rates.append(report.win_rate)
                if report.positions is not None:
                    agree.append(report.positions)
                print(
                    f"run {run + 1}: undamaged against damaged: {report.reason}; skipped {report.skipped}", flush=True
                )
                if run == 0:
                    for row in report.rows[:2]:
                        print(f"  damaged: {row.champion_answer[:90]!r}\n  base:    {row.challenger_answer[:90]!r}")
        finally:
            KEPT.parent.mkdir(parents=True, exist_ok=True)
            KEPT.write_text(json.dumps(pool.known))
    done = len(rates)
    if not done:
        return
    print(f"\nby {options.by}, {options.prompts} prompts a gate, {options.tokens} tokens an answer")
    for direction, right in (("worse", done - promoted["worse"]), ("better", promoted["better"])):
        low, high = wilson(right, done, 0.95)
        told = "rejected" if direction == "worse" else "promoted"
        print(f"a {direction} challenger was {told} {right} times of {done} [{low:.2f}, {high:.2f}]")
    print(f"the undamaged model won {sum(rates) / done:.3f} (lowest run {min(rates):.2f}, highest {max(rates):.2f})")
    if agree:
        shares = sum(place.first_share for place in agree) / done
        same = sum(place.agree for place in agree) / done
        mass = sum(place.label_mass for place in agree) / done
        print(f"the answer shown first gets {shares:.3f}; both orders agree on {same:.0%}; label mass {mass:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=8, help="of one gate")
    parser.add_argument("--tokens", type=int, default=24, help="of one answer")
    parser.add_argument("--by", choices=("reward", "judge_pairs"), default="reward")
    parser.add_argument(
        "--minutes", type=float, default=60, help="begin no further run after this; call again to go on"
    )
    parser.add_argument("--deviation", type=float, default=0.11, help="of the random weights")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        adapter = Path(scratch) / "adapter"
        damaged(adapter, base_model(), options.deviation)
        with running_vllm(Path(scratch)) as url:
            try:
                asyncio.run(measure(url, adapter, options))
            except Transient as error:
                sys.exit(f"vLLM: {error}")


if __name__ == "__main__":
    main()
