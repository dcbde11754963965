"""Waiting out an outage: for as long as it takes, and never long after its end."""

import asyncio
import random

import pytest

from streams import retry
from streams.errors import Fatal, Transient


async def test_pauses_double_up_to_the_cap_with_jitter_and_there_is_no_last_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    random.seed(1)
    calls = 0

    async def attempt() -> str:
        nonlocal calls
        calls += 1
        if calls <= 3000:
            raise Transient("away")
        return "back"

    assert await retry.patiently(attempt) == "back"
    assert len(pauses) == 3000
    assert max(pauses) <= retry.CAP_S, "work goes on within seconds of the return"
    assert max(pauses) > 0.9 * retry.CAP_S
    for step, pause in enumerate(pauses[:6]):
        assert pause <= retry.FIRST_S * 2**step
    assert len({round(pause, 3) for pause in pauses[10:]}) > 500, "thousands of tasks do not come back at once"


async def test_other_errors_pass() -> None:
    async def attempt() -> None:
        raise Fatal("no")

    with pytest.raises(Fatal):
        await retry.patiently(attempt)
