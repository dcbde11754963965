"""Malformed records: the seeded run in short, hypothesis on the same path. The long run: `python -m tests.fuzz`."""

import asyncio
import random

from hypothesis import given
from hypothesis import strategies as st

from agents.scored_log import read_scored
from tests.fuzz import BYTES, VALUES, Fuzz, record, run


def test_a_seeded_run_accounts_for_every_record() -> None:
    fuzz = asyncio.run(run(6_000, seed=7))
    assert fuzz.defects == []
    assert sum(fuzz.outcomes.values()) == 6_000
    kinds = {outcome.partition(":")[2] for outcome in fuzz.outcomes}
    wanted = {"not_json", "not_utf8", "wrong_type", "lone_surrogate", "empty", "no_prompt", "bad_ts", "bad_id"}
    assert wanted <= kinds, "the mutations reach every kind of refusal"
    assert fuzz.outcomes["accepted"] > 100, "and leave some records whole"


def test_a_defect_is_found() -> None:
    fuzz = Fuzz()

    async def swallow(*args: object, **kwargs: object) -> None:
        """A broker that forgets."""

    fuzz._broker.send = swallow  # type: ignore[method-assign]
    assert asyncio.run(fuzz.feed(b"no json")) == "defect"
    assert "0 records were sent" in fuzz.defects[0]


_PIECES = st.one_of(
    st.binary(max_size=12), st.sampled_from(BYTES), st.sampled_from(VALUES).map(lambda text: text.encode()[:400])
)


@st.composite
def _broken(draw: st.DrawFn) -> bytes:
    """A record of the seeded kind with pieces put into it where hypothesis likes."""
    value = record(random.Random(draw(st.integers(0, 2**32))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(value)))
        value = value[:at] + draw(_PIECES) + value[at + draw(st.integers(0, 5)) :]
    return value


@given(st.binary(max_size=200) | _broken())
def test_any_bytes_are_accepted_or_come_back_whole_from_the_dead_letters(value: bytes) -> None:
    fuzz = Fuzz()
    asyncio.run(fuzz.feed(value))
    assert fuzz.defects == []


@given(
    st.dictionaries(
        st.sampled_from(["difficulty", "quality", "ts", "judge", "id"]), st.sampled_from(VALUES), max_size=5
    ),
)
def test_no_record_of_the_log_raises_whoever_wrote_it(fields: dict[str, str]) -> None:
    wanted = {"id": '"a"', "prompt_id": '"b"', "messages": '[{"role": "user", "content": "a"}]', "ts": "1"}
    scored = {"difficulty": "5.5", "quality": "5", "category": '"math"', "label_mass": "1", "judge": '"j"'}
    text = ", ".join(f'"{name}": {value}' for name, value in {**wanted, **scored, **fields}.items())
    read = read_scored(0, 7, ("{" + text + "}").encode("utf-8", "surrogatepass"))
    assert (read.offset, read.prompt is None) == (7, bool(read.error))
    if not fields:
        assert read.prompt is not None
