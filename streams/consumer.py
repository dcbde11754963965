"""Faust's consumer with less done for each record. What it promises is Faust's.

Profiled (py-spy), Faust 0.15 spends most of its time for a record on three things that nothing here needs: four tasks
that race each other while a record is put into its queue, although that waits for nothing unless the queue is full; the
statistics of its monitor; and a trip through the slow way out of a queue that is not empty.
"""

from collections.abc import Coroutine, Generator
from inspect import iscoroutine
from types import coroutine
from typing import Any

import faust
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from mode.services import Service, WaitResults

FETCH_WAIT_MS = 25
"""Longest wait of a fetch for a first record (Faust's is 1,500). A Kafka answers as soon as there is one, but a record
of a partition that is not in the fetch under way, because it has just given some, waits for its end; Tansu looks about
twice in that time. An idle worker asks forty times a second; `make bench BENCH=reaction` has a lone record."""


class Monitor(faust.Monitor):
    """Keeps no statistics of single records: ours are in `streams.metrics`."""

    def on_message_in(self, tp: Any, offset: int, message: Any) -> None:
        pass

    def on_message_out(self, tp: Any, offset: int, message: Any) -> None:
        pass

    def on_stream_event_in(self, tp: Any, offset: int, stream: Any, event: Any) -> None:
        pass

    def on_stream_event_out(self, tp: Any, offset: int, stream: Any, event: Any, state: Any = None) -> None:
        pass

    def track_tp_end_offset(self, tp: Any, offset: int) -> None:
        pass


class _Thread(AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer


class QuickWait(Service):
    """A service that waits only where there is something to wait for."""

    async def wait_first(self, *coros: Any, timeout: Any = None) -> WaitResults:
        """As Faust's, but the first coroutine is begun at once: if it ends without waiting, it is the first."""
        first, *others = coros
        if timeout is not None or not iscoroutine(first) or self.should_stop:
            return await super().wait_first(*coros, timeout=timeout)
        try:
            awaited = first.send(None)
        except BaseException as ended:
            for other in others:
                if iscoroutine(other):
                    other.close()
            if isinstance(ended, StopIteration):
                return WaitResults([first], [ended.value], False)
            raise
        return await super().wait_first(_going_on(first, awaited), *others)


@coroutine
def _resumed(begun: Coroutine[Any, Any, Any], awaited: Any) -> Generator[Any, Any, Any]:
    """The rest of a coroutine that has been begun and waits for `awaited`."""
    while True:
        try:
            sent = yield awaited
        except BaseException as error:
            failed: BaseException | None = error
        else:
            failed = None
        try:
            awaited = begun.send(sent) if failed is None else begun.throw(failed)
        except StopIteration as ended:
            return ended.value


async def _going_on(begun: Coroutine[Any, Any, Any], awaited: Any) -> Any:
    return await _resumed(begun, awaited)


class QuickConsumer(QuickWait, Consumer):
    """Faust's consumer with both."""

    def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)


class _Transport(Transport):
    Consumer = QuickConsumer


def speed_up(app: faust.App) -> None:
    """Gives an app that has not started the consumer of this module."""
    app.transport = _Transport(app.conf.broker_consumer, app)
