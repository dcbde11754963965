"""`python -m tests.chaos.run`: the harness. Prints a table; exit code 1 when anything is lost or twice in effect."""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.chaos.auditor import Audit, accounted, audit
from tests.chaos.schedule import Fault, schedule
from tests.chaos.system import CAPACITY, System

BAD = [b"", b"not json", b"\xff\xfe", b'{"prompt": "\\ud800"}', b'{"prompt": 7}', b"{}", b"[]", b'{"prompt": " "}']
WORDS = 4000


@dataclass
class Report:
    """What happened in a run."""

    seed: int
    faults: Counter[str]
    recovery_s: dict[str, list[float]]
    """By kind: seconds from a fault's end to the next record that got an outcome."""
    audit: Audit
    seconds: float
    revived: Counter[str]
    """Workers that ended by themselves and were started again."""
    stopped_s: dict[str, float]
    """Seconds from SIGTERM to the end of each worker."""

    def table(self) -> str:
        """Plain text."""
        rows = [f"{'fault':<28}{'times':>6}{'recovery s, median':>20}{'longest':>9}"]
        for kind, count in sorted(self.faults.items()):
            times = self.recovery_s.get(kind, [])
            shown = (f"{median(times):.1f}", f"{max(times):.1f}") if times else ("-", "-")
            rows.append(f"{kind:<28}{count:>6}{shown[0]:>20}{shown[1]:>9}")
        a = self.audit
        rows += [
            "",
            f"seed {self.seed}: {a.sent} records, {self.faults.total()} faults of {len(self.faults)} kinds, "
            f"{self.seconds:.0f} s",
            f"lost: {len(a.missing)}   twice in effect: {len(a.contradictory) + len(a.not_in_reference)}   "
            f"missing in the buffer: {len(a.not_in_buffer)} of {a.members}",
            "repeated on the wire: " + ", ".join(f"{topic} {count}" for topic, count in a.repeated_on_wire.items()),
            "dead letters: " + (", ".join(f"{reason} {count}" for reason, count in sorted(a.dead.items())) or "none"),
            "workers that ended by themselves: " + (json.dumps(self.revived) if self.revived else "none"),
            "SIGTERM to end, s: " + ", ".join(f"{name} {took:.1f}" for name, took in self.stopped_s.items()),
        ]
        return "\n".join(rows)


def prompts(count: int, seed: int) -> dict[str, bytes]:
    """Raw records by id; no two alike."""
    rng = random.Random(seed)
    words = [f"w{rng.randrange(10**7)}" for _ in range(WORDS)]
    return {
        f"c{i}": json.dumps({"id": f"c{i}", "prompt": f"{i} " + " ".join(rng.choices(words, k=8))}).encode()
        for i in range(count)
    }


def run(folder: Path, seed: int, records: int, faults: Sequence[Fault], external_kafka: str | None = None) -> Report:
    """One run: sends while faults come and go, waits until all is accounted for, audits."""
    started = time.monotonic()
    raw = prompts(records, seed)
    values = [*raw.values()]
    rng = random.Random(seed)
    bad = [BAD[i % len(BAD)] for i in range(max(len(BAD), records // 200))]
    for value in bad:
        values.insert(rng.randrange(len(values)), value)
    recovery: dict[str, list[float]] = defaultdict(list)
    revived: Counter[str] = Counter()
    with System(folder, external_kafka) as system:
        length = (faults[-1].at_s if faults else 0) + 5
        sender = threading.Thread(target=_send, args=(system, values, length))
        sender.start()
        watch = _Progress(system)
        _drive(system, faults, watch, recovery, revived)
        sender.join()
        _settle(system, set(raw), revived)
        stopped = system.stop_workers(40)
        result = audit(system.topics, set(raw), len(bad), system.redis.url, "haypile", CAPACITY)
        watch.stop()
    kinds = Counter(fault.kind for fault in faults)
    return Report(seed, kinds, recovery, result, time.monotonic() - started, revived, stopped)


def _send(system: System, values: Sequence[bytes], length_s: float) -> None:
    """Spreads the records over the time of the faults. The sender is an app: it repeats a batch until Kafka has it."""
    steps = 60
    size = len(values) // steps + 1
    for start in range(0, len(values), size):
        began = time.monotonic()
        batch, partition = values[start : start + size], start
        while batch:
            batch = system.topics.try_send(batch, partition)
        time.sleep(max(0.0, length_s / steps - (time.monotonic() - began)))


def _drive(
    system: System,
    faults: Sequence[Fault],
    watch: "_Progress",
    recovery: dict[str, list[float]],
    revived: Counter[str],
) -> None:
    start = time.monotonic()
    for fault in faults:
        while time.monotonic() - start < fault.at_s:
            revived.update(system.revive() if not watch.in_fault else [])
            time.sleep(0.1)
        print(f"{time.monotonic() - start:7.1f} s  {fault.kind} ({fault.target}, {fault.for_s:.1f} s)", flush=True)
        watch.in_fault = True
        end = system.apply(fault)
        time.sleep(fault.for_s)
        end()
        watch.in_fault = False
        recovery[fault.kind].append(watch.until_next(30))


def _settle(system: System, ids: set[str], revived: Counter[str]) -> None:
    deadline = time.monotonic() + 240
    while (done := accounted(system.topics, ids)) < len(ids) and time.monotonic() < deadline:
        print(f"waiting: {done} of {len(ids)} are accounted for", flush=True)
        revived.update(system.revive())
        time.sleep(3)
    time.sleep(12)  # a gap in Redis on a quiet topic is found within seconds


class _Progress:
    """How many outcomes there are, followed in a thread."""

    def __init__(self, system: System) -> None:
        self.in_fault = False
        self._seen = 0
        self._stop = threading.Event()
        self._system = system
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def until_next(self, most_s: float) -> float:
        """Seconds until one more outcome."""
        start, seen = time.monotonic(), self._seen
        while self._seen == seen and time.monotonic() - start < most_s:
            time.sleep(0.05)
        return time.monotonic() - start

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)

    def _follow(self) -> None:
        asyncio.run(self._poll())

    async def _poll(self) -> None:
        from aiokafka import AIOKafkaConsumer
        from aiokafka.errors import KafkaError

        while not self._stop.is_set():
            consumer = AIOKafkaConsumer(
                self._system.topics.names.curated, bootstrap_servers=self._system.bootstrap, auto_offset_reset="latest"
            )
            try:
                await consumer.start()
                while not self._stop.is_set():
                    batches = await consumer.getmany(timeout_ms=100)
                    self._seen += sum(len(batch) for batch in batches.values())
            except (KafkaError, OSError):
                await asyncio.sleep(0.2)
            finally:
                await consumer.stop()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--faults", type=int, default=72)
    parser.add_argument("--every", type=float, default=7.0, help="seconds between faults, about")
    options = parser.parse_args()
    external = os.environ.get("HAYPILE_KAFKA__BOOTSTRAP")
    faults = schedule(options.seed, options.faults, options.every)
    if external:
        faults = [fault for fault in faults if fault.target != "kafka"]
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), options.seed, options.records, faults, external)
    print(report.table())
    return 0 if report.audit.clean else 1


if __name__ == "__main__":
    sys.exit(main())
