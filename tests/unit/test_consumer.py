"""Faust's consumer with less done for each record: it waits for the same things."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from mode import Service

from streams.app import create_app
from streams.consumer import FETCH_WAIT_MS, QuickConsumer, QuickWait
from streams.settings import Settings


class Quick(QuickWait):
    """The wait alone."""


class Slow(Service):
    """Faust's own: whatever is asked of ours holds for it."""


@pytest.fixture(params=[Quick, Slow])
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    service: Service = request.param()
    await service.start()
    yield service
    await service.stop()


async def test_what_ends_at_once_comes_first(service: Service) -> None:
    async def put() -> int:
        return 7

    never = asyncio.Event()
    result = await service.wait_first(put(), never.wait())
    assert (result.results, result.stopped) == ([7], False)


async def test_what_has_to_wait_is_waited_for(service: Service) -> None:
    room, never, steps = asyncio.Event(), asyncio.Event(), list[str]()

    async def put() -> str:
        steps.append("begun")
        await room.wait()
        await asyncio.sleep(0)
        steps.append("done")
        return "put"

    waiting = asyncio.create_task(service.wait_first(put(), never.wait()))
    await asyncio.sleep(0.02)
    assert steps == ["begun"] and not waiting.done()
    room.set()
    assert (await waiting).results == ["put"]
    assert steps == ["begun", "done"]


async def test_a_flow_that_stops_gives_the_record_up(service: Service) -> None:
    full, stopped, given_up = asyncio.Event(), asyncio.Event(), list[bool]()

    async def put() -> None:
        try:
            await full.wait()
        except asyncio.CancelledError:
            given_up.append(True)
            raise

    waiting = asyncio.create_task(service.wait_first(put(), stopped.wait()))
    await asyncio.sleep(0.02)
    stopped.set()
    assert (await waiting).results == [True]
    await asyncio.sleep(0)
    assert given_up == [True]


@pytest.mark.parametrize("waits", [False, True])
async def test_an_error_goes_on(service: Service, waits: bool) -> None:
    async def put() -> None:
        if waits:
            await asyncio.sleep(0.01)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await service.wait_first(put(), asyncio.Event().wait())


async def test_what_times_out_inside_of_it_says_so(service: Service) -> None:
    async def put() -> str:
        await asyncio.sleep(0)
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 0.01)
        except TimeoutError:
            return "timed out"
        return "not"

    assert (await service.wait_first(put(), asyncio.Event().wait())).results == ["timed out"]


async def test_a_worker_s_app_has_it() -> None:
    app = create_app(Settings()).app
    assert isinstance(app.consumer, QuickConsumer)
    thread = app.consumer._thread
    assert thread._create_worker_consumer(app.transport)._fetch_max_wait_ms == FETCH_WAIT_MS
