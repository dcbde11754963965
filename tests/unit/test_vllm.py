"""The vLLM client: what each failure of a server becomes."""

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from streams.errors import Fatal, Transient
from streams.vllm import BadRequest, TooLong, VllmPool
from tests.support.fake_vllm import FakeVllm


@pytest.fixture
async def servers() -> AsyncIterator[list[tuple[FakeVllm, str]]]:
    fakes = [FakeVllm(), FakeVllm()]
    started = []
    for fake in fakes:
        server = TestServer(fake.app)
        await server.start_server()
        started.append(server)
    yield [(fake, str(server.make_url("")).rstrip("/")) for fake, server in zip(fakes, started, strict=True)]
    for server in started:
        await server.close()


@pytest.mark.parametrize("kind", ["429", "500", "503", "garbage", "half", "empty"])
async def test_a_fault_of_the_only_server_is_transient_and_passes(
    servers: list[tuple[FakeVllm, str]], kind: str
) -> None:
    fake, url = servers[0]
    async with VllmPool([url]) as pool:
        fake.fault(kind, 1)
        with pytest.raises(Transient):
            await pool.completions(["a"], model="judge")
        assert len(await pool.completions(["a", "b"], model="judge")) == 2


async def test_a_server_that_says_nothing_is_given_up_in_time(servers: list[tuple[FakeVllm, str]]) -> None:
    fake, url = servers[0]
    async with VllmPool([url], timeout_s=0.2) as pool:
        fake.fault("nothing", 1)
        with pytest.raises(Transient, match="did not answer"):
            await pool.completions(["a"], model="judge")


@pytest.mark.parametrize("kind", ["500", "garbage", "half"])
async def test_another_server_takes_over(servers: list[tuple[FakeVllm, str]], kind: str) -> None:
    (first, url_1), (second, url_2) = servers
    async with VllmPool([url_1, url_2]) as pool:
        first.fault(kind, 1000)
        for _ in range(10):
            await pool.completions(["a"], model="judge")
        assert second.requests == 10
        assert first.requests < 10, "a server that failed is left alone for a while"


async def test_requests_in_flight_are_bounded_and_spread(servers: list[tuple[FakeVllm, str]]) -> None:
    for fake, _ in servers:
        fake.delay_s = 0.02
    async with VllmPool([url for _, url in servers], concurrency=3) as pool:
        await asyncio.gather(*(pool.completions(["a"], model="judge") for _ in range(40)))
    assert [fake.most_at_once for fake, _ in servers] == [3, 3]


async def test_errors_of_the_request_are_named(servers: list[tuple[FakeVllm, str]]) -> None:
    fake, url = servers[0]
    async with VllmPool([url]) as pool:
        with pytest.raises(TooLong):
            await pool.completions(["x" * 30_000], model="judge")
        with pytest.raises(Fatal, match="does not exist"):
            await pool.completions(["x"], model="nobody")
        fake.fault("400", 1)
        with pytest.raises(BadRequest):
            await pool.completions(["x"], model="judge")
        fake.fault("401", 1)
        with pytest.raises(Fatal, match="key"):
            await pool.completions(["x"], model="judge")


async def test_a_server_that_is_not_there_says_which() -> None:
    async with VllmPool(["http://127.0.0.1:9"]) as pool:
        with pytest.raises(Transient, match=r"127\.0\.0\.1:9"):
            await pool.completions(["a"], model="judge")


async def test_adapters_load_and_unload_and_repeats_are_fine(servers: list[tuple[FakeVllm, str]]) -> None:
    _, url = servers[0]
    async with VllmPool([url]) as pool:
        await pool.load_adapter(url, "a-1", "/adapters/a-1")
        await pool.load_adapter(url, "a-1", "/adapters/a-1")
        assert "a-1" in await pool.models(url)
        await pool.unload_adapter(url, "a-1")
        await pool.unload_adapter(url, "a-1")
        assert "a-1" not in await pool.models(url)


async def test_a_classification_is_read_as_vllm_answers_it(servers: list[tuple[FakeVllm, str]]) -> None:
    fake, url = servers[0]
    async with VllmPool([url]) as pool:
        rewards = await pool.classify(["a", "b", "c"], model="base")
        assert rewards == [hashlib.sha256(text.encode()).digest()[0] / 16 - 8 for text in "abc"], "no sigmoid over them"
        with pytest.raises(TooLong):
            await pool.classify(["x" * 30_000], model="base")
        fake.fault("empty", 1)
        with pytest.raises(Transient, match="classification"):
            await pool.classify(["a"], model="base")


async def test_a_classifier_of_several_labels_rewards_with_the_probability_of_the_last() -> None:
    async def classify(request: web.Request) -> web.Response:
        logits = [[0.0, math.log(3)], []] if (await request.json())["input"] == ["a", "none"] else [[0.0, math.log(3)]]
        rows = [{"index": i, "label": "x", "probs": row, "num_classes": len(row)} for i, row in enumerate(logits)]
        return web.json_response({"object": "list", "model": "r", "data": rows[::-1], "usage": {"prompt_tokens": 1}})

    app = web.Application()
    app.router.add_post("/classify", classify)
    async with TestServer(app) as server, VllmPool([str(server.make_url(""))]) as pool:
        assert await pool.classify(["a"], model="r") == [pytest.approx(0.75)]
        with pytest.raises(Transient, match="not readable"):
            await pool.classify(["a", "none"], model="r")
        with pytest.raises(Transient, match="1 of 2"):
            await pool.classify(["a", "b"], model="r")
