"""Records into `prompts.raw`: reading lines, and a producer that waits for the broker. kafka-python, no asyncio."""

import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from deploy.kafka import BOOTSTRAP_MS, translated
from deploy.published_sets import is_of_a_set, raw_record, rows_of
from streams.records import RawPrompt, decode, encode
from streams.settings import Settings
from streams.tls import kafka_connection
from streams.topics import topic_names

IN_FLIGHT = 5_000
"""Records handed to the producer and not yet acknowledged: bounds memory."""
DELIVERY_MS = 60_000
"""A record that the broker has not taken by then has failed."""

Line = tuple[int, bytes, bytes | None, str | None]
"""Line number, value, key, and what is wrong with it (then it is not to be sent)."""


def lines_of(stream: Iterable[bytes], kind: str, source: str, *, may_be_set: bool = False) -> Iterator[Line]:
    """Records of a stream of lines; `kind` is `jsonl`, `plain` (one prompt a line), `dataset` (JSON rows of a published
    set) or `auto` (by the first line; so is `jsonl` with `may_be_set`).

    Empty lines are passed over. JSON goes on byte for byte; only what could never be a record is a problem here, the
    rest is for `ingest` to judge.
    """
    for number, raw in enumerate(stream, start=1):
        line = raw.strip().removeprefix(b"\xef\xbb\xbf")
        if not line:
            continue
        if kind == "auto":
            kind, may_be_set = ("jsonl", True) if line.startswith(b"{") else ("plain", False)
        if kind == "jsonl" and may_be_set and is_of_a_set(_json(line)):
            kind = "dataset"
        may_be_set = False
        if kind == "dataset":
            yield number, *_set_row(_json(line), source)
        else:
            yield _json_line(number, line) if kind == "jsonl" else _plain_line(number, line, source)


def rows_of_set(path: Path) -> Iterator[tuple[str, bytes, bytes | None, str | None]]:
    """Like `lines_of`, for a file or folder of a published set (see `deploy.published_sets`); with the row's place
    instead of a line number. Raises `SettingsError` for what cannot be read."""
    source = path.name if path.is_dir() else path.stem
    for place, row in rows_of(path):
        yield place, *_set_row(row, source)


def _set_row(row: object, source: str) -> tuple[bytes, bytes | None, str | None]:
    if not isinstance(row, dict):
        return b"", None, "is not a row with columns"
    try:
        record = raw_record(row, source)
        return encode(record), _key(record.user_id), None
    except (ValueError, UnicodeEncodeError) as error:
        return b"", None, str(error)


def _json(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _json_line(number: int, line: bytes) -> Line:
    try:
        record = decode(RawPrompt, line)
    except msgspec.MsgspecError as error:
        return number, line, None, str(error)
    if record.prompt is None and record.messages is None:
        return number, line, None, "has neither `prompt` nor `messages`"
    return number, line, _key(record.user_id), None


def _plain_line(number: int, line: bytes, source: str) -> Line:
    try:
        return number, encode(RawPrompt(prompt=line.decode("utf-8"), source=source)), None, None
    except UnicodeDecodeError as error:
        return number, line, None, f"is not UTF-8 ({error.reason} at byte {error.start})"


def _key(user_id: str | None) -> bytes | None:
    return None if user_id is None else user_id.encode("utf-8", "replace")


def key_of(value: bytes) -> bytes | None:
    """The key of a raw record: its user, so that one user's prompts stay in order; None when there is none to read."""
    record = _json(value)
    user_id = record.get("user_id") if isinstance(record, dict) else None
    return _key(user_id) if isinstance(user_id, str) else None


class Feed:
    """Context manager around a producer. Counts what the broker took (`sent`) and what it did not (`failed`)."""

    def __init__(self, settings: Settings) -> None:
        from kafka import KafkaProducer

        self._kafka = settings.kafka
        self._topic = topic_names(settings.kafka).raw
        self._slots = threading.Semaphore(IN_FLIGHT)
        self._count = threading.Lock()
        self.sent = 0
        self.failed = 0
        self.last_error = ""
        with translated(self._kafka):
            self._producer: Any = KafkaProducer(
                **kafka_connection(self._kafka),
                acks="all",
                enable_idempotence=self._kafka.idempotence,
                linger_ms=5,
                max_request_size=self._kafka.max_message_bytes,
                delivery_timeout_ms=DELIVERY_MS,
                bootstrap_timeout_ms=BOOTSTRAP_MS,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._producer.close(timeout=0 if kind else 10)

    def send(
        self, value: bytes, key: bytes | None, topic: str | None = None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        """Hands a record over (to `prompts.raw` unless told otherwise); waits while too many are in flight."""
        from kafka.errors import KafkaError

        self._slots.acquire()
        try:
            future = self._producer.send(topic or self._topic, value=value, key=key, headers=list(headers))
        except (KafkaError, AssertionError) as error:
            self._failed(error)
            return
        future.add_callback(self._acked)
        future.add_errback(self._failed)

    def flush(self) -> None:
        """Returns when the broker has answered for every record."""
        with translated(self._kafka):
            self._producer.flush(timeout=DELIVERY_MS / 1000 + 10)

    def _acked(self, _metadata: object) -> None:
        with self._count:
            self.sent += 1
        self._slots.release()

    def _failed(self, error: BaseException) -> None:
        with self._count:
            self.failed += 1
            self.last_error = str(error) or type(error).__name__
        self._slots.release()
