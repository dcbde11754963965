"""Question files of Arena-Hard, AlpacaEval and MT-Bench, and answers in those projects' own formats, so that their own
judges can be run on them. The formats, as of Arena-Hard-Auto's v2.0 and AlpacaEval 0.6:

    arena-hard   question.jsonl: `uid`, `prompt`, `category`     → model_answer/NAME.jsonl: `uid`, `ans_id`, `model`,
                 (v0.1 as published today, and v2.0)               `messages` (answers are `{"answer": …}`), `tstamp`
    alpaca_eval  a JSON list or lines: `instruction`, `dataset`  → results/NAME/model_outputs.json: a list of `dataset`,
                                                                   `instruction`, `output`, `generator`
    fastchat     question.jsonl: `question_id`, `turns`          → model_answer/NAME.jsonl: `question_id`,
                 (MT-Bench, and Arena-Hard until 2024)             `answer_id`, `model_id`, `choices`, `tstamp`

Both of the judges that read model_answer take the file's name for the model's.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from streams.errors import SettingsError
from streams.row_files import BadRows, rows_of

Format = Literal["arena-hard", "alpaca_eval", "fastchat"]
CountTokens = Callable[[str], int]


@dataclass(frozen=True)
class Question:
    """One question. `key` is unique in its suite; `turns` are what the user says, one after the other; `row` is the
    question as it is in the file."""

    key: str
    turns: list[str]
    row: dict[str, Any]


@dataclass(frozen=True)
class Suite:
    """A question file."""

    file: Path
    format: Format
    sha256: str
    """Of the questions as read: what answers belong to."""
    questions: list[Question]


class Answer(msgspec.Struct, kw_only=True):
    """A model's answers to the turns of one question."""

    key: str
    id: str
    """Unique; what the formats call the answer's id."""
    at: float
    """Epoch seconds."""
    turns: list[str] = []
    refused: str | None = None
    """Why there is none: the model cannot take the question."""


def read_suite(file: Path) -> Suite:
    """The suite of a question file; its first row tells the format. Raises `SettingsError`: file, row and error."""
    try:
        rows = list(rows_of(file))
    except BadRows as error:
        raise SettingsError(f"--suite: {error}") from None
    if not rows:
        raise SettingsError(f"--suite: {file} has no question")
    kind = _format(rows[0])
    if kind is None:
        raise SettingsError(
            f"--suite: {file}, row 1: not a question of Arena-Hard (uid, prompt), AlpacaEval (instruction) or MT-Bench "
            "(question_id, turns)"
        )
    questions = []
    for number, row in enumerate(rows, start=1):
        try:
            questions.append(_question(row, kind, number))
        except ValueError as error:
            raise SettingsError(f"--suite: {file}, row {number}: {error}") from None
    seen: dict[str, int] = {}
    for number, question in enumerate(questions, start=1):
        if (first := seen.setdefault(question.key, number)) != number:
            raise SettingsError(f"--suite: {file}, row {number}: the id {question.key} is row {first}'s already")
    digest = hashlib.sha256(json.dumps([[q.key, q.turns] for q in questions]).encode())
    return Suite(file=file, format=kind, sha256=digest.hexdigest(), questions=questions)


def _format(row: object) -> Format | None:
    if not isinstance(row, dict):
        return None
    if "instruction" in row:
        return "alpaca_eval"
    if "uid" in row and "prompt" in row:
        return "arena-hard"
    return "fastchat" if "question_id" in row and "turns" in row else None


def _question(row: object, kind: Format, number: int) -> Question:
    if not isinstance(row, dict) or _format(row) != kind:
        raise ValueError(f"not a question of {kind}, as the first row is")
    if kind == "alpaca_eval":
        # AlpacaEval joins models by the instruction; the set has none twice, but a set of one's own may.
        given = [_string(row["instruction"]), _string(row.get("input") or "")]
        return Question(str(number), ["\n\n".join(part for part in given if part)], row)
    if kind == "arena-hard":
        return Question(str(row["uid"]), [_string(row["prompt"])], row)
    turns = row["turns"]
    if not isinstance(turns, list) or not turns:
        raise ValueError("turns is not a list of at least one")
    return Question(str(row["question_id"]), [_string(_content(turn)) for turn in turns], row)


def _content(turn: object) -> object:
    return turn.get("content") if isinstance(turn, dict) else turn


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{json.dumps(value)[:40]} is not a text")
    return value


def file_name(model: str) -> str:
    """A model's name as the formats can use it: also a file's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", model).strip("-.") or "model"


def answers_file(suite: Suite, out: Path, name: str) -> Path:
    """Where the answers of a model go, as those projects have them."""
    if suite.format == "alpaca_eval":
        return out / "results" / name / "model_outputs.json"
    return out / "model_answer" / f"{name}.jsonl"


def formatted(suite: Suite, answers: Sequence[Answer], name: str, count_tokens: CountTokens | None = None) -> str:
    """The content of the answers' file, in the order of the suite; questions without an answer are left out, as those
    projects do. With `count_tokens` (GPT-4o's) Arena-Hard's answers carry the `metadata` that its style control needs.
    """
    by_key = {answer.key: answer for answer in answers if answer.refused is None}
    pairs = [(question, by_key[question.key]) for question in suite.questions if question.key in by_key]
    if suite.format == "alpaca_eval":
        return json.dumps([_alpaca_eval(*pair, name) for pair in pairs], ensure_ascii=False, indent=2) + "\n"
    if suite.format == "arena-hard":
        rows = [_arena_hard(*pair, name, count_tokens) for pair in pairs]
    else:
        rows = [_fastchat(*pair, name) for pair in pairs]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _alpaca_eval(question: Question, answer: Answer, name: str) -> dict[str, Any]:
    kept = {key: question.row[key] for key in ("dataset", "instruction", "input") if key in question.row}
    return kept | {"output": answer.turns[0].strip(), "generator": name}  # stripped as AlpacaEval's own decoders do


def _arena_hard(question: Question, answer: Answer, name: str, count_tokens: CountTokens | None) -> dict[str, Any]:
    text = answer.turns[0]
    row: dict[str, Any] = {
        "uid": question.row["uid"],
        "ans_id": answer.id,
        "model": name,
        "messages": [
            {"role": "user", "content": question.turns[0]},
            {"role": "assistant", "content": {"answer": text}},
        ],
        "tstamp": answer.at,
    }
    if count_tokens is not None:
        # The number of tokens comes first: the style control takes the first for the length.
        row["metadata"] = {"token_len": count_tokens(text)} | markdown_elements(text)
    return row


def _fastchat(question: Question, answer: Answer, name: str) -> dict[str, Any]:
    as_objects = isinstance(question.row["turns"][0], dict)
    turns = [{"content": text} for text in answer.turns] if as_objects else answer.turns
    return {
        "question_id": question.row["question_id"],
        "answer_id": answer.id,
        "model_id": name,
        "choices": [{"index": 0, "turns": turns}],
        "tstamp": answer.at,
    }


def markdown_elements(text: str) -> dict[str, dict[str, int]]:
    """Headers, list items and bold spans outside of code blocks, as Arena-Hard's style control counts them."""
    text = re.sub(r"```[^`]*```", "``````", text)

    def count(pattern: str) -> int:
        return len(re.findall(pattern, text, re.MULTILINE))

    return {
        "header_count": {f"h{level}": count(rf"^#{{{level}}}\s") for level in range(1, 7)},
        "list_count": {"ordered": count(r"^\s*\d+\.\s"), "unordered": count(r"^\s*[-*+]\s")},
        "bold_count": {"**": count(r"\*\*[^*\n]+\*\*"), "__": count(r"__[^_\n]+__")},
    }


def gpt4o_tokens() -> CountTokens | None:
    """Counts tokens as Arena-Hard does (GPT-4o's); None where `tiktoken` or its vocabulary cannot be had."""
    try:
        import tiktoken

        encoding = tiktoken.encoding_for_model("gpt-4o")
    except Exception:  # not installed, or its download failed in one of many ways
        return None
    return lambda text: len(encoding.encode(text, disallowed_special=()))
