"""Is a judge to be believed? Its ratings against labels, beside what the length of the prompt alone would give.

Reads labelled files and computes figures; the rating itself is passed in as a function (``deploy`` wires it to vLLM).

* Numbers (``difficulty``, ``level``): Spearman's rho over all rows, and AUC of the top third of the labels against the
  bottom third.
* Two classes (``hard``): AUC, the probability that a hard prompt is rated above an easy one, ties counting half
  (Mann-Whitney U / (n₁·n₂)).

Intervals are 95 % percentile bootstrap over rows. What the judge has over the length is an interval of its own, on the
same draws: two intervals that overlap may still differ surely.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from streams.rubric import conversation_text

PROMPT_FIELDS = ("prompt", "question", "problem", "instruction")
NUMBER_FIELDS = ("difficulty", "level", "metadata.difficulty", "metadata.level")
CLASS_FIELDS = ("label", "hard")
HARD = frozenset({"hard", "difficult", "expert", "true", "1", "yes"})
EASY = frozenset({"easy", "ordinary", "everyday", "false", "0", "no"})

RESAMPLES = 1000
"""Enough for two digits of an interval's ends; 10,000 rows take about two seconds."""

CHUNK = 100
"""Draws ranked at once: 100 of 10,000 rows are 8 MB."""

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Picks = tuple[Indices, ...]
Sample = Callable[[int | None], Picks]
"""The indices of all rows (None), or of so many draws."""


class BadLabels(ValueError):
    """A labelled file that does not fit; the message names the line and what to do."""


@dataclass(frozen=True)
class Labelled:
    """A prompt and its label: a number (higher is harder) or whether it is hard."""

    prompt: str
    label: float | bool


@dataclass(frozen=True)
class Row:
    """A rated prompt."""

    prompt: str
    label: float | bool
    rating: float
    """What the judge said, 1..9; NaN if it could not be read (counted, and left out of the figures)."""


@dataclass(frozen=True)
class Figure:
    """An estimate with its 95 % interval. NaN where it is not defined (all labels or all values the same)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Figures:
    """What a judge is worth on one labelled set."""

    rows: int
    """Rows that count."""
    unreadable: int
    """Rows that the judge did not rate."""
    spearman: Figure | None
    """Ratings against labels; None for two classes."""
    spearman_length: Figure | None
    """The baseline: the prompt's length in characters against labels."""
    spearman_gain: Figure | None
    """What the ratings have over the lengths: the difference on the same draws."""
    auc: Figure
    """Hard against easy (for numbers: top third of the labels against bottom third)."""
    auc_length: Figure
    """The same by length."""
    auc_gain: Figure
    """Their difference on the same draws."""
    hard: int
    """Rows on the hard side of the AUC."""
    easy: int
    """Rows on the easy side."""


def spearman(values: Floats, labels: Floats) -> Floats:
    """Spearman's rho with mid-ranks for ties over the last axis of two (..., n); NaN where a side is constant."""
    if not values.shape[-1]:
        return np.full(values.shape[:-1], np.nan)
    a, b = (rankdata(side, axis=-1) for side in (values, labels))
    a, b = (ranks - ranks.mean(axis=-1, keepdims=True) for ranks in (a, b))
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.asarray(np.divide((a * b).sum(-1), scale, out=np.full(np.shape(scale), np.nan), where=scale > 0))


def auc(hard: Floats, easy: Floats) -> Floats:
    """P(hard > easy) + P(hard = easy) / 2 over the last axis of (..., n) and (..., m); NaN if a side is empty."""
    n, m = hard.shape[-1], easy.shape[-1]
    if not n or not m:
        return np.full(hard.shape[:-1], np.nan)
    ranks = rankdata(np.concatenate([hard, easy], axis=-1), axis=-1)
    return np.asarray((ranks[..., :n].sum(-1) - n * (n + 1) / 2) / (n * m))


def thirds(labels: Floats) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows are the top and the bottom third of numeric labels. Equal labels stay together, so that no row's side
    is a matter of order: the cut includes the label at the third; if the two would meet, it is above and below the
    median label, strictly."""
    ordered = np.sort(labels)
    n = len(ordered)
    low, high = ordered[max(0, math.ceil(n / 3) - 1)], ordered[n - max(1, math.ceil(n / 3))]
    if low < high:
        return labels >= high, labels <= low
    return labels > low, labels < low


def figures(rows: Sequence[Row], seed: int = 0, resamples: int = RESAMPLES) -> Figures:
    """The figures of rated rows. Labels are all numbers or all classes, else ``BadLabels``. Rows without a finite
    rating are counted apart."""
    if len({isinstance(row.label, bool) for row in rows}) > 1:
        raise BadLabels("some labels are numbers and some are hard/easy: use one kind in a file")
    good = [row for row in rows if math.isfinite(row.rating)]
    classes = bool(rows) and isinstance(rows[0].label, bool)
    labels = np.array([float(row.label) for row in good])
    ratings = np.array([row.rating for row in good])
    lengths = np.array([float(len(row.prompt)) for row in good])
    if not good:
        top = bottom = np.zeros(0, dtype=np.bool_)
    elif classes:
        top, bottom = labels > 0.5, labels < 0.5
    else:
        top, bottom = thirds(labels)
    hard, easy = np.flatnonzero(top), np.flatnonzero(bottom)
    rng = np.random.default_rng(seed)

    def side_by_side(sample: Sample, measure: Callable[[Floats, Picks], Floats]) -> tuple[Figure, Figure, Figure]:
        """Of the ratings, of the lengths, and what the ratings gain, all on the same draws."""
        sizes = [min(CHUNK, resamples - done) for done in range(0, resamples, CHUNK)]
        picks = [sample(None), *(sample(size) for size in sizes)]
        of_ratings, of_lengths = (
            np.concatenate([np.atleast_1d(measure(values, pick)) for pick in picks]) for values in (ratings, lengths)
        )
        return _figure(of_ratings), _figure(of_lengths), _figure(of_ratings - of_lengths)

    rho, rho_length, rho_gain = side_by_side(
        lambda size: (_drawn(rng, np.arange(len(good)), size),),
        lambda values, pick: spearman(values[pick[0]], labels[pick[0]]),
    )
    area, area_length, area_gain = side_by_side(
        lambda size: (_drawn(rng, hard, size), _drawn(rng, easy, size)),
        lambda values, pick: auc(values[pick[0]], values[pick[1]]),
    )
    return Figures(
        rows=len(good),
        unreadable=len(rows) - len(good),
        spearman=None if classes else rho,
        spearman_length=None if classes else rho_length,
        spearman_gain=None if classes else rho_gain,
        auc=area,
        auc_length=area_length,
        auc_gain=area_gain,
        hard=len(hard),
        easy=len(easy),
    )


def _drawn(rng: np.random.Generator, rows: Indices, size: int | None) -> Indices:
    """``rows`` (n,) themselves, or (size, n) of them drawn with replacement."""
    return rows if size is None else rows[rng.integers(0, max(1, len(rows)), (size, len(rows)))]


def _figure(values: Floats) -> Figure:
    """From the value on all rows, followed by those on the draws."""
    known = values[1:][~np.isnan(values[1:])]
    if math.isnan(values[0]) or not len(known):
        return Figure(float(values[0]), math.nan, math.nan)
    low, high = np.percentile(known, [2.5, 97.5])
    return Figure(float(values[0]), float(low), float(high))


def check(labelled: Sequence[Labelled], rate: Callable[[Sequence[str]], Sequence[float]], seed: int = 0) -> Figures:
    """Rates every prompt with ``rate`` (prompts to ratings, same order, NaN for unreadable) and computes figures."""
    ratings = rate([row.prompt for row in labelled])
    return figures(
        [Row(row.prompt, row.label, rating) for row, rating in zip(labelled, ratings, strict=True)], seed=seed
    )


# --- labelled files ---------------------------------------------------------------------------------------------------


def load(file: Path) -> list[Labelled]:
    """Reads a labelled file: JSON lines or one JSON array, UTF-8.

    The prompt is in ``prompt``, ``question``, ``problem`` or ``instruction`` (or a chat in ``messages``); the label is
    a number in ``difficulty``, ``level`` or ``metadata.level`` ("Level 3" counts as 3), or hard/easy or a boolean in
    ``label`` or ``hard``. Raises
    ``BadLabels`` for the first line that fits none, ``OSError`` if the file cannot be read.
    """
    rows: list[Labelled] = []
    for place, record in _records(file):
        rows.append(_labelled(place, record))
        if isinstance(rows[0].label, bool) != isinstance(rows[-1].label, bool):
            raise BadLabels(f"{place}: numbers and hard/easy labels in one file: use one kind")
    if not rows:
        raise BadLabels(f"{file}: no rows: expected JSON lines (or a JSON array) with a prompt and a label")
    if len({row.label for row in rows}) < 2:
        raise BadLabels(f"{file}: all labels are {rows[0].label!r}: nothing to rank, add prompts of another level")
    return rows


def _records(file: Path) -> list[tuple[str, Any]]:
    """(place for messages, decoded record). Lines end at "\\n" only: Unicode line separators are text."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadLabels(f"{file}: not UTF-8 ({error.reason} at byte {error.start}): convert it") from None
    if text.lstrip().startswith("["):
        try:
            return [(f"{file.name}, item {n}", row) for n, row in enumerate(json.loads(text), 1)]
        except ValueError as error:
            raise BadLabels(f"{file}: starts like a JSON array but is not one: {error}") from None
    records = []
    for n, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                records.append((f"{file.name}, line {n}", json.loads(line)))
            except ValueError as error:
                raise BadLabels(f"{file.name}, line {n}: not JSON ({error}): one object a line is expected") from None
    return records


def _labelled(place: str, record: Any) -> Labelled:
    if not isinstance(record, dict):
        raise BadLabels(f"{place}: a JSON object is expected, not {type(record).__name__}")
    prompt = next((record[f] for f in PROMPT_FIELDS if isinstance(record.get(f), str) and record[f].strip()), "")
    messages = record.get("messages")
    if not prompt and isinstance(messages, list) and messages and all(isinstance(m, dict) for m in messages):
        prompt = conversation_text(messages)
    if not prompt:
        raise BadLabels(f"{place}: no prompt: put it as text into one of {', '.join(PROMPT_FIELDS)}")
    for name in NUMBER_FIELDS:
        value = _get(record, name)
        if value is not None:
            return Labelled(prompt, _number(place, name, value))
    for name in CLASS_FIELDS:
        value = _get(record, name)
        if value is not None:
            return Labelled(prompt, _class(place, name, value))
    raise BadLabels(
        f"{place}: no label: put a number into {' or '.join(NUMBER_FIELDS)}, "
        f"or hard/easy into {' or '.join(CLASS_FIELDS)}"
    )


def _get(record: dict[str, Any], name: str) -> Any:
    value: Any = record
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _number(place: str, name: str, value: Any) -> float | bool:
    """A finite number; also hard/easy, should the field hold that."""
    if isinstance(value, str):
        text = value.strip().lower()
        if text in {"hard", "easy"}:
            return text == "hard"
        value = text.removeprefix("level").strip()
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadLabels(f"{place}: {name} is {value!r}: a number is expected (higher is harder)")
    return number


def _class(place: str, name: str, value: Any) -> bool:
    text = str(value).strip().lower()
    if text in HARD or text in EASY:
        return text in HARD
    raise BadLabels(f"{place}: {name} is {value!r}: hard or easy (or true or false) is expected")
