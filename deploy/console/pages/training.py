"""Why training does or does not start, and the runs with their curves."""

import asyncio
import time
import uuid
from datetime import UTC, datetime

from nicegui import ui

from agents.rules.policy import Condition
from deploy.commands.common import orders_of
from deploy.console.context import Context
from deploy.console.parts import act_button, at, axis, card, chart, frame, legend, pair, problem, tag, text
from deploy.console.runs import Run
from deploy.training_status import verdict
from streams.errors import HaypileError, InvalidRecord
from streams.timetable import span, zone_of
from streams.training_orders import AskedRun, Pause
from trainers.rundir import RunFolder

BY = "console"
DECIDE_S = 5.0
KINDS = {"done": "good", "failed": "bad", "rejected": "bad"}
PARTS = ("sft", "dpo")


def register(context: Context) -> None:
    """The page `/training`."""

    @ui.page("/training")
    def training() -> None:
        lead = "Why a run starts or does not, and how the runs went."
        with frame(context, "/training", "Training", lead) as session:
            _Page(context, session)


class _Page:
    def __init__(self, context: Context, session: str | None) -> None:
        self._context = context
        self._session = session
        self._run_id: str | None = None
        with card("Would it train now?"):
            self._decision = ui.element("div").classes("hp-rows")
            if session is not None:
                self._buttons()
        with ui.element("div").classes("hp-grid"):
            with card("Runs", "The newest first; choose one for its curve."):
                self._runs = ui.element("div").classes("hp-rows")
            with card("Learning curve"):
                self._title = ui.label("").classes("hp-muted hp-mono")
                self._curve = _curve()
                self._detail = ui.element("div").classes("hp-rows")
        self._shown: tuple[object, ...] = ()
        ui.timer(DECIDE_S, self._decide)
        ui.timer(1.0, self._update)

    def _buttons(self) -> None:
        """What the commands `train --now`, `pause` and `resume` do."""
        with ui.element("div").classes("hp-actions"):
            for name, question, action in (
                ("Train now", "Ask for one run? It needs no reason and waits for no guard.", self._train),
                ("Pause", "Begin no run from now on? One in progress goes on.", self._pause),
                ("Resume", "End the pause?", self._resume),
            ):
                act_button(self._context, self._session, name, question, action, self._decide_anew)

    async def _train(self, reason: str) -> None:
        async with orders_of(self._context.settings) as orders:
            await orders.ask(AskedRun(id=uuid.uuid4().hex, at_ms=_now_ms(), reason=reason, by=BY))

    async def _pause(self, reason: str) -> None:
        async with orders_of(self._context.settings) as orders:
            await orders.pause(Pause(since_ms=_now_ms(), reason=reason, by=BY))

    async def _resume(self, _reason: str) -> None:
        async with orders_of(self._context.settings) as orders:
            await orders.resume()

    async def _decide_anew(self) -> None:
        self._context.decision.forget()
        await self._decide()

    async def _decide(self) -> None:
        zone = zone_of(self._context.settings.trigger.timezone)
        try:
            decision = await self._context.decision.get()
        except HaypileError as error:
            self._decision.clear()
            with self._decision:
                problem(str(error))
            return
        self._decision.clear()
        with self._decision:
            with ui.element("div").classes("hp-line").style("padding-bottom: 8px"):
                tag("yes", "good") if decision.train else tag("no", "now")
                said = verdict(decision).says(zone).replace("_", " ")
                text(f"{said[:1].upper()}{said[1:]}.", "hp-verdict hp-wrap", tag="span")
            for condition in decision.conditions:
                _condition(condition, condition.name not in decision.skipped)

    async def _update(self) -> None:
        runs = self._context.sampler.runs.newest_first()
        if self._run_id is None and runs:
            self._run_id = runs[0].run_id
        shown = (self._run_id, self._context.sampler.looked_at)
        if shown == self._shown:
            return
        self._shown = shown
        self._runs.clear()
        with self._runs:
            if not runs:
                text("No run yet.", "hp-muted")
            for run in runs:
                _run(run, chosen=run.run_id == self._run_id, choose=self._choose)
        selected = self._context.sampler.runs.get(self._run_id or "")
        if selected is not None:
            await self._show(selected)

    async def _choose(self, run_id: str) -> None:
        self._run_id = run_id
        await self._update()

    async def _show(self, run: Run) -> None:
        points = await asyncio.to_thread(points_of, self._context, run)
        self._title.set_text(run.run_id)
        for series, part in zip(self._curve.options["series"], PARTS, strict=True):
            series["data"] = [[step, loss] for name, step, loss in points if name == part]
        self._curve.update()
        self._detail.clear()
        with self._detail:
            if not points:
                text("No point of a curve is known yet.", "hp-muted")
            for name, value in sorted(run.metrics.items()):
                if value is not None and value != "" and not isinstance(value, dict | list):
                    pair(name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else value)


def points_of(context: Context, run: Run) -> list[tuple[str, int, float]]:
    """Phase, step and loss: of the run's folder where it can be seen, else of the events."""
    try:
        folder = RunFolder.of(context.settings.training.work_dir, run.run_id)
    except InvalidRecord:  # anyone may write events
        return []
    points = [(str(p["phase"]), int(p["step"]), float(p["loss"])) for p in folder.points() if "loss" in p]
    return points or [(phase, step, loss) for (phase, step), loss in sorted(run.points.items())]


def _condition(condition: Condition, counts: bool) -> None:
    with ui.element("div").classes("hp-row cond"):
        with ui.element("div"):
            if condition.kind == "reason":
                tag("reason", "good") if condition.holds else tag("no reason")
            elif condition.holds:
                tag("fine", "good")
            else:
                tag("in the way", "bad") if counts else tag("does not count")
        text(condition.name.removesuffix("_s").replace("_", " "))
        text(condition.says, "hp-muted hp-wrap says")


def _now_ms() -> int:
    return int(time.time() * 1000)


def _run(run: Run, *, chosen: bool, choose: object) -> None:
    row = (
        ui.element("div").classes("hp-row pair").style("cursor: pointer" + ("; background: #faf8f3" if chosen else ""))
    )
    row.props("role=button tabindex=0").on("click", lambda: choose(run.run_id))  # type: ignore[operator]
    row.on("keydown.enter", lambda: choose(run.run_id))  # type: ignore[operator]
    with row:
        with ui.element("div").classes("hp-line"):
            tag(run.phase, KINDS.get(run.phase, "now"))
            text(f"{datetime.fromtimestamp(run.phases[0][1] / 1000, UTC):%b %d %H:%M}", "hp-muted hp-small", tag="span")
        with ui.element("div"):
            text(run.run_id, "hp-mono")
            reason = run.metrics.get("reason") or run.metrics.get("error")
            took = f"{span(run.seconds)}, ended {at(run.phases[-1][1])}" if run.over else f"{span(run.seconds)} so far"
            text(f"{took}{f': {reason}' if reason else ''}", "hp-muted hp-small hp-wrap")


def _curve() -> ui.echart:
    line = {"type": "line", "symbolSize": 5, "data": [], "lineStyle": {"width": 2}}
    return chart(
        {
            "grid": {"left": 46, "right": 14, "top": 36, "bottom": 38},
            "legend": legend(),
            "tooltip": {"trigger": "axis"},
            "xAxis": axis(type="value", name="step", nameLocation="middle", nameGap=24, minInterval=1),
            "yAxis": axis(type="value", scale=True),
            "series": [{"name": f"{part.upper()} loss", **line} for part in PARTS],
        },
        "Loss by step",
    )
