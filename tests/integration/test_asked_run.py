"""`haypile train --now`, `pause` and `resume` against real triggers that are killed, a real broker and a real Redis."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from streams.buffer.base import BufferRules, Offer
from streams.buffer.redis import RedisBuffer
from streams.records import Candidate, Message, Phase, ScoredPrompt, TrainEvent, encode
from streams.redis_client import connect
from streams.settings import RedisSettings
from streams.snapshots import read_manifest
from streams.training_orders import TrainingOrders
from streams.training_state import TrainingStateStore
from tests.support.stack import Process, Topics, Worker, wait_for

MEMBERS = 6


@pytest.fixture
def environ(topics: Topics, redis_url: str, namespace: str, tmp_path: Path) -> dict[str, str]:
    return {
        **topics.environ(),
        "HAYPILE_REDIS__URL": redis_url,
        "HAYPILE_REDIS__NAMESPACE": namespace,
        "HAYPILE_JUDGE__URLS": '["http://127.0.0.1:1"]',
        "HAYPILE_TRIGGER__INTERVAL_S": "0.3",
        "HAYPILE_TRIGGER__LEASE_S": "2",
        "HAYPILE_TRIGGER__TIMEZONE": "Europe/Berlin",
        "HAYPILE_TRAINING__SNAPSHOTS": str(tmp_path / "snapshots"),
        "HAYPILE_TRAINING__REGISTRY": str(tmp_path / "registry"),
    }


def fill(redis_url: str, namespace: str) -> None:
    async def offer() -> None:
        client = connect(RedisSettings(url=redis_url))
        buffer = RedisBuffer(client, namespace, "main", BufferRules(100))
        for i in range(MEMBERS):
            prompt = ScoredPrompt(
                id=f"p{i}",
                prompt_id=f"{i}",
                messages=[Message("user", f"question {i}")],
                ts=0,
                difficulty=1 + i,
                quality=9,
                category="math",
                label_mass=1,
                judge="j",
            )
            await buffer.offer([Offer(prompt=prompt, rank_key=prompt.difficulty)], [])
            candidates = [Candidate(text=t, reward=r, origin="teacher") for t, r in (("good", 8.0), ("bad", 2.0))]
            await buffer.attach(prompt.id, candidates)
        await client.aclose()

    asyncio.run(offer())


def left(redis_url: str, namespace: str) -> tuple[int, str | None]:
    """How many requests are open, and the run that is stored and not sent."""

    async def read() -> tuple[int, str | None]:
        client = connect(RedisSettings(url=redis_url))
        request = (await TrainingStateStore(client, namespace).load()).pending
        asked = (await TrainingOrders(client, namespace).read()).asked
        await client.aclose()
        return len(asked), None if request is None else request.run_id

    return asyncio.run(read())


def test_one_run_is_made_of_a_request_through_a_pause_and_two_kills(
    topics: Topics, environ: dict[str, str], redis_url: str, namespace: str, tmp_path: Path
) -> None:
    fill(redis_url, namespace)

    def haypile(*arguments: str) -> Any:
        """What the command prints as JSON."""
        found = CliRunner().invoke(app, [*arguments, "--json"], env=environ, catch_exceptions=False)
        assert found.exit_code in (0, 1), found.output  # `status` ends with 1 because no vLLM is there
        return json.loads(found.stdout)

    def requests() -> list[Any]:
        return topics.json(topics.names.requests)

    paused = haypile("pause", "--reason", "the GPUs move", "--until", "3d")
    said = haypile("train", "--now", "--reason", "after the move")
    assert [condition["name"] for condition in said["waits_for"]] == ["not_paused"]
    assert said["skips"] == ["members"]
    status = haypile("status")["training"]
    assert status["paused"] == paused
    assert paused["until_ms"] == paused["since_ms"] + 3 * 86_400_000
    assert [run["reason"] for run in status["asked"]] == ["after the move"]
    assert status["lines"][0].startswith("paused by ")

    assert haypile("resume")["ended"] == paused

    for step in ("before", "after"):
        assert left(redis_url, namespace) == (1, None)
        killed = Process(["-m", "tests.support.killed_trigger", step], tmp_path / f"{step}.log", environ)
        try:
            assert killed.popen.wait(60) == -9, killed.text()
        finally:
            killed.kill()
    assert requests() == []
    asked, run_id = left(redis_url, namespace)
    assert asked == 0
    assert run_id

    worker = Worker(tmp_path, "worker", "trigger", environ)
    try:
        [request] = wait_for("the request", requests)
        assert request["run_id"] == run_id
        assert request["reasons"] == [f"asked: after the move ({said['asked']['by']})"]
        assert sorted(read_manifest(request["snapshot"]).files["train.parquet"].ids) == [
            f"p{i}" for i in range(MEMBERS)
        ]
        assert haypile("train", "--dry-run")["blocked_by"] == ["members", "cooldown_s", "no_run_in_progress"]

        now = int(time.time() * 1000)
        phases: list[tuple[Phase, int]] = [("queued", now - 7_200_000), ("done", now - 3_600_000)]
        for phase, ts in phases:
            topics.send([encode(TrainEvent(run_id=run_id, phase=phase, ts=ts))], topics.names.events)
        ended = 'haypile_trigger_condition{condition="no_run_in_progress"}'
        wait_for("the end of the run", lambda: worker.metrics().get(ended) == 1)
        assert worker.metrics()['haypile_trigger_value{condition="trainer_hours_last_day"}'] == 1
        assert haypile("train", "--dry-run")["blocked_by"] == ["members", "cooldown_s"]

        haypile("pause")
        haypile("train", "--now")
        wait_for("a look", lambda: worker.metrics().get('haypile_trigger_condition{condition="asked"}') == 1)
        assert len(haypile("train", "--cancel")["withdrawn"]) == 1
        haypile("resume")
        wait_for("a look", lambda: worker.metrics().get('haypile_trigger_condition{condition="not_paused"}') == 1)
        assert [request["run_id"] for request in requests()] == [run_id]
        assert worker.terminate(20) == 0
    finally:
        worker.kill()
