"""The buffer as data sets: one row of SFT and one preference pair a member, as a run would make them, in the columns of
others. Parquet files with a card: `datasets.load_dataset(FOLDER, "sft")`, the hub and LLaMA-Factory read them as they
are, which a folder of `save_to_disk` is not made for.

User ids, record ids and metadata are not written; a row's `uuid` is the digest of its prompt.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.set_formats import SetFormat
from streams.errors import Fatal
from streams.records import Member
from streams.snapshots import rows as snapshot_rows
from trainers.dataset import TrainingSet, Turns, build
from trainers.recipe import Recipe

SETS = ("sft", "preference")
NAMES = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}
"""ShareGPT's names of roles."""


@dataclass
class Curated:
    """Rows of both sets, and what was left out by reason."""

    rows: dict[str, list[dict[str, Any]]]
    left_out: Counter[str]
    members: int
    judges: list[str]


def curate(members: list[Member], held_out: Collection[str], recipe: Recipe, format: SetFormat) -> Curated:
    """Both sets of the members. `held_out` are prompt ids that must not be in them.

    The recipe's rules decide (pairing, least margin and reward); no answer is too long here. Reasons are those of
    `trainers.dataset.TrainingSet`, and `not_alpaca` for conversations that Alpaca's columns cannot hold.
    """
    rules = recipe.data.model_copy(update={"validation_rows": 0, "replay_share": 0.0})
    found: TrainingSet = build(
        snapshot_rows(members),
        rules,
        length=lambda _: 0,
        sft_max_length=1,
        dpo_max_length=1,
        seed=recipe.seed,
        held_out=held_out,
    )
    by_prompt = {_key(_turns(member)): member for member in members}
    out = Curated({name: [] for name in SETS}, Counter(found.left_out), len(members), [])
    out.judges = sorted({member.prompt.judge for member in members})
    for example in found.sft:
        member = by_prompt[_key(example["prompt"])]
        _add(out, "sft", _sft_row(format, member, example["prompt"], example["completion"]))
    for pair in found.pairs:
        member = by_prompt[_key(pair["prompt"])]
        _add(out, "preference", _pair_row(format, member, pair["prompt"], pair["chosen"], pair["rejected"]))
    return out


def _add(out: Curated, name: str, row: dict[str, Any] | None) -> None:
    if row is None:
        out.left_out["not_alpaca"] += 1
    else:
        out.rows[name].append(row)


def _sft_row(format: SetFormat, member: Member, prompt: Turns, answer: Turns) -> dict[str, Any] | None:
    text = answer[-1]["content"]
    if format is SetFormat.alpaca:
        asked = _alpaca(prompt)
        return None if asked is None else asked | {"output": text} | _about(member)
    row = {"conversations": _sharegpt([*prompt, *answer], with_system=format is SetFormat.pika)}
    if format is SetFormat.sharegpt:
        return row | {"system": _system(prompt)} | _about(member)
    return {
        "uuid": member.prompt.prompt_id,
        "instruction": prompt[-1]["content"],
        "response": text,
        **row,
        "model": _candidate(member, text).get("model"),
        "instruct_reward": _candidate(member, text).get("reward"),
        **_about(member),
    }


def _pair_row(
    format: SetFormat, member: Member, prompt: Turns, chosen: Turns, rejected: Turns
) -> dict[str, Any] | None:
    texts = chosen[-1]["content"], rejected[-1]["content"]
    scores = dict(
        zip(("score_chosen", "score_rejected"), (_candidate(member, text).get("reward") for text in texts), strict=True)
    )
    if format is SetFormat.alpaca:
        asked = _alpaca(prompt)
        if asked is None:
            return None
        return asked | {"chosen": texts[0], "rejected": texts[1]} | scores | _about(member)
    if format is SetFormat.sharegpt:
        return {
            "conversations": _sharegpt(prompt, with_system=False),
            "chosen": {"from": "gpt", "value": texts[0]},
            "rejected": {"from": "gpt", "value": texts[1]},
            "system": _system(prompt),
            **scores,
            **_about(member),
        }
    return {
        "uuid": member.prompt.prompt_id,
        "instruction": prompt[-1]["content"],
        "chosen": [*prompt, *chosen],
        "rejected": [*prompt, *rejected],
        **scores,
        **_about(member),
    }


def _about(member: Member) -> dict[str, Any]:
    """What haypile adds. The judge's ratings are numbers 1..9: `difficulty` is a word in Magpie's sets."""
    prompt = member.prompt
    return {
        "judge_difficulty": prompt.difficulty,
        "judge_quality": prompt.quality,
        "task_category": prompt.category,
        "judge": prompt.judge,
    }


def _sharegpt(turns: Turns, *, with_system: bool) -> list[dict[str, str]]:
    kept = turns if with_system or turns[0]["role"] != "system" else turns[1:]
    return [{"from": NAMES[turn["role"]], "value": turn["content"]} for turn in kept]


def _system(turns: Turns) -> str:
    return turns[0]["content"] if turns[0]["role"] == "system" else ""


def _alpaca(prompt: Turns) -> dict[str, Any] | None:
    """A system text, earlier question-answer pairs, one instruction; None for a conversation of another form."""
    turns = prompt[1:] if prompt[0]["role"] == "system" else prompt
    roles = [turn["role"] for turn in turns]
    if roles != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        return None
    said = [turn["content"] for turn in turns]
    return {
        "instruction": said[-1],
        "input": "",
        "system": _system(prompt),
        "history": [[said[place], said[place + 1]] for place in range(0, len(said) - 1, 2)],
    }


def _candidate(member: Member, text: str) -> Mapping[str, Any]:
    found = next((c for c in member.candidates if c.text.strip() == text), None)
    return {} if found is None else {"model": found.model, "reward": found.reward}


def _turns(member: Member) -> Turns:
    return [{"role": turn.role, "content": turn.content} for turn in member.prompt.messages]


def _key(turns: Turns) -> str:
    return json.dumps(turns, sort_keys=True)


def write_sets(curated: Curated, folder: Path, format: SetFormat) -> dict[str, int]:
    """`sft/train.parquet`, `preference/train.parquet` and `README.md` into `folder`; returns the rows of each.

    Raises `Fatal` when there is no row at all.
    """
    from datasets import Dataset, disable_progress_bars

    counts = {name: len(rows) for name, rows in curated.rows.items()}
    if not any(counts.values()):
        reasons = ", ".join(f"{count} {reason}" for reason, count in curated.left_out.most_common())
        raise Fatal(
            f"buffer export: nothing to write of {curated.members} members ({reasons or 'the buffer is empty'})"
        )
    disable_progress_bars()
    for name, rows in curated.rows.items():
        if rows:
            (folder / name).mkdir()
            features = _features(rows[0])
            columns = {column: [row[column] for row in rows] for column in features}
            Dataset.from_dict(columns, features=features).to_parquet(folder / name / "train.parquet")
    (folder / "README.md").write_text(_card(curated, counts, format), encoding="utf-8")
    return counts


def _features(row: Mapping[str, Any]) -> Any:
    """Types by column, given and not inferred: an empty list or a column of nulls has none of its own."""
    from datasets import Features, Value

    text, number = Value("string"), Value("float64")
    turn = {"from": text, "value": text}
    known: dict[str, Any] = {
        "conversations": [turn],
        "history": [[text]],
        "instruct_reward": number,
        "score_chosen": number,
        "score_rejected": number,
        "judge_difficulty": number,
        "judge_quality": number,
    }
    sides: dict[type, Any] = {list: [{"role": text, "content": text}], dict: turn, str: text}
    known |= {side: sides[type(row[side])] for side in ("chosen", "rejected") if side in row}
    return Features({name: known.get(name, text) for name in row})


def _card(curated: Curated, counts: Mapping[str, int], format: SetFormat) -> str:
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        pretty_name="Hard prompts, curated by haypile",
        task_categories=["text-generation"],
        tags=["haypile", "sft", "dpo", "preference", format.value],
        configs=[
            {"config_name": name, "data_files": [{"split": "train", "path": f"{name}/train.parquet"}]}
            for name in SETS
            if counts[name]
        ],
    )
    left_out = "".join(f"| {reason} | {count} |\n" for reason, count in sorted(curated.left_out.items()))
    return f"""---
{data.to_yaml()}
---

# Hard prompts, curated by haypile

Prompts of a live stream that a judge rated as the hardest, with a teacher's answers and their rewards. Of the
{curated.members} prompts in the buffer: {counts["sft"]} rows of SFT (the best-rewarded answer), {counts["preference"]}
preference pairs. Columns: {format.value}. Rated by judge {", ".join(curated.judges) or "none"}.

| left out because of | rows |
|---|---|
{left_out}
Prompts held out for evaluation are not in it, nor are ids of users or records. Personal data were replaced where rules
found them, which is not everywhere: whether this may be published is for you to judge.
"""
