"""`haypile buffer export` from a real Redis, and `haypile ingest` of what it wrote into a real broker."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from streams.buffer.base import BufferRules, Offer
from streams.buffer.redis import RedisBuffer
from streams.redis_client import connect
from streams.settings import RedisSettings
from tests.support.stack import ROOT, Topics
from tests.support.training import scored, sums

RULES = BufferRules(100, 1.0, None)


def fill(redis_url: str, namespace: str) -> dict[str, str]:
    """Four members with answers, one without, one held out; returns prompt → best answer."""
    rows = sums(5, seed=3)

    async def offer() -> None:
        client = connect(RedisSettings(url=redis_url))
        main = RedisBuffer(client, namespace, "main", RULES)
        held_out = RedisBuffer(client, namespace, "eval", RULES)
        for number, (text, answers) in enumerate(rows):
            await main.offer([Offer(prompt=scored(f"r{number}", text), rank_key=float(number))], [])
            if number:
                await main.attach(f"r{number}", answers)
        await held_out.offer([Offer(prompt=scored("r9", "Held out.", "eval"), rank_key=1.0)], [])
        await client.aclose()

    asyncio.run(offer())
    return {text: answers[0].text for text, answers in rows[1:]}


def test_what_was_curated_goes_out_and_comes_in_again(
    tmp_path: Path, topics: Topics, environ: dict[str, str], redis_url: str, namespace: str
) -> None:
    expected = fill(redis_url, namespace)

    def haypile(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "deploy.cli", *arguments]
        full = {**os.environ, **environ, "HAYPILE_TRAINING__RECIPE": "demo", "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=tmp_path, env=full, capture_output=True, text=True, check=False, timeout=120)

    made = haypile("buffer", "export", "--format", "sharegpt", "--out", "set", "--json")
    assert made.returncode == 0, made.stderr
    found = json.loads(made.stdout)
    assert found["rows"] == {"sft": 4, "preference": 4}
    assert found["left_out"] == {"no_answer": 1} and found["members"] == 5

    again = haypile("buffer", "export", "--out", "set")
    assert again.returncode == 2 and "set exists" in again.stderr and "Traceback" not in again.stderr

    sent = haypile("ingest", "set/sft", "--json")
    assert sent.returncode == 0, sent.stderr
    assert json.loads(sent.stdout)["sent"] == 4
    records = topics.json(topics.names.raw)
    assert {record["prompt"]: record["response"] for record in records} == expected
    assert all(record["id"].startswith("sft:") for record in records)
