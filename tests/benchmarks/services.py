"""What benchmarks run against, and children that report."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self
from uuid import uuid4

from aiokafka import AIOKafkaProducer

from agents.rules.normalise import normalise, prompt_id
from agents.rules.parse import parse
from streams.records import encode
from tests.support.real_vllm import running_vllm
from tests.support.stack import Topics, fake_vllm, running_broker
from tests.support.valkey import Valkey

ROOT = Path(__file__).parents[2]


@contextmanager
def running_valkey(*options: str) -> Iterator[Valkey]:
    """A Valkey of its own."""
    with TemporaryDirectory(prefix="haypile-bench-") as folder:
        server = Valkey(Path(folder), *options)
        server.start()
        try:
            yield server
        finally:
            server.kill()


@dataclass
class Stack:
    """A broker and a Valkey. Each run takes topics and a namespace of its own."""

    folder: Path
    bootstrap: str
    redis_url: str
    settings: dict[str, str] = field(default_factory=dict)
    """Environment of every worker."""

    def topics(self, partitions: int = 4) -> Topics:
        """New topics."""
        return Topics(self.bootstrap, f"b{uuid4().hex[:8]}.", partitions)

    def namespace(self, topics: Topics) -> str:
        """Of the keys in Redis."""
        return topics.kafka.topic_prefix.rstrip(".")

    def environ(self, topics: Topics, **more: str) -> dict[str, str]:
        """Settings of a worker on these topics, with the buffer's keys under their prefix."""
        return {
            **topics.environ(),
            "HAYPILE_REDIS__URL": self.redis_url,
            "HAYPILE_REDIS__NAMESPACE": self.namespace(topics),
            "HAYPILE_WORKER__METRICS_PORT": "0",
            "HAYPILE_LOG_LEVEL": "WARNING",
            **self.settings,
            **more,
        }


@contextmanager
def running_stack() -> Iterator[Stack]:
    """A Tansu and a Valkey in memory."""
    with TemporaryDirectory(prefix="haypile-bench-") as name, running_valkey() as valkey:
        folder = Path(name)
        with running_broker(folder) as bootstrap:
            yield Stack(folder, bootstrap, valkey.url)


def fill(topics: Topics, topic: str, values: Sequence[bytes]) -> None:
    """Writes values, spread over the partitions, and waits for the broker; ten times as fast as `Topics.send`."""

    async def send() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=topics.kafka.bootstrap, acks="all", linger_ms=5)
        async with producer:
            for start in range(0, len(values), 1000):
                futures = [
                    await producer.send(topic, value, partition=number % topics.kafka.partitions)
                    for number, value in enumerate(values[start : start + 1000], start)
                ]
                await asyncio.gather(*futures)

    asyncio.run(send())


class Vllms:
    """vLLM servers, started when they are asked for and shared from then on; fake ones when quick."""

    def __init__(self, quick: bool) -> None:
        self._quick = quick
        self._stack = ExitStack()
        self._urls: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def urls(self, count: int) -> list[str]:
        """So many URLs."""
        start = fake_vllm if self._quick else running_vllm
        while len(self._urls) < count:
            folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="haypile-bench-")))
            self._urls.append(self._stack.enter_context(start(folder)))
        return self._urls[:count]


def report_of(module: str, *arguments: object, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What `python -m module arguments…` prints as the last line of its standard output: a JSON mapping.

    A process of its own for every run: nobody inherits another's caches, imports or sockets.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    child = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environ or {})},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}: {child.stderr[-3000:]}")
    report: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return report


def accepted_records(values: Sequence[bytes]) -> list[bytes]:
    """What `ingest` makes of raw records."""
    made = []
    for offset, value in enumerate(values):
        prompt = parse(value, topic="raw", partition=0, offset=offset, broker_ms=1_763_000_000_000, max_bytes=200_000)
        prompt.messages = normalise(prompt.messages)
        prompt.prompt_id = prompt_id(prompt.messages)
        prompt.origin, prompt.language, prompt.tokens = f"prompts.raw:0:{offset}", "en", len(value) // 4
        made.append(encode(prompt))
    return made


def rss_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and its threads (proc(5), `stat`, fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
