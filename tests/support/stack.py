"""Real processes for tests: the local broker, a fake vLLM, workers. Each ends with its context."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

from deploy.local import broker
from deploy.local.processes import free_port, port_open
from streams.settings import KafkaSettings
from streams.tls import kafka_connection
from streams.topics import create_topics, topic_names

ROOT = Path(__file__).parents[2]


def wait_for(what: str, condition: Callable[[], Any], deadline_s: float = 60, every_s: float = 0.1) -> Any:
    """The first true value of `condition()`. AssertionError naming `what` when there is none in time."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(every_s)
    raise AssertionError(f"{what}: not within {deadline_s:g} s")


@contextmanager
def running_broker(folder: Path) -> Iterator[str]:
    """A Tansu; yields host:port."""
    port = free_port()
    child = broker.start(port, folder / "broker.log", os.environ)
    try:
        child.wait_ready(lambda: broker.ready(port), 20)
        yield f"127.0.0.1:{port}"
    finally:
        child.stop()


class Process:
    """A Python child of a test with its output in a file."""

    def __init__(self, arguments: Sequence[str], log: Path, environ: dict[str, str] | None = None) -> None:
        self.log = log
        self.metrics_port = 0
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environ or {})},
                start_new_session=True,
            )

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()

    def terminate(self, deadline_s: float) -> int:
        """SIGTERM; the exit code. TimeoutExpired when it does not end in time."""
        self.signal(signal.SIGTERM)
        return self.popen.wait(deadline_s)

    def text(self) -> str:
        return self.log.read_text(errors="replace")


@contextmanager
def fake_vllm(folder: Path) -> Iterator[str]:
    """A fake vLLM; yields its URL."""
    port = free_port()
    process = Process(["-m", "tests.support.fake_vllm", str(port)], folder / f"fake-vllm-{port}.log")
    try:
        wait_for("the fake vLLM", lambda: port_open(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()


class Worker(Process):
    """`haypile worker` with metrics on a port of its own."""

    def __init__(self, folder: Path, name: str, agents: str, environ: dict[str, str]) -> None:
        port = free_port()
        environ = {**environ, "HAYPILE_WORKER__METRICS_PORT": str(port)}
        super().__init__(["-m", "deploy.cli", "worker", "--agents", agents], folder / f"{name}.log", environ)
        self.metrics_port = port

    def metrics(self) -> dict[str, float]:
        """Samples by name with labels; empty while it starts. AssertionError with its log when it has ended."""
        assert self.popen.poll() is None, f"{self.log.stem} ended with {self.popen.returncode}: {self.text()[-3000:]}"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as response:
                text = response.read().decode()
        except OSError:
            return {}
        return {m[1]: float(m[2]) for m in re.finditer(r"^(haypile_\S+) (\S+)$", text, re.MULTILINE)}

    def handled(self, hop: str) -> float:
        """Records of a hop, all outcomes."""
        return sum(v for k, v in self.metrics().items() if k.startswith(f'haypile_records_total{{hop="{hop}"'))


class Topics:
    """The topics of one test: writes raw records and reads every topic from the beginning."""

    def __init__(self, bootstrap: str, prefix: str, partitions: int = 4, **security: Any) -> None:
        self._security = security
        self.kafka = KafkaSettings(
            bootstrap=bootstrap, topic_prefix=prefix, partitions=partitions, group=prefix + "group", **security
        )
        self.names = topic_names(self.kafka)
        create_topics(self.kafka)

    def environ(self) -> dict[str, str]:
        """For the settings of a child."""
        return {
            "HAYPILE_KAFKA__BOOTSTRAP": self.kafka.bootstrap,
            "HAYPILE_KAFKA__TOPIC_PREFIX": self.kafka.topic_prefix,
            "HAYPILE_KAFKA__GROUP": self.kafka.group,
            "HAYPILE_KAFKA__PARTITIONS": str(self.kafka.partitions),
            "HAYPILE_KAFKA__SESSION_TIMEOUT_S": "6",
            "HAYPILE_KAFKA__IDEMPOTENCE": "false",
            "HAYPILE_JUDGE__ANCHORS": "0",  # a fake judge rates by a hash
            **{f"HAYPILE_KAFKA__{name.upper()}": str(value) for name, value in self._security.items()},
        }

    def delete(self) -> None:
        """Deletes the topics, on a broker that outlives the test."""
        admin = KafkaAdminClient(**kafka_connection(self.kafka))
        try:
            admin.delete_topics(list(self.names.all()))
        finally:
            admin.close()

    def send(self, values: Sequence[bytes], topic: str | None = None, partition: int | None = None) -> None:
        """Writes values (to `prompts.raw` unless told otherwise), spread over the partitions or to one of them; waits
        for the broker."""
        producer = KafkaProducer(**kafka_connection(self.kafka), acks="all", enable_idempotence=False)
        futures = [
            producer.send(
                topic or self.names.raw, value, partition=i % self.kafka.partitions if partition is None else partition
            )
            for i, value in enumerate(values)
        ]
        for future in futures:
            future.get(timeout=30)
        producer.close()

    def read(self, topic: str) -> list[tuple[int, int, bytes]]:
        """(partition, offset, value) of all that is in a topic now."""
        consumer = KafkaConsumer(**kafka_connection(self.kafka), enable_auto_commit=False)
        try:
            partitions = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic) or ())]
            consumer.assign(partitions)
            consumer.seek_to_beginning()
            found = []
            while True:
                batches = consumer.poll(timeout_ms=1000)
                for records in batches.values():
                    found.extend((record.partition, record.offset, record.value) for record in records)
                # The latest offset that Tansu tells is short by the size of the last batch; this one is right.
                ends = {tp: consumer.highwater(tp) for tp in partitions}
                if not batches and all(ends[tp] is not None and consumer.position(tp) >= ends[tp] for tp in partitions):
                    return found
        finally:
            consumer.close()

    def json(self, topic: str) -> list[dict[str, Any]]:
        """Values of a topic."""
        return [json.loads(value) for _, _, value in self.read(topic)]

    def accounted(self) -> tuple[dict[str, str], list[bytes]]:
        """Last own outcome of each id (evictions aside), and the original bytes of dead letters."""
        outcomes = {r["id"]: r["outcome"] for r in self.json(self.names.curated) if r["outcome"] != "evicted"}
        dead = [base64.b64decode(letter["value"]) for letter in self.json(self.names.dead)]
        return outcomes, dead

    def committed(self, topic: str) -> dict[int, int]:
        """The group's committed offset (the next one to read) of each partition."""
        consumer = KafkaConsumer(**kafka_connection(self.kafka), group_id=self.kafka.group)
        try:
            return {p: consumer.committed(TopicPartition(topic, p)) or 0 for p in range(self.kafka.partitions)}
        finally:
            consumer.close()

    def lag(self, topic: str) -> int:
        """Records of a topic at or after the committed offsets of the group."""
        committed = self.committed(topic)
        return sum(offset >= committed[partition] for partition, offset, _ in self.read(topic))
