"""`python -m tests.chaos.run`: the harness. Prints a table; exit code 1 when anything is lost or twice in effect."""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.chaos.auditor import Audit, Training, audit, collect
from tests.chaos.drive import Drive, Sender
from tests.chaos.schedule import BROKER, FLOW, LOCAL_BROKER, TRAINING, Fault, schedule
from tests.chaos.system import CAPACITY, EXACT, RULES, ExternalKafka, System

BAD = [b"", b"not json", b"\xff\xfe", b'{"prompt": "\\ud800"}', b'{"prompt": 7}', b"{}", b"[]", b'{"prompt": " "}']
WORDS = 4000


@dataclass
class Report:
    """What happened in a run."""

    title: str
    faults: Counter[str]
    hits: Counter[str]
    """Faults that were seen to hit what they are named after."""
    recovery_s: dict[str, list[float]]
    """By kind: seconds from a fault's end to the next record's outcome, or for training to the next event of a run."""
    audit: Audit
    seconds: float
    revived: Counter[str]
    """Parts that ended by themselves and were started again."""
    stopped_s: dict[str, float]
    """Seconds from SIGTERM to the end of each part."""
    replays: int
    """Times that a worker found Redis behind the log."""
    failures: list[str]
    """Why runs failed, in their own words."""

    def table(self) -> str:
        """Plain text."""
        rows = [f"{'fault':<26}{'times':>6}{'hit':>5}{'recovery s, median':>20}{'longest':>9}"]
        for kind, count in sorted(self.faults.items()):
            times = self.recovery_s.get(kind, [])
            shown = (f"{median(times):.1f}", f"{max(times):.1f}") if times else ("-", "-")
            rows.append(f"{kind:<26}{count:>6}{self.hits[kind]:>5}{shown[0]:>20}{shown[1]:>9}")
        a = self.audit
        rows += [
            "",
            f"{self.title}: {a.records} records, {self.faults.total()} faults of {len(self.faults)} kinds "
            f"({self.hits.total()} hit), {a.runs.total()} training runs, {self.seconds:.0f} s",
            f"lost: {a.lost}   twice in effect: {a.twice}",
            "records: " + ", ".join(f"{end} {count}" for end, count in sorted(a.account.items())),
            "runs: " + (", ".join(f"{end} {count}" for end, count in sorted(a.runs.items())) or "none"),
            *(f"a run failed: {reason}" for reason in self.failures),
            "repeated on the wire: " + ", ".join(f"{topic} {count}" for topic, count in a.repeated_on_wire.items()),
            f"Redis found behind the log, and replayed: {self.replays} times",
            "ended by themselves, started again: " + (json.dumps(self.revived) if self.revived else "none"),
            "SIGTERM to end, s: " + ", ".join(f"{name} {took:.1f}" for name, took in self.stopped_s.items()),
            *a.findings(),
        ]
        return "\n".join(rows)


def prompts(count: int, seed: int) -> list[bytes]:
    """Raw records, one in 200 malformed, one in 20 without an id, one in 10 almost the same as an earlier one."""
    rng = random.Random(seed)
    words = [f"w{rng.randrange(10**7)}" for _ in range(WORDS)]
    texts: list[str] = []
    found = []
    for i in range(count):
        if i % 200 == 100:
            found.append(BAD[i // 200 % len(BAD)])
            continue
        # Of two with the same words the number at the end differs: one word shingle of nearly thirty.
        text = rng.choice(texts) if texts and i % 10 == 5 else " ".join(rng.choices(words, k=28))
        texts.append(text)
        record = {"prompt": f"{text} {i}"} if i % 20 == 7 else {"id": f"c{i}", "prompt": f"{text} {i}"}
        found.append(json.dumps(record).encode())
    return found


def run(
    folder: Path,
    *,
    seed: int,
    records: int,
    flow: Sequence[Fault],
    training: Sequence[Fault] | None = None,
    rules: bool = False,
    external: ExternalKafka | None = None,
) -> Report:
    """One run: sends while faults come and go in two lanes, waits until all is accounted for, audits.

    `training` None leaves trigger and trainers out; `rules` turns near-duplicates and category caps on.
    """
    started = time.monotonic()
    all_faults = [*flow, *(training or [])]
    with System(folder, rules=RULES if rules else EXACT, training=training is not None, external=external) as system:
        drive = Drive(system)
        expected_s = max((fault.at_s for fault in all_faults), default=0) + 5
        sender = Sender(system, prompts(records, seed), expected_s, len(flow))
        names = system.topics.names
        lanes = [
            threading.Thread(target=drive.faults, args=lane, daemon=True)
            for lane in ((flow, names.curated, sender.allow), (training or [], names.events, lambda: None))
        ]
        reviver = threading.Thread(target=drive.revive, daemon=True)
        for thread in (sender, reviver):
            thread.start()
        drive.wait_until_it_flows()
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        sender.finish()
        drive.settle()
        runs = drive.end_training() if training is not None else None
        stopped = drive.stop()
        reviver.join()
        if drive.errors:
            raise drive.errors[0]
        result = audit(collect(system, sender.taken, runs))
        replays = system.log_mentions(["worker-1", "worker-2"], "Redis is behind the log")
    failures = why_failed(runs) if runs is not None else []
    title = f"seed {seed}, near-duplicates and caps {'on' if rules else 'off'}, capacity {CAPACITY}"
    kinds = Counter(fault.kind for fault in all_faults)
    took_s = time.monotonic() - started
    return Report(title, kinds, drive.hits, drive.recovery_s, result, took_s, drive.revived, stopped, replays, failures)


def why_failed(training: Training) -> list[str]:
    """The reason of each run that failed; one may tell of its end twice."""
    reasons = {event.run_id: event.metrics.get("reason") for event in training.events if event.phase == "failed"}
    return sorted(map(str, reasons.values()))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="make chaos",
        description=f"{__doc__} With HAYPILE_KAFKA__BOOTSTRAP it uses that Kafka (in topics of its own, deleted at "
        "the end).",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--faults", type=int, default=80, help="all together; each kind comes before any comes again")
    parser.add_argument("--every", type=float, default=6.0, help="seconds between faults of a lane, about")
    parser.add_argument("--rules", action="store_true", help="near-duplicates and category caps on")
    parser.add_argument("--broker-kill", metavar="COMMAND", help="kills the Kafka that the environment names")
    parser.add_argument("--broker-start", metavar="COMMAND", help="starts it again; returns at once")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave logs and files there")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the parts are ended on the way out
    external = external_kafka(parser, options, os.environ.get("HAYPILE_KAFKA__BOOTSTRAP"))
    flow, training = plan(options.seed, options.faults, options.every, external)
    for folder in filter(None, [options.keep]):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        report = run(
            options.keep or Path(scratch),
            seed=options.seed,
            records=options.records,
            flow=flow,
            training=training,
            rules=options.rules,
            external=external,
        )
    print(report.table())
    return 0 if report.audit.clean else 1


def external_kafka(
    parser: argparse.ArgumentParser, options: argparse.Namespace, bootstrap: str | None
) -> ExternalKafka | None:
    """The Kafka of the environment, with its commands. Bad usage ends the process with 2."""
    if bool(options.broker_kill) != bool(options.broker_start):
        parser.error("--broker-kill and --broker-start go together")
    if options.broker_kill and bootstrap is None:
        parser.error("--broker-kill needs HAYPILE_KAFKA__BOOTSTRAP: the harness's own broker lives in memory")
    return ExternalKafka(bootstrap, options.broker_kill, options.broker_start) if bootstrap else None


def plan(seed: int, count: int, every_s: float, external: ExternalKafka | None) -> tuple[list[Fault], list[Fault]]:
    """Faults of both lanes, shared out by their numbers of kinds."""
    kinds = dict(FLOW)
    if external is not None:
        kinds = {kind: how for kind, how in kinds.items() if kind not in LOCAL_BROKER}
        kinds |= BROKER if external.kill else {}
    of_training = round(count * len(TRAINING) / (len(TRAINING) + len(kinds)))
    flow = schedule(seed, count - of_training, every_s, kinds)
    # Both lanes take about as long, so that they go side by side to the end.
    return flow, schedule(seed, of_training, every_s * len(flow) / max(1, of_training), TRAINING)


if __name__ == "__main__":
    sys.exit(main())
