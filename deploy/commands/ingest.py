"""`haypile ingest`: a file, a published set, or what is piped in, into `prompts.raw`."""

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
    dataset = "dataset"


SETS = (".parquet", ".json")
"""Files that are always read as sets."""


def ingest(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|FOLDER|-",
            help="JSONL records, one prompt a line, or a set (Parquet, JSONL, a folder of them or saved by `datasets`) "
            "with the columns of PiKa, Magpie, UltraFeedback, Alpaca or ShareGPT; - reads stdin.",
        ),
    ],
    format: Annotated[
        Format, typer.Option(help="auto: by the file's name, then by what its first line is.")
    ] = Format.auto,
    as_json: JsonOption = False,
) -> None:
    """Send prompts to Kafka and wait until the broker has them.

    Lines that are no records are named and left out, the others are sent; the exit code is then 1.
    """
    from deploy.feeding import Feed
    from streams.errors import Fatal, SettingsError
    from streams.settings import load_settings
    from streams.topics import create_topics

    settings = load_settings()
    path = None if file == "-" else Path(file)
    if path is not None and not path.exists():
        raise SettingsError(f"ingest: no such file: {path}")
    if path is not None and path.is_dir() and format not in (Format.auto, Format.dataset):
        raise SettingsError(f"ingest: {path} is a folder, which is read as a dataset only")
    create_topics(settings.kafka)
    with Feed(settings) as feed:
        problems: list[str] = []
        refused = 0
        for place, value, key, problem in _records(path, format):
            if problem is not None:
                refused += 1
                if refused <= SHOWN_PROBLEMS:
                    problems.append(f"{place}: {problem}")
                continue
            feed.send(value, key)
        feed.flush()
    if as_json:
        print_json({"sent": feed.sent, "failed": feed.failed, "refused": refused, "problems": problems})
    else:
        for text in problems:
            print(f"haypile: {file}: {text}", file=sys.stderr)
        if refused > len(problems):
            print(f"haypile: {file}: {refused - len(problems)} more of them", file=sys.stderr)
        print(f"sent {feed.sent}, failed {feed.failed}, refused {refused}")
    if feed.failed:
        raise Fatal(f"Kafka at {settings.kafka.bootstrap} did not take {feed.failed} records ({feed.last_error})")
    if refused:
        raise typer.Exit(1)


def _records(path: Path | None, format: Format) -> Iterator[tuple[str, bytes, bytes | None, str | None]]:
    """Place, value, key and what is wrong."""
    from deploy.feeding import lines_of, rows_of_set

    by_name = path is not None and (path.is_dir() or path.suffix in SETS)
    if path is not None and (by_name if format is Format.auto else format is Format.dataset):
        yield from rows_of_set(path)
        return
    is_jsonl = format is Format.auto and path is not None and path.suffix in (".jsonl", ".ndjson")
    kind = "jsonl" if is_jsonl else format.value
    with _open(path) as stream:
        source = path.name if path else "stdin"
        lines = lines_of(_with_progress(stream, path), kind, source, may_be_set=is_jsonl)
        for number, value, key, problem in lines:
            yield f"line {number}", value, key, problem


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
