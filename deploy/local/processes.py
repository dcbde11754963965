"""A supervised child process: log file, readiness probe with a deadline, and an end that leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deploy.local import guard
from streams.errors import Fatal

PROBE_EVERY_S = 0.1
TAIL_LINES = 15
"""Lines of the log that an error shows."""
TAIL_BYTES = 16_000

Probe = Callable[[], bool]


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago (should another process take it, the part fails to start)."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def port_open(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


class Child:
    """One command under `guard.py`, in a session of its own, writing to `log` (started afresh)."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, *, environ: Mapping[str, str], grace_s: float = 10
    ) -> None:
        self.name = name
        self.log = log
        self._grace_s = grace_s
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", guard.__file__, str(grace_s), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environ),
                start_new_session=True,
            )
        self.started = time.monotonic()

    @property
    def returncode(self) -> int | None:
        """Exit code of the command; None while it runs."""
        return self._guard.poll()

    @property
    def pid(self) -> int | None:
        """Process id of the command (the oldest member of its session); None when it has ended."""
        return min(guard.members(self._guard.pid), default=None)

    def memory_bytes(self) -> int:
        """Resident memory of the command and its children, in bytes."""
        return sum(_resident_bytes(pid) for pid in guard.members(self._guard.pid))

    def wait_ready(self, probe: Probe, deadline_s: float) -> None:
        """Returns once `probe()` is true; raises `Fatal` with the log's tail when the child ends or time is up."""
        while not probe():
            if self.returncode is not None:
                raise Fatal(f"{self.name} ended with exit code {self.returncode} before it was ready{self.tail()}")
            if time.monotonic() - self.started > deadline_s:
                raise Fatal(f"{self.name} was not ready within {deadline_s:g} s{self.tail()}")
            time.sleep(PROBE_EVERY_S)

    def tail(self) -> str:
        """The end of the log under its name, ready to follow a message."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
                lines = log.read().decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
        except OSError:
            lines = []
        return (
            f"\n{self.log}:" + "".join(f"\n  {line}" for line in lines) if lines else f" (its log {self.log} is empty)"
        )

    def ask_to_stop(self) -> None:
        """Sends SIGTERM and returns at once; `stop` then waits."""
        if self.returncode is None:
            self._guard.terminate()

    def stop(self) -> None:
        """Ends the command and all that it started. Idempotent."""
        self.ask_to_stop()
        try:
            self._guard.wait(self._grace_s + 3)
        except subprocess.TimeoutExpired:
            # The guard itself hangs (or was stopped): do its work from here.
            guard.signal_all(self._guard.pid, signal.SIGKILL)
            self._guard.kill()
            self._guard.wait()
        guard.signal_all(self._guard.pid, signal.SIGKILL)
        if self._guard.stdin:
            self._guard.stdin.close()


def _resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
