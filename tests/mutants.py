"""Takes the lines that keep the promises of delivery out, one at a time, and demands that a test notices.

`python -m tests.mutants` (`make mutants`) copies the tree, changes one line of `mutants.yaml` in the copy, runs the
test that is named there, and fails if it still passes. docs/delivery.md has the table; `--table` prints it. `--quick`
leaves out what starts a broker and workers.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_name("mutants.yaml")
FOLDERS = ("streams", "agents", "trainers", "deploy", "tests")


@dataclass(frozen=True)
class Mutant:
    """`old` (once in `file`) becomes `new`; `test` must fail then."""

    rule: int
    claim: str
    file: str
    old: str
    new: str
    test: str
    where: str = ""
    """The function (and class) that the line is in."""

    @property
    def quick(self) -> bool:
        """Needs no broker and no worker."""
        return not self.test.startswith("tests/integration")


def load() -> list[Mutant]:
    """All of `mutants.yaml`."""
    rows = yaml.safe_load(LIST.read_text("utf-8"))
    return [Mutant(**row) for row in rows]


def noticed(mutant: Mutant, copy: Path) -> str:
    """What the test says in the copy with the line changed; empty if it passes. The copy is as before afterwards."""
    path = copy / mutant.file
    text = path.read_text("utf-8")
    if text.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.file} has {text.count(mutant.old)} times: {mutant.old}")
    path.write_text(text.replace(mutant.old, mutant.new), "utf-8")
    try:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout", "200", mutant.test],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        path.write_text(text, "utf-8")
    if run.returncode not in (0, 1):
        raise SystemExit(f"{mutant.test} did not run:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    if run.returncode == 0:
        return ""
    said = [line[1:].strip() for line in run.stdout.splitlines() if line.startswith("E  ")]
    return said[0][:100] if said else "it fails"


def table() -> str:
    """The rules as Markdown."""
    rows = ["| rule | what its line does | line | test that fails without it |", "|---|---|---|---|"]
    for mutant in load():
        module = mutant.file.removesuffix(".py").replace("/", ".") if mutant.file.endswith(".py") else mutant.file
        line = f"`{module}{':' if mutant.where else ''}{mutant.where}`"
        file, _, name = mutant.test.partition("::")
        rows.append(f"| {mutant.rule} | {mutant.claim} | {line} | `{file}`{f' `{name}`' if name else ''} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only what needs no broker and no worker")
    parser.add_argument("--table", action="store_true", help="print the table and end")
    parser.add_argument("-k", default="", help="only where this is in the claim or the file")
    options = parser.parse_args()
    if options.table:
        print(table())
        return
    chosen = [m for m in load() if options.k in f"{m.claim} {m.file}" and (m.quick or not options.quick)]
    missed = []
    with tempfile.TemporaryDirectory(prefix="haypile-mutants-") as folder:
        copy = Path(folder)
        for name in FOLDERS:
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, copy / name)
        for mutant in chosen:
            found = noticed(mutant, copy)
            verdict = (
                f"noticed  {mutant.rule}  {mutant.claim}: {found}"
                if found
                else f"MISSED   {mutant.rule}  {mutant.claim}"
            )
            print(verdict, flush=True)
            if not found:
                missed.append(mutant)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} noticed")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
