"""What was kept: how hard it is, how hard it is to get in, and every member with the way to its story."""

from urllib.parse import quote

from nicegui import ui

from deploy.browse import Page, browse
from deploy.commands.common import buffer_of, one_line
from deploy.console.context import Context
from deploy.console.parts import BAD, TEXT, Kpi, at, axis, card, chart, frame, problem, text, thin, time_chart
from streams.buffer.base import BufferName
from streams.buffer.minhash import conversation_text
from streams.errors import HaypileError
from streams.records import Member

PAGE = 25
ALL = "all categories"
BUFFERS: dict[str, BufferName] = {"main buffer": "main", "held out": "eval"}


def register(context: Context) -> None:
    """The page `/buffer`."""

    @ui.page("/buffer")
    def members() -> None:
        with frame(context, "/buffer", "Buffer", "The hardest prompts that are worth learning from."):
            _Page(context)


def member_link(id: str) -> str:
    """Address of the story of a prompt. Ids hold anything: they are quoted whole."""
    return f"/prompt?id={quote(id, safe='')}"


class _Page:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._offset = 0
        with ui.element("div").classes("hp-kpis"):
            self._size = Kpi("Members")
            self._bar = Kpi("Difficulty to get in")
            self._turnover = Kpi("Admitted")
            self._judge = Kpi("Judge", small=True)
        self._rescoring = ui.element("div")
        with ui.element("div").classes("hp-grid three"):
            with card("Difficulty", "Members by the judge's rating; the line is what a prompt needs to get in now."):
                self._histogram = _histogram()
            with card(
                "The bar over time", "Difficulty that a prompt of that moment needed; none while there was room."
            ):
                self._moves = time_chart(["difficulty to get in"], "Difficulty to get in over the last hour")
                self._moves.options["yAxis"] |= {"min": 1, "max": 9, "interval": 1}
            with card("Categories", "A category holds at most its share of the buffer."):
                self._categories = _bars()
        with card("Members", "Choose one for its whole story."):
            with ui.element("div").classes("hp-line"):
                self._search = (
                    ui.input(placeholder="words of the prompt, or an id")
                    .classes("hp-search")
                    .props('outlined dense clearable aria-label="Search"')
                    .on("keydown.enter", self._first_page)
                )
                self._category = ui.select([ALL], value=ALL, on_change=self._first_page).props("outlined dense")
                self._which = ui.select(list(BUFFERS), value="main buffer", on_change=self._first_page).props(
                    "outlined dense"
                )
                ui.button("Search", on_click=self._first_page).props("unelevated no-caps color=brown-8")
            self._rows = ui.element("div").classes("hp-rows")
            with ui.element("div").classes("hp-actions"):
                self._back = ui.button("Harder", on_click=lambda: self._turn(-PAGE)).props(
                    "outline no-caps color=brown-8"
                )
                self._on = ui.button("Softer", on_click=lambda: self._turn(PAGE)).props("outline no-caps color=brown-8")
                self._where = ui.label("").classes("hp-muted")
        self._shown: float | None = -1.0
        self._update()
        ui.timer(1.0, self._update)
        ui.timer(0.05, self._load, once=True)

    def _update(self) -> None:
        sampler = self._context.sampler
        if sampler.looked_at == self._shown:
            return
        self._shown = sampler.looked_at
        stats, samples = sampler.stats, sampler.history.samples
        bar = samples[-1].bar if samples else None
        self._bar.show(
            "any" if bar is None else f"{bar:.2f}", "there is room" if bar is None else "on the scale 1 to 9"
        )
        moves = [[int(s.at * 1000), round(s.bar, 3)] for s in samples if s.bar is not None]
        self._moves.options["series"][0]["data"] = thin(moves)
        self._moves.update()
        if stats is None:
            return
        self._size.show(f"{stats.size:,}", f"of {stats.capacity:,}; {stats.answered:,} answered")
        self._turnover.show(f"{stats.admitted_total:,}", f"{stats.evicted_total:,} evicted again")
        self._judge.show(stats.judge or "none yet", "whose ratings these are")
        series = self._histogram.options["series"][0]
        series["data"] = [[1.25 + number / 2, count] for number, count in enumerate(stats.histogram)]
        series["markLine"]["data"] = [] if bar is None else [{"xAxis": round(bar, 2)}]
        self._histogram.update()
        categories = sorted(stats.categories.items(), key=lambda item: item[1])
        self._categories.options["yAxis"]["data"] = [name for name, _ in categories]
        self._categories.options["series"][0]["data"] = [count for _, count in categories]
        self._categories.update()
        self._category.set_options([ALL, *sorted(stats.categories)], value=self._category.value)
        self._show_rescoring()

    def _show_rescoring(self) -> None:
        state = self._context.sampler.generation
        self._rescoring.clear()
        if state is not None and state.next is not None:
            done = f"{state.total - state.left:,} of {state.total:,} members are rated"
            with self._rescoring:
                text(
                    f"The buffer goes over to judge {state.next_judge}, since {at(state.started_ms)}: {done}.",
                    "hp-note",
                )

    async def _first_page(self) -> None:
        self._offset = 0
        await self._load()

    async def _turn(self, by: int) -> None:
        self._offset = max(0, self._offset + by)
        await self._load()

    async def _load(self) -> None:
        category = None if self._category.value == ALL else self._category.value
        try:
            async with (
                self._context.searches,
                buffer_of(self._context.settings, BUFFERS[self._which.value]) as buffer,
            ):
                page = await browse(buffer, self._offset, PAGE, self._search.value or "", category)
        except HaypileError as error:
            self._rows.clear()
            with self._rows:
                problem(str(error))
            return
        self._show(page)

    def _show(self, page: Page) -> None:
        self._rows.clear()
        with self._rows:
            with ui.element("div").classes("hp-row member head"):
                for name in ("place", "difficulty", "quality", "category", "prompt", "answers"):
                    text(name)
            if not page.rows:
                text("No member fits.", "hp-muted")
            for place, member in page.rows:
                _row(place, member)
        last = self._offset + len(page.rows)
        self._where.set_text(f"{self._offset + 1 if page.rows else 0} to {last} of {page.found:,}")
        self._back.set_enabled(self._offset > 0)
        self._on.set_enabled(last < page.found)


def _row(place: int, member: Member) -> None:
    prompt = member.prompt
    row = ui.element("a").classes("hp-row member")
    row.props["href"] = member_link(prompt.id)
    with row:
        text(f"{place:,}", "hp-num")
        text(f"{prompt.difficulty:.2f}", "hp-num")
        text(f"{prompt.quality:.2f}", "hp-num quality")
        text(prompt.category, "hp-cut")
        text(one_line(conversation_text(prompt.messages), 200), "hp-cut text")
        text(len(member.candidates) or "–", "hp-num hp-muted")


def _histogram() -> ui.echart:
    """Bars of half a point; the line is set as the bar to get over moves."""
    line = {
        "symbol": "none",
        "silent": True,
        "data": [],
        "lineStyle": {"color": BAD, "width": 2, "type": "solid"},
        "label": {"formatter": "to get in: {c}", "color": BAD},
    }
    bars = {"type": "bar", "data": [], "barCategoryGap": "12%", "itemStyle": {"color": "#a86a10"}, "markLine": line}
    return chart(
        {
            "grid": {"left": 42, "right": 16, "top": 26, "bottom": 24},
            "tooltip": {"trigger": "item"},
            "xAxis": axis(type="value", min=1, max=9, interval=1, splitLine={"show": False}),
            "yAxis": axis(type="value", minInterval=1),
            "series": [bars],
        },
        "Members by difficulty, with the difficulty to get in",
    )


def _bars() -> ui.echart:
    label = {"show": True, "position": "right", "color": TEXT, "fontSize": 11}
    return chart(
        {
            "grid": {"left": 84, "right": 40, "top": 6, "bottom": 22},
            "xAxis": axis(type="value", minInterval=1),
            "yAxis": axis(type="category", data=[], axisTick={"show": False}),
            "series": [
                {"type": "bar", "data": [], "barMaxWidth": 18, "itemStyle": {"color": "#3f6f8f"}, "label": label}
            ],
        },
        "Members by category",
    )
