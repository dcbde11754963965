"""Ending tasks whose cancellation is swallowed, as a Redis call of Python 3.11 may do."""

import asyncio
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from agents.answer import Answer
from agents.trigger import Trigger
from streams.cancel import end
from streams.metrics import Metrics, TrainerMetrics
from streams.records import Member, TrainRequest
from streams.settings import load_settings
from streams.window import OrderedWindow
from trainers.service import _Trainer


async def deaf(times: int) -> None:
    """Goes on after so many cancellations."""
    while True:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            times -= 1
            if times < 0:
                raise


@pytest.mark.timeout(10)
async def test_a_task_that_swallows_its_cancellation_is_ended() -> None:
    tasks = [asyncio.create_task(deaf(times)) for times in (0, 1, 3)]
    await asyncio.sleep(0)
    await end(tasks, again_s=0.01)
    assert all(task.cancelled() for task in tasks)


async def test_what_has_ended_or_fails_is_left_alone() -> None:
    async def fails() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            raise ValueError

    done, failing = asyncio.create_task(asyncio.sleep(0, 7)), asyncio.create_task(fails())
    await asyncio.sleep(0.01)
    await end([done, failing])
    assert done.result() == 7 and isinstance(failing.exception(), ValueError)


@pytest.mark.timeout(10)
async def test_a_drain_ends_though_a_handler_swallows_the_cancellation() -> None:
    acked: list[int] = []

    async def ack(event: int) -> None:
        acked.append(event)

    window: OrderedWindow[int] = OrderedWindow(4, ack, lambda error: None)
    await window.submit("partition", 1, lambda event: deaf(1))
    assert await window.drain(0.01) == 1
    assert acked == []


class DeafLease:
    """Swallows the first cancellation of a renewal."""

    def __init__(self) -> None:
        self.swallowed = 0

    async def hold(self) -> int:
        return 1

    async def renew(self) -> bool:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            self.swallowed += 1
            if self.swallowed > 1:
                raise
        return True

    async def release(self) -> bool:
        return True


@pytest.mark.timeout(10)
async def test_a_trigger_goes_on_though_the_renewal_of_its_lease_swallows_the_cancellation() -> None:
    trigger = Trigger.__new__(Trigger)
    trigger._lease = lease = DeafLease()  # type: ignore[assignment]
    trigger._settings = load_settings({"trigger": {"lease_s": 1.01}})
    async with trigger._lease_kept():
        await asyncio.sleep(0.5)  # until it renews
    assert lease.swallowed


@pytest.mark.timeout(10)
async def test_a_trainer_goes_on_though_the_renewal_of_its_lease_swallows_the_cancellation(tmp_path: Path) -> None:
    class Runner:
        async def do(self, request: TrainRequest, still_ours: object) -> str:
            await asyncio.sleep(0.05)
            return "done"

    trainer = _Trainer.__new__(_Trainer)
    trainer._lease = lease = DeafLease()  # type: ignore[assignment]
    trainer._settings = load_settings({"training": {"work_dir": str(tmp_path)}})
    trainer._runner = Runner()  # type: ignore[assignment]
    trainer._metrics = TrainerMetrics(CollectorRegistry())
    await trainer.do(TrainRequest(run_id="r", snapshot="s", reasons=[], base_model="b", requested_at=1))
    assert lease.swallowed


@pytest.mark.timeout(10)
async def test_answering_ends_though_an_answer_swallows_the_cancellation() -> None:
    begun = asyncio.Event()

    class Deaf(Answer):
        async def take_up(self, most: int) -> list[Member]:
            return [] if begun.is_set() else [None]  # type: ignore[list-item]

        async def answer(self, member: Member) -> None:
            begun.set()
            await deaf(1)

    settings = load_settings().answer
    answers = Deaf(
        settings,
        buffer=None,  # type: ignore[arg-type]
        teacher=None,  # type: ignore[arg-type]
        rewarder=None,  # type: ignore[arg-type]
        wanted=None,  # type: ignore[arg-type]
        metrics=Metrics(CollectorRegistry()),
    )
    task = asyncio.create_task(answers.run(asyncio.Event()))
    await begun.wait()
    await end([task])
    assert task.cancelled()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others, "no answer is left behind"
