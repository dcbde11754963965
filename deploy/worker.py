"""`haypile worker`: builds the parts of the chosen agents, runs them, and ends them in order.

The composition root of the agents: they do not know each other, and nothing else knows them all.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from redis.asyncio import Redis

from agents.anchors import Anchors, AnchorStore
from agents.answer import Answer
from agents.curate import Curate, Curator
from agents.forget import Forget, Sweeper
from agents.hop import Handler, Hop
from agents.ingest import Ingest, Seen
from agents.poison import Poison
from agents.rescore import LEASE_S, Rescore
from agents.rules.dead_letter_limit import DeadLetterLimit
from agents.score import Score
from agents.scored_log import Log
from agents.screen import Screen
from deploy import intake
from deploy.clients import judge_pool as judge_pool_of
from deploy.clients import teacher_pool
from deploy.observer import Observer
from streams.app import Hops, Inbound, create_app
from streams.buffer.base import Buffer, rules
from streams.buffer.redis_generations import RedisGenerations
from streams.cancel import end
from streams.errors import Fatal, HaypileError, SettingsError, Transient
from streams.forgotten import ForgottenList
from streams.forgotten_log import REFRESH_S, ForgottenLog
from streams.judge import Judge
from streams.lease import Lease
from streams.metrics import Metrics
from streams.producer import Producer
from streams.redis_client import connect
from streams.retry import OutageLog, patiently
from streams.rewards import Rewarder
from streams.settings import Settings
from streams.topics import Topics, ensure_topics, topic_names
from streams.tracing import Tracing
from streams.vllm import VllmPool

if TYPE_CHECKING:
    from agents.trigger import Trigger

log = logging.getLogger(__name__)

REPAIR_S = 5.0
"""How often to look whether Redis is behind the log."""
THRESHOLD_S = 5.0
"""How often to look what there is to beat, for screening."""


def run_worker(settings: Settings) -> int:
    """Runs the agents of `settings.worker.agents` until SIGTERM or SIGINT. Exit code 0, 1 after `Fatal`, or 2 when
    a file that the settings name is not what it should be."""
    return asyncio.run(_Worker(settings).main())


class _Worker:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.topics: Topics = topic_names(settings.kafka)
        self.metrics = Metrics(CollectorRegistry())
        self.stop = asyncio.Event()
        self.failure: BaseException | None = None
        self.hops: Hops | None = None
        self._outage = OutageLog("start", time.monotonic, self.metrics.health)

    async def main(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        body = asyncio.create_task(self._body())
        stopped = asyncio.create_task(self.stop.wait())
        await asyncio.wait({body, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not body.done():  # `_body` ends by itself once it runs; one that still waits for a dependency is cancelled
            await asyncio.wait({body}, timeout=self.settings.worker.drain_s * 2 + 10)
            await end([body], self.settings.worker.drain_s * 2 + 10)
        stopped.cancel()
        try:
            await body
        except asyncio.CancelledError:
            pass
        except HaypileError as error:
            self.failure = error
        if self.failure is not None:
            print(f"haypile worker: {self.failure}", file=sys.stderr)
            return 2 if isinstance(self.failure, SettingsError) else 1
        return 0

    def fail(self, error: BaseException) -> None:
        """Stops the process with this error; the first one counts."""
        if self.failure is None:
            self.failure = error
        self.stop.set()

    async def _body(self) -> None:
        settings, agents = self.settings, self.settings.worker.agents
        async with AsyncExitStack() as stack:
            self._serve_metrics()
            await self._patiently(lambda: ensure_topics(settings.kafka))
            producer = Producer(settings.kafka)
            await self._patiently(producer.__aenter__)
            stack.push_async_exit(producer)
            client = connect(settings.redis)
            stack.push_async_callback(client.aclose)
            generations = RedisGenerations(
                client, settings.redis.namespace, rules(settings.buffer, "main"), rules(settings.buffer, "eval")
            )
            main, held_out = generations.main, generations.held_out
            seen = Seen(client, settings.redis.namespace, settings.ingest.repeat_window_s)
            forgotten = ForgottenLog(settings.kafka)
            stack.push_async_callback(forgotten.close)
            await self._patiently(forgotten.refresh)  # nothing is handled by an empty list
            judge_pool = await stack.enter_async_context(judge_pool_of(settings))
            judge = Judge(judge_pool, settings.judge, self.metrics)

            handlers: dict[str, tuple[str, Handler]] = {}
            pools = {"judge": judge_pool}
            observer = Observer(
                settings,
                self.metrics,
                client=client,
                buffers={"main": main, "eval": held_out},
                pools=pools,
                taken=lambda: self.hops.taken if self.hops else {},
                folders=_folders(settings),
            )
            chores: list[Callable[[], Awaitable[None]]] = [lambda: observer.run(self._stopped_within)]
            if "ingest" in agents:
                late = _Late()
                handlers["ingest"] = (self.topics.raw, late)
                chores.append(lambda: self._load_ingest(late, seen, producer, forgotten.known))
            if "score" in agents:
                screen = Screen(settings.screen, settings.buffer, self.metrics) if settings.screen.enabled else None
                if screen is not None:
                    chores.append(lambda: self._keep_threshold(screen, main, judge))
                ready = asyncio.Event()
                anchors = Anchors(
                    settings.judge,
                    judge=Judge(judge_pool, settings.judge),
                    store=AnchorStore(client, settings.redis.namespace),
                    metrics=self.metrics,
                )
                chores.append(lambda: anchors.run(self.stop, ready))
                score = Score(
                    self.topics,
                    judge=judge,
                    producer=producer,
                    now_ms=_now_ms,
                    screen=screen,
                    ready=ready,
                    forgotten=forgotten.known,
                )
                handlers["score"] = (self.topics.accepted, score)
                rescore = Rescore(
                    self.topics,
                    judge=judge,
                    generations=generations,
                    lease=Lease(client, settings.redis.namespace, "rescore", LEASE_S),
                    producer=producer,
                    metrics=self.metrics,
                    concurrency=settings.judge.rescore_concurrency,
                    forgotten=forgotten.known,
                )
                chores.append(lambda: self._when(ready, lambda: rescore.run(self.stop)))
            sweeper = None
            if "curate" in agents:
                sweeper = Sweeper(client, settings.redis.namespace, generations, seen)
                curate = Curate(
                    Curator(
                        settings.buffer,
                        main,
                        held_out,
                        _now_ms,
                        generations=generations,
                        forgotten=forgotten.known,
                        refresh=forgotten.refresh,
                    ),
                    [main, held_out],
                    self.topics,
                    log_of_scored=Log(settings.kafka, self.topics),
                    producer=producer,
                    metrics=self.metrics,
                )
                handlers["curate"] = (self.topics.scored, curate)
                chores.append(lambda: self._repair(curate))
            if "answer" in agents:
                answer = await self._answer(stack, client, main, pools, judge)
                chores.append(lambda: answer.run(self.stop))
            if "trigger" in agents:
                trigger = self._trigger(client, main, held_out, producer, forgotten)
                chores.append(lambda: trigger.run(self.stop))
            forget = Forget(forgotten, sweeper)
            chores.append(lambda: self._forget(forget))
            await self._run(handlers, chores, producer, client)

    async def _load_ingest(self, late: _Late, seen: Seen, producer: Producer, forgotten: ForgottenList) -> None:
        """Makes the handler of `ingest`. Its language model takes up to a second to load: the worker joins its group
        meanwhile."""
        ingest = self.settings.ingest
        languages = await asyncio.to_thread(intake.language_detector, ingest)
        late.is_made(
            Ingest(
                ingest,
                self.topics,
                seen=seen,
                contamination=intake.contamination(ingest),
                languages=languages,
                count_tokens=intake.token_counter(ingest.tokenizer),
                redactor=intake.redactor(ingest),
                producer=producer,
                metrics=self.metrics,
                forgotten=forgotten,
            )
        )

    async def _answer(
        self, stack: AsyncExitStack, client: Redis, main: Buffer, pools: dict[str, VllmPool], judge: Judge
    ) -> Answer:
        """The answering loop; adds the servers that it talks to to `pools`, which has the judge's."""
        from streams.training_state import TrainingStateStore

        settings = self.settings
        reward_pool = pools["judge"]
        if settings.reward.kind == "classifier":
            urls = settings.reward.urls or settings.judge.urls
            key = settings.judge.api_key.get_secret_value() if settings.judge.api_key else None
            reward_pool = await stack.enter_async_context(
                VllmPool(urls, api_key=key, concurrency=settings.judge.concurrency, timeout_s=settings.judge.timeout_s)
            )
            pools["reward"] = reward_pool
        teacher = await stack.enter_async_context(teacher_pool(settings))
        pools["teacher"] = teacher
        store = TrainingStateStore(client, settings.redis.namespace)

        async def wanted() -> bool:
            return (await store.load()).answers_wanted

        return Answer(
            settings.answer,
            buffer=main,
            teacher=teacher,
            rewarder=Rewarder(reward_pool, settings, judge.rubric),
            wanted=wanted,
            metrics=self.metrics,
        )

    def _trigger(
        self, client: Redis, main: Buffer, held_out: Buffer, producer: Producer, forgotten: ForgottenLog
    ) -> Trigger:
        # Only a worker that decides about training imports what that needs.
        from agents.trigger import Trigger
        from streams.run_history import RunHistory
        from streams.training_orders import TrainingOrders
        from streams.training_state import TrainingStateStore
        from trainers.recipe import load_recipe
        from trainers.registry import Registry

        settings = self.settings
        recipe = load_recipe(settings.training.recipe)
        registry = Registry(settings.training.registry)
        return Trigger(
            settings,
            self.topics,
            main=main,
            held_out=held_out,
            store=TrainingStateStore(client, settings.redis.namespace),
            lease=Lease(client, settings.redis.namespace, "trigger", settings.trigger.lease_s),
            orders=TrainingOrders(client, settings.redis.namespace),
            history=RunHistory(settings.kafka, self.topics),
            base_model=settings.training.base_model or recipe.base_model,
            champion=lambda: registry.champion().version,
            producer=producer,
            metrics=self.metrics,
            forget=forgotten.refresh,
        )

    async def _run(
        self,
        handlers: dict[str, tuple[str, Handler]],
        chores: Iterable[Callable[[], Awaitable[None]]],
        producer: Producer,
        client: Redis,
    ) -> None:
        worker = self.settings.worker
        tasks = [asyncio.ensure_future(self._guard(chore)) for chore in chores]
        running: list[Hop] = []
        hops: Hops | None = None
        tracing = Tracing(self.settings.tracing)
        if handlers:
            hops = self.hops = create_app(self.settings)
            hops.on_abandoned = lambda name, count: self.metrics.abandoned.labels(name).inc(count)
            for name, (topic, handler) in handlers.items():
                hop = Hop(
                    name,
                    handler,
                    producer=producer,
                    dead_topic=self.topics.dead,
                    metrics=self.metrics,
                    poison=Poison(client, self.settings.redis.namespace, name, worker.window, worker.max_attempts),
                    limit=DeadLetterLimit(worker.max_dead_share),
                    attempts=worker.max_attempts,
                    tracing=tracing,
                    on_fatal=self.fail,
                    now_ms=_now_ms,
                )
                running.append(hop)
                hops.attach(name, topic, worker.window, hop, self.fail)

            def revoked() -> None:
                for hop in running:
                    hop.new_assignment()

            hops.on_revoked = revoked
            if set(hops.app.agents) != set(handlers):
                raise Fatal(f"agents {sorted(hops.app.agents)} are registered instead of {sorted(handlers)}")
        try:
            if hops is not None:
                await hops.app.start()
            agents = ", ".join(self.settings.worker.agents)
            log.info("worker runs %s", agents, extra={"event": "started", "agents": agents})
            await self._until_stopped(hops)
        finally:
            self.stop.set()
            # Both at once, so that the end is one `worker.drain_s` away, not two.
            chores_end = asyncio.ensure_future(asyncio.wait(tasks, timeout=self.settings.worker.drain_s))
            if hops is not None:
                await hops.app.stop()
            await chores_end
            await end(tasks)
            await asyncio.to_thread(tracing.close)
            log.info("worker ended", extra={"event": "ended"})

    async def _until_stopped(self, hops: Hops | None) -> None:
        if hops is None:
            await self.stop.wait()
            return
        result = await hops.app.wait(self.stop.wait())
        if result.stopped and not self.stop.is_set():
            reason = hops.app.crash_reason
            raise Fatal(f"the consumer of Kafka at {self.settings.kafka.bootstrap} ended: {reason!r}")

    async def _guard(self, chore: Callable[[], Awaitable[None]]) -> None:
        try:
            await chore()
        except HaypileError as error:
            self.fail(error)
        except Exception as error:
            log.exception("a background task failed")
            self.fail(Fatal(f"unexpected error: {error!r}"))

    async def _when(self, ready: asyncio.Event, chore: Callable[[], Awaitable[None]]) -> None:
        """The chore, once `ready` is set; nothing if the process stops before that."""
        waits = [asyncio.create_task(ready.wait()), asyncio.create_task(self.stop.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if ready.is_set():
            await chore()

    async def _repair(self, curate: Curate) -> None:
        """Looks every few seconds whether Redis has lost what is committed."""
        outage = OutageLog("repair", time.monotonic, self.metrics.health)
        while not await self._stopped_within(REPAIR_S):
            try:
                await curate.repair()
                outage.worked()
            except Transient as error:
                outage.failed(error)

    async def _forget(self, forget: Forget) -> None:
        """Looks every few seconds whether somebody asked to be forgotten."""
        outage = OutageLog("prompts.forgotten", time.monotonic, self.metrics.health)
        while not await self._stopped_within(REFRESH_S):
            try:
                await forget.once()
                outage.worked()
            except Transient as error:
                outage.failed(error)

    async def _keep_threshold(self, screen: Screen, main: Buffer, judge: Judge) -> None:
        """Tells the screen what there is to beat. Nothing while Redis is away, or holds another judge's ratings."""
        while True:
            try:
                stats = await main.stats()
                screen.threshold = stats.threshold if stats.judge == judge.identity else None
            except Transient:
                screen.threshold = None
            if await self._stopped_within(THRESHOLD_S):
                return

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self.stop.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def _patiently(self, attempt: Callable[[], Awaitable[object]]) -> None:
        await patiently(attempt, self._outage.failed)
        self._outage.worked()

    def _serve_metrics(self) -> None:
        port = self.settings.worker.metrics_port
        if port:
            ProcessCollector(registry=self.metrics.registry)
            try:
                start_http_server(port, registry=self.metrics.registry)
            except OSError as error:
                raise Fatal(f"cannot serve metrics on worker.metrics_port = {port}: {error}") from None


def _folders(settings: Settings) -> dict[str, Path]:
    """Local folders that the chosen agents write to, by setting."""
    snapshots = settings.training.snapshots
    if "trigger" not in settings.worker.agents or "://" in snapshots:
        return {}
    return {"snapshots": Path(snapshots).absolute()}


class _Late:
    """A handler that is made while the worker starts: records wait for it. If it cannot be made the process ends."""

    def __init__(self) -> None:
        self._made = asyncio.Event()
        self._handler: Handler | None = None

    def is_made(self, handler: Handler) -> None:
        self._handler = handler
        self._made.set()

    async def __call__(self, record: Inbound) -> str:
        if self._handler is None:
            await self._made.wait()
        return await self._handler(record)  # type: ignore[misc]


def _now_ms() -> int:
    return int(time.time() * 1000)
