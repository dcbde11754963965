"""A judge is measured before it rates anything, and again on a schedule: prompts of known difficulty, its anchors.

Their Spearman against the labels and their mean are metrics; a judge under the floor is refused. Its first ratings are
kept in Redis under its id: when it rates the same anchors otherwise later, what serves it has changed, and the alarm
says so.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import msgspec
import redis.asyncio

from agents.rules.anchors import Anchor, Measured, measured, pick
from streams.errors import Fatal, InvalidRecord, SettingsError, Transient
from streams.judge import Judge
from streams.metrics import Metrics
from streams.records import Message
from streams.redis_client import translate
from streams.retry import OutageLog
from streams.settings import JudgeSettings

log = logging.getLogger(__name__)

AT_ONCE = 8
"""Anchors rated at the same time: the stream goes on meanwhile."""
AGAIN_S = 2.0
"""Pause while the judge or Redis is away."""
LAST = "last"
"""Field of the latest measurement; the other fields are first ratings by the anchor's id."""


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """The latest look at a judge, as Redis keeps it and `haypile status` shows it."""

    spearman: float | None
    mean: float | None
    drift: float
    rated: int
    unreadable: int
    alarm: bool
    """The drift is over `judge.max_anchor_drift`."""
    ts: int
    """Epoch milliseconds."""


def load_anchors(file: Path | None) -> list[Anchor]:
    """The project's own anchors, or those of a file (JSON lines with `prompt` and `difficulty`).

    Raises `SettingsError` with the line that does not fit.
    """
    name = "judge.anchors_file"
    try:
        text = (file or files("agents") / "data" / "anchors.jsonl").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings: {name}: cannot read {file}: {error}") from None
    anchors = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt, difficulty = row["prompt"], float(row["difficulty"])
            if not isinstance(prompt, str) or not prompt.strip() or not 1 <= difficulty <= 9:
                raise ValueError("`prompt` must be text, `difficulty` a number from 1 to 9")
        except (ValueError, TypeError, KeyError) as error:
            raise SettingsError(f"settings: {name}: {file}, line {number}: {error}") from None
        anchors.append(Anchor(str(row.get("id") or prompt), prompt, difficulty))
    if len({anchor.difficulty for anchor in anchors}) < 2:
        raise SettingsError(f"settings: {name}: {file} has no two prompts of different difficulty")
    return anchors


class AnchorStore:
    """What is remembered of judges in Redis. Methods raise `Transient` and `Fatal` as `streams.redis_client` says."""

    def __init__(self, client: redis.asyncio.Redis, namespace: str) -> None:
        self._client = client
        self._namespace = namespace

    def _key(self, judge: str) -> str:
        return f"{{{self._namespace}}}:anchors:{judge}"

    async def first(self, judge: str, ratings: Mapping[str, float]) -> dict[str, float]:
        """The judge's first ratings of these anchors. `ratings` are the first of those that have none yet."""
        with translate(self._client):
            async with self._client.pipeline(transaction=True) as pipe:
                for id, rating in ratings.items():
                    pipe.hsetnx(self._key(judge), f"anchor:{id}", repr(rating))
                pipe.hmget(self._key(judge), [f"anchor:{id}" for id in ratings] or [LAST])
                *_, kept = await pipe.execute()
        return {id: float(value) for id, value in zip(ratings, kept, strict=False)}

    async def save(self, judge: str, measurement: Measurement) -> None:
        """Keep the latest measurement."""
        with translate(self._client):
            await self._client.hset(self._key(judge), LAST, msgspec.json.encode(measurement).decode())

    async def last(self, judge: str) -> Measurement | None:
        """The latest measurement, None if there is none that can be read."""
        with translate(self._client):
            value = await self._client.hget(self._key(judge), LAST)
        try:
            return None if value is None else msgspec.json.decode(value, type=Measurement)
        except msgspec.MsgspecError:
            return None


class Anchors:
    """Measures one judge by the settings. `judge` should be without metrics: anchors are no prompts of users."""

    def __init__(
        self,
        settings: JudgeSettings,
        *,
        judge: Judge,
        store: AnchorStore,
        metrics: Metrics,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self._settings = settings
        self._anchors = pick(load_anchors(settings.anchors_file), settings.anchors) if settings.anchors else []
        self._judge = judge
        self._store = store
        self._metrics = metrics
        self._now_ms = now_ms
        self._outage = OutageLog("anchors", time.monotonic)

    async def run(self, stop: asyncio.Event, ready: asyncio.Event) -> None:
        """Measures until `stop`, on the schedule of the settings; sets `ready` when the judge may rate. Raises only
        `Fatal`."""
        if not self._anchors:
            ready.set()
            return
        while not stop.is_set():
            pause = self._settings.anchors_every_s
            try:
                await self.once()
                self._outage.worked()
                ready.set()
            except Transient as error:
                self._metrics.retries.labels("anchors").inc()
                self._outage.failed(error)
                pause = AGAIN_S
            try:
                await asyncio.wait_for(stop.wait(), pause)
            except TimeoutError:
                pass

    async def once(self) -> Measured:
        """One measurement. Raises `Transient`, and `Fatal` when the judge is under the floor."""
        ratings = await self._rate(self._anchors)
        judge, bound = self._judge.identity, self._settings.max_anchor_drift
        found = measured(self._anchors, ratings, await self._store.first(judge, ratings))
        alarm = bound is not None and found.drift > bound
        await self._store.save(
            judge,
            Measurement(
                spearman=_known(found.spearman),
                mean=_known(found.mean),
                drift=found.drift,
                rated=found.rated,
                unreadable=found.unreadable,
                alarm=alarm,
                ts=self._now_ms(),
            ),
        )
        self._metrics.anchor_spearman.set(found.spearman)
        self._metrics.anchor_mean.set(found.mean)
        self._metrics.anchor_drift.set(found.drift)
        self._metrics.anchor_alarm.set(alarm)
        self._metrics.anchor_unreadable.set(found.unreadable)
        log.info(
            "anchors: judge %s, Spearman %.2f, mean %.2f, drift %.2f over %d prompts (%d unreadable)",
            *(judge, found.spearman, found.mean, found.drift, found.rated, found.unreadable),
            extra={"event": "anchors", "judge": judge, "spearman": found.spearman, "drift": found.drift},
        )
        if alarm:
            log.warning(
                "anchors: judge %s rates its anchors %.2f points away from its own first ratings "
                "(judge.max_anchor_drift is %g): what serves it has changed; give it another judge.revision",
                *(judge, found.drift, bound),
            )
        floor = self._settings.min_anchor_spearman
        if floor is not None and not found.spearman >= floor:
            raise Fatal(
                f"judge {judge} is refused: on {found.rated} prompts of known difficulty its ratings have a Spearman "
                f"of {found.spearman:.2f}, under judge.min_anchor_spearman = {floor:g}; {found.unreadable} unreadable. "
                "Take another model or rubric, or set it to null to believe this one unmeasured"
            )
        return found

    async def _rate(self, anchors: Sequence[Anchor]) -> dict[str, float]:
        slots = asyncio.Semaphore(AT_ONCE)
        ratings: dict[str, float] = {}

        async def one(anchor: Anchor) -> None:
            async with slots:
                try:
                    ratings[anchor.id] = (await self._judge.rate([Message("user", anchor.prompt)])).difficulty
                except InvalidRecord:
                    pass  # counted as unreadable

        done = await asyncio.gather(*(one(anchor) for anchor in anchors), return_exceptions=True)
        for result in done:
            if isinstance(result, BaseException):
                raise result
        return ratings


def _known(value: float) -> float | None:
    """JSON has no NaN."""
    return value if value == value else None
