"""One run, from its request to its outcome, as steps that each can be repeated after a crash.

    prepare → train (subprocess) → publish (registry) → gate (vLLM) → promote or reject → outcome

What was done is read from files: the run's folder, the registry, the pointer. A kill between any two steps loses
nothing and repeats nothing that can be seen from outside (an event may be sent twice when the kill falls between its
sending and the note of it; `train.events` is keyed by run).
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from streams.errors import Fatal, HaypileError, Transient
from streams.forgotten import ForgottenList
from streams.metrics import TrainerMetrics
from streams.records import Forgotten, Phase, TrainEvent, TrainRequest
from streams.retry import OutageLog, patiently
from streams.settings import Settings
from streams.snapshots import read_manifest, read_rows
from streams.vllm import VllmPool
from trainers.canary import CanaryFailed
from trainers.everyday import everyday_rows
from trainers.forgetting import (
    Forget,
    forget_answers_of,
    has_changed,
    has_learned,
    prompt_ids,
    start_over,
    states_of,
)
from trainers.gate import Pairs, Rewards, evaluate
from trainers.gate_page import page
from trainers.launch import TrainingProcess
from trainers.lineage import learned_from
from trainers.promotion import Servers, adapter_name, move, served_name
from trainers.recipe import Recipe
from trainers.registry import Manifest, Registry
from trainers.run import BUSY
from trainers.rundir import Failure, Plan, Record, RunFolder
from trainers.verdict import GateReport

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Training processes that may die without saying why (the kernel's OOM killer, a driver) before the run is failed. Each
goes on from the last checkpoint, so that a machine that is rebooted often still gets to the end: those do not count."""
GATE_ATTEMPTS = 3
"""A server that restarts during the gate forgets the challenger: it is loaded again, so many times."""
FOLLOW_S = 1.0
"""How often progress is read."""
AGAIN_S = 5.0
"""Pause before a training process is started again."""
POINT_S = 15.0
"""At most so often a point of the learning curve goes to `train.events`; the run's folder has all of them."""
POINT = ("step", "steps", "loss", "learning_rate", "tokens_per_s")
"""What a point in `train.events` says: such an event repeats the phase, with `step` among its metrics."""

Publish = Callable[[TrainEvent], Awaitable[None]]
StillOurs = Callable[[], Awaitable[None]]


class RunFailed(HaypileError):
    """The run cannot succeed."""

    def __init__(self, reason: str, error: str) -> None:
        super().__init__(f"{reason}: {error}")


class LeaseLost(HaypileError):
    """Another trainer has taken over: leave the run to it."""


class Runner:
    """Does runs. `publish` sends an event and returns when the broker has it; `rewards` rates answers in the gate,
    `pairs` compares them (needed where a recipe says `gate.by: judge_pairs`)."""

    def __init__(
        self,
        settings: Settings,
        recipe: Recipe,
        *,
        registry: Registry,
        publish: Publish,
        rewards: Rewards,
        metrics: TrainerMetrics,
        pairs: Pairs | None = None,
        forget: Forget | None = None,
    ) -> None:
        self._forget = forget
        self._settings = settings
        self._recipe = recipe
        self._registry = registry
        self._publish = publish
        self._rewards = rewards
        self._pairs = pairs
        self._metrics = metrics

    async def do(self, request: TrainRequest, still_ours: StillOurs) -> Phase:
        """Bring the run to its end and return how it ended; a run that has ended is not run again.

        `still_ours` raises `LeaseLost` when another trainer has taken over. Cancelling ends the training process and
        leaves the run to be gone on with. Raises `InvalidRecord` for a run id that is no name, `Fatal` for a folder
        that cannot be read, `Transient` and `OSError` where a lock or a disk is in the way.
        """
        folder = RunFolder.of(self._settings.training.work_dir.absolute(), request.run_id)
        await asyncio.to_thread(folder.path.mkdir, parents=True, exist_ok=True)
        run = _Run(folder, request, self._publish, self._metrics)
        if run.record.outcome is None:
            try:
                outcome, reason = await self._steps(run, still_ours)
            except (Transient, LeaseLost, OSError):
                raise
            except HaypileError as error:
                outcome, reason = "failed", str(error)
            except Exception as error:  # a defect must not stop the trainer: the run fails and says so
                log.exception("run %s", request.run_id)
                outcome, reason = "failed", f"unexpected: {type(error).__name__}: {error}"
            if outcome == "failed" and run.record.version is not None:
                await self._withdraw(run.record.version)
            run.end(outcome, reason)
            self._metrics.runs.labels(outcome).inc()
            log.info("run %s: %s: %s", request.run_id, outcome, reason)
        final = run.record.outcome
        if final is None:
            raise RuntimeError("a run has ended without an outcome")
        await run.announce(final, {"reason": run.record.reason})
        self._metrics.show_phase(None)
        return final

    async def _steps(self, run: "_Run", still_ours: StillOurs) -> tuple[Phase, str]:
        await run.announce("queued", {"snapshot": run.request.snapshot, "reasons": ", ".join(run.request.reasons)})
        plan = await self._trained(run)
        manifest = await asyncio.to_thread(self._into_registry, run, plan)
        run.record.version = manifest.version
        run.save()

        async def still_right() -> None:
            await still_ours()
            await self._check_learned(run, plan)

        await self._check_learned(run, plan)  # who asks from here on finds the version in the registry
        await run.announce("gate", {"version": manifest.version})
        report = await self._gate(run, plan, manifest)
        numbers = {name: value for name, value in report.items() if isinstance(value, float | int | str | bool)}
        run.learned({f"gate_{name}": value for name, value in numbers.items()})
        if not report["promote"]:
            await self._withdraw(manifest.version)
            return "rejected", str(report["reason"])
        await run.announce("promote", {})
        try:
            name = await self._promote(manifest.version, str(report["reason"]), still_right)
        except CanaryFailed as error:
            return "rejected", f"{error} (the gate had said: {report['reason']})"
        run.learned({"served_as": name})
        return "done", str(report["reason"])

    async def _trained(self, run: "_Run") -> Plan:
        """Train by the plan; anew, when something in its snapshots was forgotten while it trained."""
        while True:
            forgotten = await self._forgotten()
            plan = await asyncio.to_thread(self._plan, run, forgotten.records())
            await self._train(run, plan)
            if self._registry.of_run(run.request.run_id) or not await asyncio.to_thread(has_changed, plan):
                return plan
            log.warning("run %s starts over: something that it trained on was forgotten", run.request.run_id)
            await asyncio.to_thread(start_over, run.folder)

    async def _check_learned(self, run: "_Run", plan: Plan) -> None:
        if await asyncio.to_thread(has_changed, plan):
            await asyncio.to_thread(start_over, run.folder)
            raise RunFailed("forgotten", "its adapter may have learned from something that was forgotten meanwhile")

    async def _forgotten(self) -> ForgottenList:
        if self._forget is None:
            return ForgottenList()
        outage = OutageLog("prompts.forgotten", time.monotonic)
        found = await patiently(self._forget, outage.failed)
        outage.worked()
        return found

    def _plan(self, run: "_Run", forgotten: list[Forgotten]) -> Plan:
        """The plan of the run: made once, then read."""
        plan = run.folder.read(Plan, "plan.json")
        if plan is not None:
            return plan
        request, training = run.request, self._settings.training
        base = request.base_model
        for version in {request.parent_adapter, self._registry.champion().version} - {None}:
            trained_on = self._registry.show(str(version)).base_model
            if trained_on != base_name(base):
                raise RunFailed(
                    "base_model", f"{version} was trained on {trained_on}, this run is of {base_name(base)}"
                )
        champion = self._registry.champion().version
        parent = request.parent_adapter if self._recipe.start == "champion" else None
        if parent is not None and parent != champion and has_learned(self._registry, parent):
            raise RunFailed(
                "forgotten", f"{parent}, which it was to go on from, learned from what was forgotten and serves no more"
            )
        earlier = [s for s in learned_from(self._registry.lineage(request.parent_adapter)) if s != request.snapshot]
        plan = Plan(
            snapshot=request.snapshot,
            base_model=base,
            recipe=self._recipe,
            parent=str(self._registry.path(parent)) if parent else None,
            champion=str(self._registry.path(champion)) if champion else None,
            earlier_snapshots=earlier[: self._recipe.data.replay_snapshots],
            held_out_snapshots=sorted({m.snapshot for m in self._registry.versions()} - {request.snapshot}),
            forgotten=forgotten,
        )
        replayed = plan.earlier_snapshots if self._recipe.data.replay_share > 0 else []
        plan.trained_on = states_of([plan.snapshot, *replayed])
        run.folder.write("request.json", request)
        run.folder.write("plan.json", plan)
        log.info("run %s: %s from %s in %s", request.run_id, training.recipe, request.snapshot, run.folder.path)
        return plan

    async def _train(self, run: "_Run", plan: Plan) -> None:
        """Until both phases are complete. Raises `RunFailed`."""
        while not {"sft", "dpo"} <= set(run.folder.progress().completed):
            (run.folder.path / "error.json").unlink(missing_ok=True)
            code = await self._attempt(run, plan)
            if code == 0:
                continue
            failure = run.folder.read(Failure, "error.json")
            if failure is not None and failure.reason != "unexpected":
                raise RunFailed(failure.reason, failure.error)
            if code != BUSY:
                run.record.attempts += 1
                run.save()
                said = failure.error if failure else f"{ended(code)}: {run.folder.log_tail() or 'no output'}"
                if run.record.attempts >= MAX_ATTEMPTS:
                    raise RunFailed("crashed", f"training died {MAX_ATTEMPTS} times; the last time: {said}")
                log.warning("run %s: training died, going on from its last checkpoint: %s", run.request.run_id, said)
            await asyncio.sleep(AGAIN_S)
        await self._follow(run)

    async def _attempt(self, run: "_Run", plan: Plan) -> int:
        process = TrainingProcess(run.folder, plan.recipe)
        try:
            await process.start()
            while True:
                code = await process.wait(FOLLOW_S)
                await self._follow(run)
                if code is not None:
                    return code
        finally:
            await asyncio.shield(process.stop())

    async def _follow(self, run: "_Run") -> None:
        """Announce the phase that training is in; each with what is known by then."""
        progress = run.folder.progress()
        run.learned(progress.metrics)
        phases: tuple[Phase, ...] = ("sft", "dpo")
        for phase in phases:
            if progress.phase == phase or phase in progress.completed:
                await run.announce(phase, {})
        points = [point for point in run.folder.points() if "loss" in point]
        if points:
            self._metrics.show_point(points[-1])
            await run.point(points[-1])
        self._metrics.show_rows(progress.metrics)

    def _into_registry(self, run: "_Run", plan: Plan) -> Manifest:
        return self._registry.publish(
            run.folder.result(),
            run_id=run.request.run_id,
            snapshot=run.request.snapshot,
            base_model=base_name(plan.base_model),
            parent=Path(plan.parent).name if plan.parent else None,
            recipe=plan.recipe.model_dump(mode="json"),
            judge=read_manifest(run.request.snapshot).judge,
            # What it learned from besides its own snapshot: a run that starts from the base has no parent that says so.
            metrics={**run.folder.progress().metrics, "earlier_snapshots": plan.earlier_snapshots},
            now_ms=int(time.time() * 1000),
            trained_on=plan.trained_on,
        )

    async def _gate(self, run: "_Run", plan: Plan, manifest: Manifest) -> dict[str, Any]:
        """The gate's report as kept in the version's manifest; an earlier attempt's is not made again."""
        report = self._registry.show(manifest.version).gate
        if report is not None:
            return report
        rows = await asyncio.to_thread(read_rows, run.request.snapshot, "eval")
        for attempt in range(1, GATE_ATTEMPTS + 1):
            try:
                made = await self._compare(rows, plan, manifest.version)
                break
            except Fatal as error:
                if attempt == GATE_ATTEMPTS:
                    raise RunFailed("gate", str(error)) from None
                log.warning("gate: %s; once more", error)
        await asyncio.to_thread(self._registry.set_gate, manifest.version, msgspec.to_builtins(made), page(made))
        # Who asks from here on finds the report; what was asked before is taken out by us.
        gone = prompt_ids(rows, await self._forgotten())
        if gone:
            await asyncio.to_thread(forget_answers_of, self._registry, manifest.version, gone)
        return self._registry.show(manifest.version).gate or {}

    async def _compare(self, rows: list[dict[str, Any]], plan: Plan, challenger: str) -> GateReport:
        serving, champion = self._settings.serving, self._registry.champion().version
        everyday = everyday_rows(self._settings.training.everyday) if plan.recipe.gate.everyday.prompts else []
        key = serving.api_key.get_secret_value() if serving.api_key else None
        # An answer of the gate takes as long as an answer of the teacher; loading an adapter has its own limit.
        pool = VllmPool(
            serving.urls,
            api_key=key,
            concurrency=plan.recipe.gate.concurrency,
            timeout_s=self._settings.answer.timeout_s,
        )
        outage = OutageLog("gate", time.monotonic)
        async with Servers(serving) as servers, pool:
            for version in filter(None, (champion, challenger)):
                await patiently(lambda v=version: servers.load(self._registry, v), outage.failed)  # type: ignore[misc]
                outage.worked()
            return await evaluate(
                rows,
                pool=pool,
                champion=served_name(serving, champion),
                challenger=adapter_name(serving, challenger),
                rewards=self._rewards,
                pairs=self._pairs,
                recipe=plan.recipe.gate,
                everyday=everyday,
                seed=plan.recipe.seed,
            )

    async def _promote(self, version: str, reason: str, still_ours: StillOurs) -> str:
        outage = OutageLog("promotion", time.monotonic)
        async with Servers(self._settings.serving) as servers:
            return await patiently(
                lambda: move(servers, self._registry, version, reason=reason, by="trainer", still_ours=still_ours),
                outage.failed,
            )

    async def _withdraw(self, version: str) -> None:
        """A challenger that will not serve is unloaded, unless it is the champion after all."""
        if self._registry.champion().version != version:
            async with Servers(self._settings.serving) as servers:
                await servers.unload(version)


def ended(code: int) -> str:
    """How a process ended, for people."""
    killed = " (SIGKILL: by the kernel when memory is short, or by hand)" if code in (-9, 137) else ""
    return f"ended with {code}{killed}"


class _Run:
    """A run's folder with what the service notes in it."""

    def __init__(self, folder: RunFolder, request: TrainRequest, publish: Publish, metrics: TrainerMetrics) -> None:
        self.folder = folder
        self.request = request
        self.record: Record = folder.record()
        self._known_outcome = self.record.outcome
        """The outcome in the file, as far as we know."""
        self._publish = publish
        self._metrics = metrics
        self._point_at = time.monotonic()

    def save(self) -> None:
        self._check()
        self.folder.write("record.json", self.record)

    def _check(self) -> None:
        """Raises `LeaseLost` when the run has ended without us: we slept past our lease, the file knows more."""
        if self._known_outcome is None and self.folder.record().outcome is not None:
            raise LeaseLost("the run has ended while this trainer was stopped")

    def learned(self, metrics: dict[str, Any]) -> None:
        self.record.metrics |= metrics

    def end(self, outcome: Phase, reason: str) -> None:
        """Write the outcome: from here on the run is not run again."""
        self.record.outcome, self.record.reason = outcome, reason
        self.save()
        self._known_outcome = outcome

    async def announce(self, phase: Phase, metrics: dict[str, Any]) -> None:
        """Send the event of a phase with all metrics so far, once."""
        if phase in self.record.published:
            return
        self._check()
        self.learned(metrics)
        self._metrics.show_phase(phase)
        await self._send(phase, self.record.metrics)
        self.record.published.append(phase)
        self.save()
        self._point_at = time.monotonic()

    async def point(self, point: dict[str, float | int | str]) -> None:
        """Send a point of the learning curve, a new one every `POINT_S` at most; never one of a phase not announced."""
        phase: Phase = "sft" if point["phase"] == "sft" else "dpo"
        step = int(point["step"])
        is_new = step > self.record.points.get(phase, 0)
        if phase not in self.record.published or not is_new or time.monotonic() - self._point_at < POINT_S:
            return
        self._check()
        await self._send(phase, {name: point[name] for name in POINT if name in point})
        self.record.points[phase] = step
        self.save()
        self._point_at = time.monotonic()

    async def _send(self, phase: Phase, metrics: dict[str, Any]) -> None:
        event = TrainEvent(run_id=self.request.run_id, phase=phase, metrics=metrics, ts=int(time.time() * 1000))
        outage = OutageLog("train.events", time.monotonic)
        await patiently(lambda: self._publish(event), outage.failed)


def base_name(base_model: str) -> str:
    """What an adapter says that it belongs to: the name of the model, not the folder that it happens to be in.

    A folder made by `trainers.base_model` says which model it is; of others the folder's name is all there is.
    """
    folder = Path(base_model)
    if not folder.is_dir():
        return base_model
    try:
        mark = msgspec.json.decode((folder / "haypile-base.json").read_bytes())
        return str(mark["model"])
    except (OSError, msgspec.MsgspecError, KeyError, TypeError):
        return folder.resolve().name
