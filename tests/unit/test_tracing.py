"""Trace context from hop to hop, and spans at a collector."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from streams.app import Inbound
from streams.settings import TracingSettings
from streams.tracing import Headers, Tracing

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
APP = (("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01".encode()), ("tracestate", b"app=1"), ("own", b"\xff"))


def record(topic: str, headers: Headers) -> Inbound:
    return Inbound(topic, 3, 14, b"the text of a prompt", 0, headers)


def in_memory() -> tuple[Tracing, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing = Tracing(TracingSettings(share=1), exporter)
    tracing._provider.add_span_processor(SimpleSpanProcessor(exporter))
    return tracing, exporter


def test_without_an_endpoint_headers_go_on_as_they_came() -> None:
    with Tracing(TracingSettings()).span("ingest", record("prompts.raw", APP)) as handled:
        assert handled.headers == APP


def test_each_hop_is_a_child_of_the_one_before_and_of_the_app() -> None:
    tracing, exporter = in_memory()
    headers: Headers = APP
    for hop, topic in (("ingest", "prompts.raw"), ("score", "prompts.accepted")):
        with tracing.span(hop, record(topic, headers)) as handled:
            handled.outcome = "accepted"
        headers = handled.headers
    assert dict(headers)["tracestate"] == b"app=1" and dict(headers)["own"] == b"\xff"
    first, second = exporter.get_finished_spans()
    assert {f"{span.context.trace_id:032x}" for span in (first, second)} == {TRACE}
    assert f"{first.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert second.parent.span_id == first.context.span_id
    assert dict(headers)["traceparent"] == f"00-{TRACE}-{second.context.span_id:016x}-01".encode()
    assert (first.name, first.attributes["haypile.hop"], first.attributes["haypile.outcome"]) == (
        "process prompts.raw",
        "ingest",
        "accepted",
    )


@pytest.mark.parametrize("value", [b"", b"00-1", b"\xff\xfe", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01"])
def test_a_context_that_is_none_begins_a_new_trace(value: bytes) -> None:
    tracing, exporter = in_memory()
    with tracing.span("ingest", record("prompts.raw", (("traceparent", value),))) as handled:
        pass
    [span] = exporter.get_finished_spans()
    assert span.parent is None
    assert [name for name, _ in handled.headers] == ["traceparent"]


def test_what_was_not_sampled_before_is_not_now_and_says_so() -> None:
    tracing, exporter = in_memory()
    headers = (("traceparent", APP[0][1][:-1] + b"0"),)
    with tracing.span("ingest", record("prompts.raw", headers)) as handled:
        pass
    assert exporter.get_finished_spans() == ()
    assert dict(handled.headers)["traceparent"].startswith(f"00-{TRACE}".encode())
    assert dict(handled.headers)["traceparent"].endswith(b"-00")


def test_a_failure_is_an_error_of_the_span_and_no_prompt_is_in_it() -> None:
    tracing, exporter = in_memory()
    with pytest.raises(ValueError), tracing.span("ingest", record("prompts.raw", APP)):
        raise ValueError("the text of a prompt")
    [span] = exporter.get_finished_spans()
    assert span.status.description == "ValueError"
    assert "the text of a prompt" not in span.to_json()


@pytest.fixture
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    found: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            import gzip

            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            found.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", found
    server.shutdown()


def test_spans_arrive_at_a_collector(collector: tuple[str, list[ExportTraceServiceRequest]]) -> None:
    url, found = collector
    tracing = Tracing(TracingSettings(endpoint=url))
    with tracing.span("score", record("prompts.accepted", APP)):
        pass
    tracing.close()
    [resource] = found[0].resource_spans
    assert {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"] == "haypile"
    [span] = resource.scope_spans[0].spans
    assert span.trace_id.hex() == TRACE and span.name == "process prompts.accepted"


@pytest.mark.timeout(30)
def test_a_collector_that_is_away_holds_nothing_up() -> None:
    tracing = Tracing(TracingSettings(endpoint="http://127.0.0.1:9/v1/traces"))
    for _ in range(100):
        with tracing.span("score", record("prompts.accepted", APP)):
            pass
    tracing.close()
