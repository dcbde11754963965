"""`haypile explain` after prompts have gone through a real worker."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kafka import KafkaProducer

from deploy.evidence import gather
from deploy.explain import tell
from deploy.log_search import LogSearch
from streams.buffer.base import BufferRules
from streams.buffer.redis import RedisBuffer
from streams.records import Feedback, TrainEvent, TrainRequest, encode
from streams.redis_client import connect
from streams.settings import RedisSettings, load_settings
from streams.snapshots import write_snapshot
from tests.support.flow import wait_accounted
from tests.support.stack import ROOT, Topics, Worker

RAW = [
    {
        "id": "hard",
        "prompt": "Write to anna@example.com: " + "why is the sky blue at noon and red in the evening? " * 3,
    },
    {
        "id": "again",
        "prompt": "Write to anna@example.com: " + "why is the sky blue at noon and red in the evening? " * 3,
    },
    {"prompt": "A second question, of nobody in particular, about the colours of autumn leaves in the north."},
    {"id": "broken", "prompt": 42},
]


async def snapshot(redis_url: str, namespace: str, folder: Path) -> None:
    client = connect(RedisSettings(url=redis_url))
    main, held_out = (RedisBuffer(client, namespace, name, BufferRules(9)) for name in ("main", "eval"))  # type: ignore[arg-type]
    await write_snapshot(str(folder), "run-1", main, held_out, {}, {}, 1_790_000_000_000)
    await client.aclose()


def test_the_story_of_what_went_through_a_worker(
    topics: Topics,
    environ: dict[str, str],
    redis_url: str,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    snapshots = tmp_path / "snapshots"
    environ = {
        **environ,
        "HAYPILE_INGEST__EVAL_SHARE": "0",
        "HAYPILE_TRAINING__SNAPSHOTS": str(snapshots),
        "HAYPILE_TRAINING__WORK_DIR": str(tmp_path / "runs"),
    }

    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    def story(id: str) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(tell(asyncio.run(gather(load_settings(), id, seconds=60))))
        return found

    values = [json.dumps(record).encode() for record in RAW]
    unnamed = f"{topics.names.raw}:1:0"
    topics.send(values[:1])
    worker = Worker(tmp_path, "worker", "ingest,score,curate", environ)
    try:
        wait_accounted(topics, {"hard"}, dead=0)
        topics.send(values[1:])
        wait_accounted(topics, {"hard", "again", unnamed}, dead=1)
    finally:
        worker.kill()
    asyncio.run(snapshot(redis_url, namespace, snapshots))
    producer = KafkaProducer(bootstrap_servers=topics.kafka.bootstrap, acks="all", enable_idempotence=False)
    request = TrainRequest(
        run_id="run-1", snapshot=str(snapshots / "run-1"), reasons=["new_members"], base_model="b", requested_at=1
    )
    producer.send(topics.names.requests, encode(request)).get(30)
    producer.send(topics.names.events, encode(TrainEvent(run_id="run-1", phase="rejected", ts=2))).get(30)
    producer.close()
    opinions = [Feedback(id=id, feedback=f, ts=ts) for id, f, ts in (("hard", 1, 9), ("hard", -1, 5), ("harder", 0, 7))]
    topics.send([encode(opinion) for opinion in opinions], topics.names.feedback)

    hard = story("hard")
    assert hard["now"].startswith("a member of the buffer, place ")
    assert hard["came"]["from"] == f"{topics.names.raw}:0:0" and hard["came"]["in_the_log"]
    assert hard["redacted"] == {"email": 1} and "anna" not in json.dumps(hard)
    assert abs(sum(hard["judged"]["distribution"]["difficulty"].values()) - 1) < 0.01
    assert [event["what"] for event in hard["history"]] == ["admitted"]
    assert [given["feedback"] for given in hard["feedback"]] == [-1, 1]
    assert [(near["id"], near["what"]) for near in hard["near"]] == [("again", "exact_repeat")]
    assert [(run["run_id"], run["phase"], run["reasons"]) for run in hard["runs"]] == [
        ("run-1", "rejected", ["new_members"])
    ]

    again = story("again")
    assert again["now"].startswith("refused: seen before")
    assert again["history"][0]["detail"] == "hard"
    assert again["came"]["from"] == f"{topics.names.raw}:0:1"
    assert story(unnamed)["buffer"][0]["of"] == 2
    assert story("broken")["now"].endswith("wrong_type")

    run = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "explain", "nobody", "--seconds", "5"],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (run.returncode, run.stderr) == (1, "")
    assert run.stdout.startswith("nobody: not known")


def test_a_topic_is_searched_in_pieces_each_record_once(topics: Topics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.log_search.CHUNK", 2)
    values = [f"record {i}".encode() for i in range(23)]
    for start in range(0, len(values), 5):
        topics.send(values[start : start + 5])
    log = LogSearch(topics.kafka)
    try:
        all_of_it = log.search(topics.names.raw, lambda value: True, 60)
        assert sorted(found.value for found in all_of_it.found) == sorted(values)
        assert (all_of_it.records, all_of_it.not_read, all_of_it.deleted) == (23, 0, 0)
        [one] = log.search(topics.names.raw, lambda value: value == b"record 17", 60).found
        assert log.at(one.topic, one.partition, one.offset) == one
        assert log.at(one.topic, one.partition, 10**6) is None
        in_no_time = log.search(topics.names.raw, lambda value: True, -1)
        assert in_no_time.found == [] and in_no_time.not_read > 0
        assert log.search("no.such.topic", lambda value: True, 60).found == []
    finally:
        log.close()
