"""Which answers make a pair, by rule, and which pairs RIP keeps."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.pairing import PairFacts, best_and_other, is_clear, quantile, rip_refusals
from trainers.recipe import DataRecipe, RipRecipe

RULES = ("max_min", "max_median", "margin", "rip")


def answers(*rewards: float) -> list[dict[str, object]]:
    return [{"text": f"answer {i}", "reward": reward} for i, reward in enumerate(rewards)]


def pair(rule: str, margin: float, *rewards: float) -> tuple[float, float | None]:
    found = best_and_other(answers(*rewards), rule, margin)
    assert found is not None
    best, other = found
    return best["reward"], other["reward"] if other else None


@pytest.mark.parametrize(("rule", "rejected"), [("max_min", 1.0), ("max_median", 7.0), ("margin", 6.0), ("rip", 1.0)])
def test_each_rule_pairs_the_best_with_another_answer(rule: str, rejected: float) -> None:
    assert pair(rule, 2.5, 6.0, 9.0, 1.0, 8.0, 7.0) == (9.0, rejected)


def test_margin_takes_the_closest_that_is_clear_and_else_the_worst() -> None:
    assert pair("margin", 1.0, 9.0, 8.5, 8.0, 2.0) == (9.0, 8.0), "a margin that is just reached is enough"
    assert pair("margin", 0.0, 9.0, 9.0, 8.5) == (9.0, 8.5), "equal rewards have no order"
    assert pair("margin", 5.0, 9.0, 8.0, 7.0) == (9.0, 7.0)
    same_text = [{"text": "a", "reward": 9.0}, {"text": "a", "reward": 7.0}, {"text": "b", "reward": 6.0}]
    found = best_and_other(same_text, "margin", 1.0)
    assert found is not None and found[1] == same_text[2]


@settings(max_examples=100)
@given(st.lists(st.floats(1, 9), min_size=1, max_size=6), st.sampled_from(RULES), st.floats(0, 3))
def test_the_chosen_answer_is_never_worse_and_margin_is_closest(rewards: list[float], rule: str, margin: float) -> None:
    chosen, rejected = pair(rule, margin, *rewards)
    assert chosen == max(rewards)
    assert (rejected is None) == (len(rewards) == 1)
    if rejected is not None:
        assert rejected in rewards and rejected <= chosen
        clear = [r for r in rewards if is_clear({"reward": chosen}, {"reward": r}, margin)]
        if rule == "margin" and clear:
            assert rejected == max(clear)


def facts(rejected: float, chars: int = 100, gap: float = 1.0) -> PairFacts:
    return PairFacts(rejected_reward=rejected, rejected_chars=chars, gap=gap)


def test_rip_keeps_good_long_rejected_answers_with_a_small_gap() -> None:
    pairs = [facts(7.0), facts(2.0), facts(7.0, chars=10), facts(7.0, gap=6.0), facts(2.0, chars=10, gap=6.0)]
    recipe = RipRecipe(min_rejected=5.0, min_rejected_chars=50, max_gap=3.0)
    assert rip_refusals(pairs, recipe) == [None, "rip_rejected", "rip_short", "rip_gap", "rip_rejected"]
    on_the_bound = [facts(5.0, chars=50, gap=3.0)]
    assert rip_refusals(on_the_bound, recipe) == [None]


def test_rip_without_values_takes_halves_of_the_set() -> None:
    pairs = [facts(float(i), chars=10 * i, gap=10.0 - i) for i in range(1, 10)]
    assert rip_refusals(pairs, RipRecipe()) == ["rip_rejected"] * 4 + [None] * 5
    everything = RipRecipe(min_rejected_quantile=0, min_rejected_chars_quantile=0, max_gap_quantile=1)
    assert rip_refusals(pairs, everything) == [None] * 9
    assert rip_refusals([], RipRecipe()) == []


@settings(max_examples=100)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.floats(0, 1))
def test_a_quantile_is_one_of_the_values_with_its_share_below(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert found in values
    assert sum(v < found for v in values) <= share * (len(values) - 1)
    assert sum(v <= found for v in values) > share * (len(values) - 1)


def test_the_rules_here_are_those_of_the_recipe() -> None:
    assert set(RULES) == set(DataRecipe.model_fields["pairing"].annotation.__args__)  # type: ignore[union-attr]
