"""A user is forgotten: planted through the whole flow, found everywhere, then nowhere but where Kafka must keep it.

Killed half-way twice, with Redis lost and filled again from the log, and every way back tried: rebuild, dead letters,
replay, a new generation's ratings.
"""

import asyncio
import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.kafka import read_topics
from deploy.letters import read_letters
from deploy.probes import forgotten_findings
from streams.records import Feedback, Forgotten, decode, encode
from streams.redis_client import connect
from streams.settings import KafkaSettings, RedisSettings
from streams.snapshots import list_snapshots, read_manifest, read_rows
from tests.support import fake_training, forgetting
from tests.support.flow import members, wait_accounted
from tests.support.stack import ROOT, Process, Topics, Worker, wait_for
from tests.support.training import quick_recipe
from tests.support.valkey import dump
from trainers.registry import Registry

OTHERS = 40
HERS = 12


class Town:
    """The whole flow with one user of whom everything carries a mark."""

    def __init__(self, folder: Path, topics: Topics, environ: dict[str, str], namespace: str) -> None:
        self.folder, self.topics, self.environ, self.namespace = folder, topics, environ, namespace
        self.mark = f"mark{uuid.uuid4().hex[:10]}"
        self.user = f"{self.mark}-user"
        self.registry = Registry(folder / "registry")
        self.processes: list[Process] = []

    def record(self, number: int, user: str, text: str, **more: Any) -> bytes:
        id = f"{user}-{number}"
        return json.dumps({"id": id, "user_id": user, "prompt": f"{text} {number} {uuid.uuid4()}", **more}).encode()

    def hers(self, first: int, count: int) -> list[bytes]:
        return [
            self.record(i, self.user, f"what of {self.mark}?", response=f"{self.mark} is well")
            for i in range(first, first + count)
        ]

    def start(self) -> None:
        worker = Worker(self.folder, "worker", "ingest,score,curate,answer,trigger", self.environ)
        environ = self.environ | {fake_training.VARIABLE: "ok"}
        trainer = Process(["-m", "tests.support.fake_training"], self.folder / "trainer.log", environ)
        self.processes += [worker, trainer]

    def kafka(self) -> KafkaSettings:
        return KafkaSettings.model_validate(self.topics.kafka.model_dump() | {"forget_key": "pepper"})

    def phases(self) -> list[str]:
        return [event["phase"] for event in self.topics.json(self.topics.names.events)]

    def remember(self) -> None:
        """What there is to look for: her mark, which is in her id, her records' ids and texts; and her prompts' ids."""
        accepted = self.topics.json(self.topics.names.accepted)
        hers = [r["prompt_id"][:32].encode() for r in accepted if r["user_id"] == self.user]
        self.needles = [self.mark.encode(), *hers]

    def in_redis(self) -> list[bytes]:
        async def read() -> str:
            client = connect(RedisSettings(url=self.environ["HAYPILE_REDIS__URL"]))
            try:
                return await dump(client, self.namespace)
            finally:
                await client.aclose()

        text = asyncio.run(read()).encode()
        return [needle for needle in self.needles if needle in text]

    def lose_redis(self) -> None:
        async def delete() -> None:
            client = connect(RedisSettings(url=self.environ["HAYPILE_REDIS__URL"]))
            keys = [key async for key in client.scan_iter(match=f"{{{self.namespace}}}*", count=1000)]
            await client.delete(*keys)
            await client.aclose()

        asyncio.run(delete())

    def members(self) -> set[str]:
        return members(self.environ["HAYPILE_REDIS__URL"], self.namespace)

    def haypile(self, *arguments: str) -> Any:
        """What a command prints with --json, in this process."""
        result = CliRunner().invoke(app, [*arguments, "--json"])
        assert result.exit_code == 0, result.output + repr(result.exception)
        return json.loads(result.stdout)

    def killed_at(self, line: str, *arguments: str) -> None:
        """The command, with SIGKILL as soon as it has said the line."""
        with subprocess.Popen(
            [sys.executable, "-m", "tests.support.forgetting", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            said = []
            for told in process.stdout:
                said.append(told)
                if line in told:
                    process.send_signal(signal.SIGKILL)
                    break
            assert process.wait(30) == -signal.SIGKILL, said


@pytest.fixture
def town(
    tmp_path: Path, topics: Topics, environ: dict[str, str], namespace: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Town]:
    judge = environ["HAYPILE_JUDGE__URLS"]
    recipe = tmp_path / "recipe.yaml"
    # The fake judge's ratings are a hash: whatever they are, the challenger is promoted.
    gate = {"min_prompts": 1, "min_win_rate": 0, "min_lower_bound": 0, "tie_margin": 8}
    recipe.write_text(quick_recipe(gate=gate).model_dump_json())
    settings = {
        "INGEST__EVAL_SHARE": "0.3",
        "BUFFER__MIN_QUALITY": "1",
        "BUFFER__NEAR_DUPLICATE": "0.8",
        "ANSWER__URLS": judge,
        "ANSWER__WHEN": "admission",
        "ANSWER__INTERVAL_S": "0.2",
        "ANSWER__K": "2",
        "TRIGGER__INTERVAL_S": "0.5",
        "TRIGGER__MIN_MEMBERS": "20",
        "TRIGGER__MIN_NEW": "20",
        "TRIGGER__MIN_ANSWERED": "1",
        "TRIGGER__COOLDOWN_S": "86400",
        "SERVING__URLS": judge,
        "SERVING__ADAPTER_PREFIX": topics.names.raw.split(".")[0],
        "TRAINING__RECIPE": str(recipe),
        "TRAINING__SNAPSHOTS": str(tmp_path / "snapshots"),
        "TRAINING__REGISTRY": str(tmp_path / "registry"),
        "TRAINING__WORK_DIR": str(tmp_path / "runs"),
        "TRAINING__GROUP": f"{namespace}-trainer",
        "TRAINER_METRICS_PORT": "0",
        "KAFKA__FORGET_KEY": "pepper",
    }
    environ |= {f"HAYPILE_{k}": v for k, v in settings.items()}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    town = Town(tmp_path, topics, environ, namespace)
    yield town
    for process in town.processes:
        process.kill()


def test_a_user_is_forgotten(town: Town) -> None:
    names, mark = town.topics.names, town.mark
    town.start()
    others = [town.record(i, f"user-{i % 5}", "what of the weather in the north?") for i in range(OTHERS)]
    hers = town.hers(0, HERS)
    broken = town.record(99, town.user, "x").replace(b'"prompt": "', b'"prompt": 42, "was": "')
    repeat = json.dumps(json.loads(hers[0]) | {"id": f"{mark}-repeat"}).encode()
    town.topics.send([*others, *hers, broken, repeat])
    hers_ids = {json.loads(record)["id"] for record in hers}
    town.topics.send([encode(Feedback(id=f"{town.user}-1", feedback=1, ts=1))], names.feedback)
    wait_accounted(town.topics, {json.loads(r)["id"] for r in (*others, *hers, repeat)}, 1)
    wait_for("the run", lambda: "done" in town.phases(), 90, 0.3)
    town.remember()
    champion = town.registry.champion().version
    assert champion is not None

    # The search sees it where it is: in Redis, in both files of the snapshot, in the gate's report.
    assert set(town.in_redis()) == set(town.needles)
    where = forgetting.stored_with(town.folder, town.needles)
    [snapshot] = list_snapshots(str(town.folder / "snapshots"))
    assert {Path(name).name for name in where} >= {"train.parquet", "eval.parquet", "manifest.json", "gate.json"}
    would = town.haypile("forget", "--user", town.user, "--dry-run")
    assert would["dry_run"] and [a["version"] for a in would["adapters"]] == [champion]
    assert sum(would["members"].values()) == HERS and sum(would["snapshots"][snapshot].values()) == HERS
    assert forgetting.stored_with(town.folder, town.needles) == where, "a dry run changes nothing"
    assert town.topics.read(names.forgotten) == []

    town.killed_at("asked", "user", town.user)
    [finding] = forgotten_findings(town.kafka())
    assert not finding.ok and finding.to_do == "haypile forget --resume"
    [finding] = forgotten_findings(town.topics.kafka)  # without the key
    assert not finding.ok and "another kafka.forget_key" in finding.what
    wait_for("that the worker sweeps by itself", lambda: not town.members() & hers_ids, 30)
    town.killed_at("snapshots to look through", "resume")
    report = asyncio.run(forgetting.forget(["resume"]))
    assert report is not None
    assert report.left == [] and [a.version for a in report.adapters] == [champion] and report.tainted
    assert report.snapshots == {snapshot: would["snapshots"][snapshot]}
    assert asyncio.run(forgetting.forget(["resume"])) is None, "it is done"
    assert [finding.ok for finding in forgotten_findings(town.kafka())] == [True]

    # It is nowhere but in the topics, where the report says.
    assert town.in_redis() == []
    assert forgetting.stored_with(town.folder, town.needles) == {}
    for split in ("train", "eval"):
        assert read_rows(snapshot, split), "the others are still there"  # type: ignore[arg-type]
    told = {place for left in report.remains for place in left.places}
    prompts = (names.raw, names.accepted, names.scored, names.curated, names.dead, names.feedback)
    log = read_topics(town.kafka(), *prompts, names.forgotten)
    kept = {
        f"{m.topic}:{m.partition}:{m.offset}"
        for m in log
        if mark.encode() in m.value or (m.topic == names.dead and mark in decoded(m.value))
    }
    assert told == kept and {place.split(":")[0] for place in told} == set(prompts)
    assert [m.key for m in log if m.topic == names.feedback and not m.value] == [f"{town.user}-1".encode()]
    values = [message.value for message in log if message.topic == names.forgotten]
    records = [decode(Forgotten, value) for value in values]
    assert all(mark.encode() not in value for value in values)
    assert records[-1].done is not None and len({record.digest for record in records}) == 1

    # No way leads back.
    before = town.members()
    town.lose_redis()
    wait_for("that the buffer is filled again", lambda: town.members() == before, 60, 0.5)
    assert town.in_redis() == []
    town.haypile("buffer", "rebuild", "--yes")
    assert town.members() == before and town.in_redis() == []
    assert read_letters(town.kafka()) == []
    assert "forgotten" in town.haypile("explain", f"{town.user}-1")["now"]
    accepted = sum(message.topic == names.accepted for message in log)
    town.topics.send([json.dumps(json.loads(r) | {"ts": 1_700_000_000_000}).encode() for r in hers])
    # What she sends from now on is hers again; and somebody else may ask what only she had asked.
    new = town.hers(200, 2)
    same = json.dumps(json.loads(hers[0]) | {"id": "berta-1", "user_id": "berta"}).encode()
    town.topics.send([*new, same])
    wait_accounted(town.topics, {json.loads(r)["id"] for r in (*new, same)}, 1)
    wait_for("her old records", lambda: town.topics.lag(names.raw) == 0, 30)
    assert len(town.topics.read(names.accepted)) == accepted + 3, "what she sends again as of then is not taken"
    assert town.topics.accounted()[0]["berta-1"] in ("admitted", "held_out")

    # Everything that was trained is told, and read no row of hers since.
    manifest = read_manifest(snapshot)
    assert {removal.request for removal in manifest.forgotten} == {records[-1].digest}
    logs = "".join(process.text() for process in town.processes)
    assert mark not in logs and "Traceback" not in logs


def decoded(value: bytes) -> str:
    import base64

    return base64.b64decode(json.loads(value)["value"]).decode("utf-8", "replace")
