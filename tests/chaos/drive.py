"""A run in progress: sends records while faults come and go in two lanes, then waits until all has come to rest."""

import asyncio
import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError

from tests.chaos.auditor import Training, collect_training, follow_runs, unaccounted, unfinished
from tests.chaos.faults import Faults
from tests.chaos.schedule import Fault
from tests.chaos.system import ROLES, System, applied

TICK_S = 0.5
"""The sender sends so often."""
TRICKLE = 2
"""Records that it sends each time even when it is ahead of the faults: some wait until a record is at a hop."""
RECOVERY_S = 60.0
"""Longest wait for a sign of life after a fault."""
STALLED_S = 120.0
"""When for so long nothing more has been accounted for, what is left counts as lost."""


class Drive:
    """What happened so far. `faults` runs one lane to its end; both lanes and the sender go at once."""

    def __init__(self, system: System) -> None:
        # Of the harness's own clients: that Kafka is away is no news here.
        for name in ("aiokafka", "kafka"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._system = system
        self._faults = Faults(system)
        self.started = time.monotonic()
        self.watch = Watch(system)
        self.hits: Counter[str] = Counter()
        self.recovery_s: dict[str, list[float]] = defaultdict(list)
        self.revived: Counter[str] = Counter()
        self.errors: list[BaseException] = []
        self.over = threading.Event()

    def wait_until_it_flows(self) -> None:
        """Returns with the first outcome of a record: the time of the faults begins."""
        self.watch.until_next(self._system.topics.names.curated, RECOVERY_S)
        self.started = time.monotonic()

    def faults(self, faults: Sequence[Fault], topic: str, done: Callable[[], None]) -> None:
        """One lane: each fault at its time or when the one before it has been recovered from."""
        try:
            for fault in faults:
                time.sleep(max(0.0, fault.at_s - (time.monotonic() - self.started)))
                self._one(fault, topic)
                done()
        except BaseException as error:  # shown by the main thread
            self.errors.append(error)

    def _one(self, fault: Fault, topic: str) -> None:
        at_s = time.monotonic() - self.started
        end = self._faults.begin(fault)
        time.sleep(fault.for_s)
        hit = end()
        self.hits[fault.kind] += hit
        took = self.watch.until_next(topic, RECOVERY_S)
        self.recovery_s[fault.kind].append(took)
        said = f"{at_s:7.1f} s  {fault.kind} ({fault.target}, {fault.for_s:.1f} s)"
        print(f"{said}{'' if hit else ': did not hit'}, recovered after {took:.1f} s", flush=True)

    def revive(self) -> None:
        """Starts what has ended by itself, like a supervisor, until `over`."""
        while not self.over.wait(0.5):
            try:
                self.revived.update(self._system.revive())
            except BaseException as error:
                self.errors.append(error)

    def settle(self) -> None:
        """Waits until every raw record is accounted for and Redis is level with the log."""
        topics = self._system.topics
        least, since = -1, time.monotonic()
        while (left := unaccounted(topics)) and time.monotonic() - since < STALLED_S:
            if not 0 <= least <= len(left):
                least, since = len(left), time.monotonic()
            print(f"waiting for {len(left)} records: {', '.join(left[:3])}", flush=True)
            time.sleep(5)
        total, since = len(topics.read(topics.names.scored)), time.monotonic()
        while asyncio.run(applied(self._system)) < total and time.monotonic() - since < STALLED_S:
            time.sleep(0.5)

    def end_training(self) -> Training:
        """Ends the triggers, waits for the last run and for the servers to be put right, and looks at all of it."""
        system = self._system
        triggers = system.of_role("trigger")
        deadline = time.monotonic() + 20
        while (holders := self._leaders(triggers)) != 1 and time.monotonic() < deadline:
            time.sleep(0.2)
        system.stop(triggers, 40)
        deadline = time.monotonic() + STALLED_S
        while (left := unfinished(system.topics)) and time.monotonic() < deadline:
            print(f"waiting for runs: {', '.join(left[:3])}", flush=True)
            time.sleep(1)
        deadline = time.monotonic() + 20
        while True:
            found = collect_training(system, {"trigger": holders})
            if not any(follow_runs(found)[:2]) or time.monotonic() > deadline:
                return found
            time.sleep(1)

    def _leaders(self, names: Sequence[str]) -> int:
        return sum(int(self._system.metric(name, "haypile_trigger_leader")) for name in names)

    def stop(self) -> dict[str, float]:
        """SIGTERM to all that still runs; seconds until each ended."""
        self.over.set()
        took = self._system.stop(self._system.of_role(*set(ROLES.values())), 40)
        self.watch.stop()
        return took


class Sender(threading.Thread):
    """An app: it repeats what Kafka has not taken. Sends at an even rate; a trickle once it is ahead of the faults."""

    def __init__(self, system: System, values: Sequence[bytes], expected_s: float, parts: int) -> None:
        super().__init__(daemon=True)
        self._topics = system.topics
        self._values = values
        self._batch = int(len(values) * TICK_S / expected_s) + 1
        self._part = 1 / (parts + 1)
        self._allowed = self._part
        self._producer: Any = None
        self.taken: list[bytes] = []
        """What the broker has said it has."""

    def allow(self) -> None:
        """One more part: called after each fault, so that there is load during all of them."""
        self._allowed += self._part

    def finish(self) -> None:
        """All may be sent; returns when Kafka has it."""
        self._allowed = 2.0
        self.join()

    def run(self) -> None:
        """Until Kafka has taken all."""
        at = 0
        while at < len(self._values):
            began = time.monotonic()
            end = max(at + TRICKLE, min(at + self._batch, int(len(self._values) * self._allowed)))
            batch = self._values[at:end]
            left = list(enumerate(batch, start=at))
            while left:
                left = self._send(left)
            self.taken += batch
            at += len(batch)
            time.sleep(max(0.02, TICK_S - (time.monotonic() - began)))
        self._close()

    def _send(self, batch: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """What Kafka has not taken within some seconds."""
        kafka, topic = self._topics.kafka, self._topics.names.raw
        try:
            if self._producer is None:
                self._producer = KafkaProducer(
                    bootstrap_servers=kafka.bootstrap,
                    acks="all",
                    enable_idempotence=False,
                    request_timeout_ms=4000,
                    delivery_timeout_ms=8000,
                    max_block_ms=4000,
                )
            futures = [self._producer.send(topic, value, partition=i % kafka.partitions) for i, value in batch]
        except KafkaError:
            self._close()
            return batch
        left = []
        for entry, future in zip(batch, futures, strict=True):
            try:
                future.get(timeout=10)
            except KafkaError:
                left.append(entry)
        if left:
            self._close()
        return left

    def _close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.close(timeout=1)


class Watch:
    """How many records `prompts.curated` and `train.events` have, followed in a thread."""

    def __init__(self, system: System) -> None:
        self._system = system
        names = system.topics.names
        self._seen = {names.curated: 0, names.events: 0}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._follow()), daemon=True)
        self._thread.start()

    def until_next(self, topic: str, most_s: float) -> float:
        """Seconds until one more record is in the topic."""
        start, seen = time.monotonic(), self._seen[topic]
        while self._seen[topic] == seen and time.monotonic() - start < most_s:
            time.sleep(0.05)
        return time.monotonic() - start

    def stop(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._thread.join(10)

    async def _follow(self) -> None:
        from aiokafka import AIOKafkaConsumer
        from aiokafka.errors import KafkaError

        while not self._stop.is_set():
            consumer = AIOKafkaConsumer(
                *self._seen, bootstrap_servers=self._system.bootstrap, auto_offset_reset="latest"
            )
            try:
                await consumer.start()
                while not self._stop.is_set():
                    for partition, batch in (await consumer.getmany(timeout_ms=100)).items():
                        self._seen[partition.topic] += len(batch)
            except (KafkaError, OSError):
                await asyncio.sleep(0.2)
            finally:
                await consumer.stop()
