"""Raw bytes to a valid prompt, or a clear reason why not."""

import json
from datetime import datetime

import msgspec

from streams.errors import InvalidRecord
from streams.records import AcceptedPrompt, Message, RawPrompt, decode

MAX_ID = 200
"""Characters of a given id: it becomes part of Redis keys and log lines."""


def parse(value: bytes, *, topic: str, partition: int, offset: int, broker_ms: int, max_bytes: int) -> AcceptedPrompt:
    """The record in `value`. Raises `InvalidRecord` with one of the codes `empty`, `too_large`, `not_utf8`, `not_json`,
    `lone_surrogate`, `wrong_type`, `no_prompt`, `bad_messages`, `bad_id`, `bad_ts`, `bad_feedback`.

    The record's time is its own `ts`, but never later than the broker's: a clock ahead must not gain rank.
    """
    if not value:
        raise InvalidRecord("empty", "the record has no value")
    if len(value) > max_bytes:
        raise InvalidRecord("too_large", f"{len(value)} bytes are over ingest.max_bytes = {max_bytes}")
    raw = _decode(value)
    return AcceptedPrompt(
        id=_id(raw.id, f"{topic}:{partition}:{offset}"),
        prompt_id="",  # of the normalised conversation: `ingest` sets it
        messages=_messages(raw),
        ts=min(_time(raw.ts, broker_ms), broker_ms),
        user_id=raw.user_id,
        source=raw.source,
        response=raw.response or None,
        feedback=_feedback(raw.feedback),
        metadata=raw.metadata,
    )


def _decode(value: bytes) -> RawPrompt:
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRecord("not_utf8", str(error)) from None
    try:
        return decode(RawPrompt, value)
    except msgspec.ValidationError as error:
        raise InvalidRecord("wrong_type", str(error)) from None
    except msgspec.DecodeError as error:
        if _has_lone_surrogate(text):
            raise InvalidRecord("lone_surrogate", "a \\ud800..\\udfff escape without its other half") from None
        raise InvalidRecord("not_json", str(error)) from None


def _has_lone_surrogate(text: str) -> bool:
    """Python's decoder lets a lone surrogate through where msgspec calls the text malformed."""
    try:
        json.dumps(json.loads(text), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    except (ValueError, RecursionError):
        pass
    return False


def _messages(raw: RawPrompt) -> list[Message]:
    if raw.prompt is not None and raw.messages is not None:
        raise InvalidRecord("bad_messages", "give `prompt` or `messages`, not both")
    if raw.messages is not None:
        if not raw.messages:
            raise InvalidRecord("no_prompt", "`messages` is empty")
        if raw.messages[-1].role != "user":
            raise InvalidRecord("bad_messages", f"the last message must be the user's, not {raw.messages[-1].role}'s")
        messages = raw.messages
    elif raw.prompt is not None:
        messages = [Message("user", raw.prompt)]
    else:
        raise InvalidRecord("no_prompt", "neither `prompt` nor `messages`")
    if not messages[-1].content.strip():
        raise InvalidRecord("no_prompt", "the prompt is empty")
    return messages


def _id(given: str | None, position: str) -> str:
    if given is None:
        return position
    if not given.strip() or len(given) > MAX_ID or not given.isprintable():
        raise InvalidRecord("bad_id", f"`id` must be 1..{MAX_ID} printable characters")
    return given


def _time(given: str | int | float | None, broker_ms: int) -> int:
    if given is None:
        return broker_ms
    if isinstance(given, str):
        try:
            moment = datetime.fromisoformat(given)
        except ValueError:
            raise InvalidRecord("bad_ts", f"`ts` {given[:40]!r} is neither RFC 3339 nor epoch milliseconds") from None
        if moment.tzinfo is None:
            raise InvalidRecord("bad_ts", f"`ts` {given[:40]!r} has no time zone (RFC 3339 wants one)")
        milliseconds = int(moment.timestamp() * 1000)
    else:
        milliseconds = int(given)
    if not 0 <= milliseconds < 4_102_444_800_000:  # the year 2100
        raise InvalidRecord("bad_ts", f"`ts` {given} is not between the years 1970 and 2100 (epoch milliseconds)")
    return milliseconds


def _feedback(given: float | None) -> float | None:
    if given is not None and not -1 <= given <= 1:
        raise InvalidRecord("bad_feedback", f"`feedback` {given} is not in -1..1")
    return given
