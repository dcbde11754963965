"""From the rows of a snapshot to the rows of SFT and DPO. Pure: lengths come in as a function, nothing is read here.

A prompt gives one SFT row (its best-rewarded answer) and one DPO pair (by the rules of `trainers.pairing`), PiKa's
construction (arXiv 2510.06670). Rows are TRL's conversational prompt-completion and preference formats, so that TRL
applies the chat template and the loss is on the answer only. What is left out is counted by reason: nothing disappears
silently.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainers.pairing import PairFacts, best_and_other, is_clear, rip_refusals
from trainers.recipe import DataRecipe

Row = Mapping[str, Any]
"""A row of a snapshot (`train.parquet`)."""
Turns = list[dict[str, str]]
Length = Callable[[Turns], int | None]
"""Tokens of a conversation under the model's chat template; None where the template refuses it."""

MAX_VALIDATION_SHARE = 0.1


@dataclass
class TrainingSet:
    """What the two phases are given, and what was left out. SFT rows: `prompt`, `completion`; pairs: `prompt`,
    `chosen`, `rejected`; each a list of turns."""

    sft: list[dict[str, Turns]] = field(default_factory=list)
    pairs: list[dict[str, Turns]] = field(default_factory=list)
    sft_validation: list[dict[str, Turns]] = field(default_factory=list)
    pairs_validation: list[dict[str, Turns]] = field(default_factory=list)
    prompts: int = 0
    """Rows of the snapshot that were looked at, without replay."""
    replayed: int = 0
    """Prompts taken from earlier snapshots."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason → rows: `forgotten`, `held_out`, `repeated`, `over_max_rows`, `no_answer`, `template` (the chat template
    refuses the conversation); of one phase only: `low_reward`, `sft_too_long`, `small_margin`, `dpo_too_long`,
    `rip_rejected`, `rip_short`, `rip_gap`."""


def order(seed: int, key: str) -> bytes:
    """A fixed pseudo-random order of `key`s: what is drawn does not depend on the order of the rows."""
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()


def draw_replay(
    earlier: Sequence[Row], current: Collection[str], count: int, seed: int, never: Collection[str]
) -> list[Row]:
    """At most `count` rows of earlier snapshots whose prompts are neither in the current one nor in `never`."""
    seen = set(current) | set(never)
    drawn: list[Row] = []
    for row in sorted(earlier, key=lambda row: order(seed, row["prompt_id"])):
        if len(drawn) == count:
            break
        if row["prompt_id"] not in seen:
            seen.add(row["prompt_id"])
            drawn.append(row)
    return drawn


def replay_count(current: int, share: float) -> int:
    """How many rows make `share` of the whole when `current` rows are the rest."""
    return round(current * share / (1 - share))


def build(
    rows: Sequence[Row],
    recipe: DataRecipe,
    *,
    length: Length,
    sft_max_length: int,
    dpo_max_length: int,
    seed: int,
    held_out: Collection[str] = (),
    earlier: Sequence[Row] = (),
    banned: Collection[str] = (),
    banned_users: Collection[str] = (),
) -> TrainingSet:
    """The training set of a snapshot.

    `held_out` are the prompt ids of evaluation, `banned` ids (of prompts or of records) and `banned_users` users
    that are to be forgotten: never trained on, also when they come back in `earlier` (rows of former snapshots, for
    replay). A prompt that a forgotten user sent is out altogether, also where another user sent the same text. Hardest
    prompts first where `max_rows` bounds them.
    """
    out = TrainingSet(prompts=len(rows))
    forgotten = {
        str(row["prompt_id"])
        for row in [*rows, *earlier]
        if _is_forgotten(row, frozenset(banned), frozenset(banned_users))
    }
    chosen: list[Row] = []
    seen: set[str] = set()
    for row in sorted(rows, key=lambda row: (-float(row["difficulty"]), str(row["prompt_id"]))):
        reason = _refusal(row, seen, held_out, forgotten)
        if reason is None and recipe.max_rows is not None and len(chosen) == recipe.max_rows:
            reason = "over_max_rows"
        if reason:
            out.left_out[reason] += 1
            continue
        seen.add(row["prompt_id"])
        chosen.append(row)
    wanted = replay_count(len(chosen), recipe.replay_share)
    replay = draw_replay(earlier, seen, wanted, seed, {*held_out, *forgotten})
    out.replayed = len(replay)
    validation = _validation_ids(chosen, recipe.validation_rows, seed)
    pairs: list[_Pair] = []
    for row in [*chosen, *replay]:
        is_validation = row["prompt_id"] in validation
        pairs += _add(row, recipe, length, sft_max_length, dpo_max_length, out, is_validation)
    refusals = rip_refusals([p.facts for p in pairs], recipe.rip) if recipe.pairing == "rip" else [None] * len(pairs)
    for pair, reason in zip(pairs, refusals, strict=True):
        if reason:
            out.left_out[reason] += 1
        else:
            (out.pairs_validation if pair.is_validation else out.pairs).append(pair.row)
    return out


@dataclass(frozen=True)
class _Pair:
    row: dict[str, Turns]
    facts: PairFacts
    is_validation: bool


def _is_forgotten(row: Row, banned: Collection[str], banned_users: Collection[str]) -> bool:
    return row["prompt_id"] in banned or row.get("id") in banned or row.get("user_id") in banned_users


def _refusal(row: Row, seen: Collection[str], held_out: Collection[str], forgotten: Collection[str]) -> str | None:
    if row["prompt_id"] in forgotten:
        return "forgotten"
    if row["prompt_id"] in held_out:
        return "held_out"
    return "repeated" if row["prompt_id"] in seen else None


def _validation_ids(rows: Sequence[Row], wanted: int, seed: int) -> set[str]:
    """The validation split, by hash: the same prompt is on the same side in every attempt of a run."""
    ids = sorted((row["prompt_id"] for row in rows), key=lambda key: order(seed, f"validation:{key}"))
    return set(ids[: min(wanted, int(len(ids) * MAX_VALIDATION_SHARE))])


def _add(
    row: Row,
    recipe: DataRecipe,
    length: Length,
    sft_max_length: int,
    dpo_max_length: int,
    out: TrainingSet,
    is_validation: bool,
) -> list[_Pair]:
    """Add the SFT row of a prompt; returns its pair, if it has one."""
    prompt = [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in row["messages"]]
    found = best_and_other(row["candidates"] or [], recipe.pairing, recipe.min_margin)
    if found is None:
        out.left_out["no_answer"] += 1
        return []
    best, other = found
    answer = _turn(best)
    tokens = length(prompt + answer)
    if tokens is None:
        out.left_out["template"] += 1
        return []
    if recipe.min_reward is not None and best["reward"] < recipe.min_reward:
        out.left_out["low_reward"] += 1
    elif tokens > sft_max_length:
        out.left_out["sft_too_long"] += 1
    else:
        (out.sft_validation if is_validation else out.sft).append({"prompt": prompt, "completion": answer})
    if other is None or not is_clear(best, other, recipe.min_margin):
        out.left_out["small_margin"] += 1
        return []
    if max(tokens, length(prompt + _turn(other)) or 0) > dpo_max_length:
        out.left_out["dpo_too_long"] += 1
        return []
    facts = PairFacts(
        rejected_reward=float(other["reward"]),
        rejected_chars=len(str(other["text"]).strip()),
        gap=float(best["reward"]) - float(other["reward"]),
    )
    return [_Pair({"prompt": prompt, "chosen": answer, "rejected": _turn(other)}, facts, is_validation)]


def _turn(candidate: Row) -> Turns:
    return [{"role": "assistant", "content": str(candidate["text"]).strip()}]
