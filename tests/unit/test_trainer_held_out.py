"""Over many made snapshots: what was held out in any of them, and what is to be forgotten, is never trained on."""

from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams import snapshots
from streams.snapshots import SnapshotError
from tests.support.training import quick_recipe
from trainers.dataset import TrainingSet, build
from trainers.recipe import DataRecipe
from trainers.run import prepare
from trainers.rundir import Plan

PROMPTS = [f"p{i}" for i in range(12)]


def row(prompt_id: str, record_id: str, user: str | None) -> dict[str, Any]:
    candidates = [{"text": f"good {prompt_id}", "reward": 8.0}, {"text": f"bad {prompt_id}", "reward": 2.0}]
    return {
        "id": record_id,
        "prompt_id": prompt_id,
        "user_id": user,
        "messages": [{"role": "user", "content": prompt_id}],
        "difficulty": 5.0,
        "candidates": candidates,
    }


def trained_on(data: TrainingSet) -> set[str]:
    rows = [*data.sft, *data.sft_validation, *data.pairs, *data.pairs_validation]
    return {row["prompt"][0]["content"] for row in rows}


made_row = st.builds(row, st.sampled_from(PROMPTS), st.uuids().map(str), st.sampled_from([None, "u1", "u2", "u3"]))
made_snapshot = st.fixed_dictionaries(
    {"train": st.lists(made_row, max_size=10), "eval": st.lists(made_row, max_size=3)}
)


class Tokenizer:
    """Length is all that is asked of it."""

    def apply_chat_template(self, turns: list[dict[str, str]], **_: object) -> list[int]:
        return [0] * sum(len(turn["content"]) for turn in turns)


@settings(max_examples=60, deadline=None)
@given(st.lists(made_snapshot, min_size=1, max_size=6), st.data())
def test_no_prompt_held_out_in_any_snapshot_is_trained_on(made: list[dict[str, Any]], draw: st.DataObject) -> None:
    """The trainer's own reading of its plan; snapshots that are gone are no snapshots."""
    store = {f"s{i}": splits for i, splits in enumerate(made)}
    names = list(store)
    plan = Plan(
        snapshot=names[-1],
        base_model="-",
        recipe=quick_recipe(data={"replay_share": draw.draw(st.sampled_from([0.0, 0.3, 0.8])), "validation_rows": 2}),
        earlier_snapshots=draw.draw(st.lists(st.sampled_from([*names, "gone"]), max_size=3, unique=True)),
        held_out_snapshots=[name for name in [*names[:-1], "gone"] if name != names[-1]],
    )

    def read_rows(path: str, split: str) -> list[dict[str, Any]]:
        if path not in store:
            raise SnapshotError(f"cannot read {path}")
        rows: list[dict[str, Any]] = store[path][split]
        return rows

    with patch.object(snapshots, "read_rows", read_rows):
        data = prepare(plan, Tokenizer())
    held_out = {r["prompt_id"] for splits in made for r in splits["eval"]}
    available = {r["prompt_id"] for r in made[-1]["train"]}
    assert not trained_on(data) & held_out
    assert trained_on(data) >= available - held_out, "and nothing else is lost"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(made_row, max_size=15),
    st.lists(made_row, max_size=15),
    st.sets(st.sampled_from(PROMPTS), max_size=3),
    st.sets(st.sampled_from(["u1", "u2"]), max_size=2),
)
def test_what_is_to_be_forgotten_is_never_trained_on(
    rows: list[dict[str, Any]], earlier: list[dict[str, Any]], banned: set[str], users: set[str]
) -> None:
    data = build(
        rows,
        DataRecipe(replay_share=0.5, validation_rows=2),
        length=lambda turns: 1,
        sft_max_length=10,
        dpo_max_length=10,
        seed=1,
        earlier=earlier,
        banned=banned,
        banned_users=users,
    )
    forgotten = banned | {r["prompt_id"] for r in [*rows, *earlier] if r["user_id"] in users}
    assert not trained_on(data) & forgotten
    assert data.left_out["forgotten"] == sum(r["prompt_id"] in forgotten for r in rows)
    assert trained_on(data) >= {r["prompt_id"] for r in rows} - forgotten


@pytest.mark.parametrize("by", ["prompt", "record", "user"])
def test_a_prompt_is_forgotten_by_its_id_by_a_records_or_by_its_user(by: str) -> None:
    wanted: dict[str, Any] = {
        "prompt": {"banned": {"p1"}},
        "record": {"banned": {"r1"}},
        "user": {"banned_users": {"u1"}},
    }[by]
    data = build(
        [row("p1", "r1", "u1"), row("p2", "r2", "u2")],
        DataRecipe(replay_share=0, validation_rows=0),
        length=lambda turns: 1,
        sft_max_length=10,
        dpo_max_length=10,
        seed=1,
        **wanted,
    )
    assert trained_on(data) == {"p2"} and data.left_out == {"forgotten": 1}
