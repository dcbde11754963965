"""`haypile up` with real broker, Redis, worker and trainer; a fake vLLM stands for an external one."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local import guard
from tests.support.stack import ROOT, Process, fake_vllm, wait_for

READY_S = 120
"""For the whole stack without vLLM: seconds on an idle machine."""


@pytest.fixture(scope="module")
def vllm_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with fake_vllm(tmp_path_factory.mktemp("vllm")) as url:
        yield url


def settings_of(folder: Path, url: str) -> dict[str, str]:
    urls = json.dumps([url])
    return {
        "HAYPILE_LOCAL__DATA_DIR": str(folder / "data"),
        "HAYPILE_JUDGE__URLS": urls,
        "HAYPILE_JUDGE__ANCHORS": "0",  # a fake judge rates by a hash
        "HAYPILE_ANSWER__URLS": urls,
        "HAYPILE_SERVING__URLS": urls,
        "HAYPILE_TRAINING__BASE_MODEL": "nobody-loads-it",
    }


class Up(Process):
    """`haypile up`, writing plain lines."""

    def __init__(self, folder: Path, environ: dict[str, str], name: str = "up") -> None:
        super().__init__(["-m", "deploy.cli", "up"], folder / f"{name}.log", environ)

    def wait_up(self) -> None:
        wait_for("the stack", lambda: "the stack is up" in self.text() or self.popen.poll() is not None, READY_S)
        assert self.popen.poll() is None, self.text()

    def address(self, part: str) -> str:
        found = re.search(rf"^{part} +ready.*?  (\S+)$", self.text(), re.MULTILINE)
        assert found, self.text()
        return found[1]

    def pids(self) -> dict[str, int]:
        """Of the parts, as it tells them."""
        return {m[1]: int(m[2]) for m in re.finditer(r"^(\w+) +ready.*\(pid (\d+)\)", self.text(), re.MULTILINE)}

    def sessions(self) -> set[int]:
        """Each part has a session of its own; whatever is left of it can be found by that."""
        return {os.getsid(pid) for pid in self.pids().values()}


def nothing_left(sessions: set[int]) -> bool:
    return not any(guard.members(session) for session in sessions)


def command(*arguments: str, environ: dict[str, str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, **environ},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_commands_on_a_running_stack_and_a_clean_end(tmp_path: Path, vllm_url: str) -> None:
    environ = settings_of(tmp_path, vllm_url)
    up = Up(tmp_path, environ)
    try:
        up.wait_up()
        sessions = up.sessions()
        assert len(sessions) == 5
        inside = {
            **environ,
            "HAYPILE_KAFKA__BOOTSTRAP": up.address("broker"),
            "HAYPILE_KAFKA__IDEMPOTENCE": "false",
            "HAYPILE_REDIS__URL": f"redis://{up.address('redis')}/0",
        }
        console = re.search(r"^console +ready.*?  (http\S+) \(token to log in: (\S+)\)$", up.text(), re.MULTILINE)
        assert console, up.text()
        with urllib.request.urlopen(console[1]) as page:
            assert "haypile" in page.read().decode()
        assert "was there" in command("topics", "create", environ=inside).stdout

        records = "\n".join(json.dumps({"prompt": f"Question number {i}: why?", "user_id": f"u{i}"}) for i in range(40))
        sent = command("ingest", "-", "--json", environ=inside, stdin=records + "\n{broken\n" + '{"prompt": ""}\n')
        assert sent.returncode == 1
        counts = json.loads(sent.stdout)
        assert (counts["sent"], counts["failed"], counts["refused"]) == (41, 0, 1)
        assert counts["problems"][0].startswith("line 41:")

        def dead() -> dict[str, dict[str, object]]:
            found: dict[str, dict[str, object]] = json.loads(command("dlq", "list", "--json", environ=inside).stdout)
            return found

        letters = wait_for("the dead letter", dead, 60)
        assert [letter["count"] for letter in letters.values()] == [1]

        def settled() -> bool:
            stats = json.loads(command("buffer", "stats", "--json", environ=inside).stdout)
            other = json.loads(command("buffer", "stats", "--eval", "--json", environ=inside).stdout)
            return bool(stats["size"] + other["size"] > 0)

        wait_for("members", settled, 60)
        top = json.loads(command("buffer", "top", "-n", "3", "--json", environ=inside).stdout)
        ranks = [member["rank_key"] for member in top]
        assert ranks
        assert ranks == sorted(ranks, reverse=True)

        status = command("status", "--json", environ=inside)
        assert status.returncode == 0, status.stdout
        assert json.loads(status.stdout)["kafka"]["topics"]["prompts.raw"]["partitions"] == 8
        decision = json.loads(command("train", "--dry-run", "--json", environ=inside).stdout)
        assert decision["train"] is False
        assert "members" in decision["blocked_by"]

        second = Up(tmp_path, environ, "second")
        assert second.popen.wait(60) == 1
        assert "another stack runs in" in second.text()
    finally:
        code = up.terminate(90)
    assert code == 0, up.text()
    assert nothing_left(sessions)


def test_a_part_that_dies_ends_the_stack_with_the_reason(tmp_path: Path, vllm_url: str) -> None:
    up = Up(tmp_path, settings_of(tmp_path, vllm_url))
    try:
        up.wait_up()
        sessions = up.sessions()
        os.kill(up.pids()["worker"], signal.SIGKILL)
        assert up.popen.wait(90) == 1
    finally:
        up.kill()
    assert "worker ended by itself with exit code 137" in up.text()
    assert "Traceback" not in up.text()
    assert nothing_left(sessions)


def test_nothing_outlives_a_killed_stack(tmp_path: Path, vllm_url: str) -> None:
    up = Up(tmp_path, settings_of(tmp_path, vllm_url))
    try:
        up.wait_up()
        sessions = up.sessions()
    finally:
        up.kill()
    wait_for("the end of all parts", lambda: nothing_left(sessions), 60)


def test_a_part_that_cannot_start_is_named(tmp_path: Path, vllm_url: str) -> None:
    environ = settings_of(tmp_path, vllm_url)
    del environ["HAYPILE_SERVING__URLS"]
    environ |= {"HAYPILE_LOCAL__VLLM_PYTHON": "/nowhere/python", "HAYPILE_LOCAL__MODEL": "/nowhere/model"}
    up = Up(tmp_path, environ)
    assert up.popen.wait(60) == 1
    assert "vLLM's Python is not at /nowhere/python" in up.text()
    assert "Traceback" not in up.text()
