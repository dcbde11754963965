"""From starting the process to the first record handled: `haypile worker` beside a bare Faust worker."""

import os
import subprocess
import sys
import time
from uuid import uuid4

from kafka import KafkaConsumer, TopicPartition

from tests.benchmarks.harness import Effort, Goal, Row, Spread, take_turns
from tests.benchmarks.load import raw_records
from tests.benchmarks.services import ROOT, Stack, running_stack
from tests.support.stack import Process


def measure(effort: Effort) -> list[Row]:
    """Seconds of both, in turns; each run has a group and topics of its own, with records in them."""
    with running_stack() as stack:
        values = take_turns(
            {"haypile": lambda: _haypile(stack), "faust": lambda: _faust(stack)}, effort.rounds, effort.pick(1, 0)
        )
    more = tuple(a - b for a, b in zip(values["haypile"], values["faust"], strict=True))
    return [
        Row(
            question="start",
            haypile="`haypile worker` (ingest, score, curate) to the first record handled",
            against="bare Faust worker",
            goal=Goal(at_most=1, unit="s more"),
            ours=Spread(values["haypile"], "s"),
            theirs=Spread(values["faust"], "s"),
            measured=Spread(more, "s more"),
        )
    ]


def _haypile(stack: Stack) -> float:
    """Until the outcome of a record is in a topic."""
    topics = stack.topics()
    topics.send(raw_records(20, 1))
    consumer = KafkaConsumer(bootstrap_servers=topics.kafka.bootstrap, enable_auto_commit=False)
    consumer.assign([TopicPartition(topics.names.accepted, p) for p in range(topics.kafka.partitions)])
    consumer.seek_to_beginning()
    consumer.poll(timeout_ms=0)
    started = time.time()
    arguments = ["-m", "deploy.cli", "worker", "--agents", "ingest,score,curate"]
    worker = Process(arguments, stack.folder / f"{uuid4().hex}.log", stack.environ(topics))
    try:
        while not consumer.poll(timeout_ms=100):
            if time.time() - started > 60:
                raise RuntimeError(f"no record is handled: {worker.text()[-2000:]}")
        return time.time() - started
    finally:
        consumer.close()
        worker.terminate(60)
        topics.delete()


def _faust(stack: Stack) -> float:
    topics = stack.topics()
    topics.send(raw_records(20, 1))
    arguments = [topics.kafka.bootstrap, f"bare-{uuid4().hex}", topics.names.raw, "6"]
    command = [sys.executable, "-m", "tests.benchmarks.bare_worker", *arguments]
    started = time.time()
    child = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
        check=True,
    )  # fmt: skip
    topics.delete()
    return float(child.stdout.splitlines()[0]) - started
