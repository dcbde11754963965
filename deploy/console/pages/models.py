"""The adapters: which one serves, what the gate said of each, and the two ways to change it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from nicegui import ui

from deploy.console.context import Context
from deploy.console.parts import act_button, at, card, frame, pair, problem, tag, text
from streams.errors import HaypileError
from trainers import promotion
from trainers.history import Champion
from trainers.registry import GATE_PAGE, Manifest, Registry, UnknownVersion

BY = "console"
SHOWN = 20
"""The newest versions."""
LOOK_S = 3.0


def register(context: Context) -> None:
    """The page `/models`."""

    @ui.page("/models")
    def models() -> None:
        with frame(context, "/models", "Models", "The adapters that were trained, and which one serves.") as session:
            _Page(context, session)


class _Page:
    def __init__(self, context: Context, session: str | None) -> None:
        self._context = context
        self._session = session
        self._registry = Registry(context.settings.training.registry)
        self._body = ui.element("div").classes("hp-rows").style("gap: 16px")
        self._shown: object = None
        ui.timer(LOOK_S, self._update)

    async def _update(self) -> None:
        try:
            champion = await asyncio.to_thread(self._registry.champion)
            versions = await asyncio.to_thread(self._registry.versions)
        except HaypileError as error:
            self._body.clear()
            with self._body:
                problem(str(error))
            self._shown = None
            return
        shown = (champion, versions)
        if shown == self._shown:
            return  # a reader's open details stay open
        self._shown = shown
        self._body.clear()
        with self._body:
            self._champion(champion, versions)
            for manifest in versions[: -SHOWN - 1 : -1]:
                self._version(manifest, champion.version)
            if len(versions) > SHOWN:
                text(f"and {len(versions) - SHOWN} older ones: haypile models list", "hp-muted")

    def _champion(self, champion: Champion, versions: list[Manifest]) -> None:
        with card("Serves now"):
            text(champion.version or "the base model", "hp-verdict hp-wrap")
            text(f"{len(versions)} adapters are in the registry.", "hp-muted")
            for change in champion.history[:-6:-1]:
                moved = f"{change.kind} to {change.version or 'the base model'} by {change.by}: {change.reason}"
                pair(at(change.at), moved)
            if self._session is None:
                text("Log in to promote or roll back.", "hp-muted hp-small")
                return
            try:
                before = self._registry.previous() or "the base model"
            except UnknownVersion:
                return
            with ui.element("div").classes("hp-actions"):
                question = f"Serve {before} again instead of {champion.version or 'the base model'}?"
                act_button(self._context, self._session, "Roll back", question, self._rollback, self._update)

    def _version(self, manifest: Manifest, champion: str | None) -> None:
        gate = manifest.gate
        with card():
            with ui.element("div").classes("hp-line"):
                text(manifest.version, "hp-h2 hp-wrap", tag="h2")
                if manifest.version == champion:
                    tag("serves", "good")
                elif manifest.canary is not None and not manifest.canary.get("passed"):
                    tag("failed the canary", "bad")
                elif gate is not None:
                    tag("passed the gate", "good") if gate.get("promote") else tag("rejected", "bad")
                else:
                    tag("not judged yet", "now")
                if manifest.pruned_at is not None:
                    tag("weights removed")
            text(f"made {at(manifest.created_at)}, from {manifest.parent or 'the base model'}", "hp-muted hp-small")
            if gate is not None:
                _gate(gate)
            with ui.expansion("Where it comes from").classes("hp-small").props("dense"):
                for name in ("run_id", "base_model", "snapshot", "judge"):
                    pair(name.replace("_", " "), getattr(manifest, name) or "–", "hp-mono")
                for name, value in manifest.metrics.items():
                    if isinstance(value, int | float | str):
                        pair(name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else value)
            if (self._registry.adapters / manifest.version / GATE_PAGE).is_file():
                link = ui.element("a").props(f"href=/gate/{manifest.version} target=_blank rel=noopener")
                with link.classes("hp-small"):
                    text("The gate's report", tag="span")
            if self._session is not None and manifest.version != champion and manifest.pruned_at is None:
                question = f"Load {manifest.version} on every server and serve it?"
                if manifest.refused:
                    question = f"It was refused. {question}"
                with ui.element("div").classes("hp-actions"):
                    promote = self._promote(manifest.version)
                    act_button(self._context, self._session, "Promote", question, promote, self._update)

    def _promote(self, version: str) -> Callable[[str], Awaitable[Any]]:
        return lambda reason: promotion.promote(
            self._context.settings.serving, self._registry, version, reason=reason, by=BY
        )

    async def _rollback(self, reason: str) -> Any:
        return await promotion.rollback(self._context.settings.serving, self._registry, reason=reason, by=BY)


def _gate(gate: dict[str, Any]) -> None:
    """Won, tied and lost as a bar, the win rate with its interval, and the reason."""
    parts = [("wins", "#2e7a4c"), ("ties", "#cfc8b8"), ("losses", "#b23a2e")]
    total = sum(int(gate.get(name) or 0) for name, _ in parts)
    if total:
        with ui.element("div").classes("hp-bar").props('role=img aria-label="Wins, ties and losses"'):
            for name, colour in parts:
                ui.element("div").style(f"width: {100 * int(gate.get(name) or 0) / total:.2f}%; background: {colour}")
    counts = ", ".join(f"{gate.get(name, 0)} {name}" for name, _ in parts)
    line = f"{counts} against {gate.get('champion', 'the champion')} on {gate.get('prompts', total)} held-out prompts"
    text(line, "hp-wrap")
    if isinstance(gate.get("win_rate"), float):
        interval = f" [{gate['lower']:.2f}, {gate['upper']:.2f}]" if "lower" in gate and "upper" in gate else ""
        text(f"win rate {gate['win_rate']:.2f}{interval}", "hp-wrap")
    if gate.get("reason"):
        text(gate["reason"], "hp-muted hp-small hp-wrap")
