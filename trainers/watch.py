"""The first minutes of a new champion: the canary is repeated, errors of the servers are counted, and when something
fails the version before it serves again.

What is watched follows from the champion's history and the clock, and a file says whose watch is over: a trainer that
is killed in between goes on, and one that comes back late looks at least once. Errors are counted from where a trainer
begins to look. A rollback is not watched: there must be an end.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from streams.errors import HaypileError, Transient
from streams.metrics import TrainerMetrics
from streams.settings import ServingSettings
from streams.vllm import VllmPool
from trainers.canary import probe
from trainers.history import Champion, Change
from trainers.promotion import Servers, adapter_name, move
from trainers.registry import Registry
from trainers.rundir import write_atomic

log = logging.getLogger(__name__)

WATCHED = "watched.json"
LATE_S = 86_400.0
"""A promotion that nobody looked at for so long is not undone by a first look at it."""
ERROR_SHARE = 0.05
"""Of a server's requests since the promotion: below it errors are noise."""


class Watched(msgspec.Struct):
    """`watched.json`: the last promotion whose watch has ended."""

    at: int
    """Epoch milliseconds of the change."""


def watched_change(champion: Champion, over: int | None, serving: ServingSettings, now_ms: int) -> Change | None:
    """The promotion to watch now, None if there is none; `over` is the time of the one whose watch has ended."""
    last = champion.history[-1] if champion.history else None
    if last is None or last.kind != "promote" or last.version is None or last.at == over or not serving.watch_s:
        return None
    return last if now_ms - last.at < (serving.watch_s + LATE_S) * 1000 else None


def too_many(errors: int, requests: int, serving: ServingSettings) -> bool:
    """Whether so many errors since the promotion end it."""
    return serving.watch_errors is not None and errors >= max(serving.watch_errors, ERROR_SHARE * requests)


class Counts:
    """Requests and errors of one server since its watch began."""

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self._last: tuple[int, int] | None = None

    async def look(self, pool: VllmPool) -> bool:
        """Add what the server has counted since the last look; one that cannot be asked is an error by itself. Returns
        whether it answered."""
        try:
            now = await pool.answered(pool.urls[0])
        except HaypileError as error:
            log.warning("watch: %s", error)
            self.requests += 1
            self.errors += 1
            return False
        if now is not None:
            before = self._last or now
            if now[0] < before[0]:  # it was started again and counts anew
                before = (0, 0)
            self.requests += now[0] - before[0]
            self.errors += max(0, now[1] - before[1])
            self._last = now
        return True


class Watch:
    """Looks at the champion; call `check` every `serving.watch_every_s`. `now_ms` is the clock of the history."""

    def __init__(
        self, serving: ServingSettings, registry: Registry, metrics: TrainerMetrics, now_ms: Callable[[], int]
    ) -> None:
        self._serving = serving
        self._registry = registry
        self._metrics = metrics
        self._now_ms = now_ms
        self._change: Change | None = None
        self._counts: dict[str, Counts] = {}

    @property
    def is_on(self) -> bool:
        """Whether the last `check` found a promotion to watch."""
        return self._change is not None

    async def check(self, servers: Servers) -> str | None:
        """One look. Returns what serves now if it went back to the version before.

        Raises `Transient` when a lock is held or a file cannot be written: look again.
        """
        change = watched_change(self._registry.champion(), self._over(), self._serving, self._now_ms())
        if change is None or change.version is None:
            self._change = None
            return None
        if change != self._change:
            self._change, self._counts = change, {pool.urls[0]: Counts() for pool in servers.pools}
            log.info("watching %s", change.version)
        reason, answered = await self._look(servers, change.version)
        if reason is not None:
            self._metrics.watched.labels("failed").inc()
            return await self._go_back(servers, change, reason)
        self._metrics.watched.labels("passed" if answered else "no_answer").inc()
        if answered and self._now_ms() - change.at >= self._serving.watch_s * 1000:
            write_atomic(self._registry.root / WATCHED, msgspec.json.encode(Watched(change.at)))
            log.info("%s has passed its watch", change.version)
        return None

    async def _look(self, servers: Servers, version: str) -> tuple[str | None, bool]:
        """Why it must go, if so; and whether every server answered."""
        answered = True
        for pool in servers.pools:
            counts = self._counts[pool.urls[0]]
            answered = await counts.look(pool) and answered
            if too_many(counts.errors, counts.requests, self._serving):
                return f"{counts.errors} errors in {counts.requests} requests at {pool.urls[0]}", answered
        if not self._serving.canary:
            return None, answered
        try:
            failed = None
            for _ in range(2):  # one bad look may be chance
                report = await probe(servers.pools, self._serving, adapter_name(self._serving, version))
                if report.passed:
                    return None, answered
                failed = f"the canary failed: {report.reason}"
            return failed, answered
        except Transient as error:  # counted above, or the reconciler's to put right
            log.warning("watch: %s", error)
            return None, False

    async def _go_back(self, servers: Servers, change: Change, reason: str) -> str:
        back = self._registry.previous()
        log.error("%s fails in its first minutes (%s): going back", change.version, reason)
        name = await move(servers, self._registry, back, reason=reason, by="watch", kind="rollback", instead_of=change)
        self._metrics.returned.inc()
        log.error("%s serves again", name)
        return name

    def _over(self) -> int | None:
        path: Path = self._registry.root / WATCHED
        try:
            return msgspec.json.decode(path.read_bytes(), type=Watched).at
        except (OSError, msgspec.MsgspecError):
            return None
