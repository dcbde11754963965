"""What tests train: a snapshot of sums, a model of two layers with SmolLM2's tokenizer, and a recipe of seconds."""

import random
from pathlib import Path
from typing import Any

import yaml

from streams.buffer.base import BufferRules, Offer
from streams.buffer.memory import MemoryBuffer
from streams.records import Candidate, Message, ScoredPrompt
from streams.snapshots import write_snapshot
from trainers.recipe import FOLDER, Recipe
from trainers.rundir import Plan, RunFolder

GOOD = "The sum of {a} and {b} is {c}."
BAD = "No idea, sorry."


def sums(count: int, seed: int, start: int = 0) -> list[tuple[str, list[Candidate]]]:
    """Prompts with a good answer, a bad one and one between."""
    draw = random.Random(seed)
    found = []
    for i in range(start, start + count):
        a, b = draw.randint(2, 99), draw.randint(2, 99)
        texts = [(GOOD.format(a=a, b=b, c=a + b), 8.0), (BAD, 2.0), (f"About {a + b}", 5.0)]
        answers = [Candidate(text=text, reward=reward, origin="teacher", model="t") for text, reward in texts]
        found.append((f"({i}) What is {a} plus {b}?", answers))
    return found


def scored(key: str, text: str, split: Any = "train") -> ScoredPrompt:
    return ScoredPrompt(
        id=key,
        prompt_id=f"prompt-{key}",
        messages=[Message(role="user", content=text)],
        split=split,
        ts=1,
        difficulty=5.0,
        quality=6.0,
        category="math",
        label_mass=0.9,
        judge="judge-1",
    )


async def write_snapshot_of_sums(dest: Path, run_id: str, *, train: int = 48, held_out: int = 8, seed: int = 1) -> str:
    """Writes a snapshot as the trigger does; returns its path."""
    main, kept = (MemoryBuffer(BufferRules(1000)) for _ in range(2))
    for buffer, name, count in ((main, "train", train), (kept, "eval", held_out)):
        prompts = sums(count, seed, start=0 if name == "train" else 10_000)
        offers = [
            Offer(prompt=scored(f"{seed}-{name}-{i}", text, name), rank_key=float(i))
            for i, (text, _) in enumerate(prompts)
        ]
        await buffer.offer(offers, [])
        for offer, (_, answers) in zip(offers, prompts, strict=True):
            if name == "train":
                await buffer.attach(offer.prompt.id, answers)
    return await write_snapshot(str(dest), run_id, main, kept, decision={"train": True}, settings={}, now_ms=1)


def tiny_model(base: Path, folder: Path, tokens: int | None = None) -> Path:
    """A Llama of two layers with random weights and the tokenizer of the folder `base`.

    With `tokens` the tokenizer keeps chat template and special tokens, and has so many tokens, learned from a few sums:
    of a training step on a model like this three quarters of the time go into SmolLM2's 49,000.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(base)
    if tokens is not None:
        texts = [text for prompt, answers in sums(200, seed=0) for text in (prompt, *(a.text for a in answers))]
        tokenizer = tokenizer.train_new_from_iterator(texts, tokens)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_adapter(model: Path, folder: Path, seed: int, r: int = 8) -> Path:
    """An adapter of the folder `model` whose effect is not zero, as the demo's recipe shapes it."""
    import torch

    from trainers.phase import load_base, with_adapter

    recipe = quick_recipe(lora={"r": r})
    adapted = with_adapter(load_base(str(model), recipe), None, recipe.lora, seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    adapted.save_pretrained(folder)
    return folder


def quick_recipe(**changes: dict[str, Any]) -> Recipe:
    """The demo's with a few short steps; `changes` by section."""
    content = yaml.safe_load((FOLDER / "demo.yaml").read_text())
    # Random weights learn nothing at an ordinary rate in six steps.
    phase = {"batch_size": 2, "max_length": 128, "save_steps": 2, "logging_steps": 1, "warmup": 0}
    content["sft"] |= phase | {"max_steps": 6, "learning_rate": 2.0e-2}
    content["dpo"] |= phase | {"max_steps": 6, "learning_rate": 5.0e-3}
    content["data"] |= {"validation_rows": 4}
    content["gate"] |= {"max_tokens": 8, "min_prompts": 4, "everyday": {"prompts": 0}}
    for section, values in changes.items():
        content[section] |= values
    return Recipe.model_validate(content)


def run_folder(path: Path, snapshot_path: str, model: Path, recipe: Recipe, **plan: Any) -> RunFolder:
    """A run's folder with its plan, as the service makes it."""
    path.mkdir(parents=True)
    folder = RunFolder(path)
    folder.write("plan.json", Plan(snapshot=snapshot_path, base_model=str(model), recipe=recipe, **plan))
    return folder
