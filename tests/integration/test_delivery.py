"""The way of records through real workers, the real broker and the real Redis; the judge is a fake that is fast.

What must hold whatever happens: every raw record has an outcome or a dead letter, and the buffer is what the in-memory
reference makes of `prompts.scored`.
"""

import asyncio
import base64
import json
import threading
import time
from pathlib import Path

from streams.buffer.redis import RedisBuffer
from streams.redis_client import connect
from streams.settings import RedisSettings
from tests.support.flow import CAPACITY, RULES, members, prompts, reference, wait_accounted
from tests.support.stack import Process, Topics, Worker, wait_for

BAD = [b"", b"not json", b"\xff\xfe", b'{"prompt": "\\ud800"}', b'{"prompt": 7}', b"{}", b"[]", b'{"prompt": " "}']


def test_two_workers_share_the_partitions_and_killing_one_loses_nothing(
    tmp_path: Path, topics: Topics, environ: dict[str, str], redis_url: str, namespace: str
) -> None:
    raw = prompts(2500, seed=1)
    values = [*raw.values()]
    for i, bad in enumerate(BAD * 3):
        values.insert(i * 97, bad)
    first = Worker(tmp_path, "first", "ingest,score,curate", environ)
    second = Worker(tmp_path, "second", "ingest,score,curate", environ)
    try:
        topics.send(values[:200])
        wait_for("both workers handle records", lambda: first.handled("score") + second.handled("score"), 60)
        sender = threading.Thread(
            target=lambda: [topics.send(values[i : i + 100]) for i in range(200, len(values), 100)]
        )
        sender.start()
        wait_for(
            "the second worker has its share", lambda: second.handled("score") > 20 and first.handled("score") > 20, 60
        )
        first.kill()
        sender.join()
        wait_accounted(topics, set(raw), dead=len(BAD) * 3)
        outcomes, dead = topics.accounted()
        assert outcomes.keys() == raw.keys()
        assert sorted(set(dead)) == sorted(set(BAD)), "dead letters hold the original bytes"
        assert members(redis_url, namespace) == reference(topics)
        assert len(members(redis_url, namespace)) == CAPACITY
        assert second.terminate(30) == 0
        for topic in (topics.names.raw, topics.names.accepted, topics.names.scored):
            assert topics.lag(topic) == 0, "what was done is committed on SIGTERM"
    finally:
        first.kill()
        second.kill()


def test_any_subset_of_agents_runs_in_a_worker(
    tmp_path: Path, topics: Topics, environ: dict[str, str], redis_url: str, namespace: str
) -> None:
    raw = prompts(300, seed=2)
    workers = [
        Worker(tmp_path, "a", "ingest,score", environ),
        Worker(tmp_path, "b", "score", environ),
        Worker(tmp_path, "c", "curate", environ),
    ]
    try:
        topics.send([*raw.values()])
        wait_accounted(topics, set(raw), dead=0)
        assert members(redis_url, namespace) == reference(topics)
        assert [worker.terminate(30) for worker in workers] == [0, 0, 0]
    finally:
        for worker in workers:
            worker.kill()


def test_a_redis_that_comes_back_empty_is_filled_again_from_the_log(
    tmp_path: Path, topics: Topics, environ: dict[str, str], redis_url: str, namespace: str
) -> None:
    raw = prompts(400, seed=3)
    values = [*raw.values()]
    worker = Worker(tmp_path, "worker", "ingest,score,curate", environ)

    async def forget() -> None:
        client = connect(RedisSettings(url=redis_url))
        await RedisBuffer(client, namespace, "main", RULES).clear()
        await client.aclose()

    try:
        topics.send(values[:300])
        wait_accounted(topics, set([*raw][:300]), dead=0)
        wait_for("all is committed", lambda: topics.lag(topics.names.scored) == 0, 20, every_s=1)
        asyncio.run(forget())
        wait_for("also on a quiet topic", lambda: members(redis_url, namespace) == reference(topics), 40, every_s=1)
        asyncio.run(forget())
        topics.send(values[300:])
        wait_accounted(topics, set(raw), dead=0)
        assert worker.metrics()["haypile_buffer_replayed_total"] > 0
        wait_for("the buffer is that of the log", lambda: members(redis_url, namespace) == reference(topics), 20)
    finally:
        worker.kill()


def test_a_record_that_kills_the_process_every_time_becomes_a_dead_letter(
    tmp_path: Path, topics: Topics, environ: dict[str, str]
) -> None:
    raw = prompts(120, seed=4)
    raw["poison"] = json.dumps({"id": "poison", "prompt": "please kill-me now"}).encode()
    topics.send([*raw.values()])
    # By another worker: one that is killed before it has committed ingests the record again, and each copy is a record.
    ingest = Worker(tmp_path, "ingest", "ingest", environ)
    try:
        wait_for(
            "all records are accepted", lambda: len(topics.read(topics.names.accepted)) == len(raw), 60, every_s=0.5
        )
        assert ingest.terminate(30) == 0
    finally:
        ingest.kill()
    environ = {**environ, "HAYPILE_WORKER__METRICS_PORT": "0", "HAYPILE_WORKER__MAX_ATTEMPTS": "2"}
    starts = 0
    deadline = time.monotonic() + 240
    worker = Process(["-m", "tests.support.poisoned_worker"], tmp_path / "worker.log", environ)
    try:
        while not topics.json(topics.names.dead):
            assert time.monotonic() < deadline, f"still no dead letter after {starts} starts: {worker.text()[-2000:]}"
            if worker.popen.poll() is not None:
                starts += 1
                worker = Process(["-m", "tests.support.poisoned_worker"], tmp_path / "worker.log", environ)
            time.sleep(0.5)
        wait_accounted(topics, raw.keys() - {"poison"}, dead=1)
        [letter] = topics.json(topics.names.dead)
        assert letter["reason"] == "poison"
        assert json.loads(base64.b64decode(letter["value"]))["id"] == "poison"
        assert worker.popen.poll() is None, "the stream goes on"
    finally:
        worker.kill()


def test_a_flood_of_dead_letters_stops_the_worker_with_one_line(
    tmp_path: Path, topics: Topics, environ: dict[str, str]
) -> None:
    topics.send([*prompts(20, seed=9).values(), *(b"%d is no record" % i for i in range(600))])
    worker = Worker(tmp_path, "worker", "ingest,score,curate", environ)
    try:
        assert worker.popen.wait(90) == 1
        assert "worker.max_dead_share" in worker.text().splitlines()[-1]
        assert "haypile dlq list" in worker.text().splitlines()[-1]
        assert "Traceback" not in worker.text()
        letters = topics.json(topics.names.dead)
        assert len(letters) < 600, "it did not divert everything"
        committed = topics.committed(topics.names.raw)
        done = {(p, offset) for p, offset, _ in topics.read(topics.names.raw) if offset < committed[p]}
        told = {(letter["partition"], letter["offset"]) for letter in letters}
        assert len(done - told) <= 20, "what is committed and no prompt has its dead letter"
    finally:
        worker.kill()
