"""Everyday prompts, on which the gate looks for regressions: the project's (``data/everyday.jsonl``, written for it) or
the file that the settings name."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streams.errors import SettingsError
from streams.row_files import BadRows, rows_of

SHIPPED = Path(__file__).parent / "data" / "everyday.jsonl"
"""Every eight lines hold one prompt of each category, so that the first n are of all of them."""


def everyday_rows(file: Path | None) -> list[dict[str, Any]]:
    """Rows for the gate, in the order of the file: `prompt_id`, `messages`, `category`.

    A row is an object with `prompt` (a string) or `messages` (an OpenAI chat list that ends with the user). Raises
    `SettingsError` with the file, the row and what is wrong.
    """
    path = file or SHIPPED
    rows = []
    try:
        for number, row in enumerate(rows_of(path), start=1):
            try:
                rows.append(_row(row))
            except ValueError as error:
                raise BadRows(f"{path}, row {number}: {error}") from None
    except BadRows as error:
        raise SettingsError(f"settings: training.everyday: {error}") from None
    if not rows:
        raise SettingsError(f"settings: training.everyday: {path} has no prompt")
    return rows


def _row(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("not an object")
    messages = _messages(value)
    digest = hashlib.sha256(json.dumps(messages, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
    return {"prompt_id": digest, "messages": messages, "category": str(value.get("category") or "")}


def _messages(value: Mapping[str, Any]) -> list[dict[str, str]]:
    prompt = value.get("prompt")
    if isinstance(prompt, str) and prompt.strip():
        return [{"role": "user", "content": prompt}]
    turns = value.get("messages")
    if not isinstance(turns, list) or not turns:
        raise ValueError("neither a prompt nor messages")
    for turn in turns:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise ValueError("messages are objects with role and content, both strings")
    if turns[-1]["role"] != "user":
        raise ValueError("the last message is not the user's")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]
