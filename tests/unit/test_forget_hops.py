"""The hops pass over what is forgotten, and write nothing new about it."""

import json
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest

from agents.rescore import Rescore
from agents.score import Score
from streams.forgotten import ForgottenList
from streams.judge import Rating
from streams.records import AcceptedPrompt, Message, encode
from streams.redis_client import connect
from streams.settings import RedisSettings
from tests.support.prompts import prompt
from tests.unit.test_handlers import TOPICS, Bench, OneRating, Producer, inbound, ingest_with, scored, seen
from tests.unit.test_rescore import FakeJudge, FakeLease, World

__all__ = ["seen"]  # a fixture


def anna() -> ForgottenList:
    known = ForgottenList()
    record = known.request("user", "anna", ends={f"{TOPICS.raw}:0": 5}, future=False, now_ms=1)
    known.take(record)
    return known


async def test_ingest(seen: object, redis_url: str, namespace: str) -> None:
    producer = Producer()
    ingest = ingest_with(seen, producer)  # type: ignore[arg-type]
    ingest._forgotten = anna()
    hers = json.dumps({"id": "a", "user_id": "anna", "prompt": "Why?"}).encode()
    assert await ingest(inbound(hers, 4)) == "forgotten"
    assert producer.sent == []
    client = connect(RedisSettings(url=redis_url))
    assert [key async for key in client.scan_iter(match=f"*{namespace}*")] == []
    await client.aclose()
    assert await ingest(inbound(hers, 5)) == "accepted", "it came after the request"
    assert await ingest(inbound(hers.replace(b"anna", b"berta").replace(b'"a"', b'"b"'), 4)) == "exact_repeat"


async def test_score_also_when_it_is_asked_for_while_the_judge_is_busy() -> None:
    producer, known = Producer(), ForgottenList()
    accepted = AcceptedPrompt(id="a", prompt_id="a", messages=[Message("user", "Why?")], ts=1, user_id="anna")
    record = inbound(encode(accepted), 0, TOPICS.accepted)

    class Busy(OneRating):
        rated = 0

        async def rate(self, messages: Sequence[Message]) -> Rating:
            self.rated += 1
            for asked in anna().records():
                known.take(asked)
            return await super().rate(messages)

    judge = Busy()
    score = Score(TOPICS, judge=judge, producer=producer, now_ms=lambda: 5, forgotten=known)  # type: ignore[arg-type]
    assert [await score(record), await score(record)] == ["forgotten", "forgotten"]
    assert judge.rated == 1 and producer.sent == []


async def test_curate() -> None:
    bench = Bench([msgspec.structs.replace(scored("a"), user_id="anna"), scored("b")])
    curate = bench.curate()
    curate._curator._forgotten = anna()
    assert [await curate(bench.record(0)), await curate(bench.record(1))] == ["forgotten", "admitted"]
    assert [record.id for _, record in bench.producer.sent] == ["b"]  # type: ignore[attr-defined]
    assert await bench.main.positions() == {0: 1} and bench.log.read_from == []
    bench.new_buffers()
    again = bench.curate()
    again._curator._forgotten = anna()
    assert await again.repair() == 2 and await bench.ids() == {"b"}, "a replay, too"
    assert [record.id for _, record in bench.producer.sent] == ["b", "b"]  # type: ignore[attr-defined]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    found = World()
    await found.put(msgspec.structs.replace(prompt("a", judge="old"), user_id="anna"), prompt("b", judge="old"))
    yield found


async def test_a_rescoring(world: World) -> None:
    texts = {m.prompt.messages[-1].content: 5.0 for m in await world.generations.main.top(9)}
    rescore = Rescore(
        TOPICS,
        judge=FakeJudge("new", texts),  # type: ignore[arg-type]
        generations=world.generations,
        lease=FakeLease(),  # type: ignore[arg-type]
        producer=world.broker,  # type: ignore[arg-type]
        metrics=world.metrics,
        concurrency=2,
        clock=world.clock,
        forgotten=anna(),
    )
    await rescore.once()
    assert [record.id for record in world.broker.of(TOPICS.scored) if record.judge == "new"] == ["b"]
    await world.generations.main.remove(["a"])  # what the sweep does
    await world.curate()
    assert (await rescore.once()).judge == "new", "and it comes to its end"
