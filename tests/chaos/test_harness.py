"""The parts of the harness: what does not do what it says would prove nothing."""

import argparse
import contextlib
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.processes import free_port
from tests.chaos.faults import Faults
from tests.chaos.proxy import SLOW_S, Proxy
from tests.chaos.run import external_kafka, plan
from tests.chaos.schedule import BROKER, FLOW, LOCAL_BROKER, TRAINING, Fault, schedule
from tests.chaos.system import ExternalKafka, System


def test_a_schedule_repeats_for_its_seed_and_has_every_kind() -> None:
    for kinds in (FLOW, TRAINING):
        assert schedule(1, 60, 5, kinds) == schedule(1, 60, 5, kinds) != schedule(2, 60, 5, kinds)
        found = Counter(fault.kind for fault in schedule(1, 2 * len(kinds), 5, kinds))
        assert found == Counter(dict.fromkeys(kinds, 2))


def test_the_long_run_has_every_kind_at_least_twice() -> None:
    flow, training = plan(1, 80, 7, None)
    kinds = Counter(fault.kind for fault in (*flow, *training))
    assert kinds.keys() == {*FLOW, *TRAINING}
    assert min(kinds.values()) >= 2


def options(*arguments: str) -> argparse.Namespace:
    kill, start = (*arguments, None, None)[:2]
    return argparse.Namespace(broker_kill=kill, broker_start=start)


def test_an_external_kafka_is_cut_off_never_and_killed_only_with_commands() -> None:
    parser = argparse.ArgumentParser()
    assert external_kafka(parser, options(), None) is None
    plain = external_kafka(parser, options(), "kafka:9092")
    told = external_kafka(parser, options("stop it", "start it"), "kafka:9092")
    kinds = [{fault.kind for fault in plan(1, 90, 7, kafka)[0]} for kafka in (plain, told)]
    assert not kinds[0] & {*LOCAL_BROKER, *BROKER}
    assert kinds[1] - kinds[0] == {*BROKER}


@pytest.mark.parametrize(("given", "bootstrap"), [(("stop it",), "kafka:9092"), (("stop it", "start it"), None)])
def test_half_of_what_killing_needs_is_bad_usage(given: tuple[str, ...], bootstrap: str | None) -> None:
    with pytest.raises(SystemExit) as ended:
        external_kafka(argparse.ArgumentParser(), options(*given), bootstrap)
    assert ended.value.code == 2


def test_the_brokers_commands_stop_and_start_it(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as broker:
        try:
            kafka = ExternalKafka("kafka:9092", f"kill -STOP {broker.pid}", f"kill -CONT {broker.pid}")
            end = Faults(System(tmp_path, external=kafka)).begin(Fault("kill kafka", "kafka", 0, 0))
            assert _stopped(broker.pid)
            assert end()
            assert not _stopped(broker.pid)
        finally:
            broker.kill()


def test_a_brokers_command_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"ended with 1: .*nothing-here"):
        ExternalKafka.run("cat nothing-here")
    with pytest.raises(RuntimeError, match="no-such-command"):
        ExternalKafka.run("no-such-command")


def _stopped(pid: int) -> bool:
    deadline = time.monotonic() + 1
    while (state := Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]) != "T":
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return state == "T"


@pytest.fixture
def echo() -> Iterator[int]:
    """Port of a server that answers with what it gets."""

    class Echo(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                while data := self.request.recv(100):
                    self.request.sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_a_proxy_is_cut_and_slowed_for_all_or_for_some(echo: int) -> None:
    proxy = Proxy(free_port(), echo)
    child = [sys.executable, "-c", "import time; time.sleep(60)"]
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as line, subprocess.Popen(child) as other:

        def took_s() -> float:
            time.sleep(0.05)  # what the proxy is told takes effect in its own thread
            started = time.monotonic()
            line.sendall(b"x")
            assert line.recv(10) == b"x"
            return time.monotonic() - started

        try:
            assert took_s() < SLOW_S
            heal = proxy.slow(lambda: [os.getpid()])
            assert took_s() >= 2 * SLOW_S
            heal()
            heal = proxy.slow(lambda: [other.pid])
            assert took_s() < SLOW_S, "another process is meant"
            heal()
            heal = proxy.cut(lambda: [other.pid])
            took_s()
            heal()
            heal = proxy.cut(lambda: [os.getpid()])
            with pytest.raises(ConnectionResetError):
                line.recv(10)
            again = socket.create_connection(("127.0.0.1", proxy.port), timeout=5)
            with again, pytest.raises(ConnectionResetError):
                again.recv(10)
            heal()
            with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as again:
                again.sendall(b"y")
                assert again.recv(10) == b"y"
        finally:
            other.kill()
            proxy.stop()
