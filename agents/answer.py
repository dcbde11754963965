"""Members of the buffer get candidate answers: k from the teacher, the production response, one reward each."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import msgspec

from streams.buffer.base import Buffer
from streams.cancel import end
from streams.errors import InvalidRecord, Transient
from streams.metrics import Metrics
from streams.records import Candidate, Member
from streams.retry import OutageLog, patiently
from streams.rewards import Rewarder
from streams.settings import AnswerSettings
from streams.vllm import BadRequest, TooLong, VllmPool

log = logging.getLogger(__name__)

CLAIM_SLACK_S = 30
"""Added to the request's time-out: a member claimed by a worker that died is free again after that."""


class Answer:
    """Answers the hardest members that have no answers yet, a batch at a time."""

    def __init__(
        self,
        settings: AnswerSettings,
        *,
        buffer: Buffer,
        teacher: VllmPool,
        rewarder: Rewarder,
        wanted: Callable[[], Awaitable[bool]],
        metrics: Metrics,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self._settings = settings
        self._buffer = buffer
        self._teacher = teacher
        self._rewarder = rewarder
        self._wanted = wanted
        self._metrics = metrics
        self._now_ms = now_ms
        self._outage = OutageLog("answer", time.monotonic, metrics.health)

    async def run(self, stop: asyncio.Event) -> None:
        """Keeps `answer.batch` members in progress until `stop`: a long answer holds up nobody else. Raises only
        `Fatal`."""
        running: set[asyncio.Task[None]] = set()
        try:
            while not stop.is_set():
                members: list[Member] = []
                try:
                    members = await self.take_up(self._settings.batch - len(running))
                    self._outage.worked()
                except Transient as error:
                    self._waiting(error)
                running |= {asyncio.create_task(self.answer(member)) for member in members}
                if len(running) < self._settings.batch:  # there are no more
                    await _sleep(stop, self._settings.interval_s)
                elif running:
                    await self._one_of(running, stop)
                done = {task for task in running if task.done()}
                for task in done:
                    task.result()
                running -= done
            await asyncio.gather(*running)
        finally:
            await end(running)

    async def take_up(self, most: int) -> list[Member]:
        """Claims up to `most` of the hardest members that may be answered now. Raises `Transient` and `Fatal`."""
        if self._settings.when == "run" and not await self._wanted():
            return []
        settled = self._settings.settle_s if self._settings.when == "settled" else 0.0
        return await self._buffer.unanswered(
            most,
            admitted_before_ms=self._now_ms() - int(settled * 1000),
            claim_s=self._settings.timeout_s + CLAIM_SLACK_S,
        )

    async def answer(self, member: Member) -> None:
        """Answers a member that was taken up; waits out an outage. Raises `Fatal`."""
        with self._metrics.in_flight.labels("answer").track_inprogress():
            await patiently(lambda: self._attempt(member), self._waiting)
        self._outage.worked()

    @staticmethod
    async def _one_of(running: set[asyncio.Task[None]], stop: asyncio.Event) -> None:
        """Returns when one is done, or with `stop`."""
        stopped = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({*running, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()

    def _waiting(self, error: Transient) -> None:
        self._metrics.retries.labels("answer").inc()
        self._outage.failed(error)

    async def _attempt(self, member: Member) -> None:
        started = time.perf_counter()
        try:
            candidates = await self._candidates(member)
            outcome = "answered" if candidates else "unanswerable"
        except InvalidRecord as error:
            # Nothing is lost: the member stays, with what production answered at most, and is not asked for again.
            log.info("answer: no candidates for %s: %s", member.prompt.id, error)
            candidates, outcome = [], "unanswerable"
        if not await self._buffer.attach(member.prompt.id, candidates):
            outcome = "gone"
        self._metrics.records.labels("answer", outcome).inc()
        for candidate in candidates:
            self._metrics.answers.labels(candidate.origin).inc()
        self._metrics.answer_seconds.observe(time.perf_counter() - started)

    async def _candidates(self, member: Member) -> list[Candidate]:
        prompt = member.prompt
        try:
            texts = await self._teacher.chat(
                [msgspec.to_builtins(message) for message in prompt.messages],
                model=self._settings.model,
                n=self._settings.k,
                temperature=self._settings.temperature,
                top_p=self._settings.top_p,
                max_tokens=self._settings.max_tokens,
            )
        except (TooLong, BadRequest) as error:
            raise InvalidRecord("teacher_refused", str(error)) from None
        found = [Candidate(text=text, reward=0.0, origin="teacher", model=self._settings.model) for text in texts]
        if prompt.response:
            found.append(Candidate(text=prompt.response, reward=0.0, origin="production"))
        found = [candidate for candidate in found if candidate.text.strip()]
        rewards = await self._rewarder.reward(prompt.messages, [candidate.text for candidate in found])
        for candidate, reward in zip(found, rewards, strict=True):
            candidate.reward = reward
        return found


async def _sleep(stop: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        pass
