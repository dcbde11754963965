"""`haypile http` as a process, on the real broker."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.http.keys import digest
from deploy.local import broker
from deploy.local.processes import Child, free_port
from tests.support.stack import Process, Topics, wait_for

KEY = "the key of the app"


@dataclass
class Interface:
    """One running process."""

    process: Process
    url: str
    topics: Topics
    kafka: Child

    def post(self, path: str, body: object, key: str | None = KEY) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Status, body and headers of the answer."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error), {name.lower(): value for name, value in error.headers.items()}


@pytest.fixture(scope="module")
def interface(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interface]:
    folder = tmp_path_factory.mktemp("http")
    port = free_port()
    kafka = broker.start(port, folder / "broker.log", os.environ)
    try:
        kafka.wait_ready(lambda: broker.ready(port), 20)
        topics = Topics(f"127.0.0.1:{port}", "t.")
        environ = {
            **topics.environ(),
            "HAYPILE_HTTP__PORT": "0",
            "HAYPILE_HTTP__METRICS_PORT": str(free_port()),
            "HAYPILE_HTTP__API_KEYS": json.dumps({"app": digest(KEY)}),
            "HAYPILE_HTTP__TIMEOUT_S": "3",
        }
        process = Process(["-m", "deploy.cli", "http"], folder / "http.log", environ)
        process.metrics_port = int(environ["HAYPILE_HTTP__METRICS_PORT"])
        try:
            found = wait_for("its address", lambda: re.search(r"interface on (http\S+)", process.text()))
            interface = Interface(process, found[1], topics, kafka)
            wait_for("Kafka", lambda: json.load(urllib.request.urlopen(interface.url + "/healthz"))["kafka"], 20)
            yield interface
            assert process.terminate(20) == 0, process.text()
        finally:
            process.kill()
    finally:
        kafka.stop()


def records(interface: Interface) -> int:
    """In both topics."""
    return sum(
        len(interface.topics.read(name)) for name in (interface.topics.names.raw, interface.topics.names.feedback)
    )


def test_what_is_accepted_is_in_the_topic_and_without_a_key_nothing_is(interface: Interface) -> None:
    before = records(interface)
    for path, body in (("/v1/prompts", {"id": "x", "prompt": "Why?"}), ("/v1/feedback", {"id": "x", "feedback": 1})):
        for key in (None, "", "a wrong key", digest(KEY)):
            status, problem, headers = interface.post(path, body, key)
            assert (status, problem["code"], headers["www-authenticate"]) == (401, "no_key", "Bearer")
    assert records(interface) == before

    batch = [{"id": f"b{number}", "prompt": f"Question {number}?", "user_id": "u"} for number in range(300)]
    status, answer, _ = interface.post("/v1/prompts", batch)
    assert (status, answer["accepted"]) == (202, [record["id"] for record in batch])
    there = [record for record in interface.topics.json(interface.topics.names.raw) if record["id"].startswith("b")]
    assert there == [{**record, "source": "app"} for record in batch], (
        "one user's prompts are in one partition, in order"
    )

    status, _, _ = interface.post("/v1/feedback", [{"id": "b7", "feedback": -1}, {"id": "b7", "feedback": 1}])
    assert status == 202
    said = [r["feedback"] for r in interface.topics.json(interface.topics.names.feedback) if r["id"] == "b7"]
    assert said == [-1, 1]


def test_schemathesis_finds_no_failure(interface: Interface, tmp_path: Path) -> None:
    # 422 is for what JSON Schema cannot say: the last message is the user's, an id is printable.
    (tmp_path / "schemathesis.toml").write_text(
        '[checks]\npositive_data_acceptance.expected-statuses = ["2xx", "422", "429"]\n'
    )
    run = subprocess.run(
        [
            *(str(Path(sys.executable).parent / "schemathesis"), "run", f"{interface.url}/openapi.json"),
            *("--header", f"Authorization: Bearer {KEY}", "--checks", "all", "--seed", "1", "--max-examples", "8"),
            *("--generation-database", "none"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "COLUMNS": "150"},
        check=False,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    tested = re.search(r"(\d+) generated", run.stdout)
    assert tested and int(tested[1]) > 150, run.stdout


def test_while_kafka_does_not_answer_503_says_when_to_come_back(interface: Interface) -> None:
    pid = interface.kafka.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        status, problem, headers = interface.post(
            "/v1/prompts", [{"id": "s1", "prompt": "a"}, {"id": "s2", "prompt": "b"}]
        )
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (status, problem["code"]) == (503, "kafka")
    assert int(headers["retry-after"]) >= 1
    assert (problem["accepted"], problem["unknown"]) == ([], ["s1", "s2"])

    def again() -> bool:
        return interface.post("/v1/prompts", [{"id": "s1", "prompt": "a"}, {"id": "s2", "prompt": "b"}])[0] == 202

    wait_for("Kafka's return", again, 60)
    metrics = urllib.request.urlopen(f"http://127.0.0.1:{interface.process.metrics_port}/metrics").read().decode()
    assert 'haypile_http_requests_total{path="/v1/prompts",status="503"}' in metrics
    assert re.search(r"^haypile_http_kafka_up 1.0$", metrics, re.MULTILINE)


def test_a_port_that_is_taken_and_settings_without_keys_are_told_in_one_line(
    interface: Interface, tmp_path: Path
) -> None:
    taken = interface.url.rpartition(":")[2]
    keys = {"HAYPILE_HTTP__API_KEYS": json.dumps({"app": digest(KEY)})}
    for environ, code, named in (({}, 2, "http.api_keys"), ({**keys, "HAYPILE_HTTP__PORT": taken}, 1, "http.port")):
        process = Process(["-m", "deploy.cli", "http"], tmp_path / f"{code}.log", environ)
        assert process.popen.wait(60) == code
        [line] = process.text().splitlines()
        assert named in line
