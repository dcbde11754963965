"""Tracing: W3C trace context in the records' headers, a span a hop where an OTLP endpoint is set.

Without an endpoint headers are passed on as they came, so that the trace of an app goes on behind haypile. With one,
each hop is a span, child of the hop before it or of the app's. Names and attributes are OpenTelemetry's for messaging;
no text of a prompt is in them. Spans are sent in the background and dropped when the collector is away: records never
wait for it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from streams.errors import SettingsError
from streams.settings import TracingSettings

Headers = tuple[tuple[str, bytes], ...]

CONTEXT = ("traceparent", "tracestate")
LONGEST = 512
"""Characters; what the recommendation asks everybody to be able to pass on."""


def trace_context(given: Mapping[str, str]) -> Headers:
    """The W3C trace context of an HTTP request, as headers of a record; what is too long is as if it were not there."""
    return tuple((name, given[name].encode("latin-1")) for name in CONTEXT if 0 < len(given.get(name, "")) <= LONGEST)


class Record(Protocol):
    """What a span says of a record: `streams.app.Inbound`."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def headers(self) -> Headers: ...


class Handled:
    """A record being handled: the headers that what is made of it gets, and how it ended."""

    def __init__(self, headers: Headers) -> None:
        self.headers = headers
        self.outcome = ""


class Tracing:
    """The spans of one process. Raises `SettingsError` when an endpoint is set and the packages are not there."""

    def __init__(self, settings: TracingSettings, exporter: Any = None) -> None:
        self._tracer: Any = None
        self._provider: Any = None
        if settings.endpoint is None and exporter is None:
            return
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        except ImportError:
            raise SettingsError("settings: tracing.endpoint needs the extra: pip install 'haypile[tracing]'") from None
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "haypile"}),
            sampler=ParentBased(TraceIdRatioBased(settings.share)),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter(settings.endpoint)))
        self._tracer = self._provider.get_tracer("haypile")

    @property
    def enabled(self) -> bool:
        """Whether there are spans at all."""
        return self._tracer is not None

    @contextmanager
    def span(self, hop: str, record: Record) -> Iterator[Handled]:
        """The span of a hop over a record: yields what to pass on. Ends with the block, in an error if that raises."""
        if self._tracer is None:
            yield Handled(record.headers)
            return
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        propagator = TraceContextTextMapPropagator()
        came = {name: value.decode("latin-1") for name, value in record.headers if name in CONTEXT}
        span = self._tracer.start_span(
            f"process {record.topic}",
            context=propagator.extract(came),
            kind=SpanKind.CONSUMER,
            attributes={
                "messaging.system": "kafka",
                "messaging.operation.type": "process",
                "messaging.destination.name": record.topic,
                "messaging.destination.partition.id": str(record.partition),
                "messaging.kafka.offset": record.offset,
                "haypile.hop": hop,
            },
        )
        goes: dict[str, str] = {}
        propagator.inject(goes, set_span_in_context(span))
        others = [(name, value) for name, value in record.headers if name not in CONTEXT]
        handled = Handled((*others, *((name, value.encode("latin-1")) for name, value in goes.items())))
        try:
            yield handled
        except BaseException as error:
            span.set_status(StatusCode.ERROR, type(error).__name__)
            raise
        finally:
            span.set_attribute("haypile.outcome", handled.outcome)
            span.end()

    def close(self) -> None:
        """Sends what is left, for some seconds at most."""
        if self._provider is not None:
            self._provider.shutdown()
