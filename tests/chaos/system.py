"""The system under attack: every part a process of its own, every connection through a proxy."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import libfaketime

from deploy.local import broker
from deploy.local.processes import free_port, port_open
from streams.buffer.base import BufferRules
from streams.buffer.redis import RedisBuffer
from streams.redis_client import connect
from streams.settings import RedisSettings
from tests.chaos.proxy import Clients, Proxy
from tests.support import fake_training
from tests.support.fake_vllm import NOT_WHOLE
from tests.support.stack import Process, Topics, Worker, wait_for
from tests.support.training import quick_recipe
from tests.support.valkey import Valkey
from trainers.registry import Registry
from trainers.rundir import Record, RunFolder

CAPACITY = 500
EXACT = BufferRules(CAPACITY, 1.0, None)
"""Near-duplicates and caps off: the buffer does not depend on the order, and must equal the reference id for id."""
RULES = BufferRules(CAPACITY, 0.15, 0.8)
"""Near-duplicates and caps on (eight categories share 500 places, so that the cap of 75 binds)."""
FAKETIME = Path(libfaketime.__file__).parent / "vendor/libfaketime/src/libfaketime.so.1"
LEASE_S = 6.0
"""Of trainers: shorter than a stop."""
ROLES = {
    "worker-1": "ingest,score,curate",
    "worker-2": "ingest,score,curate",
    "worker-3": "ingest,score,curate",
    "answerer": "answer",
    "trigger-1": "trigger",
    "trigger-2": "trigger",
    "trainer-1": "trainer",
    "trainer-2": "trainer",
}
CLOCKED = ("worker-2", "trigger-1", "trainer-1")
"""Their clocks can be made to jump (each look at the clock costs them more), those of the others are right."""
VISITORS = ("worker-3",)
"""Not there from the start."""
GROUPS = {"triggers": ("trigger-1", "trigger-2"), "trainers": ("trainer-1", "trainer-2")}


@dataclass(frozen=True)
class ExternalKafka:
    """A broker that the harness did not start, and the commands that kill and start it, where it may do that."""

    bootstrap: str
    kill: str | None = None
    start: str | None = None

    @staticmethod
    def run(command: str | None) -> None:
        """Runs one of the commands (no shell). RuntimeError with what it printed when it fails or takes a minute."""
        if command is None:
            raise RuntimeError("no command for that is given")
        try:
            done = subprocess.run(
                shlex.split(command), capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RuntimeError(f"{command}: {error}") from None
        if done.returncode:
            raise RuntimeError(f"{command} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")


class System:
    """Context manager. Parts are started, killed and started again by their names (`ROLES`, `vllm-1`, `vllm-2`)."""

    def __init__(
        self,
        folder: Path,
        *,
        rules: BufferRules = EXACT,
        training: bool = True,
        external: ExternalKafka | None = None,
    ) -> None:
        self.folder = folder
        self.rules = rules
        self.training = training
        self.external = external
        self._stack = ExitStack()
        self._lock = threading.RLock()
        self.processes: dict[str, Worker | Process] = {}
        self.down: set[str] = set()
        """Killed on purpose: not to be started again by `revive`."""
        self.vllm: dict[str, Process] = {}
        self.proxies: dict[str, Proxy] = {}
        self.registry = Registry(folder / "registry")
        self.runs = folder / "runs"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self.down.update(ROLES)  # nothing is started again while all ends
        self._stack.close()

    def _start(self) -> None:
        self._start_kafka()
        prefix = f"chaos-{uuid.uuid4().hex[:8]}." if self.external else "chaos."
        self.topics = Topics(self.bootstrap, prefix, partitions=6)
        if self.external:
            self._stack.callback(self.topics.delete)
        redis_folder = self.folder / "redis"
        redis_folder.mkdir()
        # Not rewritten, so that a copy of its files at any moment is one that it starts from.
        options = ("--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0")
        self.redis = Valkey(redis_folder, *options)
        self.redis.start()
        self._stack.callback(self._end_redis)
        self.proxies["redis"] = self._proxy(self.redis.port)
        self.vllm_ports = {"vllm-1": free_port(), "vllm-2": free_port()}
        self._stack.callback(lambda: [server.kill() for server in self.vllm.values()])
        for name, port in self.vllm_ports.items():
            self.start_vllm(name)
            self.proxies[name] = self._proxy(port)
        self.recipe = self.folder / "recipe.yaml"
        # The fake judge's ratings are a hash: about half of the challengers are promoted, half rejected.
        gate = {"prompts": 8, "min_prompts": 4, "min_win_rate": 0.45, "min_lower_bound": 0, "tie_margin": 0.01}
        self.recipe.write_text(quick_recipe(gate=gate).model_dump_json())
        self._stack.callback(lambda: [process.kill() for process in self.processes.values()])
        for name, role in ROLES.items():
            if name not in VISITORS and (self.training or role not in ("trigger", "trainer")):
                self.start(name)

    def _start_kafka(self) -> None:
        self.broker_pid: int | None = None
        if self.external is not None:
            self.bootstrap = self.external.bootstrap
            return
        inner, outer = free_port(), free_port()
        # Clients go where the broker says that it is: it says the proxy's port.
        child = broker.start(inner, self.folder / "broker.log", os.environ, advertised=outer)
        self._stack.callback(child.stop)
        child.wait_ready(lambda: broker.ready(inner), 20)
        self.broker_pid = child.pid
        self.proxies["kafka"] = self._proxy(inner, outer)
        self.bootstrap = f"127.0.0.1:{outer}"

    def _proxy(self, target: int, port: int | None = None) -> Proxy:
        proxy = Proxy(port or free_port(), target)
        self._stack.callback(proxy.stop)
        return proxy

    def _end_redis(self) -> None:
        if self.redis.process is not None:
            with suppress(ProcessLookupError):
                os.kill(self.redis.process.pid, signal.SIGCONT)
        self.redis.kill()

    def start_vllm(self, name: str) -> None:
        """A fake of 10 ms a rating, and 0.3 s an answer and a load of an adapter."""
        port = self.vllm_ports[name]
        arguments = ["-m", "tests.support.fake_vllm", str(port), "0.01", "0.3"]
        self.vllm[name] = Process(arguments, self.folder / f"{name}.log")
        wait_for(name, lambda: port_open(port))

    def environ(self) -> dict[str, str]:
        """Settings of every process."""
        urls = json.dumps([f"http://127.0.0.1:{self.proxies[name].port}" for name in self.vllm_ports])
        found = {
            **self.topics.environ(),
            "HAYPILE_REDIS__URL": f"redis://127.0.0.1:{self.proxies['redis'].port}/0",
            "HAYPILE_JUDGE__URLS": urls,
            "HAYPILE_JUDGE__TIMEOUT_S": "3",
            "HAYPILE_ANSWER__URLS": urls,
            "HAYPILE_ANSWER__TIMEOUT_S": "3",
            "HAYPILE_ANSWER__K": "2",
            "HAYPILE_ANSWER__WHEN": "admission",
            "HAYPILE_ANSWER__INTERVAL_S": "1",
            "HAYPILE_BUFFER__CAPACITY": str(self.rules.capacity),
            "HAYPILE_BUFFER__CATEGORY_SHARE": str(self.rules.category_share),
            "HAYPILE_BUFFER__NEAR_DUPLICATE": json.dumps(self.rules.near_duplicate),
            "HAYPILE_WORKER__WINDOW": "64",
            "HAYPILE_WORKER__DRAIN_S": "3",
            "HAYPILE_TRIGGER__INTERVAL_S": "1",
            "HAYPILE_TRIGGER__MIN_MEMBERS": "50",
            "HAYPILE_TRIGGER__MIN_ANSWERED": "0",
            "HAYPILE_TRIGGER__MIN_NEW": "20",
            "HAYPILE_TRIGGER__MAX_AGE_S": "3",
            "HAYPILE_TRIGGER__COOLDOWN_S": "0",
            "HAYPILE_TRIGGER__MAX_RUNS_PER_DAY": "10000",
            "HAYPILE_TRIGGER__LEASE_S": "4",
            "HAYPILE_SERVING__URLS": urls,
            "HAYPILE_SERVING__TIMEOUT_S": "3",
            "HAYPILE_SERVING__RECONCILE_S": "1",
            # Errors are made here without an end: the watch would rightly undo every promotion.
            "HAYPILE_SERVING__WATCH_S": "0",
            "HAYPILE_TRAINING__RECIPE": str(self.recipe),
            "HAYPILE_TRAINING__BASE_MODEL": "org/model",
            "HAYPILE_TRAINING__SNAPSHOTS": str(self.folder / "snapshots"),
            "HAYPILE_TRAINING__REGISTRY": str(self.registry.root),
            "HAYPILE_TRAINING__WORK_DIR": str(self.runs),
            "HAYPILE_TRAINING__PRUNE_EVERY_S": "null",
            "HAYPILE_TRAINING__GROUP": f"{self.topics.kafka.topic_prefix}trainer",
            fake_training.VARIABLE: "steps 10",
            fake_training.LEASE_VARIABLE: str(LEASE_S),
        }
        if self.external:
            del found["HAYPILE_KAFKA__IDEMPOTENCE"]
        return found

    # -- parts -----------------------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Starts a part (again)."""
        environ = self.environ()
        if name in CLOCKED:
            clock = self.clock(name)
            if not clock.exists():
                clock.write_text("+0")
            environ |= {
                "LD_PRELOAD": str(FAKETIME),
                "FAKETIME_TIMESTAMP_FILE": str(clock),
                # Seconds. Reading the file at every look at the clock costs more than all else.
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        with self._lock:
            self.down.discard(name)
            if ROLES[name] == "trainer":
                environ["HAYPILE_TRAINER_METRICS_PORT"] = str(port := free_port())
                process = Process(["-m", "tests.support.fake_training"], self.folder / f"{name}.log", environ)
                process.metrics_port = port
                self.processes[name] = process
            else:
                self.processes[name] = Worker(self.folder, name, ROLES[name], environ)

    def clock(self, name: str) -> Path:
        """The file with what is added to the wall clock of one of `CLOCKED`."""
        return self.folder / f"{name}.clock"

    def kill(self, name: str) -> None:
        """SIGKILL; it stays away until it is started."""
        with self._lock:
            self.down.add(name)
            self.processes[name].kill()

    def end(self, name: str) -> None:
        """SIGTERM, and SIGKILL when it has not ended within 20 s."""
        with self._lock:
            self.down.add(name)
            process = self.processes[name]
        process.signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.popen.wait(20)
        process.kill()

    def members(self, target: str) -> tuple[str, ...]:
        """Names of parts for a target: a part, a group, or `everyone`."""
        return tuple(self.processes) if target == "everyone" else GROUPS.get(target, (target,))

    def clients(self, target: str) -> Clients | None:
        """The processes of a target, for a proxy."""
        if target == "everyone":
            return None
        names = self.members(target)
        return lambda: [self.processes[name].popen.pid for name in names if name in self.processes]

    def revive(self) -> list[str]:
        """Starts parts that have ended by themselves (a `Fatal`, say) as a supervisor would; their names."""
        with self._lock:
            ended = [n for n, p in self.processes.items() if n not in self.down and p.popen.poll() is not None]
            for name in ended:
                self.start(name)
        return ended

    def stop(self, names: Sequence[str], deadline_s: float) -> dict[str, float]:
        """SIGTERM to these; seconds until each ended with exit code 0. AssertionError with its log otherwise."""
        started = time.monotonic()
        with self._lock:
            self.down.update(names)
            parts = {name: self.processes[name] for name in names if name in self.processes}
        for part in parts.values():
            part.signal(signal.SIGTERM)
        took = {}
        for name, part in parts.items():
            try:
                code = part.popen.wait(deadline_s)
            except subprocess.TimeoutExpired:
                code = None
            took[name] = time.monotonic() - started
            assert code == 0, f"{name} ended with {code}: {part.text()[-2000:]}"
        return took

    def of_role(self, *roles: str) -> list[str]:
        """Names of the running parts of some roles."""
        return [name for name in self.processes if ROLES[name] in roles and name not in self.down]

    # -- what can be seen of them ----------------------------------------------------------------------------------

    def metric(self, name: str, sample: str) -> float:
        """The value of a sample that a part shows now; 0 while it shows none."""
        url = f"http://127.0.0.1:{self.processes[name].metrics_port}/metrics"
        with suppress(OSError), urllib.request.urlopen(url, timeout=1) as response:
            for line in response.read().decode().splitlines():
                if line.startswith(sample + " "):
                    return float(line.rpartition(" ")[2])
        return 0.0

    def handled(self, name: str, hop: str) -> float:
        """Records that a worker has handled at a hop; 0 while it cannot be asked."""
        process = self.processes[name]
        try:
            return process.handled(hop) if isinstance(process, Worker) else 0.0
        except AssertionError:  # it has ended
            return 0.0

    def ask_vllm(self, name: str) -> dict[str, Any]:
        """What a fake says of itself; empty when it is away."""
        with suppress(OSError, ValueError):
            url = f"http://127.0.0.1:{self.vllm_ports[name]}/fault"
            with urllib.request.urlopen(url, timeout=3) as response:
                return dict(json.loads(response.read()))
        return {}

    def tell_vllm(self, name: str, kind: str, count: int) -> None:
        """The next `count` requests to a fake fail."""
        body = json.dumps({"kind": kind, "count": count}).encode()
        with suppress(OSError):
            url = f"http://127.0.0.1:{self.vllm_ports[name]}/fault"
            urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=3).close()

    def served(self) -> dict[str, list[str]]:
        """Names that each fake serves."""
        found = {}
        for name, port in self.vllm_ports.items():
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5) as response:
                found[name] = [model["id"] for model in json.loads(response.read())["data"]]
        return found

    def half_read(self) -> list[str]:
        """Complaints about something half written that was read, and about two training processes at once."""
        found = []
        for name in self.vllm_ports:
            text = (self.folder / f"{name}.log").read_text(errors="replace")
            found += [f"{name} {line}" for line in text.splitlines() if NOT_WHOLE in line]
        with suppress(FileNotFoundError):
            found += (self.runs / fake_training.TWO_AT_ONCE).read_text().splitlines()
        return found

    def run_in_progress(self) -> tuple[RunFolder, Record] | None:
        """The run that has no outcome yet, newest first."""
        folders = sorted(self.runs.glob("*/record.json"), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in folders:
            folder = RunFolder(file.parent)
            if (record := folder.record()).outcome is None:
                return folder, record
        return None

    def log_mentions(self, names: Sequence[str], text: str) -> int:
        """How often the logs of parts hold a text."""
        return sum((self.folder / f"{name}.log").read_text(errors="replace").count(text) for name in names)

    def backup_redis(self) -> Path:
        """A copy of Redis's files as they are now."""
        backup = self.folder / f"redis-{time.monotonic_ns()}"
        shutil.copytree(self.redis.folder, backup)
        return backup

    def restore_redis(self, backup: Path) -> None:
        """Redis is killed and comes back with the files of `backup`: what came since is lost."""
        self.redis.kill()
        shutil.rmtree(self.redis.folder)
        shutil.move(backup, self.redis.folder)
        self.redis.start()


async def applied(system: System) -> int:
    """Records of the log that Redis has, by its own word."""
    client = connect(RedisSettings(url=system.redis.url))
    try:
        positions = await RedisBuffer(client, "haypile", "main", system.rules).positions()
        return sum(last + 1 for last in positions.values())
    finally:
        await client.aclose()
