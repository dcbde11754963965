"""The trainer as a process, over the real broker and Redis; training and vLLM are fakes that are fast.

What must hold whatever happens: every request ends in exactly one outcome, and its offset is committed only then.
"""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from deploy.degraded import from_metrics
from deploy.local.processes import free_port
from streams.records import TrainRequest, encode
from tests.support import fake_training
from tests.support.cluster import publish
from tests.support.stack import Process, Topics, fake_vllm, running_broker, wait_for
from tests.support.training import quick_recipe, write_snapshot_of_sums
from trainers.registry import Registry


@pytest.fixture(scope="module")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_broker(tmp_path_factory.mktemp("broker")) as address:
        yield address


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with fake_vllm(tmp_path_factory.mktemp("vllm")) as url:
        yield url


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> str:
    return asyncio.run(write_snapshot_of_sums(tmp_path_factory.mktemp("snapshots"), "s1"))


class Bench:
    """Topics, settings and trainers of one test."""

    def __init__(self, folder: Path, topics: Topics, environ: dict[str, str], snapshot: str) -> None:
        self.folder = folder
        self.topics = topics
        self.environ = environ
        self.snapshot = snapshot
        self.registry = Registry(folder / "registry")
        self.trainers: list[Process] = []

    def start(self, behaviour: str = "ok") -> Process:
        environ = self.environ | {fake_training.VARIABLE: behaviour}
        log = self.folder / f"trainer{len(self.trainers)}.log"
        trainer = Process(["-m", "tests.support.fake_training"], log, environ)
        self.trainers.append(trainer)
        return trainer

    def request(self, run_id: str, **changes: Any) -> None:
        given: dict[str, Any] = {
            "run_id": run_id,
            "snapshot": self.snapshot,
            "reasons": ["new"],
            "base_model": "org/model",
            "requested_at": int(time.time() * 1000),
        }
        self.send(encode(TrainRequest(**(given | changes))))

    def send(self, value: bytes) -> None:
        producer = KafkaProducer(bootstrap_servers=self.topics.kafka.bootstrap, enable_idempotence=False)
        producer.send(self.topics.names.requests, value).get(timeout=30)
        producer.close()

    def phases(self, run_id: str) -> list[str]:
        """Without the points of learning curves."""
        events = [e for e in self.topics.json(self.topics.names.events) if e["run_id"] == run_id]
        return [e["phase"] for e in events if "step" not in e["metrics"]]

    def wait_for(self, run_id: str, phase: str) -> None:
        try:
            wait_for(f"{phase} of {run_id}", lambda: phase in self.phases(run_id), 90, 0.3)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.trainers[-1].text()[-4000:]}") from None

    def committed(self) -> int:
        """The next offset of `train.requests` that the group would read."""
        group = self.environ["HAYPILE_TRAINING__GROUP"]
        consumer = KafkaConsumer(bootstrap_servers=self.topics.kafka.bootstrap, group_id=group)
        try:
            return consumer.committed(TopicPartition(self.topics.names.requests, 0)) or 0
        finally:
            consumer.close()

    def attempts(self, run_id: str) -> int:
        return len((self.folder / "runs" / run_id / "attempts").read_text())


@pytest.fixture
def bench(tmp_path: Path, bootstrap: str, redis_url: str, namespace: str, vllm: str, snapshot: str) -> Iterator[Bench]:
    topics = Topics(bootstrap, f"t{uuid.uuid4().hex[:8]}.")
    recipe = tmp_path / "recipe.yaml"
    # The fake judge's ratings are a hash: whatever they are, the challenger is promoted.
    gate = {"min_prompts": 4, "min_win_rate": 0, "min_lower_bound": 0, "tie_margin": 8}
    recipe.write_text(quick_recipe(gate=gate).model_dump_json())
    environ = {
        **topics.environ(),
        "HAYPILE_REDIS__URL": redis_url,
        "HAYPILE_REDIS__NAMESPACE": namespace,
        "HAYPILE_JUDGE__URLS": json.dumps([vllm]),
        "HAYPILE_SERVING__URLS": json.dumps([vllm]),
        "HAYPILE_SERVING__RECONCILE_S": "0.5",
        "HAYPILE_SERVING__ADAPTER_PREFIX": topics.names.raw.split(".")[0],
        "HAYPILE_TRAINING__RECIPE": str(recipe),
        "HAYPILE_TRAINING__REGISTRY": str(tmp_path / "registry"),
        "HAYPILE_TRAINING__WORK_DIR": str(tmp_path / "runs"),
        "HAYPILE_TRAINING__GROUP": f"{namespace}-trainer",
        "HAYPILE_TRAINER_METRICS_PORT": "0",
    }
    found = Bench(tmp_path, topics, environ, snapshot)
    yield found
    for trainer in found.trainers:
        trainer.kill()


def test_requests_become_champions_one_after_the_other(bench: Bench) -> None:
    trainer = bench.start()
    bench.request("a")
    bench.send(b"not a request")
    bench.request("a")  # delivered twice
    bench.request("b", parent_adapter="v0001-a")
    bench.request("../x")
    bench.wait_for("b", "done")
    bench.wait_for("../x", "failed")
    assert bench.phases("a") == ["queued", "sft", "dpo", "gate", "promote", "done"]
    assert bench.phases("b") == bench.phases("a")
    assert bench.attempts("a") == 1
    assert bench.registry.champion().version == "v0002-b"
    [letter] = bench.topics.json(bench.topics.names.dead)
    assert (letter["reason"], letter["offset"]) == ("bad_request", 1)
    wait_for("the commits", lambda: bench.committed() == 5, 30)
    assert trainer.terminate(15) == 0


def test_a_run_without_memory_fails_with_its_reason_and_the_trainer_goes_on(bench: Bench) -> None:
    trainer = bench.start("oom a")
    bench.request("a")
    bench.request("b")
    bench.wait_for("b", "done")
    [reason] = [
        e["metrics"]["reason"]
        for e in bench.topics.json(bench.topics.names.events)
        if (e["run_id"], e["phase"]) == ("a", "failed")
    ]
    assert reason == "out_of_memory: lower batch_size"
    assert bench.registry.champion().version == "v0001-b"
    wait_for("the commits", lambda: bench.committed() == 2, 30)
    assert trainer.terminate(15) == 0


def test_a_stale_request_is_refused(bench: Bench) -> None:
    now = int(time.time() * 1000)
    bench.request("new", fencing=7, requested_at=now)
    bench.request("old", fencing=6, requested_at=now - 1000)
    bench.request("after-redis-was-emptied", fencing=1, requested_at=now + 1000)
    bench.request("clock-ahead", fencing=9, requested_at=now + 7_200_000)
    bench.request("after-redis-was-emptied-again", fencing=1, requested_at=now + 600_000)
    bench.start()
    bench.wait_for("after-redis-was-emptied-again", "done")
    assert bench.phases("old") == ["failed"] and bench.phases("new")[-1] == "done"
    assert bench.phases("after-redis-was-emptied")[-1] == "done"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_trainer_that_ends_leaves_its_run_to_the_next(bench: Bench, number: signal.Signals) -> None:
    first = bench.start("slow")
    bench.request("a")
    bench.wait_for("a", "sft")
    run = bench.folder / "runs" / "a"
    assert len(training_processes(run)) == 1
    started = time.monotonic()
    if number is signal.SIGTERM:
        assert first.terminate(15) == 0
        assert time.monotonic() - started < 10
        assert training_processes(run) == []
    else:
        first.kill()
        # That the real one ends with its service is tested with it; the fake looks at who its parent is.
        wait_for("the end of training", lambda: not training_processes(run), 30)
    assert bench.committed() == 0
    second = bench.start()
    bench.wait_for("a", "done")
    assert bench.phases("a") == ["queued", "sft", "dpo", "gate", "promote", "done"]
    wait_for("the commit", lambda: bench.committed() == 1, 30)
    assert second.terminate(15) == 0


def training_processes(run: Path) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(run).encode() in (process / "cmdline").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def test_two_trainers_do_a_run_once(bench: Bench) -> None:
    trainers = [bench.start(), bench.start()]
    for name in "abc":
        bench.request(name)
    for name in "abc":
        bench.wait_for(name, "done")
    assert all(bench.phases(name).count("done") == 1 and bench.attempts(name) == 1 for name in "abc")
    for trainer in trainers:
        assert trainer.terminate(15) == 0


def test_the_reconciler_gives_a_server_its_champion_back(bench: Bench, vllm: str) -> None:
    def call(path: str, body: dict[str, str] | None = None) -> str:
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(f"{vllm}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=5) as response:
            return str(response.read().decode())

    bench.start()
    bench.request("a")
    bench.wait_for("a", "done")
    name = f"{bench.environ['HAYPILE_SERVING__ADAPTER_PREFIX']}-v0001-a"
    assert name in call("/v1/models")
    call("/v1/unload_lora_adapter", {"lora_name": name})
    wait_for("the champion again", lambda: name in call("/v1/models"), 30)


def test_a_new_champion_that_fails_is_undone_also_by_a_trainer_that_was_killed(bench: Bench, vllm: str) -> None:
    def answer(instead: dict[str, Any]) -> None:
        body = json.dumps(instead).encode()
        request = urllib.request.Request(f"{vllm}/answers", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=5).close()

    bench.environ["HAYPILE_SERVING__WATCH_EVERY_S"] = "0.5"
    bench.environ |= {"HAYPILE_TRAINING__PRUNE_EVERY_S": "0.5", "HAYPILE_TRAINING__KEEP_REJECTED": "0"}
    old = publish(bench.registry, bench.folder, "old", now_ms=1)
    prefix = bench.environ["HAYPILE_SERVING__ADAPTER_PREFIX"]
    first = bench.start()
    for name in "ab":
        bench.request(name)
        bench.wait_for(name, "done")
    first.kill()
    try:
        answer({f"{prefix}-v0003-b": {"text": ""}, f"{prefix}-v0004-c": {"tokens": ["la"] * 24}})
        bench.start()
        wait_for("the champion before", lambda: bench.registry.champion().version == "v0002-a", 30)
        last = bench.registry.champion().history[-1]
        assert (last.kind, last.by) == ("rollback", "watch") and "it is empty" in last.reason
        bench.request("c")
        bench.wait_for("c", "rejected")
    finally:
        answer({})
    assert bench.registry.champion().version == "v0002-a"
    assert [m.version for m in bench.registry.pruned()] == [old], "retention runs with the trainer"
    [event] = [e for e in bench.topics.json(bench.topics.names.events) if e["phase"] == "rejected"]
    assert "the canary failed" in event["metrics"]["reason"]


def test_a_wrong_recipe_ends_the_trainer_with_one_line(bench: Bench) -> None:
    bench.environ["HAYPILE_TRAINING__RECIPE"] = "nothing"
    process = Process(["-m", "deploy.cli", "trainer"], bench.folder / "cli.log", bench.environ)
    assert process.popen.wait(60) == 2
    [line] = [line for line in process.text().splitlines() if line.strip()]
    assert "there is no recipe 'nothing'" in line


def test_without_kafka_and_redis_it_says_so_and_waits(bench: Bench) -> None:
    port = free_port()
    bench.environ |= {"HAYPILE_KAFKA__BOOTSTRAP": "127.0.0.1:1", "HAYPILE_REDIS__URL": "redis://127.0.0.1:1/0"}
    bench.environ |= {"HAYPILE_TRAINER_METRICS_PORT": str(port)}
    trainer = bench.start()
    wait_for("the warning", lambda: "Kafka at 127.0.0.1:1" in trainer.text(), 60)
    [entry] = from_metrics(port)
    assert entry.what == "train.requests waits"
    assert entry.since is not None and time.time() - 60 < entry.since <= time.time()
    assert trainer.popen.poll() is None
    assert trainer.terminate(20) == 0
    assert "Traceback" not in trainer.text()


def test_the_service_does_not_import_torch() -> None:
    code = "import trainers.service, sys; print([m for m in ('torch', 'transformers', 'faust') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
