"""What several commands share: output, and clients that are closed again."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from streams.buffer.base import BufferName
    from streams.buffer.redis import RedisBuffer
    from streams.buffer.redis_generations import RedisGenerations
    from streams.forgotten_log import ForgottenLog
    from streams.settings import Settings
    from streams.training_orders import TrainingOrders

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]

T = TypeVar("T")


def run(task: Coroutine[Any, Any, T]) -> T:
    """Runs the asynchronous part of a command."""
    return asyncio.run(task)


def print_json(value: object) -> None:
    """Prints msgspec structs, paths and plain values as indented JSON. What is no number in JSON (infinity: no run yet;
    NaN: not defined) is null."""
    import msgspec

    builtins = msgspec.json.decode(msgspec.json.encode(value, enc_hook=str))
    print(json.dumps(builtins, indent=2, ensure_ascii=not (sys.stdout.encoding or "").lower().startswith("utf")))


def console() -> "Console":
    """Where tables go. Wide when it is no terminal, so that a pipe gets whole lines."""
    from rich.console import Console

    wide = None if sys.stdout.isatty() else 160
    return Console(width=wide, highlight=False, markup=False, soft_wrap=False)


def one_line(text: str, width: int) -> str:
    """A prompt as a table cell: white space folded, cut to `width` characters."""
    folded = " ".join(text.split())
    return folded if len(folded) <= width else folded[: width - 1] + "…"


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """What is done here takes packages of an extra. Raises `Fatal` that says which when one is missing."""
    from streams.errors import Fatal

    try:
        yield
    except ImportError as error:
        raise Fatal(f"the package {error.name} is missing: pip install 'haypile[{extra}]'") from None


@asynccontextmanager
async def buffer_of(settings: "Settings", name: "BufferName" = "main") -> "AsyncIterator[RedisBuffer]":
    """The buffer in Redis, with its connection closed afterwards. Its methods raise `Transient` when Redis is down."""
    from streams.buffer.base import rules
    from streams.buffer.redis import RedisBuffer
    from streams.redis_client import connect

    client = connect(settings.redis)
    try:
        yield RedisBuffer(client, settings.redis.namespace, name, rules(settings.buffer, name))
    finally:
        await client.aclose()


@asynccontextmanager
async def generations_of(settings: "Settings") -> "AsyncIterator[RedisGenerations]":
    """Both buffers with their generations, closed afterwards. Their methods raise `Transient` when Redis is down."""
    from streams.buffer.base import rules
    from streams.buffer.redis_generations import RedisGenerations
    from streams.redis_client import connect

    client = connect(settings.redis)
    try:
        main, held_out = rules(settings.buffer, "main"), rules(settings.buffer, "eval")
        yield RedisGenerations(client, settings.redis.namespace, main, held_out)
    finally:
        await client.aclose()


@asynccontextmanager
async def orders_of(settings: "Settings") -> "AsyncIterator[TrainingOrders]":
    """What operators ask of the trigger, with its connection closed afterwards. Its methods raise `Transient`."""
    from streams.redis_client import connect
    from streams.training_orders import TrainingOrders

    client = connect(settings.redis)
    try:
        yield TrainingOrders(client, settings.redis.namespace)
    finally:
        await client.aclose()


def reason_line(text: str) -> str:
    """A reason that an operator gives, with white space folded: it is kept with the run, a line and no report.

    Raises `SettingsError` for one of over 300 characters.
    """
    from streams.errors import SettingsError

    folded = " ".join(text.split())
    if len(folded) > 300:
        raise SettingsError(f"--reason has {len(folded)} characters; 300 are the most")
    return folded


@asynccontextmanager
async def forgotten_log(settings: "Settings") -> "AsyncIterator[ForgottenLog]":
    """The list of what is forgotten, closed afterwards. Raises `Transient`, and `Fatal` for records of another key."""
    from streams.forgotten_log import ForgottenLog

    log = ForgottenLog(settings.kafka)
    try:
        await log.refresh()
        yield log
    finally:
        await log.close()
