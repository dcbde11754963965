"""What a person does when something went wrong: dead letters back to the stream, the buffer again from the log."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.flow import CAPACITY, members, prompts, reference, wait_accounted
from tests.support.stack import ROOT, Topics, Worker, wait_for


def haypile(environ: dict[str, str], *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture
def broken() -> list[bytes]:
    """Two records that an edit can mend, one that it cannot."""
    return [json.dumps({"id": f"fixed-{i}", "prompt": [f"in a list {i}"]}).encode() for i in range(2)] + [b"no json"]


MEND = f"""{sys.executable} -c '
import json, sys
record = json.load(sys.stdin)
record["prompt"] = record["prompt"][0]
json.dump(record, sys.stdout)'"""


def test_dead_letters_are_mended_and_sent_back_and_the_buffer_is_rebuilt_from_the_log(
    tmp_path: Path, topics: Topics, environ: dict[str, str], redis_url: str, namespace: str, broken: list[bytes]
) -> None:
    raw = prompts(400, seed=5)
    worker = Worker(tmp_path, "worker", "ingest,score,curate", environ)
    try:
        topics.send([*raw.values(), *broken])
        wait_accounted(topics, set(raw), dead=3)
        listed: dict[str, Any] = json.loads(haypile(environ, "dlq", "list", "--json"))
        assert {reason: found["count"] for reason, found in listed.items()} == {"wrong_type": 2, "not_json": 1}
        sample = listed["not_json"]["samples"][0]
        place = f"{sample['topic']}:{sample['partition']}:{sample['offset']}"
        assert "no json" in haypile(environ, "dlq", "show", place)
        haypile(environ, "dlq", "show", "nowhere:0:0", code=1)

        assert "3 dead letters, 0 sent back" in haypile(environ, "dlq", "replay", "--dry-run")
        out = haypile(environ, "dlq", "replay", "--edit-with", MEND, code=1)
        assert "2 sent back" in out
        assert f"{place}: its edit failed" in out
        wait_accounted(topics, {"fixed-0", "fixed-1"}, dead=3)

        haypile(environ, "dlq", "replay", "--reason", "not_json")
        wait_for("it dies again", lambda: len(topics.json(topics.names.dead)) == 4, 30, every_s=0.5)
        again = json.loads(haypile(environ, "dlq", "list", "--json", "-n", "9"))["not_json"]["samples"][-1]
        shown = haypile(environ, "dlq", "show", f"{again['topic']}:{again['partition']}:{again['offset']}")
        assert f"({place})" in shown, "the trail of its attempts"
        assert "1 dead letters, 0 sent" in haypile(environ, "dlq", "replay", "--dry-run", "--reason", "not_json")
        assert f"({place})" in haypile(environ, "dlq", "show", place), "the earlier place leads to the last death"

        wait_for("all is committed", lambda: topics.lag(topics.names.scored) == 0, 20, every_s=1)
        before = members(redis_url, namespace)
        rebuilt = json.loads(haypile(environ, "buffer", "rebuild", "--yes", "--json"))
        assert rebuilt["replayed"] >= len(raw)
        assert members(redis_url, namespace) == before == reference(topics)
        assert len(before) == CAPACITY
    finally:
        worker.kill()
