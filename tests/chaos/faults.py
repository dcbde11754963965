"""What each kind of fault does. `begin` starts one; the function it returns ends it and says whether it hit.

A fault hits when what it is named after was really going on: a worker is killed *at score* while it has records in
progress there, a trainer *in promote* when its run is left with that phase begun and not ended.
"""

import asyncio
import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from tests.chaos.schedule import Fault
from tests.chaos.system import ExternalKafka, System, applied

JUMP_S = 7200
BUSY_S = 40.0
"""So long is waited for a part to be at the hop."""
PHASE_S = 120.0
"""So long is waited for a run to be in the phase (half of them are rejected, and never promoted)."""
ROOM_BYTES = 8192
"""What a process can still write to a file whose disk is "full". A snapshot and an adapter are larger."""
TOO_LARGE = "File too large"
"""EFBIG: what a write over `RLIMIT_FSIZE` says. The limit stands for a full disk: no root, and lifted as fast."""

End = Callable[[], bool]


class Faults:
    """The kinds of `tests.chaos.schedule` on one system."""

    def __init__(self, system: System) -> None:
        self._system = system

    def begin(self, fault: Fault) -> End:
        """Begins a fault; call what it returns after `fault.for_s`. AssertionError for a kind that is not known."""
        kind, target = fault.kind, fault.target
        verb, _, rest = kind.partition(" ")
        if " worker at " in kind:
            return self._worker_at(verb, kind.rpartition(" ")[2], target)
        if kind.startswith("worker "):
            return self._comes_and_goes(kind, target)
        if kind.startswith("kill trainer in "):
            return self._kill_trainer(kind.rpartition(" ")[2], fault.for_s)
        if kind == "stop trainer":
            return self._stop_trainer()
        if kind == "kill trigger":
            return self._kill_trigger()
        if kind.startswith("disk full: "):
            return self._disk_full(kind.rpartition(" ")[2])
        if kind == "clock jumps":
            return self._clock(target, fault.for_s)
        if kind.startswith("vllm answers "):
            return self._vllm_answers(kind.rpartition(" ")[2], target)
        if verb in ("cut", "slow"):
            return self._link(verb, rest, target)
        return self._server(kind, target)

    # -- workers ---------------------------------------------------------------------------------------------------

    def _worker_at(self, verb: str, hop: str, name: str) -> End:
        system = self._system
        # What it depends on is slowed, so that a record is seen in progress and still is when the signal comes.
        heal = [proxy.slow(system.clients(name)) for part, proxy in system.proxies.items() if part != "kafka"]
        try:
            busy = _until(lambda: self._is_busy(name, hop), BUSY_S)
            if verb == "kill":
                system.kill(name)
            else:
                go_on = _pause(system.processes[name].popen.pid)
        finally:
            for end in heal:
                end()
        if verb == "kill":
            return _after(lambda: system.start(name), busy)
        return lambda: go_on() and busy

    def _is_busy(self, name: str, hop: str) -> bool:
        system = self._system
        if hop == "answer":
            return any(system.ask_vllm(server).get("in_progress", {}).get("teacher", 0) for server in system.vllm)
        return system.metric(name, f'haypile_records_in_flight{{hop="{hop}"}}') > 0

    def _comes_and_goes(self, kind: str, name: str) -> End:
        system = self._system
        if kind == "worker leaves and joins":
            system.end(name)
            return _after(lambda: system.start(name), True)
        system.start(name)

        def leave() -> bool:
            took_part = _until(lambda: any(system.handled(name, hop) for hop in ("ingest", "score", "curate")), 60)
            system.end(name)
            return took_part

        return leave

    def _clock(self, target: str, for_s: float) -> End:
        clock = self._system.clock(target)
        clock.write_text(f"{'+' if for_s % 0.2 < 0.1 else '-'}{JUMP_S}")
        return _after(lambda: clock.write_text("+0"), True)

    # -- servers and connections -----------------------------------------------------------------------------------

    def _link(self, verb: str, part: str, target: str) -> End:
        system = self._system
        proxies = [proxy for name, proxy in system.proxies.items() if name.startswith(part)]
        clients = system.clients(target)
        heal = [proxy.cut(clients) if verb == "cut" else proxy.slow(clients) for proxy in proxies]
        return _after(lambda: [end() for end in heal], True)

    def _vllm_answers(self, kind: str, name: str) -> End:
        system = self._system
        # A refusal makes a dead letter each: few, or the limit of dead letters stops the worker.
        count = 3 if kind == "400" else 1000
        system.tell_vllm(name, kind, count)

        def end() -> bool:
            hit = _until(lambda: system.ask_vllm(name).get("left", count) < count, BUSY_S)
            system.tell_vllm(name, kind, 0)
            return hit

        return end

    def _server(self, kind: str, target: str) -> End:
        system = self._system
        if kind == "stop kafka":
            assert system.broker_pid is not None
            return _pause(system.broker_pid)
        if kind == "kill kafka":
            assert system.external is not None
            kafka = system.external
            ExternalKafka.run(kafka.kill)
            return _after(lambda: ExternalKafka.run(kafka.start), True)
        if target == "redis":
            assert system.redis.process is not None
            if kind == "stop redis":
                return _pause(system.redis.process.pid)
            if kind == "kill redis":
                system.redis.kill()
                return _after(system.redis.start, True)
            return self._redis_comes_back_older()
        if kind == "kill vllm":
            system.vllm[target].kill()
            return _after(lambda: system.start_vllm(target), True)
        if kind == "stop vllm":
            return _pause(system.vllm[target].popen.pid)
        raise AssertionError(f"no such fault: {kind}")

    def _redis_comes_back_older(self) -> End:
        """Now its files are copied; at the end it is killed and gets them back: what came between is lost."""
        system = self._system
        then = asyncio.run(applied(system))
        backup = system.backup_redis()

        def restore() -> bool:
            _until(lambda: asyncio.run(applied(system)) > then, BUSY_S)  # a second of no records loses none
            before = asyncio.run(applied(system))
            system.restore_redis(backup)
            return asyncio.run(applied(system)) < before

        return restore

    # -- training --------------------------------------------------------------------------------------------------

    def _active(self, phase: str) -> str | None:
        """The trainer that is doing a run in that phase."""
        sample = f'haypile_training_phase{{phase="{phase}"}}'
        return next((n for n in self._system.of_role("trainer") if self._system.metric(n, sample) == 1), None)

    def _in_phase(self, phase: str) -> bool:
        run = self._system.run_in_progress()
        if run is None or not run[1].published:
            return False
        if phase in ("sft", "dpo"):
            progress = run[0].progress()
            return run[1].published[-1] == progress.phase == phase and phase not in progress.completed
        return run[1].published[-1] == phase

    def _kill_trainer(self, phase: str, for_s: float) -> End:
        system = self._system
        deadline = time.monotonic() + PHASE_S
        while time.monotonic() < deadline:
            # Who does the run is known by a request that takes longer than a promotion: ask one phase earlier.
            name = self._active("gate" if phase == "promote" else phase)
            if name is None or not _until(lambda: self._in_phase(phase), 5, 0.005):
                continue
            time.sleep(for_s % 0.2)  # not always right at its start
            system.kill(name)
            hit = self._in_phase(phase)
            time.sleep(for_s)
            if hit:
                return _after(partial(system.start, name), True)
            system.start(name)  # the run had gone on to the next phase: once more
            time.sleep(1)
        return lambda: False

    def _stop_trainer(self) -> End:
        system = self._system
        name: str | None = None

        def find() -> bool:
            nonlocal name
            name = next(filter(None, (self._active(phase) for phase in ("sft", "dpo", "gate"))), None)
            return name is not None

        if not _until(find, PHASE_S) or name is None:
            return lambda: False
        return _pause(system.processes[name].popen.pid)

    def _kill_trigger(self) -> End:
        system = self._system
        leaders = [n for n in system.of_role("trigger") if system.metric(n, "haypile_trigger_leader") == 1]
        name = leaders[0] if leaders else "trigger-1"
        system.kill(name)
        return _after(lambda: system.start(name), bool(leaders))

    def _disk_full(self, what: str) -> End:
        if what == "snapshot":
            return self._no_room(self._system.of_role("trigger"))
        if what == "training":
            return self._no_room_to_train()
        # The registry: once training runs, because a process that is started later would have no room either.
        if not _until(lambda: self._in_phase("dpo"), PHASE_S / 2):
            return lambda: False
        return self._no_room(self._system.of_role("trainer"))

    def _no_room(self, names: list[str]) -> End:
        system = self._system
        said = system.log_mentions(names, TOO_LARGE)
        for name in names:
            room = (system.folder / f"{name}.log").stat().st_size + ROOM_BYTES
            _limit(system.processes[name].popen.pid, room)
        hit = _until(lambda: system.log_mentions(names, TOO_LARGE) > said, PHASE_S / 3)

        def end() -> bool:
            for name in names:
                _limit(system.processes[name].popen.pid, resource.RLIM_INFINITY)
            return hit

        return end

    def _no_room_to_train(self) -> End:
        system = self._system

        def limited() -> Path | None:
            """The run whose training process has no room now."""
            run, name = system.run_in_progress(), self._active("sft")
            if run is None or name is None or not self._in_phase("sft"):
                return None
            pids = _children(system.processes[name].popen.pid)
            for pid in pids:
                _limit(pid, run[0].log.stat().st_size + ROOM_BYTES)
            return run[0].path if pids else None

        found: list[Path] = []
        _until(lambda: found.extend(filter(None, [limited()])) or found, PHASE_S / 2)
        log = found[0] / "train.log" if found else None
        hit = log is not None and _until(lambda: TOO_LARGE in log.read_text(errors="replace"), 20)
        return lambda: bool(hit)  # the process has ended, the next one has room


def _after(do: Callable[[], object], hit: bool) -> End:
    def end() -> bool:
        do()
        return hit

    return end


def _until(condition: Callable[[], object], most_s: float, every_s: float = 0.02) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + most_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(every_s)
    return False


def _pause(pid: int) -> End:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)

    def go_on() -> bool:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            return False
        return True

    return go_on


def _limit(pid: int, bytes_: int) -> None:
    with suppress(ProcessLookupError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (bytes_, hard))


def _children(pid: int) -> list[int]:
    """Processes that any thread of `pid` has started."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(child) for child in task.read_text().split()]
    return found
