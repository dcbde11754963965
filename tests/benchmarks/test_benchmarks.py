"""Every benchmark runs (in its quick form, whose figures mean nothing), and the document is made from the results."""

import json

import pytest

from tests.benchmarks.__main__ import NAMES, measure
from tests.benchmarks.harness import Effort, Goal, Row, Spread, percentile, ratio, steady_rate, take_turns
from tests.benchmarks.report import DOCUMENT, RESULTS, document, from_json, table, to_json
from tests.benchmarks.services import Vllms

DEAR = {"training", "scale", "hop", "start", "raw_to_buffer", "reaction"}
"""They wait for consumer groups, or for torch: `make bench-quick` runs them. Their parts are those of the others."""


@pytest.mark.parametrize("name", [name for name in NAMES if name not in DEAR])
def test_it_runs(name: str) -> None:
    with Vllms(quick=True) as vllms:
        rows = measure(name, Effort(quick=True, vllm=vllms.urls))
    assert rows
    for row in rows:
        assert row.measured.median > 0
        assert from_json(json.loads(json.dumps(to_json(row)))) == row


def test_contestants_take_turns_the_other_way_round_and_the_warm_up_does_not_count() -> None:
    ran: list[str] = []

    def run(name: str) -> float:
        ran.append(name)
        return float(len(ran))

    values = take_turns({name: lambda name=name: run(name) for name in "ab"}, rounds=2, warm_up=1)  # type: ignore[misc]
    assert "".join(ran) == "abbaab"
    assert values == {"a": (4.0, 5.0), "b": (3.0, 6.0)}
    assert ratio(values["a"], values["b"]).values == (4 / 3, 5 / 6)


def test_a_goal_has_one_direction() -> None:
    assert Goal(at_least=0.97).met(0.97) and not Goal(at_least=0.97).met(0.96)
    assert Goal(at_most=25, unit="ms").met(25) and not Goal(at_most=25).met(25.1)
    assert [str(Goal(at_least=2500, unit="/s")), str(Goal(at_most=1.5))] == ["≥ 2,500 /s", "≤ 1.5"]
    for wrong in ({}, {"at_least": 1, "at_most": 2}):
        with pytest.raises(ValueError, match="either"):
            Goal(**wrong)


def test_percentiles_and_steady_rates() -> None:
    assert [percentile(range(1, 101), share) for share in (0.5, 0.99, 1)] == [50, 99, 100]
    assert percentile([7], 0.99) == 7
    # Ten a second in the middle; what comes late at the end does not count.
    assert steady_rate([i / 10 for i in range(90)] + [100.0 + i for i in range(10)]) == pytest.approx(10)


def row(measured: float, question: str = "start") -> Row:
    ours, bound = Spread((measured, measured + 2, measured + 1), "s"), Goal(at_most=1)
    return Row(question=question, haypile="h", against="a", goal=bound, ours=ours, theirs=ours, measured=ours)


def test_the_table_says_what_is_missed_and_names_a_question_once() -> None:
    lines = table([row(-1.0), row(7.0), row(7.0, "scale")]).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| start", "| ", "| scale"]
    assert ["missed" in line for line in lines] == [False, True, True]
    assert "8.00 s (7.00–9.00)" in lines[1]


def test_the_document_is_what_the_results_make_of_it() -> None:
    text, results = DOCUMENT.read_text("utf-8"), json.loads(RESULTS.read_text("utf-8"))
    assert list(results) and set(results) <= set(NAMES)
    assert document(text, results, NAMES) == text
    with pytest.raises(ValueError, match="no place"):
        document("# another", results, NAMES)
