"""Reads the benchmark prompts that `ingest.decontaminate` names."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from streams.errors import SettingsError
from streams.row_files import BadRows, rows_of

FIELDS = ("prompt", "question", "instruction", "problem", "turns", "messages")
"""Where Arena-Hard (`prompt`, `turns` in v0.1), AlpacaEval (`instruction`), MT-Bench (`turns`), sets of mathematics
(`problem`, `question`) and chat sets (`messages`) keep the prompt."""

SUFFIXES = (".jsonl", ".json", ".parquet")
"""What is read in a folder."""

NAMES_OF_ANY_SET = ("question", "questions", "prompts", "data", "test", "train", "validation", "dev")
"""File names that say nothing (Arena-Hard's is `arena-hard-v0.1/question.jsonl`): the folder's name is taken."""


def benchmark_prompts(paths: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Pairs of a benchmark's name and a prompt, from JSONL files, JSON lists, Parquet files, and folders of them.

    The name is the file's, or the folder's where the file's says nothing. Raises `SettingsError` that names the file
    and the row.
    """
    for path in paths:
        for file in _files(path):
            name = file.absolute().parent.name if file.stem.lower() in NAMES_OF_ANY_SET else file.stem
            for number, row in enumerate(_rows(file), start=1):
                field = next((f for f in FIELDS if isinstance(row, dict) and row.get(f)), None)
                if field is None:
                    raise SettingsError(
                        f"settings: ingest.decontaminate: {file}, row {number}: none of {', '.join(FIELDS)}"
                    )
                yield name, _text(row[field])


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    if not files:
        raise SettingsError(f"settings: ingest.decontaminate: no {', '.join(SUFFIXES)} in the folder {path}")
    return files


def _text(value: Any) -> str:
    """A string, a list of strings, or a list of turns; of turns with a role only the user's."""
    if not isinstance(value, list):
        return str(value)
    turns = [turn for turn in value if not (isinstance(turn, dict) and turn.get("role", "user") != "user")]
    return "\n".join(str(turn.get("content", "")) if isinstance(turn, dict) else str(turn) for turn in turns)


def _rows(file: Path) -> Iterator[Any]:
    try:
        yield from rows_of(file)
    except BadRows as error:
        raise SettingsError(f"settings: ingest.decontaminate: {error}") from None
