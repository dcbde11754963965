"""The pure rules of the agents."""

import math

import pytest

from agents.rules.contamination import Contamination, Match
from agents.rules.normalise import normalise, prompt_id
from agents.rules.rank import ORIGIN_S, rank_key
from agents.rules.split import split
from streams.records import Message


def user(text: str) -> list[Message]:
    return [Message("user", text)]


def test_equal_conversations_have_one_id_whatever_their_white_space() -> None:
    variants = ["Why is it so?", "  Why is\r\nit so?\n", "Why\tis it   so?\x00", "Why is it so?"]
    assert len({prompt_id(normalise(user(text))) for text in variants}) == 1
    assert prompt_id(user("Why is it so")) != prompt_id(user("Why is it so?"))


def test_composed_and_decomposed_letters_are_one() -> None:
    assert prompt_id(normalise(user("caf\u00e9"))) == prompt_id(normalise(user("cafe\u0301")))


def test_roles_and_borders_count() -> None:
    assert prompt_id([Message("system", "a"), Message("user", "b")]) != prompt_id([Message("user", "a b")])


def test_split_takes_about_its_share_and_is_stable() -> None:
    ids = [prompt_id(user(str(i))) for i in range(20_000)]
    sides = [split(i, 0.02) for i in ids]
    assert sides == [split(i, 0.02) for i in ids]
    assert 0.015 < sides.count("eval") / len(sides) < 0.025
    assert {split(i, 0.0) for i in ids} == {"train"}


def test_contamination_finds_shared_ngrams_and_names_the_benchmark() -> None:
    question = "A train leaves the station at noon and travels west at sixty miles an hour for three hours"
    rule = Contamination([("gsm", question), ("short", "What is two plus two?")], n=8, overlap=0.5)
    assert rule.find(user(f"Hi! {question.upper()}. Thanks")) == Match("gsm", 1.0)
    assert rule.find(user("what is TWO plus two")) == Match("short", 1.0)
    assert rule.find(user("A train leaves the station at noon, does it?")) is None
    assert rule.find([Message("assistant", question), Message("user", "go on")]) is None
    assert Contamination([], n=8, overlap=0.5).find(user(question)) is None


def test_rank_without_decay_is_the_order_of_difficulty() -> None:
    assert rank_key(8, 0, None) > rank_key(7.99, 10**13, None)


def test_after_one_half_life_a_prompt_ranks_like_one_of_half_its_difficulty() -> None:
    later = (ORIGIN_S + 86_400) * 1000
    assert rank_key(8, ORIGIN_S * 1000, 86_400) == pytest.approx(rank_key(4, later, 86_400))


def test_rank_refuses_what_has_no_logarithm() -> None:
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="difficulty"):
            rank_key(bad, 0, None)
