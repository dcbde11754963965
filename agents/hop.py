"""The frame of every hop: what an error means for the record, for the hop and for the process.

A handler takes an `Inbound` record and returns its outcome (a metric's label). `Transient` is waited out,
`InvalidRecord` becomes a dead letter, `Fatal` stops the process; anything else is a defect: the record goes to the dead
letters as `unexpected` after a few attempts, so that one poisonous record cannot stop the stream. When too large a
share is diverted, something else is wrong: the process stops rather than divert everything.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from prometheus_client import Counter

from agents.poison import Poison
from agents.rules.dead_letter_limit import DeadLetterLimit
from streams.app import Inbound
from streams.errors import Fatal, InvalidRecord, Transient
from streams.metrics import Metrics
from streams.producer import Producer
from streams.records import DeadLetter
from streams.retry import OutageLog, patiently
from streams.tracing import Tracing

log = logging.getLogger(__name__)

Handler = Callable[[Inbound], Awaitable[str]]

DEAD = "dead"
"""Outcome of a record that was diverted."""


class Hop:
    """Runs `handle` for each record under the rules above. `on_fatal` stops the process."""

    def __init__(
        self,
        name: str,
        handle: Handler,
        *,
        producer: Producer,
        dead_topic: str,
        metrics: Metrics,
        poison: Poison,
        limit: DeadLetterLimit,
        attempts: int,
        tracing: Tracing,
        on_fatal: Callable[[BaseException], None],
        now_ms: Callable[[], int],
    ) -> None:
        self.name = name
        self._handle = handle
        self._producer = producer
        self._dead_topic = dead_topic
        self._metrics = metrics
        self._poison = poison
        self._limit = limit
        self._attempts = attempts
        self._tracing = tracing
        self._on_fatal = on_fatal
        self._now_ms = now_ms
        self._outage = OutageLog(name, time.monotonic, metrics.health)
        # Looked up once: `labels` for every record was a twentieth of a hop's time.
        self._in_flight = metrics.in_flight.labels(name)
        self._seconds = metrics.record_seconds.labels(name)
        self._outcomes: dict[str, Counter] = {}
        self._diverts = f"{name} diverts"

    async def __call__(self, record: Inbound) -> None:
        """Returns when the record is done with, in one way or another. Never raises (but when cancelled)."""
        started = time.perf_counter()
        self._in_flight.inc()
        try:
            outcome = await self._traced(record) if self._tracing.enabled else await self._handle_or_divert(record)
            counter = self._outcomes.get(outcome)
            if counter is None:
                counter = self._outcomes[outcome] = self._metrics.records.labels(self.name, outcome)
            counter.inc()
            self._watch(outcome)
        except Fatal as error:
            self._on_fatal(error)
            await asyncio.Event().wait()  # unacked until the process ends: the record is delivered again
        finally:
            self._in_flight.dec()
            self._seconds.observe(time.perf_counter() - started)

    async def _traced(self, record: Inbound) -> str:
        with self._tracing.span(self.name, record) as traced:
            traced.outcome = await self._handle_or_divert(replace(record, headers=traced.headers))
            return traced.outcome

    def new_assignment(self) -> None:
        """The partitions were taken away."""
        self._poison.new_assignment()

    async def _handle_or_divert(self, record: Inbound) -> str:
        if not await self._poison.suspects(record):
            return await self._settle(record)
        async with self._poison.alone(record) as has_attempts_left:
            if has_attempts_left:
                return await self._settle(record)
            error = InvalidRecord("poison", f"the process ended {self._attempts} times while it handled this record")
            await self._divert(record, error)
            return DEAD

    def _watch(self, outcome: str) -> None:
        self._limit.count(outcome == DEAD)
        if self._limit.near:
            self._metrics.health.bad(self._diverts, f"{self._limit} became dead letters")
        else:
            self._metrics.health.well(self._diverts)
        if self._limit.exceeded:
            raise Fatal(
                f"{self.name}: {self._limit} became dead letters (worker.max_dead_share): something other than "
                "single records is wrong; see `haypile dlq list`"
            )

    async def _settle(self, record: Inbound) -> str:
        failures = 0
        while True:
            try:
                outcome = await patiently(lambda: self._handle(record), self._waiting)
                self._outage.worked()
                return outcome
            except InvalidRecord as error:
                await self._divert(record, error)
                return DEAD
            except Fatal:
                raise
            except Exception as error:
                failures += 1
                log.exception("%s: unexpected error for %s, attempt %d", self.name, record.position, failures)
                if failures >= self._attempts:
                    await self._divert(record, InvalidRecord("unexpected", f"{type(error).__name__}: {error}"))
                    return DEAD

    def _waiting(self, error: Transient) -> None:
        self._metrics.retries.labels(self.name).inc()
        self._outage.failed(error)

    async def _divert(self, record: Inbound, error: InvalidRecord) -> None:
        letter = DeadLetter(
            reason=error.reason,
            # The text of an unexpected error may hold anything, also what is no UTF-8.
            error=error.error[:2000].encode("utf-8", "backslashreplace").decode(),
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            value=record.value,
            ts=self._now_ms(),
        )
        try:
            await self._write(letter, record)
        except InvalidRecord as too_large:
            # One record of some megabytes must not stop the stream: the letter says where its bytes are.
            letter.error = f"{letter.error} (the bytes are in the source topic only: {too_large.error})"
            letter.left_out, letter.value = len(letter.value), b""
            await self._write(letter, record)
        self._metrics.dead_letters.labels(self.name, error.reason).inc()
        log.info(
            "%s: %s to the dead letters: %s",
            self.name,
            record.position,
            error.reason,
            extra={"event": "dead_letter", "hop": self.name, "record": record.position, "reason": error.reason},
        )

    async def _write(self, letter: DeadLetter, record: Inbound) -> None:
        headers = list(record.headers)
        waited = False

        def waiting(error: Transient) -> None:
            nonlocal waited
            waited = True
            self._waiting(error)

        await patiently(
            lambda: self._producer.send(self._dead_topic, letter, key=record.position, headers=headers), waiting
        )
        if waited:  # else it says nothing about what other records wait for
            self._outage.worked()
