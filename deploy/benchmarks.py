"""Reads the benchmark prompts that `ingest.decontaminate` names."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from streams.errors import SettingsError

FIELDS = ("prompt", "question", "instruction", "problem", "turns")
"""Where Arena-Hard (`prompt`), AlpacaEval (`instruction`), MT-Bench (`turns`) and mathematics sets keep the prompt."""


def benchmark_prompts(files: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Pairs of a benchmark's name (the file's stem) and a prompt, from JSONL files or JSON lists.

    Raises `SettingsError` that names the file and the line.
    """
    for path in files:
        for number, row in enumerate(_rows(path), start=1):
            field = next((f for f in FIELDS if isinstance(row, dict) and f in row), None)
            if field is None:
                raise SettingsError(f"ingest.decontaminate: {path}, row {number}: none of {', '.join(FIELDS)}")
            value = row[field]
            yield path.stem, "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _rows(path: Path) -> Iterator[Any]:
    try:
        with path.open(encoding="utf-8") as file:
            if path.suffix == ".json":
                yield from json.load(file)
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        yield json.loads(line)
                    except ValueError as error:
                        raise SettingsError(f"ingest.decontaminate: {path}, line {number}: {error}") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"ingest.decontaminate: cannot read {path}: {error}") from None
