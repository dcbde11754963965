"""An outage of vLLM under constant input: what a worker's memory does, and what becomes of the records.

`python -m tests.outage` (`make outage`) starts a broker, Valkey, a fake vLLM and one `haypile worker` with the default
window, sends records at a constant rate, and takes vLLM away: for the first half of the outage it hangs (SIGSTOP: the
connections stay, no answer comes), for the second half nothing listens (SIGKILL). Then it is back, the backlog is
worked off, and every record is accounted for by id. Prints one line a sample and a report; exit code 1 if a promise is
broken.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from kafka import KafkaProducer

from deploy.kafka import topic_states
from deploy.local.processes import free_port, port_open
from tests.support.stack import Process, Topics, Worker, running_broker, wait_for
from tests.support.valkey import Valkey

BOUND_MIB = 128
"""What a worker's resident memory may grow by in an outage and after it, however long it is. At most a window and a
stream's queue of records a hop are held (3 x (256 + 512) records of 4 kB: 9 MiB, as Python objects perhaps three
times that), and a fetch for each partition and topic: Kafka keeps to the 1 MiB that is asked for, Tansu sends 5 MiB
(12 of them: 60 MiB). The rest is room for the allocator. The input of the long form is more."""
WINDOW = 256
"""`worker.window`'s default."""
BACK_S = 15
"""vLLM is back and within this the first record is scored: a pause of 5 s at most, a circuit's rest of 3 s at most."""


def prompt(number: int, rng: random.Random, chars: int) -> bytes:
    """A raw record like no other, of about `chars` characters."""
    words = f"{number} " + " ".join(f"{rng.getrandbits(32):x}" for _ in range(chars // 9))
    return json.dumps({"id": f"o-{number}", "prompt": words}).encode()


def rss_mib(pid: int) -> float:
    """Resident memory of a process in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"process {pid} has no VmRSS")


class Sender(threading.Thread):
    """Sends records at a constant rate until `stop`; `sent` is how many the broker took."""

    def __init__(self, topics: Topics, per_s: float, chars: int, seed: int) -> None:
        super().__init__(daemon=True)
        self._topics, self._per_s, self._chars = topics, per_s, chars
        self._rng = random.Random(seed)
        self._end = threading.Event()
        self.sent = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            producer = KafkaProducer(
                bootstrap_servers=self._topics.kafka.bootstrap, acks="all", enable_idempotence=False
            )
            started = time.monotonic()
            while not self._end.is_set():
                due = int((time.monotonic() - started) * self._per_s)
                futures = [
                    producer.send(
                        self._topics.names.raw,
                        prompt(number, self._rng, self._chars),
                        partition=number % self._topics.kafka.partitions,
                    )
                    for number in range(self.sent, due)
                ]
                for future in futures:
                    future.get(timeout=30)
                self.sent = max(self.sent, due)
                self._end.wait(0.2)
            producer.close()
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        """Returns when the last record is with the broker."""
        self._end.set()
        self.join(60)
        if self.error is not None:
            raise self.error


def curated(worker: Worker) -> float:
    """Records that `curate` is done with: an eviction tells of an earlier one."""
    name = 'haypile_records_total{hop="curate"'
    return sum(v for k, v in worker.metrics().items() if k.startswith(name) and "evicted" not in k)


@dataclass
class Report:
    """What was measured; memory in MiB, times in seconds."""

    outage_s: float
    sent: int
    sent_mib: float
    rss_before: float
    rss_most_in_outage: float
    rss_most: float
    """Also while the backlog is worked off."""
    rss_growth: float
    in_flight_most: int
    scored_in_outage: int
    lag_at_end_of_outage: int
    first_score_after_s: float
    worked_off_after_s: float
    lost: int
    dead: int
    repeated_on_wire: int
    exit_code: int

    def broken(self) -> list[str]:
        """Promises that did not hold."""
        checks = {
            f"memory grew by more than {BOUND_MIB} MiB": self.rss_growth > BOUND_MIB,
            "more records in progress than three windows": self.in_flight_most > 3 * WINDOW,
            "consumption did not stop": self.scored_in_outage > 0,
            f"work did not go on within {BACK_S} s": self.first_score_after_s > BACK_S,
            "records were lost": self.lost > 0,
            "records became dead letters": self.dead > 0,
            "SIGTERM did not end it cleanly": self.exit_code != 0,
        }
        return [what for what, is_broken in checks.items() if is_broken]


def start_vllm(port: int, folder: Path) -> Process:
    """A fake vLLM on that port."""
    process = Process(["-m", "tests.support.fake_vllm", str(port), "0.01"], folder / "vllm.log")
    wait_for("the fake vLLM", lambda: port_open(port))
    return process


def run(folder: Path, outage_s: float, per_s: float, chars: int, seed: int, quiet: bool = False) -> Report:
    """The whole story in `folder`."""
    redis = Valkey(folder)
    redis.start()
    port = free_port()
    vllm = start_vllm(port, folder)
    try:
        with running_broker(folder) as bootstrap:
            topics = Topics(bootstrap, "outage.")
            environ = {
                **topics.environ(),
                "HAYPILE_REDIS__URL": redis.url,
                "HAYPILE_JUDGE__URLS": json.dumps([f"http://127.0.0.1:{port}"]),
                "HAYPILE_BUFFER__NEAR_DUPLICATE": "null",
            }
            worker = Worker(folder, "worker", "ingest,score,curate", environ)
            sender = Sender(topics, per_s, chars, seed)
            sender.start()
            try:
                wait_for("the worker scores", lambda: worker.handled("score") > 5 * per_s, 120)

                def sample(until: float) -> None:
                    nonlocal most, in_flight
                    while time.monotonic() < until:
                        rss = rss_mib(worker.popen.pid)
                        metrics = worker.metrics()
                        now = int(sum(v for k, v in metrics.items() if k.startswith("haypile_records_in_flight")))
                        most, in_flight = max(most, rss), max(in_flight, now)
                        if not quiet:
                            scored = worker.handled("score")
                            text = f"{time.monotonic() - began:6.0f} s  rss {rss:6.1f} MiB  in progress {now:4d}"
                            print(f"{text}  sent {sender.sent}  scored {scored:.0f}", flush=True)
                        time.sleep(min(10.0, outage_s / 10))

                most, in_flight, began = 0.0, 0, time.monotonic()
                sample(began + 5)
                before, most = most, 0.0
                vllm.signal(signal.SIGSTOP)
                began = time.monotonic()
                time.sleep(2)  # what vLLM had answered is passed on
                scored = worker.handled("score")
                sample(began + outage_s / 2)
                os.kill(vllm.popen.pid, signal.SIGKILL)
                vllm.kill()
                sample(began + outage_s)
                scored_in_outage = int(worker.handled("score") - scored)
                waiting = (topics.names.raw, topics.names.accepted)
                states = topic_states(topics.kafka, dict.fromkeys(waiting, topics.kafka.group))
                lag = sum(state.lag or 0 for state in states.values())
                was = worker.handled("score")
                vllm = start_vllm(port, folder)
                back = time.monotonic()
                wait_for("it goes on", lambda: worker.handled("score") > was, 120)
                first = time.monotonic() - back
                sender.stop()

                def worked_off_all() -> bool:
                    nonlocal most
                    most = max(most, rss_mib(worker.popen.pid))
                    return curated(worker) >= sender.sent

                in_outage = most
                wait_for("the backlog is gone", worked_off_all, 3600, every_s=1)
                worked_off = time.monotonic() - back
                code = worker.terminate(60)
            finally:
                worker.kill()
                sender.stop()
            outcomes, dead = topics.accounted()
            scored_ids = [record["id"] for record in topics.json(topics.names.scored)]
            wanted = {f"o-{number}" for number in range(sender.sent)}
            size = sum(len(value) for _, _, value in topics.read(topics.names.raw))
            return Report(
                outage_s=outage_s,
                sent=sender.sent,
                sent_mib=round(size / 2**20, 1),
                rss_before=round(before, 1),
                rss_most_in_outage=round(in_outage, 1),
                rss_most=round(most, 1),
                rss_growth=round(most - before, 1),
                in_flight_most=in_flight,
                scored_in_outage=scored_in_outage,
                lag_at_end_of_outage=lag,
                first_score_after_s=round(first, 1),
                worked_off_after_s=round(worked_off, 1),
                lost=len(wanted - outcomes.keys()),
                dead=len(dead),
                repeated_on_wire=len(scored_ids) - len(set(scored_ids)),
                exit_code=code,
            )
    finally:
        vllm.kill()
        redis.kill()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.outage", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="length of the outage")
    parser.add_argument("--rate", type=float, default=50, help="records a second")
    parser.add_argument("--chars", type=int, default=4000, help="characters of a prompt")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="haypile-outage-") as folder:
        report = run(Path(folder), options.seconds, options.rate, options.chars, options.seed)
    print(json.dumps(asdict(report), indent=2))
    for what in report.broken():
        print(f"BROKEN: {what}")
    sys.exit(1 if report.broken() else 0)


if __name__ == "__main__":
    main()
