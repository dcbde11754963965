"""A real Prometheus with the deployed configuration looks at a running system: every panel has something to show.

The system is what production runs, but for vLLM and the training process, which are fakes: a broker, Redis, a worker
with all agents, a trainer that does a run, the HTTP interface. A second judge that is not there, and a few answers of
503, give the panels about trouble something to show too.
"""

import json
import threading
import urllib.request
import uuid
from collections.abc import Iterator

import pytest

from deploy.http.keys import digest
from deploy.local.processes import free_port, port_open
from tests.support import fake_training
from tests.support.dashboards import boards, choices, queries
from tests.support.flow import CAPACITY, prompts
from tests.support.prometheus import Prometheus, binary, running_prometheus
from tests.support.stack import Process, Topics, Worker, wait_for
from tests.support.training import quick_recipe

BOARDS = boards()
BATCH = 60
EVERY_S = 0.5
FAILURES = 12
KEY = "the key of the app"


def some_prompts(number: int) -> list[bytes]:
    """A batch of raw records: prompts, one with an address to redact, one that is no record."""
    values = [*prompts(BATCH, seed=number).values()]
    address = f"Write to anna{number}@example.com about the number {number}."
    return [*values, json.dumps({"prompt": address}).encode(), b"no record %d" % number]


class Load:
    """Sends batches, and a prompt over HTTP with each, until it is told to stop: so that rates are of something that
    goes on."""

    def __init__(self, topics: Topics, http: str) -> None:
        self._topics = topics
        self._http = http
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(EVERY_S):
            self._topics.send(some_prompts(number))
            body = json.dumps({"prompt": f"Why does the tide of day {number} come later?"}).encode()
            headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
            request = urllib.request.Request(f"{self._http}/v1/prompts", body, headers)
            urllib.request.urlopen(request, timeout=30).close()
            number += 1


@pytest.fixture(scope="module")
def prometheus(
    tmp_path_factory: pytest.TempPathFactory, bootstrap: str, redis_url: str, judge: str
) -> Iterator[Prometheus]:
    """Of a system under load whose first training run has ended."""
    binary("prometheus")
    folder = tmp_path_factory.mktemp("dashboards")
    topics = Topics(bootstrap, f"t{uuid.uuid4().hex[:8]}.")
    recipe = folder / "recipe.yaml"
    # The fake judge's ratings are a hash: whatever they are, the challenger is promoted.
    gate = {"min_prompts": 4, "min_win_rate": 0, "min_lower_bound": 0, "tie_margin": 8}
    recipe.write_text(quick_recipe(gate=gate).model_dump_json())
    trainer_port, http_port, http_metrics_port = free_port(), free_port(), free_port()
    environ = {
        **topics.environ(),
        "HAYPILE_REDIS__URL": redis_url,
        "HAYPILE_REDIS__NAMESPACE": topics.kafka.topic_prefix.rstrip("."),
        "HAYPILE_JUDGE__URLS": json.dumps([judge, f"http://127.0.0.1:{free_port()}"]),
        "HAYPILE_JUDGE__ANCHORS": "9",
        "HAYPILE_JUDGE__MIN_ANCHOR_SPEARMAN": "null",  # it rates by a hash
        "HAYPILE_INGEST__EVAL_SHARE": "0.1",
        "HAYPILE_BUFFER__CAPACITY": str(CAPACITY),
        "HAYPILE_BUFFER__CATEGORY_SHARE": "1",
        "HAYPILE_BUFFER__NEAR_DUPLICATE": "null",
        "HAYPILE_ANSWER__URLS": json.dumps([judge]),
        "HAYPILE_ANSWER__WHEN": "admission",
        "HAYPILE_ANSWER__K": "2",
        "HAYPILE_ANSWER__INTERVAL_S": "0.5",
        "HAYPILE_TRIGGER__INTERVAL_S": "1",
        "HAYPILE_TRIGGER__MIN_MEMBERS": "100",
        "HAYPILE_TRIGGER__MIN_NEW": "100",
        "HAYPILE_TRIGGER__MIN_ANSWERED": "0.1",
        "HAYPILE_SERVING__URLS": json.dumps([judge]),
        "HAYPILE_SERVING__RECONCILE_S": "0.5",
        "HAYPILE_TRAINING__RECIPE": str(recipe),
        "HAYPILE_TRAINING__BASE_MODEL": "org/model",
        "HAYPILE_TRAINING__SNAPSHOTS": str(folder / "snapshots"),
        "HAYPILE_TRAINING__REGISTRY": str(folder / "registry"),
        "HAYPILE_TRAINING__WORK_DIR": str(folder / "runs"),
        "HAYPILE_TRAINING__GROUP": f"{topics.kafka.topic_prefix}trainer",
        "HAYPILE_TRAINER_METRICS_PORT": str(trainer_port),
        "HAYPILE_HTTP__PORT": str(http_port),
        "HAYPILE_HTTP__METRICS_PORT": str(http_metrics_port),
        "HAYPILE_HTTP__API_KEYS": json.dumps({"app": digest(KEY)}),
        fake_training.VARIABLE: "steps 5",
    }
    worker = Worker(folder, "worker", "ingest,score,curate,answer,trigger", environ)
    trainer = Process(["-m", "tests.support.fake_training"], folder / "trainer.log", environ)
    http = Process(["-m", "deploy.cli", "http"], folder / "http.log", environ)
    targets = {
        "haypile-worker": [f"127.0.0.1:{worker.metrics_port}"],
        "haypile-trainer": [f"127.0.0.1:{trainer_port}"],
        "haypile-http": [f"127.0.0.1:{http_metrics_port}"],
        "vllm": [judge.removeprefix("http://")],
    }
    try:
        wait_for("the HTTP interface", lambda: port_open(http_port), 60)
        with running_prometheus(folder, targets) as server, Load(topics, f"http://127.0.0.1:{http_port}"):
            wait_for("the flow", lambda: worker.handled("curate") > 0, 60)
            fault = json.dumps({"kind": "503", "count": FAILURES}).encode()
            urllib.request.urlopen(f"{judge}/fault", fault, timeout=5).close()
            done = 'haypile_training_last_run_timestamp_seconds{outcome="done"} > 0'
            try:
                wait_for("the run", lambda: server.query(done), 90, 0.5)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{worker.text()[-3000:]}\n{trainer.text()[-3000:]}") from None
            yield server
    finally:
        worker.kill()
        trainer.kill()
        http.kill()


def shows(server: Prometheus, expr: str) -> bool:
    """Whether there is a number to draw."""
    return any(sample["value"][1] not in ("NaN", "+Inf", "-Inf") for sample in server.query(expr))


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_has_something_to_show(prometheus: Prometheus, name: str) -> None:
    empty = queries(BOARDS[name])

    def none_left() -> bool:
        empty[:] = [query for query in empty if not shows(prometheus, query.expr)]
        return not empty

    try:
        wait_for("all data", none_left, 30, 1)
    except AssertionError:
        raise AssertionError(f"nothing to show: {empty}") from None
    for series, label in choices(BOARDS[name]).values():
        assert all(label in sample["metric"] for sample in prometheus.query(series))
        assert prometheus.query(series)


def test_every_rule_is_well_and_every_recorded_series_is_there(prometheus: Prometheus) -> None:
    rules = prometheus.rules()
    unwell = [(rule["name"], rule["health"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"]
    assert not unwell
    recorded = [rule["name"] for rule in rules if rule["type"] == "recording"]
    assert recorded
    assert [name for name in recorded if not prometheus.query(name)] == []
