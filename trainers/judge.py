"""Trains the demo's judge: a LoRA on a small model that answers the rubric's questions.

    python -m trainers.judge --base FOLDER --data FOLDER --out trainers/judges/demo

The loss is the cross-entropy of *one* token, the label, against a soft target on the labels (a Gaussian around the
level), over the whole vocabulary, so that ``label_mass`` goes to 1. Several texts share one pass as a tree: the rubric
once, each text once, each question after its text (``pack``). What a token may see and its position are as if its
request stood alone, so a packed rating is the plain one, and it costs a third.

Only the upper layers learn. What the lower ones make of a pass never changes then, so it is computed once and kept: on
two cores that is what makes several epochs affordable.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streams.rubric import (
    ASKED_OF_PROMPTS,
    Question,
    Reading,
    answer_prompt,
    judge_prompts,
    labels_of,
    read,
    shorten,
)
from trainers.base_model import NAME
from trainers.judge_data import Example, Target, all_prompts, held_out, split, without_near_copies
from trainers.judge_made import answers, chores, garbage, varied

Tokens = list[int]
MAX_CHARS = 500
"""Texts are shortened to this for training: about 130 tokens. Else a few long texts are half of the cost."""
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PASS_TOKENS = 760
"""Tokens of one packed pass: longer saves more rubrics, but attention over the whole pass grows."""


@dataclass(frozen=True)
class Packed:
    """Requests laid out as one tree-shaped sequence of n tokens."""

    ids: Tokens
    """(n,) tokens: the common prefix, then for each text its stem and its branches."""
    positions: list[int]
    """(n,) positions as if each request stood alone."""
    text: list[int]
    """(n,) which text a token belongs to; -1 is the common prefix."""
    branch: list[int]
    """(n,) which request of its text; -1 is the text's stem."""
    ends: list[list[int]]
    """For each text and each of its requests: the index of the token whose successor is the answer."""


def _common(rows: Sequence[Tokens]) -> int:
    """Length of the common prefix; each row keeps at least its last token."""
    shortest, longest = min(rows), max(rows)
    limit = min(len(row) for row in rows) - 1
    return next((i for i in range(limit) if shortest[i] != longest[i]), limit)


def pack(texts: Sequence[Sequence[Tokens]]) -> Packed:
    """Lays out, for each text, its requests (token ids each). Prefixes are found on tokens, so it is exact."""
    common = _common([request for requests in texts for request in requests])
    packed = Packed([], [], [], [], [])

    def add(tokens: Tokens, start: int, text: int, branch: int) -> None:
        packed.ids.extend(tokens)
        packed.positions.extend(range(start, start + len(tokens)))
        packed.text.extend([text] * len(tokens))
        packed.branch.extend([branch] * len(tokens))

    add(texts[0][0][:common], 0, -1, -1)
    for n, requests in enumerate(texts):
        stem = _common(requests)
        add(requests[0][common:stem], common, n, -1)
        packed.ends.append([])
        for b, request in enumerate(requests):
            start = max(stem, common)
            add(request[start:], start, n, b)
            packed.ends[-1].append(len(packed.ids) - 1)
    return packed


def passes(requests: Sequence[Sequence[Tokens]], limit: int = PASS_TOKENS) -> Iterator[list[int]]:
    """Indices of texts that go into one pass, in order, by what they add to it."""
    group: list[int] = []
    used = 0
    common = _common([r[0] for r in requests]) if len(requests) > 1 else 0
    for n, own in enumerate(requests):
        stem = _common(own)
        cost = max(0, stem - common) + sum(len(request) - max(stem, common) for request in own)
        if group and used + cost > limit:
            yield group
            group, used = [], 0
        group.append(n)
        used += cost + (common if not used else 0)
    if group:
        yield group


def allowed(packed: Packed) -> Any:
    """(1, 1, n, n) bool: whether token i sees token j."""
    import torch

    text, branch = torch.tensor(packed.text), torch.tensor(packed.branch)
    same = (text[None, :] == -1) | (
        (text[None, :] == text[:, None]) & ((branch[None, :] == -1) | (branch[None, :] == branch[:, None]))
    )
    order = torch.arange(len(packed.ids))
    return (same & (order[None, :] <= order[:, None]))[None, None]


def answer_logits(model: Any, packed: Packed) -> Any:
    """One pass. Returns logits (answers, vocabulary) for all requests, text by text."""
    import torch

    out = model(
        input_ids=torch.tensor([packed.ids]),
        position_ids=torch.tensor([packed.positions]),
        attention_mask=allowed(packed),
        logits_to_keep=torch.tensor([end for row in packed.ends for end in row]),
        use_cache=False,
    )
    return out.logits[0].float()


def through(causal_lm: Any, packed: Packed, hidden: Any, first: int, last: int) -> Any:
    """Hidden states (1, n, width) after layers ``first`` to ``last`` - 1 of a Llama, given those before them (None: the
    embeddings)."""
    import torch

    model = causal_lm.model
    if hidden is None:
        hidden = model.embed_tokens(torch.tensor([packed.ids]))
    positions = torch.tensor([packed.positions])
    turns = model.rotary_emb(hidden, position_ids=positions)
    mask = allowed(packed)
    for layer in model.layers[first:last]:
        hidden = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=turns)
    return hidden


class Judge:
    """A model in this process that rates as the one behind vLLM does: the same requests, the same ``read``."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, base: Path, adapter: Path | None = None) -> Judge:
        """The base folder in float32, with the adapter's folder if one is given."""
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, use_safetensors=True)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        return cls(model.eval(), AutoTokenizer.from_pretrained(base))

    def tokens(self, request: str) -> Tokens:
        return list(self.tokenizer(request).input_ids)

    def rate(
        self, texts: Sequence[str], questions: Sequence[Question] = ASKED_OF_PROMPTS, max_chars: int = 4000
    ) -> list[dict[Question, Reading]]:
        """For each text, the reading of each question."""
        prompts = [judge_prompts(shorten(text, max_chars)) for text in texts]
        return self.readings([{q: own[q] for q in questions} for own in prompts])

    def rate_answers(self, pairs: Sequence[tuple[str, str]], max_chars: int = 2000) -> list[Reading]:
        """For each (prompt, answer), how good the answer is."""
        question = Question.answer_quality
        asked = [{question: answer_prompt(shorten(p, max_chars), shorten(a, max_chars))} for p, a in pairs]
        return [reading[question] for reading in self.readings(asked)]

    def readings(self, asked: Sequence[dict[Question, str]]) -> list[dict[Question, Reading]]:
        """For each dict of requests, the reading of each. All of one text's requests differ in their end only."""
        import torch

        order = sorted(range(len(asked)), key=lambda n: len(next(iter(asked[n].values()))))
        requests = [[self.tokens(prompt) for prompt in asked[n].values()] for n in order]
        found: dict[int, dict[Question, Reading]] = {}
        with torch.inference_mode():
            for group in passes(requests):
                packed = pack([requests[i] for i in group])
                top = answer_logits(self.model, packed).log_softmax(-1).topk(20)
                rows = iter(zip(top.values.tolist(), top.indices.tolist(), strict=True))
                for i in group:
                    found[order[i]] = {q: self._read(q, *next(rows)) for q in asked[order[i]]}
        return [found[n] for n in range(len(asked))]

    def _read(self, question: Question, logprobs: list[float], ids: Tokens) -> Reading:
        tokens: dict[str, float] = {}
        for token, logprob in zip(ids, logprobs, strict=True):
            tokens.setdefault(self.tokenizer.decode([token]), logprob)
        return read(tokens, labels_of(question))


# --- training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How much of what is learned from, and how. The counts are texts; the defaults made the shipped adapter."""

    seed: int = 7
    math: int = 160
    gsm8k: int = 60
    arena: int = 170
    chores: int = 50
    garbage: int = 90
    answers: int = 80
    epochs: int = 5
    frozen: int = 22
    """Layers that do not learn, of 30."""
    rank: int = 16
    lr: float = 1e-3
    warmup: int = 20
    """Passes until the full learning rate; each pass is a step."""
    cpu_minutes: float = 30.0
    """Training ends when this much CPU time is used (the machine may be shared); the learning rate falls with whichever
    of time and data is further."""


def curriculum(plan: Plan, data: Path | None, apart: Sequence[str] = ()) -> list[Example]:
    """The rows of one run, shuffled: no held-out prompt, nor a near copy of one or of a text of ``apart``."""
    rng = random.Random(plan.seed)
    everything = all_prompts(data)
    away = held_out(everything) + [Example(text, "apart") for text in apart]
    pool = without_near_copies([row for row in everything if split(row.text) == "train"], away)
    of = {source: [row for row in pool if row.source == source] for source in {row.source for row in pool}}
    levels: dict[float, list[Example]] = {}
    for row in of.get("math", []):
        levels.setdefault(row.level, []).append(row)
    rows: list[Example] = []
    for level in levels.values():
        rows += rng.sample(level, min(len(level), plan.math // len(levels)))
    rows += rng.sample(of.get("gsm8k", []), min(len(of.get("gsm8k", [])), plan.gsm8k))
    rows += rng.sample(of.get("arena", []), min(len(of.get("arena", [])), plan.arena)) + of.get("seeds", [])
    rows += of["graded"]
    made = chores(pool, plan.chores, rng) + garbage(pool, plan.garbage, rng)
    if data is not None:
        made += answers(pool, plan.answers, rng)
    changed = [Example(varied(row.text, rng), row.source, row.level, row.category, row.targets) for row in rows]
    rows = changed + made
    rng.shuffle(rows)
    return rows


def requests_of(row: Example, rng: random.Random) -> tuple[list[str], list[tuple[Question, Target]]]:
    """The requests asked of a row and their targets. Difficulty always; the easier questions of some rows only."""
    text = shorten(row.text, MAX_CHARS)
    if row.answer is not None and Question.answer_quality in row.targets:
        return [answer_prompt(text, row.answer)], [(Question.answer_quality, row.targets[Question.answer_quality])]
    prompts = judge_prompts(text)
    chance = {
        Question.difficulty: 1.0,
        Question.quality: 1.0 if row.source in ("garbage", "chores") else 0.25,
        Question.category: 0.8 if row.source in ("graded", "seeds", "arena") else 0.15,
    }
    asked = [q for q in row.targets if rng.random() < chance[q]] or list(row.targets)[:1]
    return [prompts[q] for q in asked], [(q, row.targets[q]) for q in asked]


def train(
    base: Path,
    out: Path,
    plan: Plan,
    data: Path | None,
    apart: Sequence[str] = (),
    start: Path | None = None,
    rows: Sequence[Example] | None = None,
    name: str = NAME,
) -> dict[str, float]:
    """Trains and writes the adapter's folder (bf16); returns what the run did. Held-out figures are
    ``judge_report``'s work, on the written folder. It goes on from the adapter ``start`` if one is given, which must
    have learned in the same layers. ``rows`` are trained on instead of the ``curriculum``; ``name`` is what the adapter
    calls its base."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(plan.seed)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, use_safetensors=True)
    if start is not None:
        model = PeftModel.from_pretrained(model, str(start), is_trainable=True, torch_device="cpu").float()
    else:
        layers = list(range(plan.frozen, model.config.num_hidden_layers))
        model = get_peft_model(
            model,
            LoraConfig(
                r=plan.rank, lora_alpha=2 * plan.rank, target_modules=list(LINEAR), layers_to_transform=layers,
                layers_pattern="layers",
            ),
        )  # fmt: skip
    causal_lm = model.get_base_model()
    rng = random.Random(plan.seed)
    asked = [requests_of(row, rng) for row in (curriculum(plan, data, apart) if rows is None else rows)]
    tokens = [[list(tokenizer(prompt).input_ids) for prompt in prompts] for prompts, _ in asked]
    groups = list(passes(tokens))
    label_ids = {q: [tokenizer.encode(label)[-1] for label in labels_of(q)] for q in Question}

    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=plan.lr, weight_decay=0.01)
    packs = [pack([tokens[i] for i in group]) for group in groups]
    below: dict[int, Any] = {}
    began, seen, used, running = time.process_time(), 0, 0.0, dict.fromkeys(Question, math.nan)
    order = [n for _ in range(plan.epochs) for n in rng.sample(range(len(groups)), len(groups))]
    print(f"{len(asked)} texts, {len(groups)} passes, {sum(len(p.ids) for p in packs)} tokens an epoch", flush=True)
    for n in order:
        used = (time.process_time() - began) / 60
        share = max(seen / len(order), used / plan.cpu_minutes)
        if share >= 1.0:
            break
        packed = packs[n]
        if n not in below:
            with torch.no_grad():
                below[n] = through(causal_lm, packed, None, 0, plan.frozen)
        hidden = through(causal_lm, packed, below[n], plan.frozen, len(causal_lm.model.layers))
        ends = [end for row in packed.ends for end in row]
        logprobs = causal_lm.lm_head(causal_lm.model.norm(hidden[0, ends])).log_softmax(-1)
        targets = [target for i in groups[n] for target in asked[i][1]]
        losses = _kl(logprobs, targets, label_ids)
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for settings in optimizer.param_groups:
            settings["lr"] = plan.lr * min((seen + 1) / plan.warmup, 0.03 + 0.485 * (1 + math.cos(math.pi * share)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for (question, _), loss in zip(targets, losses.tolist(), strict=True):
            running[question] = loss if math.isnan(running[question]) else 0.99 * running[question] + 0.01 * loss
        seen += 1
        if seen % 20 == 0:
            shown = " ".join(f"{question} {value:.2f}" for question, value in running.items())
            print(f"pass {seen}/{len(order)} {used:.1f} CPU minutes, kl: {shown}", flush=True)
    _save(model, out, name)
    return {"passes": seen, "epochs": round(seen / len(groups), 2), "texts": len(asked), "cpu_minutes": round(used, 1)}


def _kl(logprobs: Any, targets: Sequence[tuple[Question, Target]], label_ids: dict[Question, Tokens]) -> Any:
    """KL(target || model), (answers,) nats; logprobs (answers, vocabulary). 0 is the best, whether a target is wide
    or narrow."""
    import torch

    losses = [
        sum(p * math.log(p) for p in target if p > 0)
        - (torch.tensor(target) * logprobs[row, label_ids[question]]).sum()
        for row, (question, target) in enumerate(targets)
    ]
    return torch.stack(losses)


def _save(model: Any, out: Path, name: str) -> None:
    """bf16 weights; the config names the base by its public name, not by where it lay."""
    import torch

    model.to(torch.bfloat16)
    model.save_pretrained(out, save_embedding_layers=False)  # else it asks the model hub whether there are new ones
    file = out / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = name
    config["target_modules"] = sorted(config["target_modules"])
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="train the demo's judge")
    parser.add_argument("--base", type=Path, required=True, help="folder made by trainers.base_model")
    parser.add_argument("--data", type=Path, help="folder of the labelled sets; without it only our own prompts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cpu-minutes", type=float, default=Plan.cpu_minutes)
    parser.add_argument("--keep-apart", type=Path, action="append", default=[], metavar="JSONL",
                        help="prompts that are a check: near copies of them are not trained on")  # fmt: skip
    parser.add_argument("--start", type=Path, help="an earlier run's adapter to go on from")
    parser.add_argument("--plan", type=json.loads, default={}, help='fields of Plan as JSON, e.g. {"math": 500}')
    parser.add_argument("--seed", type=int, default=Plan.seed)
    given = parser.parse_args()
    apart = [json.loads(line).get("prompt") for file in given.keep_apart for line in file.open(encoding="utf-8")]
    plan = Plan(seed=given.seed, cpu_minutes=given.cpu_minutes, **given.plan)
    found = train(given.base, given.out, plan, given.data, [text for text in apart if text], given.start)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
