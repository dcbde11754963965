"""Figures of a judge against known answers, and the reading of labelled files."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from trainers.judge_check import BadLabels, Labelled, Row, auc, check, figures, load, spearman, thirds


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_spearman_agrees_with_scipy_with_ties() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        a, b = rng.integers(0, 6, 40).astype(float), rng.integers(0, 4, 40).astype(float)
        assert spearman(a, b) == pytest.approx(float(spearmanr(a, b).statistic))
    assert math.isnan(spearman(np.ones(4), np.arange(4.0)))


def test_the_gain_is_paired() -> None:
    """A rating that follows the length to the letter gains nothing, surely; one that knows better does, surely."""
    rng = random.Random(5)
    rows = [("x" * rng.randint(1, 200), rng.uniform(1, 9)) for _ in range(120)]
    same = figures([Row(text, label, float(len(text))) for text, label in rows])
    assert same.spearman_gain is not None
    assert (same.spearman_gain.low, same.spearman_gain.value, same.spearman_gain.high) == (0, 0, 0)
    assert (same.auc_gain.low, same.auc_gain.high) == (0, 0)
    better = figures([Row(text, label, label + rng.gauss(0, 1)) for text, label in rows])
    assert better.spearman_gain is not None
    assert better.spearman_length is not None
    assert better.spearman is not None
    assert better.spearman_gain.value == pytest.approx(better.spearman.value - better.spearman_length.value)
    assert 0.3 < better.spearman_gain.low < better.spearman_gain.value < better.spearman_gain.high


def test_auc_counts_ties_half() -> None:
    assert auc(np.array([2.0, 3.0]), np.array([1.0, 2.0])) == pytest.approx(3.5 / 4)
    assert auc(np.array([1.0]), np.array([1.0])) == 0.5
    assert math.isnan(auc(np.array([]), np.array([1.0])))


def test_thirds_keep_equal_labels_together() -> None:
    top, bottom = thirds(np.array([1.0, 2, 2, 3, 4, 5]))
    assert top.tolist() == [False, False, False, False, True, True]
    assert bottom.tolist() == [True, True, True, False, False, False]
    top, bottom = thirds(np.array([1.0, 5, 5, 5, 5, 9]))
    assert top.tolist() == [False] * 5 + [True]
    assert bottom.tolist() == [True] + [False] * 5


def test_a_perfect_and_a_reversed_judge() -> None:
    labels = [float(1 + n % 9) for n in range(90)]
    perfect = figures([Row("x", label, label) for label in labels])
    assert perfect.spearman is not None
    assert perfect.spearman.value == pytest.approx(1.0)
    assert perfect.auc.value == 1.0
    assert perfect.spearman_length is not None
    assert math.isnan(perfect.spearman_length.value)  # all of one length: it ranks nothing
    assert perfect.auc_length.value == 0.5
    reverse = figures([Row("x", label, -label) for label in labels])
    assert reverse.spearman is not None
    assert reverse.spearman.value == pytest.approx(-1.0)
    assert reverse.auc.value == 0.0


def test_intervals_hold_the_value_and_narrow_with_rows() -> None:
    rng = random.Random(5)

    def width(n: int) -> float:
        rows = [
            Row("x" * rng.randint(1, 50), level := float(rng.randint(1, 9)), level + rng.gauss(0, 4)) for _ in range(n)
        ]
        found = figures(rows, resamples=300)
        assert found.spearman is not None
        assert found.spearman.low < found.spearman.value < found.spearman.high
        assert found.auc.low < found.auc.value < found.auc.high
        return found.spearman.high - found.spearman.low

    assert width(800) < width(60)


def test_classes_have_an_auc_only_and_the_length_beside_it() -> None:
    rows = [Row("long " * 20, True, 5.0), Row("long " * 30, True, 3.0), Row("ab", False, 4.0), Row("a", False, 2.0)]
    found = figures(rows)
    assert found.spearman is None
    assert found.spearman_length is None
    assert found.auc.value == 0.75
    assert found.auc_length.value == 1.0
    assert (found.hard, found.easy) == (2, 2)


def test_the_same_seed_gives_the_same_interval() -> None:
    rows = [Row(str(n), float(n % 5), float(n * 7 % 11)) for n in range(50)]
    assert figures(rows, seed=1) == figures(rows, seed=1)


def test_what_was_not_rated_is_counted_and_left_out() -> None:
    rows = [Row("a", 1.0, 1.0), Row("b", 2.0, math.nan), Row("c", 9.0, 8.0)]
    found = figures(rows)
    assert (found.rows, found.unreadable) == (2, 1)
    assert found.auc.value == 1.0
    nothing = figures([Row("a", 1.0, math.nan)])
    assert nothing.rows == 0
    assert math.isnan(nothing.auc.value)
    assert figures([]).rows == 0


def test_check_rates_in_order() -> None:
    labelled = [Labelled("a", 1.0), Labelled("bb", 5.0), Labelled("ccc", 9.0)]
    found = check(labelled, lambda prompts: [float(len(p)) for p in prompts])
    assert found.spearman is not None
    assert found.spearman.value == pytest.approx(1.0)


def test_kinds_of_labels_do_not_mix() -> None:
    with pytest.raises(BadLabels, match="one kind"):
        figures([Row("a", True, 1.0), Row("b", 2.0, 1.0)])


@pytest.mark.parametrize(
    ("record", "label"),
    [
        ({"prompt": "p", "difficulty": 3}, 3.0),
        ({"question": "p", "level": "Level 4"}, 4.0),
        ({"problem": "p", "metadata": {"level": "2"}}, 2.0),
        ({"instruction": "p", "metadata": {"level": 2.5}}, 2.5),
        ({"messages": [{"role": "user", "content": "p"}], "level": 7}, 7.0),
    ],
)
def test_numbers_are_found(tmp_path: Path, record: dict[str, Any], label: float) -> None:
    file = write(tmp_path / "x.jsonl", [record, {"prompt": "q", "level": 9}])
    assert load(file)[0] == Labelled("p", label)


@pytest.mark.parametrize(
    ("record", "label"),
    [
        ({"prompt": "p", "label": "hard"}, True),
        ({"prompt": "p", "label": "Easy"}, False),
        ({"prompt": "p", "hard": True}, True),
        ({"prompt": "p", "hard": 0}, False),
        ({"prompt": "p", "difficulty": "hard"}, True),
    ],
)
def test_classes_are_found(tmp_path: Path, record: dict[str, Any], label: bool) -> None:
    file = write(tmp_path / "x.jsonl", [record, {"prompt": "q", "hard": not label}])
    found = load(file)
    assert found[0].prompt == "p"
    assert found[0].label is label


def test_a_json_array_and_unicode_line_separators(tmp_path: Path) -> None:
    rows = [{"prompt": "one\u2028line", "level": 1}, {"prompt": "zwei", "level": 2}]
    array = tmp_path / "x.json"
    array.write_text(json.dumps(rows), encoding="utf-8")
    assert (
        load(array)
        == load(write(tmp_path / "x.jsonl", rows))
        == [Labelled("one\u2028line", 1.0), Labelled("zwei", 2.0)]
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "p", "level": 1}', "line 2: no prompt: put it"),
        ('{"prompt": "  ", "level": 1}', "line 2: no prompt"),
        ('{"prompt": "p"}', "line 2: no label: put a number"),
        ('{"prompt": "p", "level": "high"}', "line 2: level is 'high': a number"),
        ('{"prompt": "p", "level": true}', "line 2: level is True: a number"),
        ('{"prompt": "p", "level": NaN}', "line 2: level is nan: a number"),
        ('{"prompt": "p", "label": "maybe"}', "line 2: label is 'maybe': hard or easy"),
        ('{"prompt": "p", "hard": true}', "line 2: numbers and hard/easy"),
        ('{"prompt": "p", "level": 1', "line 2: not JSON"),
        ("[1]", "line 2: a JSON object is expected"),
    ],
)
def test_errors_name_the_line_and_what_to_do(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"prompt": "p", "level": 5}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(BadLabels, match=message.replace("(", r"\(")):
        load(file)


def test_a_file_that_ranks_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadLabels, match="no rows"):
        load(write(tmp_path / "x.jsonl", []))
    with pytest.raises(BadLabels, match="nothing to rank"):
        load(write(tmp_path / "x.jsonl", [{"prompt": "p", "level": 5}, {"prompt": "q", "level": 5}]))
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(b'{"prompt": "caf\xe9", "level": 1}\n')
    with pytest.raises(BadLabels, match="not UTF-8"):
        load(latin)
