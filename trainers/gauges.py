"""What the trainer shows besides its run: from files, so that a restart changes nothing."""

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from streams.errors import HaypileError
from streams.metrics import TrainerMetrics
from streams.records import Phase
from streams.settings import TrainingSettings
from trainers.registry import Registry
from trainers.rundir import FINAL, RunFolder


def show(metrics: TrainerMetrics, registry: Registry, training: TrainingSettings) -> None:
    """Champion, the last gate, rejections in a row, the last run of each outcome, room on the disks.

    Blocks. Raises `Fatal` for a registry that cannot be read.
    """
    champion = registry.champion()
    found = re.match(r"v(\d+)-", champion.version or "")
    metrics.champion.set(int(found[1]) if found else 0)
    if champion.history:
        metrics.champion_since.set(champion.history[-1].at / 1000)
    gates = [manifest.gate for manifest in registry.versions() if manifest.gate is not None]
    metrics.rejections.set(rejections_in_a_row(gates))
    if gates:
        last = gates[-1]
        metrics.gate_prompts.set(last.get("prompts", 0))
        for end, name in (("value", "win_rate"), ("lower", "lower"), ("upper", "upper")):
            if name in last:
                metrics.win_rate.labels(end).set(last[name])
    ended = last_ends(training.work_dir)
    # The folders of runs may be cleared away; the pointer's history stays.
    promoted = [change.at / 1000 for change in champion.history if (change.kind, change.by) == ("promote", "trainer")]
    ended["done"] = max([ended["done"], *promoted])
    for outcome, at in ended.items():
        metrics.last_run.labels(outcome).set(at)
    folders = {"registry": training.registry, "work_dir": training.work_dir}
    metrics.disk.look({name: folder.absolute() for name, folder in folders.items()})


def rejections_in_a_row(gates: Sequence[Mapping[str, Any]]) -> int:
    """Of gate reports, oldest first: those since the last one that let its challenger through."""
    return sum(1 for _ in takewhile(lambda gate: not gate.get("promote"), reversed(gates)))


def last_ends(work_dir: Path) -> dict[Phase, float]:
    """When the last run of each outcome ended (epoch seconds, 0: none), by the files of the runs that are kept."""
    ended = dict.fromkeys(FINAL, 0.0)
    for file in work_dir.glob("*/record.json"):
        try:
            outcome, at = RunFolder(file.parent).record().outcome, file.stat().st_mtime
        except (HaypileError, OSError):
            continue  # another trainer's cleaning, or a damaged run: the run itself says so
        if outcome is not None:
            ended[outcome] = max(ended[outcome], at)
    return ended


def show_served(metrics: TrainerMetrics, serves: Mapping[str, bool]) -> None:
    """Which servers have the champion, by their URL."""
    for url, has_it in serves.items():
        metrics.champion_served.labels(url).set(has_it)
