"""What a request may hold: decoded strictly, checked by the rules of `ingest`, and described as JSON Schema."""

import time
import uuid
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from agents.rules.parse import MAX_ID, parse
from deploy.http.problems import Problem
from streams.errors import InvalidRecord
from streams.records import Feedback, Message, RawPrompt, encode
from streams.settings import Settings

Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID, description="Printable characters.")]
Moment = Annotated[
    str | int | float | None, Meta(description="RFC 3339 with a time zone, or epoch milliseconds. Without it: now.")
]
Opinion = Annotated[float, Meta(ge=-1, le=1)]
B = TypeVar("B", bound=msgspec.Struct)


class PromptBody(msgspec.Struct):
    """A prompt that a user sent. Give either `prompt` or `messages`."""

    prompt: Annotated[str, Meta(min_length=1)] | None = None
    messages: (
        Annotated[list[Message], Meta(min_length=1, description="OpenAI chat; the last is the user's.")] | None
    ) = None
    id: Id | None = None
    """Your own id makes a request safe to repeat. Without it one is given."""
    user_id: str | None = None
    source: str | None = None
    """Which app or page it came from; without it the name of the API key."""
    ts: Moment = None
    response: str | None = None
    """What the user got as an answer."""
    feedback: Opinion | None = None
    """What the user thought of `response`, if it is known already."""
    metadata: dict[str, str] = {}


class FeedbackBody(msgspec.Struct):
    """What a user thought of the answer to an earlier prompt. The last word on a prompt counts."""

    id: Id
    """Of the prompt: yours, or the one that was given."""
    feedback: Opinion
    source: str | None = None
    ts: Moment = None


def decoder(kind: type[B], max_batch: int) -> Callable[[bytes], list[B]]:
    """Reads a body: one object or an array of them. Raises `Problem` 400 with the place of what is wrong."""
    many = Annotated[list[kind], Meta(min_length=1, max_length=max_batch)]  # type: ignore[valid-type]
    read = msgspec.json.Decoder(kind | many)

    def decode(body: bytes) -> list[B]:
        try:
            found: Any = read.decode(body)
        except msgspec.MsgspecError as error:
            raise Problem(400, "malformed", str(error)) from None
        except UnicodeDecodeError as error:
            raise Problem(400, "malformed", f"not UTF-8: {error.reason} at byte {error.start}") from None
        except RecursionError:
            raise Problem(400, "malformed", "nested too deeply") from None
        return found if isinstance(found, list) else [found]

    return decode


def raw_prompts(bodies: list[PromptBody], settings: Settings, client: str) -> list[RawPrompt]:
    """Records for `prompts.raw`, each with an id. Raises `Problem` 422 with every record that `ingest` would divert."""
    records, errors = [], []
    for index, body in enumerate(bodies):
        given = {name: getattr(body, name) for name in body.__struct_fields__}
        record = RawPrompt(**given | {"id": body.id or uuid.uuid4().hex, "source": body.source or client})
        try:
            _check(record, settings)
        except InvalidRecord as error:
            errors.append({"index": index, "code": error.reason, "detail": error.error})
        records.append(record)
    if errors:
        raise unacceptable(errors, len(bodies))
    return records


def feedbacks(bodies: list[FeedbackBody], settings: Settings, client: str) -> list[Feedback]:
    """Records for `prompts.feedback`. Raises `Problem` 422."""
    records, errors = [], []
    for index, body in enumerate(bodies):
        try:
            # The id and the time follow the rules of a prompt's.
            ts = _check(RawPrompt(prompt="-", id=body.id, ts=body.ts), settings)
        except InvalidRecord as error:
            errors.append({"index": index, "code": error.reason, "detail": error.error})
            continue
        records.append(Feedback(id=body.id, feedback=body.feedback, source=body.source or client, ts=ts))
    if errors:
        raise unacceptable(errors, len(bodies))
    return records


def unacceptable(errors: list[dict[str, Any]], of: int) -> Problem:
    """Nothing of a request is taken when one of its records is wrong."""
    return Problem(
        422, "unacceptable", f"{len(errors)} of {of} records are not acceptable; none was taken", errors=errors
    )


def _check(record: RawPrompt, settings: Settings) -> int:
    """The record's time in epoch milliseconds. Raises `InvalidRecord` where `ingest` would."""
    now = int(time.time() * 1000)
    value = encode(record)
    read = parse(value, topic="http", partition=0, offset=0, broker_ms=now, max_bytes=settings.ingest.max_bytes)
    return read.ts


def schemas(max_batch: int) -> dict[str, dict[str, Any]]:
    """Components of the OpenAPI document: `Prompt`, `Feedback`, the arrays of them and `Message`."""
    kinds = (PromptBody, FeedbackBody)
    _, found = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    prompt = found["PromptBody"]
    text, turns = prompt["properties"].pop("prompt"), prompt["properties"].pop("messages")
    for kind in kinds:
        choices = found[kind.__name__]["properties"]["ts"]["anyOf"]
        next(choice for choice in choices if choice["type"] == "string")["format"] = "date-time"
    null = {"type": "null"}
    prompt["oneOf"] = [
        {"required": ["prompt"], "properties": {"prompt": _not_null(text), "messages": null}},
        {"required": ["messages"], "properties": {"messages": _not_null(turns), "prompt": null}},
    ]
    return {
        **found,
        **{
            f"{kind.__name__}s": {
                "oneOf": [
                    {"$ref": f"#/components/schemas/{kind.__name__}"},
                    {
                        "type": "array",
                        "minItems": 1,
                        "maxItems": max_batch,
                        "items": {"$ref": f"#/components/schemas/{kind.__name__}"},
                    },
                ]
            }
            for kind in kinds
        },
    }


def _not_null(schema: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = next(choice for choice in schema["anyOf"] if choice.get("type") != "null")
    return kept
