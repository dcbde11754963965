"""What comes in, what waits, and what becomes of it: now and over the last hour."""

from nicegui import ui

from deploy.console.context import Context
from deploy.console.history import BUCKET_S
from deploy.console.parts import Kpi, axis, card, chart, frame, legend, problem, rate, tag, text, thin, time_chart
from deploy.console.sampler import DEAD
from deploy.explain import REASONS
from streams.timetable import span
from streams.topics import topic_names

KINDS = {
    "admitted": "admitted",
    "below_threshold": "below the threshold",
    "evicted": "evicted",
    "low_quality": "low quality",
    "near_duplicate": "near-duplicate",
    "exact_repeat": "exact repeat",
    "held_out": "held out",
    DEAD: "dead letter",
}
OTHER = "other"


def register(context: Context) -> None:
    """The page `/`."""

    @ui.page("/")
    def flow() -> None:
        with frame(context, "/", "Flow", "What comes in, what waits, and what becomes of it."):
            _Page(context)


class _Page:
    def __init__(self, context: Context) -> None:
        self._sampler = context.sampler
        names = topic_names(context.settings.kafka)
        self._hops = {
            "prompts.raw": (names.raw, "sent", "wait for ingest"),
            "prompts.accepted": (names.accepted, "accepted", "wait for the judge"),
            "prompts.scored": (names.scored, "rated", "wait for curate"),
            "prompts.curated": (names.curated, "outcomes", ""),
        }
        self._problems = ui.element("div").classes("hp-rows")
        with ui.element("div").classes("hp-kpis"):
            self._in = Kpi("Prompts in")
            self._waiting = Kpi("Waiting")
            self._members = Kpi("Buffer")
            self._bar = Kpi("Difficulty to get in")
            self._dead = Kpi("Dead letters, last hour")
            self._health = Kpi("Degraded")
        self._strip = {}
        with card("The way of a prompt"), ui.element("div").classes("hp-flow"):
            for name in self._hops:
                with ui.element("div").classes("hp-hop"):
                    text(name, "n hp-cut")
                    self._strip[name] = (ui.label("–").classes("r"), ui.label("").classes("g"))
        with ui.element("div").classes("hp-grid"):
            with card("Throughput", "Records a second, by topic."):
                self._rates = time_chart(list(self._hops), "Records a second over the last hour")
            with card("Lag", "Records that workers have not finished yet."):
                self._lags = time_chart(list(self._hops)[:3], "Records that wait, over the last hour", area=True)
            with card("Outcomes", "What became of records, by the half minute."):
                self._outcomes = _outcome_chart()
            with card("Last hour"):
                self._totals = ui.element("div").classes("hp-rows")
        with card("Processes", "What they say of themselves, and what is degraded."):
            self._processes = ui.element("div").classes("hp-rows")
        self._shown: float | None = -1.0
        self._update()
        ui.timer(1.0, self._update)

    def _update(self) -> None:
        sampler = self._sampler
        if sampler.looked_at == self._shown:
            return
        self._shown = sampler.looked_at
        self._show_numbers()
        history = sampler.history
        for series, (topic, _, _) in zip(self._rates.options["series"], self._hops.values(), strict=True):
            series["data"] = thin([[int(at * 1000), round(value, 2)] for at, value in history.rates(topic)])
        for series, (topic, _, _) in zip(self._lags.options["series"], self._hops.values(), strict=False):
            series["data"] = thin([[int(s.at * 1000), s.lags[topic]] for s in history.samples if topic in s.lags])
        buckets = sorted(sampler.outcomes.buckets.items())
        for series, kind in zip(self._outcomes.options["series"], [*KINDS, OTHER], strict=True):
            series["data"] = [
                [
                    start * 1000,
                    counts[kind] if kind != OTHER else sum(n for name, n in counts.items() if name not in KINDS),
                ]
                for start, counts in buckets
            ]
        for drawn in (self._rates, self._lags, self._outcomes):
            drawn.update()
        self._show_totals()
        self._show_processes()

    def _show_numbers(self) -> None:
        sampler = self._sampler
        self._problems.clear()
        with self._problems:
            for part, error in sampler.errors.items():
                problem(f"{part}: {error}")
            if sampler.looked_at is None:
                text("Looking for the first time …", "hp-note")
        raw = sampler.topics.get(self._hops["prompts.raw"][0])
        self._in.show(
            rate(sampler.history.rate(self._hops["prompts.raw"][0])), f"{raw.written:,} in all" if raw else ""
        )
        lag = sum(state.lag or 0 for name, state in sampler.topics.items() if name in self._waiting_topics())
        self._waiting.show(f"{lag:,}", "records between Kafka and the buffer")
        for name, (topic, done, waits) in self._hops.items():
            state = sampler.topics.get(topic)
            value, sub = self._strip[name]
            value.set_text(rate(sampler.history.rate(topic)))
            if state is not None:
                waiting = f", {state.lag:,} {waits}" if waits and state.lag is not None else ""
                sub.set_text(f"{state.written:,} {done}{waiting}")
        stats = sampler.stats
        if stats is not None:
            self._members.show(f"{stats.size:,}", f"of {stats.capacity:,}; {stats.answered:,} answered")
        bar = sampler.history.samples[-1].bar if sampler.history.samples else None
        full = stats is not None and bar is not None
        self._bar.show(f"{bar:.2f}" if bar is not None else "any", "on the scale 1 to 9" if full else "there is room")
        totals = sampler.outcomes.totals()
        self._dead.show(f"{totals[DEAD]:,}", f"of {sum(totals.values()):,} outcomes")
        self._health.show(len(sampler.degraded) or "nothing", sampler.degraded[0].what if sampler.degraded else "")

    def _waiting_topics(self) -> set[str]:
        return {topic for topic, _, waits in self._hops.values() if waits}

    def _show_totals(self) -> None:
        totals = self._sampler.outcomes.totals()
        self._totals.clear()
        with self._totals:
            if not totals:
                text("No record had an outcome yet.", "hp-muted")
            for name, count in totals.most_common():
                with ui.element("div").classes("hp-row count"):
                    text(REASONS.get(name, name), "hp-wrap")
                    text(f"{count:,}", "hp-num")
            if self._sampler.outcomes.passed_over:
                text(f"{self._sampler.outcomes.passed_over:,} more came too fast to be looked at.", "hp-muted hp-small")

    def _show_processes(self) -> None:
        sampler = self._sampler
        self._processes.clear()
        with self._processes:
            for line in sampler.degraded:
                with ui.element("div").classes("hp-line hp-row"):
                    tag("degraded", "bad")
                    since = (
                        "" if line.since is None else f" for {span(max(0.0, (sampler.looked_at or 0) - line.since))}"
                    )
                    text(f"{line.what}{since}{': ' if line.detail else ''}{line.detail}", "hp-wrap", tag="span")
            for process in sorted(sampler.processes, key=lambda process: process.process):
                with ui.element("div").classes("hp-line hp-row"):
                    tag("alive", "good") if (sampler.looked_at or 0) - process.at < 30 else tag("silent", "bad")
                    text(process.process, "hp-mono", tag="span")
                    text(f"runs {', '.join(process.agents)}", "hp-muted hp-wrap", tag="span")
            if not sampler.processes and not sampler.degraded:
                text("No process has reported.", "hp-muted")


def _outcome_chart() -> ui.echart:
    """Stacked bars."""
    colours = ["#2e7a4c", "#cfc8b8", "#8a4f7d", "#c98a1b", "#3f6f8f", "#7ea3b8", "#a7b77a", "#b23a2e", "#55524a"]
    return chart(
        {
            "color": colours,
            "grid": {"left": 46, "right": 12, "top": 64, "bottom": 24},
            "legend": legend(itemWidth=10, itemGap=10),
            "tooltip": {"trigger": "axis"},
            "xAxis": axis(type="time", splitNumber=4, splitLine={"show": False}),
            "yAxis": axis(type="value", minInterval=1),
            "series": [
                {"name": name, "type": "bar", "stack": "all", "data": [], "barMaxWidth": 14, "barMinWidth": 3}
                for name in [*KINDS.values(), OTHER]
            ],
        },
        f"Outcomes by {BUCKET_S} seconds over the last hour",
    )  # fmt: skip
