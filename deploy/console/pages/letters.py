"""Dead letters: why records could not go on, and the way back."""

import asyncio

from nicegui import ui

from deploy.console.context import Context
from deploy.console.parts import at, card, frame, tag, text
from deploy.feeding import Feed
from deploy.letters import Letter, Replayed, by_reason, replay

SHOWN = 5
"""Of each reason."""


def register(context: Context) -> None:
    """The page `/dead-letters`."""

    @ui.page("/dead-letters")
    def letters() -> None:
        lead = "Records that could not go on. Their bytes are kept, and can be sent back once the cause is mended."
        with frame(context, "/dead-letters", "Dead letters", lead) as session:
            _Page(context, session)


class _Page:
    def __init__(self, context: Context, session: str | None) -> None:
        self._context = context
        self._session = session
        if session is None:
            text("Log in to see what they hold (it is from before redaction) and to send them back.", "hp-note")
        self._body = ui.element("div").classes("hp-rows").style("gap: 16px")
        self._shown: object = None
        self._update()
        ui.timer(2.0, self._update)

    @property
    def _may(self) -> bool:
        """Whether the login goes on: a page may stay open for longer."""
        return self._context.sessions.valid(self._session)

    def _update(self) -> None:
        letters = self._context.sampler.letters()
        shown = (len(letters), letters[-1].position if letters else "", self._may)
        if shown == self._shown:
            return
        self._shown = shown
        self._body.clear()
        with self._body:
            if not letters:
                text("There is none among the latest records of the topic.", "hp-muted")
            for reason, found in by_reason(letters).items():
                self._reason(reason, found)

    def _reason(self, reason: str, letters: list[Letter]) -> None:
        with card():
            with ui.element("div").classes("hp-line"):
                text(reason, "hp-h2", tag="h2")
                tag(f"{len(letters):,}", "bad")
                if self._may:
                    self._replay_button(reason, letters)
            for entry in letters[: -SHOWN - 1 : -1]:
                with ui.element("div").classes("hp-row"):
                    with ui.element("div").classes("hp-line"):
                        text(entry.position, "hp-mono", tag="span")
                        text(at(entry.letter.ts), "hp-muted hp-small", tag="span")
                        if entry.attempts:
                            tag(f"sent back {len(entry.attempts)} times before")
                    text(entry.letter.error, "hp-wrap")
                    if self._may:
                        text(self._context.mask.letter(entry.letter.value) or "(empty)", "hp-text mono")
            if len(letters) > SHOWN:
                text(f"and {len(letters) - SHOWN:,} more: haypile dlq list --reason {reason}", "hp-muted hp-small")

    def _replay_button(self, reason: str, letters: list[Letter]) -> None:
        with ui.dialog() as dialog, ui.card():
            question = (
                f"Send these {len(letters)} records back to where they came from? Those that fail again come back here."
            )
            text(question, "hp-wrap")

            async def do() -> None:
                dialog.close()
                await self._context.act(
                    self._session, f"Replay of {reason}", lambda: asyncio.to_thread(self._replay, letters), _says
                )

            with ui.element("div").classes("hp-actions"):
                ui.button("Send back", on_click=do).props("unelevated no-caps color=brown-8")
                ui.button("Leave them", on_click=dialog.close).props("flat no-caps color=brown-8")
        ui.button("Replay …", on_click=dialog.open).props("outline dense no-caps color=brown-8 padding='2px 10px'")

    def _replay(self, letters: list[Letter]) -> Replayed:
        with Feed(self._context.settings) as feed:
            return replay(feed, letters, None)


def _says(done: Replayed) -> str:
    refused = f", {len(done.refused)} not sent" if done.refused else ""
    return f"{done.sent} sent back, {done.failed} failed{refused}"
