"""The gate's page: hostile texts stay text, the whole report is on it, it is well-formed whatever is missing."""

from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from trainers.gate_page import WORST, page
from trainers.gate_plots import bars, intervals, scatter
from trainers.recipe import EverydayRecipe, GateRecipe
from trainers.verdict import Comparison, GateReport, judge_rows

HOSTILE = '</pre><script>alert(1)</script><img src=x onerror="alert(2)"><svg/onload=alert(3)>&lt;b&gt;\'"\x00\ud800'
TAGS = """html head meta title style body h1 h2 p div b figure figcaption svg line circle rect text table tr th td
details summary pre"""
ALLOWED = set(TAGS.split())
VOID = {"meta"}


class Strict(HTMLParser):
    """Every tag is one of ours and closed; no attribute could run or load anything."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ALLOWED, tag
        for name, _ in attrs:
            assert not name.startswith("on") and name not in ("src", "href", "action", "srcdoc"), name
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parsed(report: GateReport) -> Strict:
    parser = Strict()
    parser.feed(page(report))
    parser.close()
    assert parser.open == []
    return parser


def comparison(index: int, *, by: str, kind: Any = "hard", better: bool = False, text: str = "fine") -> Comparison:
    given: dict[str, Any] = {"champion_reward": 5.0, "challenger_reward": 6.0 if better else 4.0 - index / 100}
    if by == "judge_pairs":
        given = {"preference": 0.9 if better else 0.2, "first": (0.6, 0.7), "label_mass": 0.8}
    return Comparison(
        prompt_id=f"{kind}{index}",
        set=kind,
        category=("code", text)[index % 2],
        prompt=f"{text} {index}",
        champion_answer=text * 2,
        challenger_answer=text,
        **given,
    )


def report(by: Any = "reward", text: str = "fine", everyday: int = 0, rows: int = 30) -> GateReport:
    recipe = GateRecipe(by=by, min_prompts=4, everyday=EverydayRecipe(prompts=everyday))
    found = [comparison(i, by=by, better=i % 3 == 0, text=text) for i in range(rows)]
    found += [comparison(i, by=by, kind="everyday", text=text) for i in range(everyday)]
    return judge_rows(found, recipe, champion=f"old{text}", challenger=f"new{text}", skipped={text: 2})


@pytest.mark.parametrize("by", ["reward", "judge_pairs"])
def test_hostile_texts_stay_text(by: str) -> None:
    found = parsed(report(by, HOSTILE, everyday=8))
    assert {"svg", "circle", "details", "table"} <= set(found.seen)
    shown = "".join(found.texts)
    assert "<script>alert(1)</script>" in shown and "onerror=" in shown
    assert "&lt;b&gt;" in shown, "what was escaped in the answer is shown as it was written"


def test_nothing_may_run_or_be_loaded() -> None:
    text = page(report())
    assert "default-src 'none'; style-src 'unsafe-inline'" in text
    assert "http://" not in text and "https://" not in text and "url(" not in text


def test_what_the_report_says_is_on_the_page() -> None:
    made = report(everyday=8)
    text = "".join(parsed(made).texts)
    for said in (
        made.reason,
        "Reject",
        "everyday prompts (bound 0.3)",
        "at equal length",
        "By category",
        "could not be",
    ):
        assert said in text, said
    assert f"{made.win_rate:.3f} [{made.lower:.3f}, {made.upper:.3f}]" in text
    assert "Worst losses on hard prompts" in text and "Worst losses on everyday prompts" in text


def test_the_worst_losses_come_first_and_are_not_all() -> None:
    text = page(report())
    assert text.count("<details>") == WORST
    lost = [28, 26, 25, 23, 22]  # every third was won; the later, the lower
    places = [text.index(f": fine {index}</summary>") for index in [29, *lost]]
    assert places == sorted(places)


def test_the_judge_of_pairs_is_described() -> None:
    text = "".join(parsed(report("judge_pairs")).texts)
    assert "both orders name the same answer for 0% of the prompts" in text
    assert "0.65 on average" in text and "0.80 of its probability is on A and B" in text


@pytest.mark.parametrize("rows", [0, 1])
def test_a_report_of_next_to_nothing_has_a_page(rows: int) -> None:
    assert "Reject" in "".join(parsed(report(rows=rows)).texts)


def test_a_report_without_its_rows_has_a_page() -> None:
    made = report(everyday=8)
    made.rows = []
    assert "Answer by answer" not in "".join(parsed(made).texts)


def test_long_texts_are_cut_and_say_so() -> None:
    assert "characters more)" in page(report(text="long " * 2_000))


@pytest.mark.parametrize(
    "svg",
    [
        intervals([("a & b", 0.5, 0.0, 1.0)], [(0, 0.3)]),
        bars([("a < b", 0, 0, 0), ("c", 3, 0, 1)]),
        scatter([(1.0, 1.0, "win"), (1.0, 1.0, "tie")], "x", "y", diagonal=True),
        scatter([], "x", "y", zero=True),
        scatter([(-1e9, 1e9, "loss"), (0.0, 0.0, "win")], "x", "y", zero=True),
    ],
)
def test_plots_are_well_formed_and_stay_inside(svg: str) -> None:
    root = ElementTree.fromstring(svg)
    width, height = (float(part) for part in root.attrib["viewBox"].split()[2:])
    for dot in root.iter("circle"):
        assert 0 <= float(dot.attrib["cx"]) <= width and 0 <= float(dot.attrib["cy"]) <= height
    for bar in root.iter("rect"):
        assert float(bar.attrib["x"]) + float(bar.attrib["width"]) <= width + 0.1
