"""Logins: a token that is compared in constant time, and sessions that live in this process only."""

import hmac
import secrets
import time
from collections.abc import Callable

from pydantic import SecretStr

from deploy.http.limits import Limiter

COOKIE = "haypile_session"
TRIES = 5
"""Wrong tokens at once, by everybody together; then one in twelve seconds."""


class TooManyTries(Exception):
    """Somebody is guessing: wait."""


class Sessions:
    """Who is logged in. Without a token nobody can be."""

    def __init__(self, token: SecretStr | None, session_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._token = token
        self._session_s = session_s
        self._clock = clock
        self._ends: dict[str, float] = {}
        self._limiter = Limiter(TRIES / 60, TRIES)

    @property
    def possible(self) -> bool:
        """Whether there is a token to log in with."""
        return self._token is not None

    def login(self, token: str) -> str | None:
        """A new session's id for the right token, else None. Raises `TooManyTries`."""
        if self._token is None:
            return None
        if not hmac.compare_digest(token.encode(), self._token.get_secret_value().encode()):
            if self._limiter.take("wrong", 1, self._clock()):
                raise TooManyTries
            return None
        now = self._clock()
        self._ends = {id: end for id, end in self._ends.items() if end > now}
        id = secrets.token_urlsafe(32)
        self._ends[id] = now + self._session_s
        return id

    def valid(self, id: str | None) -> bool:
        """Whether the session is one of ours and goes on. Ids are random: nothing is learned from a look-up's time."""
        return id is not None and self._ends.get(id, 0.0) > self._clock()

    def logout(self, id: str | None) -> None:
        """Ends a session."""
        self._ends.pop(id or "", None)
