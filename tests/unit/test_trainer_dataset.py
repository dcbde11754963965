"""From rows of a snapshot to SFT rows and DPO pairs: what is taken, what is left out, and that it is counted."""

from typing import Any

import pytest

from trainers.dataset import MAX_VALIDATION_SHARE, build, replay_count
from trainers.pairing import best_and_other
from trainers.recipe import DataRecipe

RECIPE = DataRecipe(min_margin=0.5, replay_share=0, validation_rows=0)


def row(prompt_id: str, *rewards: float, difficulty: float = 5.0, texts: list[str] | None = None) -> dict[str, Any]:
    texts = texts or [f"answer {i} of {prompt_id}" for i in range(len(rewards))]
    return {
        "prompt_id": prompt_id,
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": f"prompt {prompt_id}"}],
        "difficulty": difficulty,
        "candidates": [{"text": t, "reward": r, "origin": "teacher"} for t, r in zip(texts, rewards, strict=True)],
    }


def make(rows: list[dict[str, Any]], recipe: DataRecipe = RECIPE, **arguments: Any) -> Any:
    given: dict[str, Any] = {
        "length": lambda turns: sum(len(t["content"]) for t in turns),
        "sft_max_length": 1000,
        "dpo_max_length": 1000,
        "seed": 1,
    }
    return build(rows, recipe, **(given | arguments))


def test_the_best_answer_is_learned_and_the_worst_is_its_pair() -> None:
    data = make([row("a", 3.0, 7.0, 5.0)])
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "prompt a"}]
    assert data.sft == [{"prompt": prompt, "completion": [{"role": "assistant", "content": "answer 1 of a"}]}]
    assert data.pairs == [
        {
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": "answer 1 of a"}],
            "rejected": [{"role": "assistant", "content": "answer 0 of a"}],
        }
    ]


def test_the_median_pairing_takes_a_closer_answer() -> None:
    found = best_and_other(row("a", 1.0, 9.0, 6.0)["candidates"], "max_median")
    assert found is not None and found[1] is not None
    assert (found[0]["reward"], found[1]["reward"]) == (9.0, 6.0)


@pytest.mark.parametrize(
    ("rows", "reason", "sft", "pairs"),
    [
        ([row("a")], "no_answer", 0, 0),
        ([row("a", 5.0, texts=[" \n"])], "no_answer", 0, 0),
        ([row("a", 5.0)], "small_margin", 1, 0),
        ([row("a", 5.0, 4.6)], "small_margin", 1, 0),
        ([row("a", 5.0, 3.0, texts=["same", "same"])], "small_margin", 1, 0),
        ([row("a", 5.0, 1.0), row("a", 5.0, 1.0)], "repeated", 1, 1),
    ],
)
def test_what_is_left_out_is_counted(rows: list[dict[str, Any]], reason: str, sft: int, pairs: int) -> None:
    data = make(rows)
    assert data.left_out == {reason: 1}
    assert (len(data.sft), len(data.pairs)) == (sft, pairs)


def test_equal_rewards_are_no_pair_even_without_a_margin() -> None:
    data = make([row("a", 5.0, 5.0)], DataRecipe(min_margin=0, replay_share=0))
    assert not data.pairs and data.left_out == {"small_margin": 1}


def test_rows_that_are_too_long_are_counted_for_each_phase() -> None:
    rows = [row("a", 9.0, 1.0, texts=["good", "b" * 500])]
    assert make(rows, dpo_max_length=100).left_out == {"dpo_too_long": 1}
    assert make(rows, dpo_max_length=100).sft
    assert make(rows, sft_max_length=5, dpo_max_length=5).left_out == {"sft_too_long": 1, "dpo_too_long": 1}


def test_a_conversation_that_the_template_refuses_is_counted() -> None:
    data = make([row("a", 9.0, 1.0)], length=lambda turns: None)
    assert data.left_out == {"template": 1} and not data.sft


def test_low_rewards_are_no_target_but_may_be_a_pair() -> None:
    data = make([row("a", 3.0, 1.0)], DataRecipe(min_reward=4.0, replay_share=0))
    assert data.left_out == {"low_reward": 1}
    assert not data.sft and len(data.pairs) == 1


def test_the_hardest_stay_where_rows_are_bounded() -> None:
    rows = [row(str(i), 9.0, 1.0, difficulty=i) for i in range(5)]
    data = make(rows, DataRecipe(max_rows=2, replay_share=0, validation_rows=0))
    assert [r["prompt"][1]["content"] for r in data.sft] == ["prompt 4", "prompt 3"]
    assert data.left_out == {"over_max_rows": 3}


def test_held_out_prompts_are_never_trained_on_also_not_by_replay() -> None:
    current = [row(f"c{i}", 9.0, 1.0) for i in range(10)] + [row("held", 9.0, 1.0)]
    earlier = [row("held", 9.0, 1.0), row("c1", 9.0, 1.0), row("old", 9.0, 1.0)]
    data = make(current, DataRecipe(replay_share=0.5, validation_rows=0), held_out={"held"}, earlier=earlier)
    seen = [r["prompt"][1]["content"] for r in data.sft]
    assert "prompt held" not in seen
    assert data.left_out == {"held_out": 1}
    assert data.replayed == 1 and seen.count("prompt old") == 1 and seen.count("prompt c1") == 1


@pytest.mark.parametrize(("current", "share", "count"), [(90, 0.1, 10), (100, 0.5, 100), (100, 0.0, 0)])
def test_replay_makes_its_share_of_the_whole(current: int, share: float, count: int) -> None:
    assert replay_count(current, share) == count


def test_validation_is_apart_from_training_and_the_same_in_any_order() -> None:
    rows = [row(str(i), 9.0, 1.0) for i in range(100)]
    recipe = DataRecipe(replay_share=0, validation_rows=64)
    data, again = make(rows, recipe), make(rows[::-1], recipe)
    assert len(data.sft_validation) == len(data.pairs_validation) == int(100 * MAX_VALIDATION_SHARE)
    ours = {r["prompt"][1]["content"] for r in data.sft_validation}
    assert not ours & {r["prompt"][1]["content"] for r in data.sft}
    assert ours == {r["prompt"][1]["content"] for r in again.sft_validation}
    assert data.sft == again.sft
