"""The list of `make mutants` fits the code: each line is there once, and so is the test that must notice its loss."""

import ast
from pathlib import Path

import pytest

from tests.mutants import ROOT, Mutant, load, table


def names(file: Path) -> set[str]:
    """Functions of a file."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, functions)}


@pytest.mark.parametrize("mutant", load(), ids=lambda mutant: mutant.claim)
def test_a_mutant_fits_the_code(mutant: Mutant) -> None:
    text = (ROOT / mutant.file).read_text("utf-8")
    assert text.count(mutant.old) == 1
    file, _, test = mutant.test.partition("::")
    assert not test or test.partition("[")[0] in names(ROOT / file)


def test_the_table_of_the_document_is_the_list() -> None:
    document = (ROOT / "docs" / "delivery.md").read_text("utf-8")
    assert table() in document
