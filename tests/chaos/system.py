"""The system under attack: every part a process of its own, every connection through a proxy, and the faults."""

import json
import os
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import libfaketime

from deploy.local import broker
from deploy.local.processes import free_port, port_open
from tests.chaos.proxy import Proxy
from tests.chaos.schedule import Fault
from tests.support.stack import Process, Topics, wait_for
from tests.support.valkey import Valkey

CAPACITY = 500
FAKETIME = Path(libfaketime.__file__).parent / "vendor/libfaketime/src/libfaketime.so.1"
JUMP_S = 7200
FLOW = "ingest,score,curate"


class System:
    """Context manager. `apply(fault)` begins one, the returned function ends it."""

    def __init__(self, folder: Path, external_kafka: str | None = None) -> None:
        self.folder = folder
        self._external_kafka = external_kafka
        self._stack = ExitStack()
        self.workers: dict[str, Process] = {}
        self.vllm: dict[str, Process] = {}
        self.backups = 0

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
        self._stack.close()

    def _start(self) -> None:
        self._start_kafka()
        self.topics = Topics(self.bootstrap, "chaos.", partitions=6)
        redis_folder = self.folder / "redis"
        redis_folder.mkdir()
        self.redis = Valkey(redis_folder, "--appendonly", "yes", "--appendfsync", "everysec")
        self.redis.start()
        self._stack.callback(self._end_redis)
        self.proxies["redis"] = self._proxy(self.redis.port)
        self.vllm_ports = {"vllm-1": free_port(), "vllm-2": free_port()}
        for name, port in self.vllm_ports.items():
            self._start_vllm(name)
            self.proxies[name] = self._proxy(port)
        self.clock = self.folder / "clock"
        self.clock.write_text("+0")
        for name, agents in (("worker-1", FLOW), ("worker-2", FLOW), ("answerer", "answer")):
            self._start_worker(name, agents)
        self._stack.callback(lambda: [worker.kill() for worker in self.workers.values()])
        self._stack.callback(lambda: [server.kill() for server in self.vllm.values()])

    def _start_kafka(self) -> None:
        self.proxies: dict[str, Proxy] = {}
        if self._external_kafka is not None:
            self.bootstrap = self._external_kafka
            self.broker_pid = None
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

    def _start_vllm(self, name: str) -> None:
        port = self.vllm_ports[name]
        arguments = ["-m", "tests.support.fake_vllm", str(port), "0.01"]
        self.vllm[name] = Process(arguments, self.folder / f"{name}.log")
        wait_for(name, lambda: port_open(port))

    def environ(self) -> dict[str, str]:
        """Settings of every worker."""
        urls = json.dumps([f"http://127.0.0.1:{self.proxies[name].port}" for name in self.vllm_ports])
        return {
            **self.topics.environ(),
            "HAYPILE_REDIS__URL": f"redis://127.0.0.1:{self.proxies['redis'].port}/0",
            "HAYPILE_JUDGE__URLS": urls,
            "HAYPILE_JUDGE__TIMEOUT_S": "3",
            "HAYPILE_ANSWER__URLS": urls,
            "HAYPILE_ANSWER__TIMEOUT_S": "3",
            "HAYPILE_ANSWER__K": "2",
            "HAYPILE_ANSWER__WHEN": "admission",
            "HAYPILE_ANSWER__INTERVAL_S": "1",
            "HAYPILE_BUFFER__CAPACITY": str(CAPACITY),
            "HAYPILE_BUFFER__CATEGORY_SHARE": "1",
            "HAYPILE_BUFFER__NEAR_DUPLICATE": "null",
            "HAYPILE_WORKER__WINDOW": "64",
            "HAYPILE_WORKER__DRAIN_S": "3",
            "HAYPILE_WORKER__METRICS_PORT": "0",
        }

    def _start_worker(self, name: str, agents: str) -> None:
        environ = {
            **self.environ(),
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(self.clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        log = self.folder / f"{name}.log"
        self.workers[name] = Process(["-m", "deploy.cli", "worker", "--agents", agents], log, environ)

    # -- faults --------------------------------------------------------------------------------------------------

    def apply(self, fault: Fault) -> Callable[[], None]:
        """Begins a fault; call what it returns after `fault.for_s`."""
        kind, target = fault.kind, fault.target
        if kind in ("kill worker", "worker leaves and joins"):
            number = signal.SIGKILL if kind == "kill worker" else signal.SIGTERM
            worker = self.workers[target]
            worker.signal(number)
            return lambda: self._restart_worker(target, worker)
        if kind == "stop worker":
            return self._pause(self.workers[target].popen.pid)
        if kind == "worker joins":
            self._start_worker(target, FLOW)
            return lambda: self._leave(target)
        if kind == "clock jumps":
            self.clock.write_text(f"{'+' if fault.for_s > 1 else '-'}{JUMP_S}")
            return lambda: self._write_clock("+0")
        if kind.startswith("vllm answers"):
            self._tell(target, kind.rpartition(" ")[2])
            return lambda: None
        if kind.startswith(("cut", "slow")):
            proxy = self.proxies[target]
            (proxy.cut if kind.startswith("cut") else proxy.slow)()
            return proxy.heal
        return self._server_fault(kind, target)

    def _server_fault(self, kind: str, target: str) -> Callable[[], None]:
        if kind == "stop kafka":
            assert self.broker_pid is not None
            return self._pause(self.broker_pid)
        if target == "redis":
            assert self.redis.process is not None
            if kind == "stop redis":
                return self._pause(self.redis.process.pid)
            if kind == "kill redis":
                self.redis.kill()
                return self.redis.start
            return self._redis_comes_back_older()
        if kind == "kill vllm":
            self.vllm[target].kill()
            return lambda: self._start_vllm(target)
        if kind == "stop vllm":
            return self._pause(self.vllm[target].popen.pid)
        raise AssertionError(f"no such fault: {kind}")

    def _redis_comes_back_older(self) -> Callable[[], None]:
        """Now its files are copied; at the end it is killed and gets them back: what came between is lost."""
        self.backups += 1
        backup = self.folder / f"redis-{self.backups}"
        shutil.copytree(self.redis.folder, backup)

        def restore() -> None:
            self.redis.kill()
            shutil.rmtree(self.redis.folder)
            shutil.copytree(backup, self.redis.folder)
            self.redis.start()

        return restore

    def _restart_worker(self, name: str, old: Process) -> None:
        if old.popen.poll() is None:
            with suppress(Exception):
                old.popen.wait(20)
            old.kill()
        self._start_worker(name, FLOW if name != "answerer" else "answer")

    def _leave(self, name: str) -> None:
        worker = self.workers.pop(name)
        worker.signal(signal.SIGTERM)
        with suppress(Exception):
            worker.popen.wait(20)
        worker.kill()

    def _write_clock(self, text: str) -> None:
        self.clock.write_text(text)

    def _tell(self, name: str, kind: str, count: int = 40) -> None:
        body = json.dumps({"kind": kind, "count": 3 if kind == "400" else count}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.vllm_ports[name]}/fault", data=body)
        with suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(request, timeout=3).close()

    @staticmethod
    def _pause(pid: int) -> Callable[[], None]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)

        def go_on() -> None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

        return go_on

    def revive(self) -> list[str]:
        """Starts workers that have ended (a `Fatal`, say) as a supervisor would; their names."""
        ended = [name for name, worker in self.workers.items() if worker.popen.poll() is not None]
        for name in ended:
            self._start_worker(name, FLOW if name != "answerer" else "answer")
        return ended

    def stop_workers(self, deadline_s: float) -> dict[str, float]:
        """SIGTERM to all; seconds until each ended with exit code 0."""
        started = time.monotonic()
        for worker in self.workers.values():
            worker.signal(signal.SIGTERM)
        took = {}
        for name, worker in self.workers.items():
            code = worker.popen.wait(deadline_s)
            took[name] = time.monotonic() - started
            assert code == 0, f"{name} ended with {code}: {worker.text()[-2000:]}"
        return took
