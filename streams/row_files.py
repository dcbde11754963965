"""Rows of JSON lines, of a JSON list (`.json`) and of Parquet (`.parquet`): how sets of prompts come."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streams.errors import HaypileError


class BadRows(HaypileError):
    """The file cannot be read: one line with the file, the line and what is wrong."""


def rows_of(file: Path) -> Iterator[Any]:
    """The rows, as they are (nothing says that one is an object); blank lines are left out. Raises `BadRows`."""
    try:
        if file.suffix == ".parquet":
            import pyarrow.parquet

            yield from pyarrow.parquet.read_table(file).to_pylist()
        elif file.suffix == ".json":
            content = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(content, list):
                raise BadRows(f"{file} is not a list of prompts")
            yield from content
        else:
            yield from _lines(file)
    except (OSError, ValueError, ImportError) as error:
        raise BadRows(f"cannot read {file}: {' '.join(str(error).split())}") from None


def _lines(file: Path) -> Iterator[Any]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise BadRows(f"{file}, line {number}: {error}") from None
