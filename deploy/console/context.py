"""What the pages share: the sampler, the logins, and who may do what."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from nicegui import ui

from agents.rules.redact import Redactor
from deploy.console.privacy import Mask
from deploy.console.sampler import Sampler, Shared
from deploy.console.sessions import COOKIE, Sessions
from deploy.decision import decide_now
from streams.errors import HaypileError
from streams.settings import Settings

DECISION_AGE_S = 5.0
SEARCHES = 2
"""At once, through the buffer or the topics: readers are not known, and each costs seconds of a core."""


class Context:
    """One a process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.sampler = Sampler(settings)
        self.sessions = Sessions(settings.console.token, settings.console.session_s)
        # Redacted here whatever `ingest.redact` says: what is on a screen is seen by others.
        self.mask = Mask(Redactor(settings.ingest.phone_regions))
        self.searches = asyncio.Semaphore(SEARCHES)
        self.decision = Shared(lambda: decide_now(settings), DECISION_AGE_S)

    def session(self) -> str | None:
        """The session of the page that is being built, if it is one of ours."""
        request = ui.context.client.request
        id = request.cookies.get(COOKIE) if request is not None else None
        return id if self.sessions.valid(id) else None

    async def act(
        self,
        session: str | None,
        what: str,
        action: Callable[[], Awaitable[Any]],
        says: Callable[[Any], str] = lambda done: "done",
    ) -> None:
        """Does what changes something, if the session still goes on, and tells how it went."""
        client = ui.context.client  # the button may be gone when it is done: its page shows what changed

        def tell(line: str, kind: str, ms: int = 5_000) -> None:
            with client:
                ui.notify(line, type=kind, multi_line=True, timeout=ms)  # type: ignore[arg-type]

        if not self.sessions.valid(session):
            tell("The login has ended: log in again", "negative")
            return
        try:
            done = await action()
        except HaypileError as error:
            tell(f"{what}: {error}", "negative", 15_000)
            return
        tell(f"{what}: {says(done)}", "positive")
