"""Rows of published sets as raw records: their prompts, and the better answer as `response`.

Known are the columns of
- Magpie: `uuid`, `conversations` (`from`, `value`), `instruction`, `response` (older: `input`, `output`); its DPO sets:
  `instruction`, `chosen`, `rejected` (lists of turns);
- UltraFeedback, binarized: `prompt`, `prompt_id`, `chosen`, `rejected`, `messages` (lists of turns);
- PiKa, which is published in Magpie's form;
- ShareGPT (`conversations`, `system`; pairs: `chosen`, `rejected` as one turn) and Alpaca (`instruction`, `input`,
  `output`, `system`, `history`; pairs: `chosen`, `rejected` as text), as LLaMA-Factory describes them;
- TRL: `messages`, or `prompt` with `completion` or `chosen` and `rejected`, as text or as turns.

A rejected answer has no place in a raw record and is left out.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from streams.errors import SettingsError
from streams.records import Message, RawPrompt, Role

ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
}
IDS = ("uuid", "prompt_id", "id")
SUFFIXES = (".parquet", ".jsonl", ".json")
NO_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files beside the rows."""
ROWS_AT_ONCE = 500


def is_of_a_set(row: object) -> bool:
    """Whether a JSON object is a row of a published set and no raw record, which has a prompt or messages that end with
    the user, and may have fields of its own."""
    if not isinstance(row, Mapping):
        return False
    if row.get("chosen") or row.get("conversations"):
        return True
    messages, prompt = row.get("messages"), row.get("prompt")
    if messages and isinstance(messages, list):
        last = messages[-1]
        return prompt is not None or (isinstance(last, Mapping) and last.get("role") == "assistant")
    return (prompt is None and bool(row.get("instruction"))) or isinstance(prompt, list)


def raw_record(row: Mapping[str, Any], source: str) -> RawPrompt:
    """The raw record of a row; of one that is a raw record itself all its fields. Its id is the set's name with the
    row's own id, or with a digest of the conversation: a set that is sent again is a redelivery. Raises `ValueError`
    that says what the row lacks."""
    own = None if is_of_a_set(row) or row.get("completion") else _raw(row)
    if own is not None:
        turns = own.messages or [Message("user", str(own.prompt))]
        return msgspec.structs.replace(own, id=own.id or f"{source}:{_key({}, turns)}", source=own.source or source)
    turns = _conversation(row)
    system = row.get("system")
    if isinstance(system, str) and system.strip() and (not turns or turns[0].role != "system"):
        turns = [Message("system", system), *turns]
    response = None
    while turns and turns[-1].role == "assistant":
        response, turns = turns[-1].content, turns[:-1]
    if not turns or turns[-1].role != "user":
        raise ValueError("no turn of a user before the answer")
    only = turns[0].content if len(turns) == 1 else None
    return RawPrompt(
        prompt=only,
        messages=None if only is not None else turns,
        id=f"{source}:{_key(row, turns)}",
        source=source,
        response=response,
    )


def _raw(row: Mapping[str, Any]) -> RawPrompt | None:
    """The row as it is, if it is a raw record (columns without a value do not count)."""
    try:
        found = msgspec.convert({name: value for name, value in row.items() if value is not None}, RawPrompt)
    except msgspec.ValidationError:
        return None
    return None if found.prompt is None and not found.messages else found


def _key(row: Mapping[str, Any], turns: list[Message]) -> str:
    for name in IDS:
        if isinstance(row.get(name), str | int) and str(row[name]).strip():
            return str(row[name])
    text = json.dumps([[turn.role, turn.content] for turn in turns], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _conversation(row: Mapping[str, Any]) -> list[Message]:
    """All turns, the answer last."""
    chosen = row.get("chosen")
    if isinstance(chosen, list) and chosen:
        turns = _turns(chosen)
        return turns if turns[0].role != "assistant" else [*_prompt(row), *turns]
    if isinstance(chosen, Mapping):
        return [*_prompt(row), *_turns([chosen])]
    if isinstance(chosen, str) and chosen:
        return [*_prompt(row), Message("assistant", chosen)]
    turns = _prompt(row)
    answer = next((row[name] for name in ("completion", "response", "output") if row.get(name)), None)
    if turns[-1].role == "assistant" or answer is None:
        return turns
    return [*turns, *(_turns(answer) if isinstance(answer, list) else [Message("assistant", _text(answer))])]


def _prompt(row: Mapping[str, Any]) -> list[Message]:
    """What comes before the answer (a conversation may have it at its end)."""
    for name in ("conversations", "messages", "prompt"):
        if isinstance(row.get(name), list) and row[name]:
            return _turns(row[name])
    if row.get("instruction"):
        asked = "\n".join(_text(row[name]) for name in ("instruction", "input") if row.get(name))
    elif row.get("prompt") or row.get("input"):
        asked = _text(row.get("prompt") or row["input"])
    else:
        raise ValueError("none of the columns conversations, messages, prompt, instruction, chosen")
    return [*_history(row.get("history") or []), Message("user", asked)]


def _history(pairs: Any) -> Iterator[Message]:
    """Alpaca's earlier turns: pairs of question and answer."""
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError("history is not a list of pairs")
        yield Message("user", _text(pair[0]))
        yield Message("assistant", _text(pair[1]))


def _turns(value: list[Any]) -> list[Message]:
    found = []
    for turn in value:
        if not isinstance(turn, Mapping):
            raise ValueError("a turn is not an object")
        role = turn.get("role", turn.get("from"))
        if role not in ROLES:
            raise ValueError(f"a turn has the role {role!r}")
        found.append(Message(ROLES[role], _text(turn.get("content", turn.get("value")))))
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.60} is not text")
    return value


def rows_of(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows of a Parquet, JSONL or JSON file, of a folder of them, or of a folder that `datasets` saved; each with its
    place for messages. Raises `SettingsError` for what cannot be read."""
    try:
        if path.is_dir() and any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
            yield from _saved(path)
            return
        files = _files(path) if path.is_dir() else [path]
        for file in files:
            for number, row in enumerate(_rows(file), start=1):
                yield f"{file.name}, row {number}", row
    except ImportError as error:
        raise SettingsError(f"ingest: {path} needs the package {error.name}: pip install 'haypile[worker]'") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"ingest: cannot read {path}: {' '.join(str(error).split())[:300]}") from None


def _files(folder: Path) -> list[Path]:
    found = sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and file.suffix in SUFFIXES and file.name not in NO_ROWS and not file.name.startswith(".")
    )
    if not found:
        raise ValueError(f"no {', '.join(SUFFIXES)} in it")
    return found


def _rows(file: Path) -> Iterator[Any]:
    if file.suffix == ".parquet":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=ROWS_AT_ONCE):
                yield from batch.to_pylist()
    elif file.suffix == ".json":
        text = file.read_text(encoding="utf-8")
        yield from json.loads(text) if text.lstrip().startswith("[") else map(json.loads, _lines(text.splitlines()))
    else:
        with file.open(encoding="utf-8") as lines:
            yield from map(json.loads, _lines(lines))


def _lines(lines: Iterable[str]) -> Iterator[str]:
    return (line for line in lines if line.strip())


def _saved(folder: Path) -> Iterator[tuple[str, Any]]:
    from datasets import DatasetDict, load_from_disk

    found = load_from_disk(str(folder))
    splits = found.items() if isinstance(found, DatasetDict) else [("", found)]
    for name, rows in splits:
        for number, row in enumerate(rows, start=1):
            yield f"{name + ', ' if name else ''}row {number}", row
