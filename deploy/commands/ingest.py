"""`haypile ingest`: a file, or what is piped in, into `prompts.raw`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated

import typer

from deploy.commands.common import JsonOption, print_json

SHOWN_PROBLEMS = 20
"""Bad lines named one by one; the rest are counted."""


class Format(StrEnum):
    """How lines are read."""

    auto = "auto"
    jsonl = "jsonl"
    plain = "plain"


def ingest(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="JSONL records or one prompt a line; - reads stdin.")],
    format: Annotated[
        Format, typer.Option(help="auto: jsonl by the file's name, or when its first line starts with a brace.")
    ] = Format.auto,
    as_json: JsonOption = False,
) -> None:
    """Send prompts to Kafka and wait until the broker has them.

    Lines that are no records are named and left out, the others are sent; the exit code is then 1.
    """
    from deploy.feeding import Feed, lines_of
    from streams.errors import Fatal, SettingsError
    from streams.settings import load_settings
    from streams.topics import create_topics

    settings = load_settings()
    path = None if file == "-" else Path(file)
    if path is not None and not path.is_file():
        raise SettingsError(f"ingest: no such file: {path}")
    create_topics(settings.kafka)
    with _open(path) as stream, Feed(settings) as feed:
        kind = "jsonl" if path is not None and path.suffix in (".jsonl", ".ndjson") else format.value
        if format is not Format.auto:
            kind = format.value
        problems: list[str] = []
        refused = 0
        for number, value, key, problem in lines_of(_with_progress(stream, path), kind, path.name if path else "stdin"):
            if problem is not None:
                refused += 1
                if refused <= SHOWN_PROBLEMS:
                    problems.append(f"line {number}: {problem}")
                continue
            feed.send(value, key)
        feed.flush()
    if as_json:
        print_json({"sent": feed.sent, "failed": feed.failed, "refused": refused, "problems": problems})
    else:
        for text in problems:
            print(f"haypile: {file}: {text}", file=sys.stderr)
        if refused > len(problems):
            print(f"haypile: {file}: {refused - len(problems)} more bad lines", file=sys.stderr)
        print(f"sent {feed.sent}, failed {feed.failed}, refused {refused}")
    if feed.failed:
        raise Fatal(f"Kafka at {settings.kafka.bootstrap} did not take {feed.failed} records ({feed.last_error})")
    if refused:
        raise typer.Exit(1)


@contextmanager
def _open(path: Path | None) -> Iterator[IO[bytes]]:
    if path is None:
        yield sys.stdin.buffer
        return
    with path.open("rb") as stream:
        yield stream


def _with_progress(stream: IO[bytes], path: Path | None) -> Iterator[bytes]:
    """The lines, with a progress bar on stderr when that is a terminal."""
    if not sys.stderr.isatty():
        yield from stream
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("sending", total=path.stat().st_size if path else None)
        for line in stream:
            yield line
            progress.advance(task, len(line))
