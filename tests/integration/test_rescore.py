"""The rubric is changed while prompts flow: real workers, broker, Redis; the judge is a fake that goes by its rubric.

The two rubrics' ratings lie apart, so one look at a number tells who gave it.
"""

import asyncio
import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streams.buffer.generations import GenerationState
from streams.buffer.redis import RedisBuffer, generation_keys
from streams.buffer.redis_generations import RedisGenerations
from streams.judge import identity_of
from streams.redis_client import connect
from streams.settings import JudgeSettings, RedisSettings
from tests.integration.test_recovery import haypile
from tests.support.flow import CAPACITY, RULES, members, prompts
from tests.support.prompts import offer
from tests.support.stack import Topics, Worker, wait_for

BETWEEN = math.log(5.0)
"""Rank keys of the first rubric's ratings are under this, those of the second over it."""
RUBRICS = {"first": "Use the ratings 1 to 4 only.", "second": "Use the ratings 6 to 9 only."}


class Auditor(threading.Thread):
    """Looks at every generation of both buffers all the time: has any ever held the ratings of two judges?"""

    def __init__(self, redis_url: str, namespace: str, ids: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self._settings, self._namespace, self._ids = RedisSettings(url=redis_url), namespace, ids
        self.stop = threading.Event()
        self.looks = 0
        self.both = 0
        """Looks at which both generations had members."""
        self.wrong: list[str] = []

    def run(self) -> None:
        asyncio.run(self._watch())

    async def _watch(self) -> None:
        client = connect(self._settings)
        keys = {
            (name, number): generation_keys(self._namespace, name, number)  # type: ignore[arg-type]
            for name in ("main", "eval")
            for number in range(1, 5)
        }
        while not self.stop.is_set():
            async with client.pipeline(transaction=True) as pipe:  # one moment
                for own in keys.values():
                    pipe.hvals(own[7])
                    pipe.zrange(own[0], 0, -1, withscores=True)
                replies = await pipe.execute()
            found: dict[int, set[str]] = {}
            for (name, number), bodies, ranks in zip(keys, replies[0::2], replies[1::2], strict=True):
                judges = {json.loads(body)["judge"] for body in bodies}
                found.setdefault(number, set()).update(judges)
                sides = {rank > BETWEEN for _, rank in ranks}
                if len(judges) > 1 or len(sides) > 1 or sides - {judge == self._ids["second"] for judge in judges}:
                    self.wrong.append(f"{name} generation {number}: judges {judges}, ratings on sides {sides}")
            if any(len(judges) > 1 for judges in found.values()):
                self.wrong.append(f"the main and the held-out buffer differ: {found}")
            self.looks += 1
            self.both += sum(bool(judges) for judges in found.values()) > 1
            await asyncio.sleep(0.03)
        await client.aclose()


def state_of(redis_url: str, namespace: str) -> GenerationState:
    async def read() -> GenerationState:
        client = connect(RedisSettings(url=redis_url))
        state = await RedisGenerations(client, namespace, RULES, RULES).read()
        await client.aclose()
        return state

    return asyncio.run(read())


def judge_of_members(redis_url: str, namespace: str) -> set[str]:
    async def read() -> set[str]:
        client = connect(RedisSettings(url=redis_url))
        found = await RedisBuffer(client, namespace, "main", RULES).top(CAPACITY)
        await client.aclose()
        return {member.prompt.judge for member in found}

    return asyncio.run(read())


@pytest.fixture
def rubrics(tmp_path: Path, environ: dict[str, str]) -> Iterator[dict[str, dict[str, str]]]:
    """Settings of a worker with each rubric. One member is rescored at a time: there is time to interrupt it."""
    found = {}
    for name, text in RUBRICS.items():
        (tmp_path / f"{name}.txt").write_text(text)
        found[name] = {
            **environ,
            "HAYPILE_JUDGE__RUBRIC": str(tmp_path / f"{name}.txt"),
            "HAYPILE_JUDGE__RESCORE_CONCURRENCY": "1",
            "HAYPILE_INGEST__EVAL_SHARE": "0.05",
            "HAYPILE_BUFFER__MIN_QUALITY": "1",
        }
    yield found


def test_no_prompt_is_ever_ranked_against_one_that_another_judge_has_rated(
    tmp_path: Path,
    topics: Topics,
    redis_url: str,
    namespace: str,
    rubrics: dict[str, dict[str, str]],
) -> None:
    ids = {name: identity_of(JudgeSettings(rubric=tmp_path / f"{name}.txt")) for name in RUBRICS}
    raw = prompts(900, seed=11)
    values = [*raw.values()]
    auditor = Auditor(redis_url, namespace, ids)
    auditor.start()
    flow = "ingest,score,curate"
    first = Worker(tmp_path, "first", flow, rubrics["first"])
    workers = [first]
    try:
        topics.send(values[:400])
        wait_for("the buffer is full", lambda: len(members(redis_url, namespace)) == CAPACITY, 60, every_s=0.5)
        sender = threading.Thread(
            target=lambda: [(topics.send(values[i : i + 20]), time.sleep(0.3)) for i in range(400, 900, 20)]
        )
        sender.start()

        # The change. The one that rescores is killed in the middle of it.
        second = Worker(tmp_path, "second", flow, rubrics["second"])
        workers.append(second)

        def in_the_middle() -> Any:
            state = state_of(redis_url, namespace)
            return state.next is not None and 0 < state.left < state.total * 0.8 and state

        found: GenerationState = wait_for("half of the buffer", in_the_middle, 60, every_s=0.05)
        second.kill()
        assert (found.judge, found.next_judge) == (ids["first"], ids["second"])
        assert judge_of_members(redis_url, namespace) == {ids["first"]}, "the old generation serves"
        status = json.loads(haypile({**rubrics["second"]}, "status", "--json", code=1))  # no vLLM for all of it
        assert status["buffer"]["rescoring"]["judge"] == ids["second"]
        left = state_of(redis_url, namespace).left
        assert left > 0

        third = Worker(tmp_path, "third", flow, rubrics["second"])
        workers.append(third)
        wait_for("the switch", lambda: state_of(redis_url, namespace).judge == ids["second"], 90, every_s=0.2)
        assert third.metrics()['haypile_rescored_total{outcome="rated"}'] < found.total, "it went on, not again"

        # Who still rates by the old rubric stops by itself; what it has rated since is rated again.
        wait_for("the old judge's worker ends", lambda: first.popen.poll() is not None, 30)
        assert first.popen.returncode == 1 and "was replaced by" in first.text()
        sender.join()
        wait_for("an outcome for each", lambda: raw.keys() <= topics.accounted()[0].keys(), 90, every_s=1)
        wait_for("all is committed", lambda: topics.lag(topics.names.scored) == 0, 30, every_s=1)
        assert topics.accounted()[1] == []

        # Every threshold that an outcome was measured against was of its own judge.
        outcomes = topics.json(topics.names.curated)
        compared = [o for o in outcomes if o.get("threshold") is not None]
        assert {o["judge"] for o in compared} == set(ids.values())
        assert [o for o in compared if (o["threshold"] > BETWEEN) != (o["judge"] == ids["second"])] == []
        assert [o for o in compared if (o["rank_key"] > BETWEEN) != (o["judge"] == ids["second"])] == []

        # The log is the truth: the buffer is the top of what the second judge has rated, also when it is made anew.
        best: dict[str, float] = {}
        for record in topics.json(topics.names.scored):
            if record["judge"] == ids["second"] and record["split"] == "train":
                best[record["id"]] = record["difficulty"]
        expected = {id for id, _ in sorted(best.items(), key=lambda item: -item[1])[:CAPACITY]}
        assert members(redis_url, namespace) == expected
        out = haypile(rubrics["second"], "buffer", "rebuild", "--yes")
        assert f"of judge {ids['second']}" in out and f"of {ids['first']}" in out
        assert members(redis_url, namespace) == expected
        assert judge_of_members(redis_url, namespace) == {ids["second"]}
    finally:
        for worker in workers:
            worker.signal(signal.SIGKILL) if worker.popen.poll() is None else None
            worker.kill()
        auditor.stop.set()
        auditor.join(10)
    assert auditor.wrong == []
    assert auditor.looks > 100 and auditor.both > 10


def test_a_person_begins_and_gives_up_a_rescoring(redis_url: str, namespace: str) -> None:
    environ = {"HAYPILE_REDIS__URL": redis_url, "HAYPILE_REDIS__NAMESPACE": namespace, "HAYPILE_JUDGE__REVISION": "two"}

    async def seed() -> None:
        client = connect(RedisSettings(url=redis_url))
        await RedisGenerations(client, namespace, RULES, RULES).main.offer([offer("a"), offer("b")], [])
        await client.aclose()

    assert "the buffer is empty" in haypile(environ, "rescore")
    asyncio.run(seed())
    judge = identity_of(JudgeSettings(revision="two"))
    begun = json.loads(haypile(environ, "rescore", "--json"))
    assert (begun["result"], begun["judge"]) == ("begun", "j1")
    assert (begun["rescoring"]["judge"], begun["rescoring"]["left"], begun["rescoring"]["total"]) == (judge, 2, 2)
    assert "under way already" in haypile(environ, "rescore")
    assert "stays judge j1's" in haypile(environ, "rescore", "--cancel")
    assert json.loads(haypile(environ, "rescore", "--cancel", "--json"))["result"] == "nothing"
    haypile(environ, "rescore", "--cancel", "--wait", code=2)
    assert state_of(redis_url, namespace).retired == {judge}
