"""The table, its JSON, and the document that is made from both.

`docs/performance.json` keeps the last measurement of each benchmark, so that one can be made again without the others;
`docs/performance.md` shows them between its markers, and nothing else of it is touched.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import Goal, Row, Spread

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "docs" / "performance.json"
HEAD = "| question | haypile | against | goal | measured |\n|---|---|---|---|---|"


def table(rows: Iterable[Row]) -> str:
    """Markdown. A question that comes again is not repeated; a goal that is missed says so."""
    lines, before = [HEAD], ""
    for row in rows:
        question = "" if row.question == before else row.question
        before = row.question
        against = f"{row.against}: {row.theirs}" if row.theirs is not None else row.against
        told = f"**{row.measured}**" + ("" if row.met else " missed")
        lines.append(f"| {question} | {row.haypile}: {row.ours} | {against} | {row.goal} | {told} |")
    return "\n".join(lines)


def notes(rows: Iterable[Row]) -> str:
    """The figures beside the table, one line each."""
    return "\n".join(f"- {row.question or 'the same'}, {row.haypile}: {note}" for row in rows for note in row.notes)


def to_json(row: Row) -> dict[str, Any]:
    """A row as JSON values, with its verdict."""
    return asdict(row) | {"met": row.met}


def from_json(data: Mapping[str, Any]) -> Row:
    """The row of `to_json`."""

    def spread(value: Mapping[str, Any] | None) -> Spread | None:
        return Spread(tuple(value["values"]), value["unit"]) if value is not None else None

    ours, measured = spread(data["ours"]), spread(data["measured"])
    if ours is None or measured is None:
        raise ValueError(f"a row without values: {data}")
    return Row(
        question=data["question"],
        haypile=data["haypile"],
        against=data["against"],
        goal=Goal(**data["goal"]),
        ours=ours,
        theirs=spread(data["theirs"]),
        measured=measured,
        notes=tuple(data["notes"]),
    )


def document(text: str, results: Mapping[str, Any], order: Sequence[str]) -> str:
    """The document with the table, the notes and the machine of `results` (as in `docs/performance.json`).

    ValueError if it has no place for one of them.
    """
    kept = [(name, results[name]) for name in order if name in results]
    rows = [from_json(row) for _, result in kept for row in result["rows"]]
    machines: dict[str, list[str]] = {}
    for name, result in kept:
        machines.setdefault(result["machine"], []).append(f"{name} ({result['at']})")
    where = "\n\n".join(f"{machine}.\n\nMeasured: {', '.join(names)}." for machine, names in machines.items())
    if missing := [name for name in order if name not in results]:
        where += f"\n\nNot measured yet: {', '.join(missing)}."
    for marker, content in (("results", table(rows)), ("figures", notes(rows)), ("machine", where)):
        pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{DOCUMENT.name} has no place <!-- {marker} --> … <!-- end -->")
        text = pattern.sub(lambda match, content=content: f"{match[1]}\n{content}\n\n{match[2]}", text)
    return text


def keep(measured: Mapping[str, Any], order: Sequence[str]) -> None:
    """Puts measurements in place of earlier ones of the same benchmarks, and makes the document anew."""
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    results = {name: result for name, result in {**known, **measured}.items() if name in order}
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    DOCUMENT.write_text(document(DOCUMENT.read_text(encoding="utf-8"), results, order), encoding="utf-8")
