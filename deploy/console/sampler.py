"""Looks at Kafka and Redis every few seconds, once for all who watch. Nothing that blocks runs in the event loop."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec

from deploy.commands.common import generations_of
from deploy.console.history import History, Outcomes, Sample, bar
from deploy.console.runs import Runs
from deploy.degraded import Degradation, degradations
from deploy.kafka import Follower, Message, TopicState, forgotten_in, readers_of, topic_states
from deploy.letters import Letter, letters_of
from deploy.tail import Tail
from streams.buffer.base import BufferStats
from streams.buffer.generations import GenerationState
from streams.errors import HaypileError, Transient
from streams.forgotten import ForgottenList
from streams.health import HealthStore, ProcessHealth
from streams.records import CuratedOutcome, DeadLetter, TrainEvent, decode
from streams.redis_client import connect
from streams.settings import Settings
from streams.topics import topic_names

log = logging.getLogger(__name__)

LAST = 500
"""Records before the end of each partition that are read at the start, and after a flood."""
LIMIT = 5_000
"""Records of one look; more are passed over (the rates are of the offsets, and stay right)."""
LETTERS_BYTES = 20_000_000
"""Of dead letters that are kept in memory."""

DEAD = "dead letter"
"""Counts among the outcomes."""

T = TypeVar("T")
R = TypeVar("R", bound=msgspec.Struct)


class Sampler:
    """The state of everything as of the last look, and the last hour. `errors` says what could not be looked at."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.history = History()
        self.outcomes = Outcomes()
        self.runs = Runs()
        self.topics: dict[str, TopicState] = {}
        self.stats: BufferStats | None = None
        self.held_out: BufferStats | None = None
        self.generation: GenerationState | None = None
        self.processes: list[ProcessHealth] = []
        self.degraded: list[Degradation] = []
        self.errors: dict[str, str] = {}
        self.looked_at: float | None = None
        self._clock = clock
        self._names = topic_names(settings.kafka)
        self._letters: deque[Message] = deque()
        self._letters_bytes = 0
        self._tail: Tail | None = None
        self._deletions: Follower | None = None
        self._asked: list[Message] = []
        self._forgotten: ForgottenList | None = None
        """None until it is read: nothing is shown that may be on it."""
        # kafka-python's consumers are for one thread.
        self._thread = ThreadPoolExecutor(1, "console-kafka")

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                await self.look()
                await asyncio.sleep(self.settings.console.interval_s)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def look(self) -> None:
        """One look; raises nothing."""
        now = self._clock()
        kafka, _ = await asyncio.gather(self._guarded("Kafka", self._kafka), self._guarded("Redis", self._redis))
        there = self.stats if "Redis" not in self.errors else None
        self.history.add(
            Sample(
                at=now,
                written={name: state.written for name, state in (kafka or {}).items() if state.partitions},
                lags={name: state.lag for name, state in (kafka or {}).items() if state.lag is not None},
                members=None if there is None else there.size,
                bar=None if there is None else bar(there.threshold, self.settings.buffer.half_life_s, now),
            )
        )
        self.outcomes.forget(now)
        self.looked_at = now

    def letters(self) -> list[Letter]:
        """The latest dead letters, the oldest first."""
        return [] if self._forgotten is None else letters_of(self._letters, self._forgotten)

    async def _guarded(self, part: str, look: Callable[[], Awaitable[T]]) -> T | None:
        try:
            found = await look()
        except HaypileError as error:
            self.errors[part] = str(error)
            return None
        except Exception as error:
            # The page of everything else must go on; the defect is in the log.
            log.exception("looking at %s", part)
            self.errors[part] = f"a defect in the console: {error!r}"
            return None
        self.errors.pop(part, None)
        return found

    async def _kafka(self) -> dict[str, TopicState]:
        loop = asyncio.get_running_loop()
        self.topics = await loop.run_in_executor(self._thread, self._states)
        messages, skipped = await loop.run_in_executor(self._thread, self._come)
        self.outcomes.passed_over += skipped
        for message in messages:
            self._take(message)
        return self.topics

    def _states(self) -> dict[str, TopicState]:
        return topic_states(self.settings.kafka, readers_of(self.settings))

    def _come(self) -> tuple[list[Message], int]:
        if self._tail is None:
            names = self._names
            self._tail = Tail(self.settings.kafka, (names.curated, names.dead, names.events), LAST)
        try:
            self._look_for_deletions()
            return self._tail.come(LIMIT)
        except Transient:
            self._tail.close()
            self._tail = None
            raise

    def _look_for_deletions(self) -> None:
        """Bring the list of what is forgotten up to date. Raises `Transient`, and `Fatal` without its key."""
        kafka = self.settings.kafka
        try:
            if self._deletions is None:
                self._deletions = Follower(kafka, (self._names.forgotten,))
                self._asked = list(self._deletions.until_end())
            else:
                self._asked += self._deletions.poll(0.1)
        except Transient:
            if self._deletions is not None:
                self._deletions.close()
            self._deletions, self._forgotten = None, None
            raise
        self._forgotten = forgotten_in(kafka, self._asked)

    def _take(self, message: Message) -> None:
        if message.topic == self._names.curated:
            outcome = _decoded(CuratedOutcome, message)
            if outcome is not None:
                self.outcomes.count(outcome.outcome, outcome.ts)
        elif message.topic == self._names.events:
            event = _decoded(TrainEvent, message)
            if event is not None:
                self.runs.add(event)
        else:
            self._letters.append(message)
            self._letters_bytes += len(message.value)
            letter = _decoded(DeadLetter, message)
            if letter is not None:
                self.outcomes.count(DEAD, letter.ts)
            while self._letters_bytes > LETTERS_BYTES:
                self._letters_bytes -= len(self._letters.popleft().value)

    async def _redis(self) -> None:
        async with generations_of(self.settings) as generations:
            self.stats, self.held_out = await generations.main.stats(), await generations.held_out.stats()
            self.generation = await generations.read()
        client = connect(self.settings.redis)
        try:
            self.processes = await HealthStore(client, self.settings.redis.namespace).read()
        finally:
            await client.aclose()
        self.degraded = degradations(self.processes, self._clock())


class Shared:
    """A value that many ask for and that is dear: fetched once for all who ask within `max_age_s`."""

    def __init__(self, fetch: Callable[[], Awaitable[Any]], max_age_s: float) -> None:
        self._fetch = fetch
        self._max_age_s = max_age_s
        self._lock = asyncio.Lock()
        self._value: Any = None
        self._at = float("-inf")

    def forget(self) -> None:
        """Who asks next gets a new one."""
        self._at = float("-inf")

    async def get(self) -> Any:
        """The value, at most that old. Raises what fetching raises."""
        async with self._lock:
            if time.monotonic() - self._at > self._max_age_s:
                self._value = await self._fetch()
                self._at = time.monotonic()
            return self._value


def _decoded(kind: type[R], message: Message) -> R | None:
    try:
        return decode(kind, message.value)
    except msgspec.MsgspecError:
        return None
