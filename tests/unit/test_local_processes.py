"""Supervised children: readiness, errors with the log's end, and that nothing survives."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.local import guard
from deploy.local.processes import Child
from streams.errors import Fatal

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"], process_group=0)
print("pids", os.getpid(), grandchild.pid, flush=True)
time.sleep(600)
"""  # noqa: E501


def child(tmp_path: Path, code: str, grace_s: float = 0.5) -> Child:
    return Child("thing", [sys.executable, "-c", code], tmp_path / "thing.log", environ=os.environ, grace_s=grace_s)


def eventually(condition: Callable[[], bool], deadline_s: float = 20) -> bool:
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def pids_of(log: Path) -> list[int]:
    assert eventually(lambda: "pids" in log.read_text())
    return [int(pid) for pid in log.read_text().split("pids", 1)[1].split()[:2]]


def test_stop_ends_the_whole_tree_even_when_it_ignores_sigterm(tmp_path: Path) -> None:
    stubborn = child(tmp_path, STUBBORN)
    pids = pids_of(tmp_path / "thing.log")
    assert stubborn.pid == pids[0]
    assert stubborn.memory_bytes() > 1_000_000
    stubborn.stop()
    assert not any(alive(pid) for pid in pids)
    stubborn.stop()


def test_nothing_outlives_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "import os, time, pathlib\n"
        "from deploy.local.processes import Child\n"
        f"c = Child('thing', {[sys.executable, '-c', STUBBORN]!r}, pathlib.Path({str(tmp_path / 'thing.log')!r}),"
        " environ=os.environ, grace_s=0.5)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    assert eventually((tmp_path / "thing.log").exists)
    pids = pids_of(tmp_path / "thing.log")
    parent.kill()
    parent.wait()
    assert eventually(lambda: not any(alive(pid) for pid in pids))


def test_a_killed_leader_takes_its_children_with_it(tmp_path: Path) -> None:
    stubborn = child(tmp_path, STUBBORN)
    pids = pids_of(tmp_path / "thing.log")
    os.kill(pids[0], signal.SIGKILL)
    assert eventually(lambda: stubborn.returncode is not None)
    assert stubborn.returncode == 128 + signal.SIGKILL
    assert not alive(pids[1])
    stubborn.stop()


def test_one_that_ends_before_it_is_ready_is_an_error_with_its_log(tmp_path: Path) -> None:
    broken = child(tmp_path, "import sys; print('no such model'); sys.exit(3)")
    with pytest.raises(Fatal, match=r"thing ended with exit code 3(.|\n)*no such model"):
        broken.wait_ready(lambda: False, 20)
    broken.stop()


def test_one_that_is_not_ready_in_time_is_an_error(tmp_path: Path) -> None:
    slow = child(tmp_path, "import time; time.sleep(60)")
    with pytest.raises(Fatal, match=r"not ready within 0\.3 s"):
        slow.wait_ready(lambda: False, 0.3)
    slow.stop()


def test_a_graceful_end_is_not_cut_short(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "def end(*_):\n    time.sleep(1); print('saved', flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\nprint('pids 1 2', flush=True)\ntime.sleep(60)\n"
    )
    graceful = child(tmp_path, code, grace_s=10)
    pids_of(tmp_path / "thing.log")
    graceful.stop()
    assert "saved" in (tmp_path / "thing.log").read_text()
    assert graceful.returncode == 0


def test_members_of_a_session_are_found_by_their_session_only() -> None:
    assert os.getpid() not in guard.members(os.getpid())
    sleeper = subprocess.Popen(["sleep", "60"], start_new_session=True)
    assert guard.members(sleeper.pid) == []
    sleeper.kill()
    sleeper.wait()
