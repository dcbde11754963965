"""`python -m tests.benchmarks [--quick] [--write] [--json FILE] [NAME…]`: measures, prints one table (`make bench`).

`--write` puts what was measured into docs/performance.md. `--quick` only shows that each runs.
"""

import argparse
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import Effort, Row
from tests.benchmarks.machine import machine, moment
from tests.benchmarks.report import keep, notes, table, to_json
from tests.benchmarks.services import Vllms

NAMES = (
    "judge_wait",
    "three_answers",
    "hop",
    "raw_to_buffer",
    "buffer",
    "snapshot",
    "near_duplicates",
    "reaction",
    "training_start",
    "adapter_serving",
    "answers",
    "training",
    "growth",
    "scale",
    "start",
)
"""Modules with a function `measure(effort) -> list[Row]`, in the order of the table. Add a question here."""


def measure(name: str, effort: Effort) -> list[Row]:
    """The rows of one benchmark."""
    rows: list[Row] = importlib.import_module(f"tests.benchmarks.{name}").measure(effort)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all without")
    parser.add_argument("--quick", action="store_true", help="only show that each runs: the figures mean nothing")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every run of every row, too")
    parser.add_argument("--rounds", type=int, default=Effort.most_rounds, metavar="N", help="at most so many")
    parser.add_argument("--events", type=int, default=Effort.events, metavar="N", help="how far `growth` goes")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(NAMES))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if arguments.quick and arguments.write:
        parser.error("--quick measures nothing that could be written")
    where = machine()
    print(f"bench: {where}", file=sys.stderr)
    rows: list[Row] = []
    results: dict[str, Any] = {}
    with Vllms(arguments.quick) as vllms:
        effort = Effort(arguments.quick, arguments.events, arguments.rounds, vllms.urls)
        for name in arguments.names or NAMES:
            started, at = time.monotonic(), moment()
            found = measure(name, effort)
            rows += found
            results[name] = {"machine": where, "at": at, "rows": [to_json(row) for row in found]}
            print(f"bench: {name} in {time.monotonic() - started:.0f} s ({at})", file=sys.stderr)
            if arguments.write:
                keep({name: results[name]}, NAMES)
    print(f"{table(rows)}\n\n{notes(rows)}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
