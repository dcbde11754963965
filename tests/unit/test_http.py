"""The HTTP interface's own rules, without Kafka: keys, limits, forms, and what a batch is told of a lame broker."""

import asyncio
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from deploy.commands.http import _new_key
from deploy.http import sender as module
from deploy.http.app import create_app
from deploy.http.keys import digest, new_key, owner
from deploy.http.limits import Limiter
from streams.errors import SettingsError, Transient
from streams.metrics import HttpMetrics
from streams.records import RawPrompt
from streams.settings import load_settings

KEY = "the key of the app"
HEADERS = {"Authorization": f"Bearer {KEY}"}


class Broker:
    """Stands for our producer: takes records, but for those whose id it is told to refuse or to keep waiting."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, msgspec.Struct, str]] = []
        self.headers: list[list[tuple[str, bytes]]] = []
        self.refused: set[str] = set()
        self.silent: set[str] = set()

    async def send(self, topic: str, record: RawPrompt, key: str, headers: list[tuple[str, bytes]]) -> None:
        if record.id in self.silent:
            await asyncio.Event().wait()
        if record.id in self.refused:
            raise Transient("Kafka did not take a record")
        self.taken.append((topic, record, key))
        self.headers.append(headers)

    async def __aenter__(self) -> "Broker":
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing to close."""


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    made = Broker()
    monkeypatch.setattr(module, "Producer", lambda kafka: made)
    return made


def serving(**http: Any) -> TestClient:
    given = {"api_keys": {"app": digest(KEY)}, "timeout_s": 0.3, **http}
    metrics = HttpMetrics(CollectorRegistry())
    client = TestClient(create_app(load_settings({"http": given}), metrics), raise_server_exceptions=False)
    client.metrics = metrics  # type: ignore[attr-defined]
    return client


@pytest.fixture
def client(broker: Broker) -> Iterator[TestClient]:
    with serving(max_body_bytes=2_000, max_batch=5, burst=5, rate=1) as client:
        yield client


def test_a_key_is_stored_as_its_sha256_and_found_by_it(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = new_key(), new_key()
    assert first != second and len(first) >= 43
    keys = {"one": digest(first), "two": digest(second)}
    assert (owner(keys, first), owner(keys, second), owner(keys, first[:-1]), owner(keys, "")) == (
        "one", "two", None, None
    )  # fmt: skip
    assert owner(keys, keys["one"]) is None, "a digest that leaked is no key"
    _new_key("app", as_json=True)
    made = json.loads(capsys.readouterr().out)
    assert made["sha256"] == hashlib.sha256(made["key"].encode()).hexdigest()


@pytest.mark.parametrize(
    ("http", "named"),
    [({"api_keys": {"app": "not a digest"}}, "http.api_keys.app"), ({"burst": 5, "max_batch": 6}, "http.burst")],
)
def test_wrong_settings_are_named(http: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        load_settings({"http": http})


def test_the_bucket_gives_its_burst_and_then_its_rate() -> None:
    limiter = Limiter(rate=2, burst=10)
    assert limiter.take("a", 10, 100.0) == 0
    assert limiter.take("a", 1, 100.0) == 0.5
    assert limiter.take("b", 10, 100.0) == 0, "each client has its own"
    assert limiter.take("a", 4, 102.0) == 0
    assert limiter.take("a", 10, 1_000.0) == 0
    assert limiter.take("a", 0.5, 1_000.0) > 0, "what was not used does not pile up over the burst"


def test_one_prompt_and_a_batch(client: TestClient, broker: Broker) -> None:
    one = client.post("/v1/prompts", json={"prompt": "Why?", "user_id": "u1", "feedback": -1}, headers=HEADERS)
    assert one.status_code == 202
    [given] = one.json()["accepted"]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How?"}]
    two = client.post(
        "/v1/prompts", json=[{"id": "a", "messages": messages}, {"id": "b", "prompt": "What?"}], headers=HEADERS
    )
    assert two.json() == {"accepted": ["a", "b"]}
    assert [(topic, record.id, key) for topic, record, key in broker.taken] == [  # type: ignore[attr-defined]
        ("prompts.raw", given, "u1"), ("prompts.raw", "a", "a"), ("prompts.raw", "b", "b")
    ]  # fmt: skip
    assert broker.taken[0][1] == RawPrompt(prompt="Why?", user_id="u1", feedback=-1, id=given, source="app")


def test_feedback_goes_to_its_topic_under_the_id_of_the_prompt(client: TestClient, broker: Broker) -> None:
    answer = client.post("/v1/feedback", json={"id": "a", "feedback": 0.5, "ts": 1_700_000_000_000}, headers=HEADERS)
    assert answer.status_code == 202
    [(topic, record, key)] = broker.taken
    assert (topic, key) == ("prompts.feedback", "a")
    assert msgspec.to_builtins(record) == {"id": "a", "feedback": 0.5, "source": "app", "ts": 1_700_000_000_000}


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"{", 400, "truncated"),
        (b"[]", 400, "length >= 1"),
        (b"[" + b'{"prompt":"x"},' * 5 + b'{"prompt":"x"}]', 400, "length <= 5"),
        (b'{"prompt": 42}', 400, "$.prompt"),
        (b'{"prompt": "x", "feedback": 2}', 400, "$.feedback"),
        (b'{"prompt": "x", "metadata": {"a": 1}}', 400, "$.metadata"),
        (b'{"prompt": "\\ud800"}', 400, ""),
        (b"\xff", 400, ""),
        (b"[" * 100_000, 413, "2000 bytes"),
        (b"[" * 1_999, 400, ""),
        (b"{}", 422, "no_prompt"),
        (b'{"prompt": "x", "messages": [{"role": "user", "content": "y"}]}', 422, "bad_messages"),
        (b'{"messages": [{"role": "assistant", "content": "y"}]}', 422, "bad_messages"),
        (b'[{"prompt": "x"}, {"prompt": " "}]', 422, "no_prompt"),
        (b'{"prompt": "x", "id": "\\u0000"}', 422, "bad_id"),
        (b'{"prompt": "x", "ts": "yesterday"}', 422, "bad_ts"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_taken(
    client: TestClient, broker: Broker, body: bytes, status: int, told: str
) -> None:
    answer = client.post("/v1/prompts", content=body, headers={**HEADERS, "Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert told in answer.text
    assert broker.taken == []


def test_only_json_is_read(client: TestClient, broker: Broker) -> None:
    answer = client.post("/v1/prompts", content=b'{"prompt": "x"}', headers={**HEADERS, "Content-Type": "text/plain"})
    assert (answer.status_code, answer.json()["code"]) == (415, "not_json")
    assert broker.taken == []


def test_a_record_that_ingest_would_refuse_as_too_large_is_refused_here(broker: Broker) -> None:
    settings = load_settings({"http": {"api_keys": {"app": digest(KEY)}}, "ingest": {"max_bytes": 200}})
    with TestClient(create_app(settings, HttpMetrics(CollectorRegistry()))) as client:
        answer = client.post("/v1/prompts", json=[{"prompt": "x"}, {"prompt": "y" * 200}], headers=HEADERS)
    assert answer.status_code == 422
    assert [(error["index"], error["code"]) for error in answer.json()["errors"]] == [(1, "too_large")]
    assert broker.taken == []


def test_who_sends_too_much_is_told_when_to_come_back(client: TestClient, broker: Broker) -> None:
    five = [{"prompt": str(number)} for number in range(5)]
    assert client.post("/v1/prompts", json=five, headers=HEADERS).status_code == 202
    answer = client.post("/v1/prompts", json=five, headers=HEADERS)
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many")
    assert 4 <= int(answer.headers["retry-after"]) <= 5
    assert len(broker.taken) == 5


def test_a_full_process_says_so_and_an_answered_request_makes_room(broker: Broker) -> None:
    broker.silent = {"late"}
    with serving(max_requests=1, timeout_s=1) as client:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(2) as pool:
            first, second = (
                pool.submit(client.post, "/v1/prompts", json={"id": "late", "prompt": "x"}, headers=HEADERS)
                for _ in range(2)
            )
            codes = sorted(done.result().json()["code"] for done in (first, second))
        assert codes == ["busy", "kafka"]
        assert client.post("/v1/prompts", json={"id": "next", "prompt": "x"}, headers=HEADERS).status_code == 202


def test_a_lame_broker_a_batch_is_told_what_is_there_and_what_is_not_known(client: TestClient, broker: Broker) -> None:
    broker.refused, broker.silent = {"b"}, {"d"}
    batch = [{"id": id, "prompt": id} for id in "abcd"]
    answer = client.post("/v1/prompts", json=batch, headers=HEADERS)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert (answer.json()["accepted"], answer.json()["unknown"]) == (["a", "c"], ["b", "d"])
    assert {record.id for _, record, _ in broker.taken} == {"a", "c"}  # type: ignore[attr-defined]
    registry = client.metrics.registry  # type: ignore[attr-defined]
    counted = {
        outcome: registry.get_sample_value("haypile_http_records_total", {"path": "/v1/prompts", "outcome": outcome})
        for outcome in ("accepted", "unknown")
    }
    assert counted == {"accepted": 2, "unknown": 2}
    assert registry.get_sample_value("haypile_http_kafka_up") == 0
    assert client.get("/healthz").json() == {"kafka": False}


def test_without_a_broker_since_the_start_nothing_waits_and_nothing_is_taken(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(self: Broker) -> Broker:
        raise Transient("Kafka is not reachable")

    monkeypatch.setattr(Broker, "__aenter__", away)
    with serving() as client:
        answer = client.post("/v1/prompts", json={"id": "a", "prompt": "x"}, headers=HEADERS)
    assert answer.status_code == 503
    assert (answer.json()["accepted"], answer.json()["unknown"]) == ([], ["a"])


def test_every_answer_is_counted_and_a_foreign_path_makes_no_label(client: TestClient) -> None:
    for path in ("/v1/prompts", "/no/such/path", "/another"):
        client.post(path, json={"prompt": "x"})
    registry = client.metrics.registry  # type: ignore[attr-defined]
    labels = ({"path": "/v1/prompts", "status": "401"}, {"path": "other", "status": "404"})
    assert [registry.get_sample_value("haypile_http_requests_total", label) for label in labels] == [1, 2]


def test_the_trace_context_of_a_request_goes_with_its_prompts(client: TestClient, broker: Broker) -> None:
    trace = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "x" * 513}
    body = [{"prompt": "one?"}, {"prompt": "two?"}]
    assert client.post("/v1/prompts", json=body, headers=HEADERS | trace).status_code == 202
    assert broker.headers == [[("traceparent", trace["traceparent"].encode())]] * 2
