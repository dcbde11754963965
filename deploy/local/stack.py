"""Starts the parts of haypile on this machine in order, watches them, and ends all of them in the reverse order.

A part whose address the settings name (`kafka.bootstrap`, `redis.url`, the three vLLM `urls`) is external: used, not
started. What is started gets its settings through `HAYPILE_` variables, as any other deployment would.
"""

import fcntl
import http.client
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

from deploy.local import broker, redis, vllm
from deploy.local.processes import Child, Probe, free_port, port_open
from streams.errors import Fatal
from streams.settings import Section, Settings, load_settings
from streams.topics import create_topics

State = Literal["waiting", "starting", "ready", "external", "stopping", "stopped", "failed"]
Flags = dict[str, Any]

URL_SECTIONS = ("judge", "answer", "serving")
"""Sections whose `urls` the local vLLM serves."""

SLOW_ANSWER_S = 300.0
"""Of one request to a CPU that is also training."""


@dataclass
class Part:
    """One line of `haypile up`."""

    name: str
    state: State = "waiting"
    address: str = ""
    child: Child | None = None
    ready_after_s: float | None = None
    changes: list[Callable[["Part"], None]] = field(default_factory=list, repr=False)

    def set(self, state: State) -> None:
        """Moves on, and tells who listens."""
        self.state = state
        for change in self.changes:
            change(self)


class Stack:
    """Context manager: inside it every part is ready. `settings` then holds the addresses that the parts got.

    `flags` are settings that beat file and environment (as those of a command do). Raises `Fatal`, naming the part and
    showing the end of its log, when one cannot start. Enter it in the main thread of a process that handles SIGTERM.
    `before_start` is called once nobody else uses `local.data_dir`.
    """

    def __init__(
        self,
        flags: Mapping[str, Any] | None = None,
        *,
        on_change: Callable[[Part], None] | None = None,
        before_start: Callable[[Settings], None] = lambda settings: None,
    ) -> None:
        self._flags: Flags = dict(flags or {})
        self.settings: Settings = load_settings(self._flags)
        self._given = self.settings
        self._before_start = before_start
        self._claim: IO[bytes] | None = None
        names = ("broker", "redis", "vllm", "worker", "trainer", "console")
        self.parts = {name: Part(name, changes=[on_change] if on_change else []) for name in names}
        self._started: list[Part] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def check(self) -> None:
        """Raises `Fatal` with the reason when a part has ended by itself."""
        for part in self._started:
            if part.child is not None and part.child.returncode is not None:
                part.set("failed")
                raise Fatal(f"{part.name} ended by itself with exit code {part.child.returncode}{part.child.tail()}")

    def stop(self) -> None:
        """Ends what was started, last first. Idempotent."""
        while self._started:
            part = self._started[-1]
            if part.child is not None:
                if part.state != "failed":
                    part.set("stopping")
                part.child.stop()
            if part.state != "failed":
                part.set("stopped")
            self._started.pop()
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    # -- starting ------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        local = self._given.local
        data = local.data_dir.absolute()
        logs = data / "logs"
        self._claim = _claim(data)
        self._before_start(self._given)
        self._override("training", "snapshots", str(data / "snapshots"))
        self._override("training", "registry", str(data / "registry"))
        self._override("training", "work_dir", str(data / "runs"))
        self._override("training", "recipe", "demo")
        own_broker = not _named(self._given.kafka, "bootstrap")
        own_redis = not _named(self._given.redis, "url")
        own_vllm = [name for name in URL_SECTIONS if not _named(getattr(self._given, name), "urls")]

        if own_vllm:
            self._begin_vllm(own_vllm, data, logs)
        else:
            urls = [url for name in URL_SECTIONS for url in getattr(self._given, name).urls]
            self._external("vllm", ", ".join(dict.fromkeys(urls)))
        if own_broker:
            port = local.kafka_port or free_port()
            self._flag("kafka", "bootstrap", f"127.0.0.1:{port}")
            # A join takes about the session timeout on this broker.
            self._override("kafka", "session_timeout_s", 10)
            self._override("kafka", "idempotence", False)  # it has none
            self._begin("broker", f"127.0.0.1:{port}", lambda: broker.start(port, logs / "broker.log", os.environ))
            self._await("broker", lambda: broker.ready(port))
        else:
            self._external("broker", self._given.kafka.bootstrap)
        if own_redis:
            redis_port = local.redis_port or free_port()
            self._flag("redis", "url", f"redis://127.0.0.1:{redis_port}/0")
            self._begin(
                "redis",
                f"127.0.0.1:{redis_port}",
                lambda: redis.start(redis_port, data / "redis", logs / "redis.log", os.environ, fresh=own_broker),
            )
            self._await("redis", lambda: redis.ready(redis_port))
        else:
            self._external("redis", self._given.redis.url.rpartition("@")[2])
        if own_vllm:
            self._await("vllm", lambda: vllm.ready(int(self.parts["vllm"].address.rpartition(":")[2])))

        worker_port = self._metrics_port(self._given.worker.metrics_port, _named(self._given.worker, "metrics_port"))
        self._flag("worker", "metrics_port", worker_port)
        trainer_port = self._metrics_port(self._given.trainer_metrics_port, _named(self._given, "trainer_metrics_port"))
        self._flags["trainer_metrics_port"] = trainer_port
        self.settings = load_settings(self._flags)
        create_topics(self.settings.kafka)
        for name, metrics in (("worker", worker_port), ("trainer", trainer_port)):
            self._begin_own(name, metrics, logs)
        for name, metrics in (("worker", worker_port), ("trainer", trainer_port)):
            self._await(name, _serves_metrics(metrics, self.parts[name]))
        self._begin_console(logs)

    def _begin_vllm(self, sections: list[str], data: Path, logs: Path) -> None:
        local = self._given.local
        port = local.vllm_port or free_port()
        for name in sections:
            self._flag(name, "urls", [f"http://127.0.0.1:{port}"])
        if local.model is None and "judge" in sections:
            self._override("judge", "revision", vllm.judge_revision())
        # A CPU rates a few prompts a second: a short queue, and patience, or requests time out while they wait in it.
        for section, concurrency in (("judge", 8), ("answer", 16)):
            if section in sections:
                self._override(section, "concurrency", concurrency)
                self._override(section, "timeout_s", SLOW_ANSWER_S)
        model = local.model or self._base_model(data / "base", logs / "base-model.log")
        self._override("training", "base_model", str(model))
        self._begin(
            "vllm",
            f"http://127.0.0.1:{port}",
            lambda: vllm.start(self._given, model, port, logs / "vllm.log", os.environ),
        )

    def _base_model(self, out: Path, log: Path) -> Path:
        """SmolLM2-135M-Instruct as a folder, made once, in a process of its own (it needs torch and 1 GB)."""
        from trainers.base_model import is_complete

        if is_complete(out):
            return out
        part = self.parts["vllm"]
        part.address = f"making its model in {out}"
        part.set("starting")
        maker = Child("base-model", [sys.executable, "-m", "trainers.base_model", str(out)], log, environ=os.environ)
        try:
            maker.wait_ready(lambda: maker.returncode == 0, self._given.local.ready_s)
        finally:
            maker.stop()
        return out

    def _begin_own(self, name: str, metrics_port: int, logs: Path) -> None:
        environ = {**os.environ, **environment(self._flags), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "deploy.cli", name]
        grace_s = 2 * self.settings.worker.drain_s + 10
        address = f"metrics on 127.0.0.1:{metrics_port}" if metrics_port else "no metrics"
        log = logs / f"{name}.log"
        self._begin(name, address, lambda: Child(name, command, log, environ=environ, grace_s=grace_s))

    def _begin_console(self, logs: Path) -> None:
        """With a token of its own where the user has none: it is told with the address, and ends with the process."""
        given = self._given.console
        port = given.port if _named(given, "port") and given.port else free_port()
        environ = {**os.environ, **environment(self._flags), "HAYPILE_CONSOLE__PORT": str(port)}
        host = "127.0.0.1" if given.host in ("0.0.0.0", "::") else given.host  # nosec B104
        address = f"http://{host}:{port}"
        if given.token is None:
            environ["HAYPILE_CONSOLE__TOKEN"] = token = secrets.token_urlsafe(16)
            address += f" (token to log in: {token})"
        command = [sys.executable, "-m", "deploy.cli", "console"]
        self._begin("console", address, lambda: Child("console", command, logs / "console.log", environ=environ))
        self._await("console", lambda: port_open(port, host) and _http_ok(port, "/healthz", host))

    def _begin(self, name: str, address: str, start: Callable[[], Child]) -> None:
        part = self.parts[name]
        part.address = address
        part.set("starting")
        try:
            part.child = start()
        except BaseException:
            part.set("failed")
            raise
        self._started.append(part)

    def _await(self, name: str, probe: Probe) -> None:
        part = self.parts[name]
        child = part.child
        assert child is not None, f"{name} was begun"
        try:
            child.wait_ready(probe, self._given.local.ready_s)
        except Fatal:
            part.set("failed")
            raise
        part.ready_after_s = time.monotonic() - child.started
        part.set("ready")
        self.check()

    def _external(self, name: str, address: str) -> None:
        self.parts[name].address = address
        self.parts[name].set("external")

    # -- settings ------------------------------------------------------------------------------------------------

    def _flag(self, section: str, key: str, value: object) -> None:
        self._flags[section] = {**self._flags.get(section, {}), key: value}

    def _override(self, section: str, key: str, value: object) -> None:
        """A local default: what the user has set stays."""
        if not _named(getattr(self._given, section), key):
            self._flag(section, key, value)

    @staticmethod
    def _metrics_port(configured: int, named: bool) -> int:
        return configured if named else free_port()


def _claim(data: Path) -> IO[bytes]:
    """Holds the folder for one stack: two would delete each other's Redis. The lock ends with the process."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        file = (data / "lock").open("ab")
    except OSError as error:
        raise Fatal(f"local.data_dir cannot be used: {error}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise Fatal(f"another stack runs in {data}: end it, or set local.data_dir to another folder") from None
    return file


def _named(section: Section | Settings, key: str) -> bool:
    """Whether file, environment or flags set the key, as against its default."""
    return key in section.model_fields_set


def _serves_metrics(port: int, part: Part) -> Probe:
    """True once the process serves its metrics; without a port, once it has lived for two seconds."""
    if port:
        return lambda: port_open(port) and _http_ok(port)
    return lambda: part.child is not None and time.monotonic() - part.child.started > 2


def _http_ok(port: int, path: str = "/metrics", host: str = "127.0.0.1") -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def environment(flags: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as `HAYPILE_SECTION__KEY` variables."""
    found = {}
    for section, values in flags.items():
        if isinstance(values, Mapping):
            for key, value in values.items():
                found[f"HAYPILE_{section}__{key}".upper()] = _text(value)
        else:
            found[f"HAYPILE_{section}".upper()] = _text(values)
    return found


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
