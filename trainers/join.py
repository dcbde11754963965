"""`haypile trainer --join RANK`: another machine of a recipe with `launch.num_machines` above 1.

The trainer service is machine 0 and decides; its plan in the run's folder (on a disk that all see) is all that the
others need. Such a machine starts its processes of the run that is being trained, and they find the first machine's at
`launch.main_address`; when they end, however, it looks again. It knows no Kafka, no Redis and no vLLM.
"""

import asyncio
import logging
import signal
from pathlib import Path

from streams.errors import Fatal
from trainers.launch import TrainingProcess
from trainers.rundir import Plan, RunFolder

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""How often the folder of the runs is looked at."""
END_S = 60.0
"""When a run is trained its processes end by themselves, and the launchers of all machines wait for each other to do so
(for five minutes): ending one by force would hold up the first machine."""


def run(work_dir: Path, rank: int) -> None:
    """`follow` until SIGTERM or Ctrl-C."""

    async def until_signal() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await follow(work_dir.absolute(), rank, stop)

    asyncio.run(until_signal())


def open_run(work_dir: Path, rank: int) -> tuple[RunFolder, Plan] | None:
    """The run that has training left to do on machine `rank`, the one planned last of several; None for none.

    A run that cannot be read is passed over: it is the service that fails it.
    """
    found: list[tuple[float, RunFolder, Plan]] = []
    for file in work_dir.glob("*/plan.json"):
        folder = RunFolder(file.parent)
        try:
            plan = folder.read(Plan, "plan.json")
            if plan is not None and rank < plan.recipe.launch.num_machines and is_open(folder):
                found.append((file.stat().st_mtime, folder, plan))
        except (Fatal, OSError) as error:
            log.debug("%s is passed over: %s", file.parent, error)
    if not found:
        return None
    _, folder, plan = max(found, key=lambda one: one[0])
    return folder, plan


def is_open(folder: RunFolder) -> bool:
    """Whether the run is neither over nor trained."""
    return not folder.is_final() and not {"sft", "dpo"} <= set(folder.progress().completed)


async def follow(work_dir: Path, rank: int, stop: asyncio.Event) -> None:
    """Work as machine `rank` (1 or more) until `stop`; the processes of a run are ended with it."""
    said = False
    while not stop.is_set():
        found = open_run(work_dir, rank)
        if found is None:
            if not said:
                log.info("machine %d waits for a run with that many machines in %s", rank, work_dir)
                said = True
            await _pause(stop)
            continue
        said = False
        await _take_part(*found, rank, stop)
        await _pause(stop)


async def _take_part(folder: RunFolder, plan: Plan, rank: int, stop: asyncio.Event) -> None:
    log.info("machine %d takes part in run %s", rank, folder.path.name)
    process = TrainingProcess(folder, plan.recipe, rank)
    try:
        await process.start()
        code = None
        # They may wait for a first machine that is gone: what the folder says comes first.
        while code is None and not stop.is_set() and is_open(folder):
            code = await process.wait(LOOK_S)
        if code is None and not stop.is_set():
            code = await process.wait(END_S)
        log.info("machine %d: its processes of run %s ended with %s", rank, folder.path.name, code)
    finally:
        await asyncio.shield(process.stop())


async def _pause(stop: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(stop.wait(), LOOK_S)
    except TimeoutError:
        return
