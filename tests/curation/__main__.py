"""Measures, and prints or writes into docs/curation.md: `python -m tests.curation [--write] [NAME…]`, `make curation`.

In the document a table stands between `<!-- table NAME -->` and `<!-- end -->`; nothing else is touched.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from tests.curation import decontamination, judge, near_duplicates, reading, redaction, screening
from tests.curation.corpus import described, missing

DOCUMENT = Path(__file__).parents[2] / "docs" / "curation.md"
TABLES: dict[str, Callable[[], str]] = {
    "near-duplicates": near_duplicates.table,
    "redaction": redaction.table,
    "decontamination": decontamination.table,
    "languages": reading.languages,
    "tokens": reading.tokens,
    "judge": judge.figures,
    "anchors": judge.anchors,
    "attacks": judge.attacks,
    "screening": screening.table,
}
"""Name in the document → function that measures and returns Markdown. Add a measurement here."""


def replaced(document: str, name: str, table: str) -> str:
    """The document with another table of that name. ValueError if it has no place for it."""
    pattern = re.compile(rf"(<!-- table {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(document):
        raise ValueError(f"the document has no place <!-- table {name} --> … <!-- end -->")
    return pattern.sub(lambda match: f"{match[1]}\n{table}\n\n{match[2]}", document)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.curation", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TABLES)}; all without")
    parser.add_argument("--write", action="store_true", help="into docs/curation.md instead of the terminal")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(TABLES))
    if unknown:
        parser.error(f"no table {', '.join(unknown)}; there are {', '.join(TABLES)}")
    if missing():
        left_out = ", ".join(missing())
        print(f"curation: {left_out} (of ../shared/data) are not there: other figures come out", file=sys.stderr)
        if arguments.write:
            print("curation: nothing is written", file=sys.stderr)
            return 1
    print(f"curation: {described()}", file=sys.stderr)
    for name in arguments.names or TABLES:
        table = TABLES[name]()
        if arguments.write:
            DOCUMENT.write_text(replaced(DOCUMENT.read_text(encoding="utf-8"), name, table), encoding="utf-8")
            print(f"curation: {name} written", file=sys.stderr)
        else:
            print(f"## {name}\n\n{table}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
