"""Which adapters, snapshots and run folders are kept, and removing the others. `decide` is pure.

Never removed: the champion, its parent, whatever a rollback leads to within `training.keep_adapters`, anything of a run
that is not over, and the snapshots that the replay of a kept adapter draws from. Of a removed adapter the manifest
stays, so that the lineage of its descendants is complete.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from streams.settings import Settings, TrainingSettings
from streams.snapshots import SnapshotError, list_snapshots, read_manifest, remove_snapshot
from trainers.history import Change, champions
from trainers.lineage import learned_from
from trainers.recipe import load_recipe
from trainers.registry import Manifest, Registry
from trainers.rundir import RunFolder

log = logging.getLogger(__name__)

DAY_MS = 86_400_000
YOUNG_MS = DAY_MS
"""Nothing younger goes: a request that names the snapshot may still wait in Kafka."""
STAYS = ("request.json", "record.json")
"""Of a run's folder: what was asked and how it ended. A request that comes again is then not run again."""
PLAN = "plan.json"
"""Removed last: a folder of a run that is over has been cleared when it is gone."""


@dataclass(frozen=True)
class Run:
    """A run's folder."""

    run_id: str
    is_over: bool
    at_ms: int
    snapshot: str
    parent: str | None


@dataclass(frozen=True)
class Stored:
    """Everything there is (of runs whose folder was cleared nothing). `snapshots`: path → epoch milliseconds."""

    versions: Sequence[Manifest]
    lineage: Mapping[str, Sequence[Manifest]]
    """Of every version: itself, its parent and so on, also through removed ones."""
    history: Sequence[Change]
    snapshots: Mapping[str, int]
    runs: Sequence[Run]
    replay_snapshots: int
    """How many the next run draws from (`data.replay_snapshots` of the recipe)."""


@dataclass(frozen=True)
class Prune:
    """What goes."""

    adapters: list[str] = field(default_factory=list)
    snapshots: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)

    def items(self) -> list[tuple[str, list[str]]]:
        """Kind and names."""
        return [("adapter", self.adapters), ("snapshot", self.snapshots), ("run", self.runs)]


def decide(stored: Stored, keep: TrainingSettings, now_ms: int) -> Prune:
    """What goes at `now_ms` (epoch milliseconds), each kind in the order of its age, oldest first."""
    running = [run for run in stored.runs if not run.is_over]
    busy = {run.run_id for run in running}
    served = champions(stored.history)
    path = [version for version in served[-(keep.keep_adapters + 1) :] if version is not None]
    kept = set(path) | {run.parent for run in running if run.parent is not None}
    by_name = {m.version: m for m in stored.versions}
    if served[-1] in by_name:
        kept.add(by_name[str(served[-1])].parent or "")
    kept |= {m.version for m in stored.versions if m.run_id in busy}
    # What is left cannot serve again by a rollback: former champions too far back, and those that never served.
    rest = sorted((m for m in stored.versions if m.version not in kept), key=lambda m: m.created_at)
    never = [m for m in rest if m.version not in served]
    adapters = [m.version for m in rest if m.version in served and not _young(m.created_at, now_ms)]
    adapters += _over([(m.version, m.created_at) for m in never], keep.keep_rejected, keep, now_ms)

    needed = {_name(run.snapshot) for run in running}
    for manifest in stored.versions:
        if manifest.version not in adapters:
            needed |= {_name(snapshot) for snapshot in _replayed(stored.lineage[manifest.version], stored)}
    snapshots = _over(sorted(stored.snapshots.items(), key=lambda item: item[1]), keep.keep_snapshots, keep, now_ms)
    over = sorted(((run.run_id, run.at_ms) for run in stored.runs if run.is_over), key=lambda item: item[1])
    return Prune(
        adapters=[m.version for m in rest if m.version in adapters],
        snapshots=[path for path in snapshots if _name(path) not in needed],
        runs=_over(over, keep.keep_runs, keep, now_ms),
    )


def _over(items: Sequence[tuple[str, int]], count: int, keep: TrainingSettings, now_ms: int) -> list[str]:
    """Of items from old to new those beyond the number or the age."""
    beyond = items[: max(0, len(items) - count)]
    old = [item for item in items if keep.keep_days is not None and now_ms - item[1] > keep.keep_days * DAY_MS]
    return [name for name, at in items if ((name, at) in beyond or (name, at) in old) and not _young(at, now_ms)]


def _name(snapshot: str) -> str:
    """A snapshot's own name: its folder may have been moved, or be named in another way."""
    return snapshot.rstrip("/").rsplit("/", 1)[-1]


def _young(at_ms: int, now_ms: int) -> bool:
    return now_ms - at_ms < YOUNG_MS


def _replayed(lineage: Sequence[Manifest], stored: Stored) -> list[str]:
    """Snapshots that the first of the lineage was trained on and drew from, and those that a run from it would."""
    data = lineage[0].recipe.get("data")
    drew = int(data.get("replay_snapshots", 0)) if isinstance(data, Mapping) else 0
    distinct = learned_from(lineage)
    # One more than is drawn: its own comes first, and so it may for the next run, which then leaves it out.
    return distinct[: max(drew, stored.replay_snapshots) + 1]


def prune(settings: Settings, registry: Registry, now_ms: int, *, dry_run: bool = False) -> Prune:
    """Remove what `decide` says (not with `dry_run`); returns it. A kill half-way is made good by the next call.

    Raises `Fatal` (something cannot be read: nothing is removed), `SnapshotError` (a snapshot cannot be removed),
    `SettingsError` (the recipe) and `Transient` (a lock is held). A snapshot that cannot be read stays.
    """
    replay = load_recipe(settings.training.recipe).data.replay_snapshots
    snapshots, runs = _snapshots(settings.training.snapshots), _runs(settings.training.work_dir)
    with registry.serving_lock():  # no promotion of what goes; not held while snapshots are read, which may be far away
        versions = registry.versions()
        stored = Stored(
            versions=versions,
            lineage={m.version: registry.lineage(m.version) for m in versions},
            history=registry.champion().history,
            snapshots=snapshots,
            runs=runs,
            replay_snapshots=replay,
        )
        plan = decide(stored, settings.training, now_ms)
        if dry_run:
            return plan
        for version in plan.adapters:
            registry.remove(version, now_ms)
    for path in plan.snapshots:
        remove_snapshot(path)
    for run_id in plan.runs:
        _remove_run(RunFolder.of(settings.training.work_dir, run_id))
    for kind, names in plan.items():
        if names:
            log.info("removed %d of kind %s: %s", len(names), kind, ", ".join(names))
    return plan


def _snapshots(dest: str) -> dict[str, int]:
    found = {}
    for path in list_snapshots(dest):
        try:
            found[path] = int(datetime.fromisoformat(read_manifest(path).created_at).timestamp() * 1000)
        except (SnapshotError, ValueError) as error:
            log.warning("retention: %s stays: %s", path, error)
    return found


def _runs(work_dir: Path) -> list[Run]:
    found = []
    for file in sorted(work_dir.glob("*/request.json")):
        folder = RunFolder(file.parent)
        request = folder.request()
        is_over = folder.is_final()
        if request is None or (is_over and not (folder.path / PLAN).exists()):
            continue
        at_ms = int(max(entry.stat().st_mtime for entry in (file, folder.path)) * 1000)
        found.append(Run(folder.path.name, is_over, at_ms, request.snapshot, request.parent_adapter))
    return found


def _remove_run(folder: RunFolder) -> None:
    for entry in sorted(folder.path.iterdir(), key=lambda entry: entry.name == PLAN):
        if entry.name in STAYS:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)
