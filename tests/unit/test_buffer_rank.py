"""The total order of members as bytes."""

from hypothesis import given
from hypothesis import strategies as st

from streams.buffer.base import HISTOGRAM_BINS, difficulty_bin
from streams.buffer.rank import member_key, order, sortable, tie

finite = st.floats(allow_nan=False, allow_infinity=False)


@given(finite, finite)
def test_bytes_sort_like_numbers(a: float, b: float) -> None:
    assert (sortable(a) < sortable(b)) == (a < b)
    assert (sortable(a) == sortable(b)) == (a == b)


@given(finite, st.text(), st.text(), st.text())
def test_ties_are_broken_by_the_prompt_then_by_the_id(rank: float, prompt: str, a: str, b: str) -> None:
    assert len(order(rank, prompt, a)) == 20
    assert (order(rank, prompt, a) == order(rank, prompt, b)) == (a == b)
    assert order(rank, prompt, a)[:12] == sortable(rank) + tie(prompt)
    assert order(rank, prompt, a)[12:] == member_key(a)


@given(st.floats(-100, 100))
def test_bins(difficulty: float) -> None:
    i = difficulty_bin(difficulty)
    assert 0 <= i < HISTOGRAM_BINS
    if 1 <= difficulty < 9:
        assert 1 + i / 2 <= difficulty < 1.5 + i / 2
