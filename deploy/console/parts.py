"""Pieces that every page is made of. Text from outside goes into labels only: those are never HTML."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from nicegui import ui

from deploy.console.context import Context

PAGES = (
    ("/", "Flow"),
    ("/buffer", "Buffer"),
    ("/training", "Training"),
    ("/models", "Models"),
    ("/dead-letters", "Dead letters"),
)
COLOURS = ["#a86a10", "#3f6f8f", "#2e7a4c", "#8a4f7d", "#b23a2e", "#6b6a3a", "#4d5fa8", "#7a6f5c"]
TEXT = "#706b60"
FONT = "'DejaVu Sans', Roboto, 'Segoe UI', sans-serif"
LINE = "#e4e0d6"
BAD = "#b23a2e"
WHY_CHARS = 300
"""Of a reason, like the commands'."""
POINTS = 240
"""Of a line: more than a chart has pixels for."""


@contextmanager
def frame(context: Context, path: str, title: str, lead: str = "") -> Iterator[str | None]:
    """A page: header with the way to the others, a title. Yields the session of who is logged in, or None."""
    session = context.session()
    ui.add_head_html('<link rel="stylesheet" href="/style.css">')
    with ui.element("header").classes("hp-header"):
        with ui.element("a").props("href=/").classes("hp-brand"):
            text("haypile", tag="span")
        with ui.element("nav").classes("hp-nav").props('aria-label="Pages"'):
            for target, name in PAGES:
                link = ui.element("a").props(f"href={target}")
                if target == path:
                    link.props('aria-current="page"')
                with link:
                    text(name, tag="span")
        with ui.element("div").classes("hp-who"):
            if session is None:
                text("read-only", tag="span")
                with ui.element("a").props("href=/login"):
                    text("log in", tag="span")
            else:
                with (
                    ui.element("form").props("method=post action=/logout"),
                    ui.element("button").props("type=submit"),
                ):
                    text("log out", tag="span")
    with ui.element("div").classes("hp-page"):
        text(title, "hp-title", tag="h1")
        if lead:
            text(lead, "hp-lead")
        yield session


def text(content: object, classes: str = "", tag: str = "div") -> ui.element:
    """A piece of text. It may be hostile: it is set as text, never as HTML."""
    label = ui.label(str(content)).classes(classes)
    label.tag = tag
    return label


@contextmanager
def card(title: str = "", sub: str = "", classes: str = "") -> Iterator[ui.element]:
    """A white box with a heading."""
    with ui.element("section").classes(f"hp-card {classes}") as box:
        if title:
            text(title, "hp-h2", tag="h2")
        if sub:
            text(sub, "hp-sub")
        yield box


class Kpi:
    """One number with its name and a line under it."""

    def __init__(self, label: str, small: bool = False) -> None:
        with ui.element("div").classes("hp-kpi"):
            text(label, "l")
            self._value = ui.label("–").classes("v small" if small else "v")
            self._sub = ui.label("").classes("s")

    def show(self, value: object, sub: str = "") -> None:
        """Sets both."""
        self._value.set_text(str(value))
        self._sub.set_text(sub)


def problem(content: str) -> None:
    """Something that could not be read or done."""
    text(content, "hp-problem").props("role=alert")


def pair(name: str, content: object, classes: str = "") -> None:
    """A line of a description: name and value."""
    with ui.element("div").classes("hp-row pair"):
        text(name, "hp-muted")
        text(content, f"hp-wrap {classes}")


def tag(content: object, kind: str = "") -> None:
    """A small coloured word; `kind` is `good`, `bad`, `now` or empty."""
    text(content, f"hp-tag {kind}", tag="span")


def chart(options: dict[str, Any], label: str, low: bool = False) -> ui.echart:
    """A chart. Numbers and names of ours only: its tooltips are HTML."""
    base = {"animation": False, "color": COLOURS, "textStyle": {"color": TEXT, "fontFamily": FONT}}
    element = ui.echart({**base, **options}, renderer="svg").classes("hp-chart low" if low else "hp-chart")
    return element.props(f'role=img aria-label="{label}"')


def axis(**more: Any) -> dict[str, Any]:
    """The look of an axis."""
    label = {"color": TEXT, "fontSize": 11, "hideOverlap": True}
    return {
        "axisLabel": label,
        "splitLine": {"lineStyle": {"color": LINE}},
        "axisLine": {"lineStyle": {"color": LINE}},
        **more,
    }


def legend(**more: Any) -> dict[str, Any]:
    """The look of a legend, above a chart."""
    text_style = {"color": TEXT, "fontSize": 11}
    return {"top": 0, "left": 0, "itemWidth": 14, "itemHeight": 8, "itemGap": 14, "textStyle": text_style, **more}


def time_chart(names: list[str], label: str, *, area: bool = False) -> ui.echart:
    """Lines over time; each series' data are pairs of epoch milliseconds and a value."""
    filled = {"areaStyle": {"opacity": 0.15}} if area else {}
    line = {"type": "line", "showSymbol": False, "lineStyle": {"width": 2}, **filled}
    return chart(
        {
            "grid": {"left": 42, "right": 12, "top": 48, "bottom": 24},
            "legend": legend(),
            "tooltip": {"trigger": "axis"},
            "xAxis": axis(type="time", splitNumber=4, splitLine={"show": False}),
            "yAxis": axis(type="value", min=0),
            "series": [{"name": name, "data": [], **line} for name in names],
        },
        label,
    )


def thin(points: list[list[float]]) -> list[list[float]]:
    """At most `POINTS` of the points, evenly chosen, the newest among them: all go to every browser at each look."""
    step = -(-len(points) // POINTS)
    return points if step <= 1 else points[::-1][::step][::-1]


def at(ms: float | None) -> str:
    """A moment in UTC, for people; `ms` are epoch milliseconds."""
    return "–" if ms is None else f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def rate(value: float | None) -> str:
    """Records a second."""
    return "–" if value is None else f"{value:,.0f}/s" if value >= 10 else f"{value:.1f}/s"


def act_button(
    context: Context,
    session: str | None,
    name: str,
    question: str,
    action: Callable[[str], Awaitable[Any]],
    after: Callable[[], Awaitable[None]],
) -> None:
    """A button that asks why first, does it if the login goes on, and then calls `after`. `action` gets the reason."""
    with ui.dialog() as dialog, ui.card():
        text(question, "hp-wrap")
        reason = ui.input("Why? It is kept in the history.").classes("hp-why").props("outlined dense autofocus")

        async def do() -> None:
            why = " ".join((reason.value or "").split())
            if not 0 < len(why) <= WHY_CHARS:
                ui.notify("Say why" if not why else f"In {WHY_CHARS} characters, please", type="warning")
                return
            dialog.close()
            waiting.set_visibility(True)
            await context.act(session, name, lambda: action(why))
            waiting.set_visibility(False)
            await after()

        with ui.element("div").classes("hp-actions"):
            ui.button(name, on_click=do).props("unelevated no-caps color=brown-8")
            ui.button("Leave it", on_click=dialog.close).props("flat no-caps color=brown-8")
    ui.button(f"{name} …", on_click=dialog.open).props("outline no-caps color=brown-8")
    waiting = text("it goes on …", "hp-muted", tag="span")
    waiting.set_visibility(False)
