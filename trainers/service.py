"""`haypile trainer`: takes requests from `train.requests`, does one run at a time, commits when it is over.

Two threads. The caller's owns Kafka and does nothing but poll, so that neither a stop nor an outage of Kafka waits for
a run. The other runs asyncio: the run, the lease that keeps two trainers apart, and the reconciler that gives a server
the champion that it has lost.

An offset is committed only when its run is final. A trainer that is ended or killed leaves the request uncommitted;
whoever gets it next goes on from the run's folder.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack
from typing import Any, Self, TypeVar

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from streams.cancel import end
from streams.errors import Fatal, HaypileError, InvalidRecord, SettingsError, Transient
from streams.forgotten_log import ForgottenLog
from streams.judge import Judge
from streams.lease import Lease
from streams.metrics import TrainerMetrics
from streams.pairs import PairJudge
from streams.records import TrainEvent, TrainRequest
from streams.redis_client import connect
from streams.retry import OutageLog, patiently
from streams.rewards import Rewarder
from streams.settings import Settings
from streams.vllm import VllmPool
from trainers.everyday import everyday_rows
from trainers.gauges import show, show_served
from trainers.launch import TERM_S
from trainers.launch import check as check_launch
from trainers.promotion import Servers
from trainers.recipe import Recipe, load_recipe
from trainers.registry import Registry
from trainers.reporting import check as check_reporting
from trainers.requests import Requests
from trainers.retention import prune
from trainers.rundir import RunFolder, write_atomic
from trainers.runner import LeaseLost, Runner
from trainers.watch import Watch

log = logging.getLogger(__name__)

LEASE_S = 30.0
"""A trainer that was killed is replaced after this."""
AGAIN_S = 5.0
"""Pause after an outage before a run is gone on with."""

T = TypeVar("T")


def serve(settings: Settings, stop: threading.Event) -> None:
    """Work until `stop`. Returns within seconds of it, with the training process ended and its request uncommitted.

    Raises `SettingsError` (recipe, rubric, registry) and `Fatal`; an unreachable Kafka, Redis or vLLM is waited for.
    """
    recipe = load_recipe(settings.training.recipe)
    everyday_rows(
        settings.training.everyday
    )  # the gate reads it after hours of training: say now what is wrong with it
    check_reporting(recipe)
    check_launch(recipe)
    metrics = TrainerMetrics(CollectorRegistry())
    for folder in (settings.training.work_dir, settings.training.registry):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"settings: training: cannot make the folder {folder}: {error}") from None
    if settings.trainer_metrics_port:
        ProcessCollector(registry=metrics.registry)
        try:
            start_http_server(settings.trainer_metrics_port, registry=metrics.registry)
        except OSError as error:
            raise Fatal(f"cannot serve metrics on port {settings.trainer_metrics_port}: {error}") from None
    requests = Requests(settings, stop, metrics.health)
    with _Loop() as loop:
        trainer = _Trainer(settings, recipe, metrics, requests)
        loop.start(trainer.open()).result()
        beside = [loop.start(work) for work in (trainer.reconcile(), trainer.watch(), trainer.prune())]
        try:
            requests.consume(lambda request: loop.start(trainer.do(request)), lambda: _raise_of(beside))
        finally:
            loop.drain()
            loop.start(trainer.close()).result()
            requests.close()


def _raise_of(futures: "Sequence[Future[None]]") -> None:
    for future in futures:
        if future.done():
            future.result()


class _Loop:
    """An asyncio loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="runs", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def drain(self) -> None:
        """Cancel all that is going on and wait for it: a training process ends with its run."""

        async def cancel_all() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            await end(others, 2 * TERM_S)

        self.start(cancel_all()).result()


class _Trainer:
    """The asyncio side: owns the connections, the lease and the runner."""

    def __init__(self, settings: Settings, recipe: Recipe, metrics: TrainerMetrics, requests: Requests) -> None:
        self._settings = settings
        self._recipe = recipe
        self._metrics = metrics
        self._requests = requests
        self._registry = Registry(settings.training.registry)
        self._stack = AsyncExitStack()

    async def open(self) -> None:
        """Make the clients; nothing is connected to yet."""
        settings = self._settings
        client = connect(settings.redis)
        self._stack.push_async_callback(client.aclose)
        self._lease = Lease(client, settings.redis.namespace, "trainer", LEASE_S)
        forgotten = ForgottenLog(settings.kafka)
        self._stack.push_async_callback(forgotten.close)
        pool = await self._stack.enter_async_context(_reward_pool(settings))
        judge_pool = await self._stack.enter_async_context(_judge_pool(settings))
        rubric = Judge(judge_pool, settings.judge).rubric
        self._runner = Runner(
            settings,
            self._recipe,
            registry=self._registry,
            publish=lambda event: asyncio.to_thread(self._requests.publish, event),
            rewards=Rewarder(pool, settings, rubric),
            metrics=self._metrics,
            pairs=PairJudge(judge_pool, settings, rubric),
            forget=forgotten.refresh,
        )

    async def close(self) -> None:
        """Close the clients."""
        await self._stack.aclose()

    async def do(self, request: TrainRequest) -> None:
        """Bring a request to its end, under the lease; waits out outages and another trainer."""
        outage = OutageLog("trainer", time.monotonic, self._metrics.health)
        waiting = OutageLog("trainer: lease", time.monotonic)
        while True:
            if await patiently(self._lease.hold, outage.failed) is None:
                outage.worked()
                waiting.failed(Transient("another trainer holds it"))
                await asyncio.sleep(1)
                continue
            waiting.worked()
            try:
                await self._under_lease(request)
                outage.worked()
                return
            except (InvalidRecord, Fatal) as error:
                outage.worked()
                await self._refuse(request, error)
                return
            except LeaseLost as error:
                log.warning("run %s: %s", request.run_id, error)
            except (Transient, OSError) as error:
                outage.failed(error)
                await asyncio.sleep(AGAIN_S)
            finally:
                await self._release()

    async def _under_lease(self, request: TrainRequest) -> None:
        folder = RunFolder.of(self._settings.training.work_dir, request.run_id)
        if self._is_stale(request) and folder.request() is None:
            raise InvalidRecord("stale", f"fencing number {request.fencing} is older than one already seen")
        work = asyncio.create_task(self._runner.do(request, self._still_ours))
        keeper = asyncio.create_task(self._keep_lease())
        try:
            await asyncio.wait({work, keeper}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise LeaseLost("the lease is lost: another trainer goes on with it")
            await work
        finally:
            await end([keeper])
            await end([work], 2 * TERM_S)  # it waits so long for the training process at most

    async def _still_ours(self) -> None:
        if not await self._lease.renew():
            raise LeaseLost("the lease was lost before the promotion")

    async def _keep_lease(self) -> None:
        """Returns when the lease is lost. While Redis is away nobody else can take it either."""
        outage = OutageLog("trainer: lease", time.monotonic)
        while await patiently(self._lease.renew, outage.failed):
            outage.worked()
            await asyncio.sleep(LEASE_S / 3)

    async def _release(self) -> None:
        try:
            await self._lease.release()
        except HaypileError as error:
            log.warning("the lease runs out by itself: %s", error)

    async def _refuse(self, request: TrainRequest, error: HaypileError) -> None:
        """A request that cannot become a run fails at once, and says so."""
        log.error("run %r is refused: %s", request.run_id, error)
        self._metrics.runs.labels("failed").inc()
        event = TrainEvent(
            run_id=request.run_id, phase="failed", metrics={"reason": str(error)}, ts=int(time.time() * 1000)
        )
        await patiently(lambda: asyncio.to_thread(self._requests.publish, event))

    def _is_stale(self, request: TrainRequest) -> bool:
        """Whether a trigger that had lost its lease asked: a newer trigger's request, with a higher fencing number, was
        seen, and it was not asked later. (Fencing numbers start anew with an emptied Redis; time does not. A request
        from the future was written under a clock that was ahead, and counts as asked now.)"""
        file = self._settings.training.work_dir / "newest-request.json"
        try:
            newest = msgspec.json.decode(file.read_bytes(), type=TrainRequest)
        except (FileNotFoundError, msgspec.MsgspecError):
            newest = None
        if newest and request.fencing < newest.fencing and request.requested_at <= newest.requested_at:
            return request.fencing > 0  # 0: asked by hand
        asked = min(request.requested_at, int(time.time() * 1000))
        write_atomic(file, msgspec.json.encode(msgspec.structs.replace(request, requested_at=asked)))
        return False

    async def reconcile(self) -> None:
        """For ever: the champion is on every server, and the metric says which it is. Ends only by a defect."""
        outage = OutageLog("reconciler", time.monotonic, self._metrics.health)
        async with Servers(self._settings.serving) as servers:
            while True:
                try:
                    await asyncio.to_thread(show, self._metrics, self._registry, self._settings.training)
                    self._metrics.reloaded.inc(await servers.reconcile(self._registry))
                    outage.worked()
                except (HaypileError, OSError) as error:
                    outage.failed(error)
                show_served(self._metrics, servers.serves)
                await asyncio.sleep(self._settings.serving.reconcile_s)

    async def watch(self) -> None:
        """For ever: a new champion is looked at in its first minutes, and undone when it fails."""
        outage = OutageLog("watch", time.monotonic)
        serving = self._settings.serving
        watch = Watch(serving, self._registry, self._metrics, lambda: int(time.time() * 1000))
        async with Servers(serving) as servers:
            while True:
                try:
                    await watch.check(servers)
                    outage.worked()
                except (HaypileError, OSError) as error:
                    outage.failed(error)
                await asyncio.sleep(serving.watch_every_s if watch.is_on else 1)

    async def prune(self) -> None:
        """What is not to be kept goes, every `training.prune_every_s`. Ends only by a defect, or when that is null."""
        outage = OutageLog("retention", time.monotonic)
        while self._settings.training.prune_every_s is not None:
            await asyncio.sleep(self._settings.training.prune_every_s)
            try:
                plan = await asyncio.to_thread(prune, self._settings, self._registry, int(time.time() * 1000))
                for kind, names in plan.items():
                    self._metrics.pruned.labels(kind).inc(len(names))
                outage.worked()
            except (HaypileError, OSError) as error:
                outage.failed(error)


def _reward_pool(settings: Settings) -> VllmPool:
    """The servers that rate answers: the judge's, or a reward model's."""
    urls = settings.reward.urls if settings.reward.kind == "classifier" else []
    return _judge_pool(settings, urls)


def _judge_pool(settings: Settings, urls: Sequence[str] = ()) -> VllmPool:
    """The judge's servers, or others that are asked like them."""
    key = settings.judge.api_key.get_secret_value() if settings.judge.api_key else None
    return VllmPool(
        urls or settings.judge.urls,
        api_key=key,
        concurrency=settings.judge.concurrency,
        timeout_s=settings.judge.timeout_s,
    )
