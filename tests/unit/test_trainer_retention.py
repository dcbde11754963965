"""Retention: what must stay stays, whatever happened before; what goes is gone, and lineage remembers it."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.errors import Fatal, Transient
from streams.records import TrainRequest
from streams.settings import Settings, TrainingSettings
from streams.snapshots import Manifest as SnapshotManifest
from streams.snapshots import list_snapshots, write_snapshot
from tests.support.cluster import publish
from tests.support.training import MemoryBuffer, quick_recipe
from trainers.history import Change, champions
from trainers.registry import Manifest, Registry, UnknownVersion
from trainers.retention import DAY_MS, Run, Stored, decide, prune
from trainers.rundir import Record, RunFolder

NOW = 1_000 * DAY_MS


def manifest(number: int, *, parent: str | None, snapshot: str, at: int, replay: int = 3) -> Manifest:
    return Manifest(
        version=f"v{number:04d}-r{number}",
        run_id=f"r{number}",
        snapshot=snapshot,
        base_model="m",
        parent=parent,
        recipe={"data": {"replay_snapshots": replay}},
        judge=None,
        metrics={},
        created_at=at,
        sha256={},
    )


@st.composite
def lives(draw: st.DrawFn) -> tuple[Stored, TrainingSettings]:
    """A past in which anything may have happened: versions promoted, rolled back to, rejected, running."""
    count = draw(st.integers(1, 12))
    versions: list[Manifest] = []
    history: list[Change] = []
    runs: list[Run] = []
    now_serving: str | None = None
    for number in range(1, count + 1):
        at = NOW - (count - number + 1) * draw(st.sampled_from([DAY_MS // 2, DAY_MS, 20 * DAY_MS]))
        parent = draw(st.sampled_from([None, now_serving, *(m.version for m in versions)]))
        found = manifest(number, parent=parent, snapshot=f"s/s{number}", at=at, replay=draw(st.integers(0, 4)))
        versions.append(found)
        is_over = draw(st.booleans()) or number < count
        runs.append(Run(found.run_id, is_over, at, found.snapshot, parent))
        for _ in range(draw(st.integers(0, 2)) if is_over else 0):
            back = champions(history)[:-1]
            if back and draw(st.booleans()):
                now_serving, kind = draw(st.sampled_from(back)), "rollback"
            else:
                now_serving, kind = draw(st.sampled_from([m.version for m in versions])), "promote"
            history.append(Change(version=now_serving, kind=kind, reason="", by="", at=at))  # type: ignore[arg-type]
    by_name = {m.version: m for m in versions}

    def lineage(version: str | None) -> list[Manifest]:
        chain: list[Manifest] = []
        while version is not None and by_name[version] not in chain:
            chain.append(by_name[version])
            version = chain[-1].parent
        return chain

    removed = draw(st.sets(st.sampled_from(sorted(set(by_name) - set(champions(history)[-2:]) or {""}))))
    left = [m for m in versions if m.version not in removed]
    extra, replay = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    snapshots = {m.snapshot: m.created_at for m in versions} | {f"s/x{i}": NOW - i * DAY_MS for i in range(extra)}
    keep = TrainingSettings(
        keep_adapters=draw(st.integers(1, 4)),
        keep_rejected=draw(st.integers(0, 3)),
        keep_snapshots=draw(st.integers(1, 4)),
        keep_runs=draw(st.integers(0, 3)),
        keep_days=draw(st.sampled_from([None, 0.5, 30.0])),
    )
    return Stored(left, {m.version: lineage(m.version) for m in left}, history, snapshots, runs, replay), keep


@given(lives())
def test_what_must_stay_stays(life: tuple[Stored, TrainingSettings]) -> None:
    stored, keep = life
    plan = decide(stored, keep, NOW)
    by_name = {m.version: m for m in stored.versions}
    gone = set(plan.adapters)
    assert gone <= set(by_name) and len(gone) == len(plan.adapters)

    path = champions(stored.history)
    champion = path[-1]
    assert champion not in gone
    if champion in by_name:
        assert by_name[str(champion)].parent not in gone
    # However often one rolls back within the kept history.
    assert not gone & set(path[-(keep.keep_adapters + 1) :])
    for run in stored.runs:
        if not run.is_over:
            assert run.run_id not in plan.runs and run.snapshot not in plan.snapshots and run.parent not in gone
            assert not [m for m in stored.versions if m.run_id == run.run_id and m.version in gone]
    for version in set(by_name) - gone:
        lineage = stored.lineage[version]
        depth = max(by_name[version].recipe["data"]["replay_snapshots"], stored.replay_snapshots)
        replayed = list(dict.fromkeys(m.snapshot for m in lineage))[:depth]
        assert not set(replayed) & set(plan.snapshots)
    young = {m.version for m in stored.versions if NOW - m.created_at < DAY_MS}
    assert not gone & young
    assert not {s for s, at in stored.snapshots.items() if NOW - at < DAY_MS} & set(plan.snapshots)


@given(lives())
def test_what_is_left_is_bounded_and_a_second_pass_finds_nothing(life: tuple[Stored, TrainingSettings]) -> None:
    stored, keep = life
    plan = decide(stored, keep, NOW)
    left = [m for m in stored.versions if m.version not in plan.adapters]
    old = [m for m in left if NOW - m.created_at >= DAY_MS]
    running = sum(not run.is_over for run in stored.runs)
    # The champion and what it can be rolled back to, its parent, what never served; a run's own version and parent.
    assert len(old) <= keep.keep_adapters + 1 + 1 + keep.keep_rejected + 2 * running
    after = Stored(
        left,
        {m.version: stored.lineage[m.version] for m in left},
        stored.history,
        {s: at for s, at in stored.snapshots.items() if s not in plan.snapshots},
        [run for run in stored.runs if run.run_id not in plan.runs],
        stored.replay_snapshots,
    )
    again = decide(after, keep, NOW)
    assert (again.adapters, again.runs) == ([], [])


class Disk:
    """A registry, snapshots and runs in folders."""

    def __init__(self, folder: Path, **keep: Any) -> None:
        self.settings = Settings.model_validate(
            {
                "training": {
                    "registry": str(folder / "registry"),
                    "snapshots": str(folder / "snapshots"),
                    "work_dir": str(folder / "runs"),
                    **keep,
                }
            }
        )
        self.folder = folder
        self.registry = Registry(folder / "registry")

    def run(self, name: str, parent: str | None, *, promote: bool = True, is_over: bool = True) -> str:
        snapshot = self.snapshot(name)
        version = publish(self.registry, self.folder, name, snapshot=snapshot, parent=parent)
        folder = RunFolder.of(self.settings.training.work_dir, name)
        (folder.path / "sft").mkdir(parents=True)
        (folder.path / "sft" / "weights").write_bytes(b"w")
        request = TrainRequest(
            run_id=name, snapshot=snapshot, reasons=[], base_model="m", parent_adapter=parent, requested_at=1
        )
        folder.write("request.json", request)
        (folder.path / "plan.json").write_text("{}")
        folder.write("record.json", Record(outcome="done" if is_over else None))
        if promote:
            self.registry.set_champion(version, reason="gate", by="trainer")
        else:
            self.registry.set_gate(version, {"promote": False})
        return version

    def snapshot(self, name: str) -> str:
        """What retention looks at: a manifest."""
        path = self.folder / "snapshots" / name
        path.mkdir(parents=True)
        created_at = datetime.now(UTC).isoformat()
        manifest = SnapshotManifest(
            version=1, run_id=name, created_at=created_at, judge=None, files={}, decision={}, settings={}
        )
        (path / "manifest.json").write_bytes(msgspec.json.encode(manifest))
        return str(path)

    def prune(self, days: float = 2, **options: Any) -> Any:
        return prune(self.settings, self.registry, int(time.time() * 1000 + days * DAY_MS), **options)

    def there(self) -> tuple[list[str], list[str], list[str]]:
        runs = sorted(p.parent.name for p in self.settings.training.work_dir.glob("*/sft"))
        return (
            [m.version for m in self.registry.versions()],
            [Path(p).name for p in list_snapshots(self.settings.training.snapshots)],
            runs,
        )


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """Six generations, each the child of the one before; the fourth was rejected."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(quick_recipe(data={"replay_snapshots": 1}).model_dump_json())
    disk = Disk(tmp_path, recipe=str(recipe), keep_adapters=1, keep_rejected=0, keep_snapshots=1, keep_runs=1)
    parent = None
    for number, name in enumerate("abcdef"):
        version = disk.run(name, parent, promote=name != "d", is_over=True)
        parent = parent if name == "d" else version
        file = disk.registry.path(version) / "manifest.json"
        content = json.loads(file.read_bytes())
        file.write_text(json.dumps(content | {"created_at": number, "recipe": {"data": {"replay_snapshots": 1}}}))
    return disk


def test_what_is_not_kept_is_removed_and_a_second_time_nothing(disk: Disk) -> None:
    before = disk.there()
    plan = disk.prune(dry_run=True)
    assert disk.there() == before
    assert disk.prune() == plan
    versions, snapshots, runs = disk.there()
    assert versions == ["v0005-e", "v0006-f"]
    # f draws from f and e, e (which a rollback would make the parent) from e and c: d's were never trained on by them.
    assert snapshots == ["c", "e", "f"]
    assert len(runs) == 1
    assert disk.prune().items() == [("adapter", []), ("snapshot", []), ("run", [])]
    assert sorted(entry.name for entry in disk.registry.adapters.iterdir()) == versions


def test_lineage_goes_on_through_what_was_removed_and_numbers_and_runs_are_not_used_again(disk: Disk) -> None:
    disk.prune()
    chain = disk.registry.lineage("v0006-f")
    assert [m.version for m in chain] == ["v0006-f", "v0005-e", "v0003-c", "v0002-b", "v0001-a"]
    assert [m.pruned_at is None for m in chain] == [True, True, False, False, False]
    assert publish(disk.registry, disk.folder, "a") == "v0001-a"
    disk.registry.set_champion("v0005-e", reason="bad", by="me", kind="rollback")
    disk.registry.remove("v0006-f", now_ms=5)
    assert publish(disk.registry, disk.folder, "g") == "v0007-g"
    for use in (disk.registry.path, disk.registry.show, disk.registry.verify):
        with pytest.raises(UnknownVersion, match="was removed by retention"):
            use("v0001-a")
    assert disk.registry.manifest("v0001-a").run_id == "a"


def test_a_rollback_passes_over_what_was_removed(disk: Disk) -> None:
    disk.prune()
    assert disk.registry.rollback(reason="bad", by="me").version == "v0005-e"
    assert disk.registry.rollback(reason="bad", by="me").version is None


def test_a_run_that_was_cleared_is_still_over(disk: Disk) -> None:
    disk.prune()
    for name in "abcdef":
        folder = RunFolder.of(disk.settings.training.work_dir, name)
        assert folder.is_final() and folder.request() is not None
    left = [folder for folder in disk.settings.training.work_dir.iterdir() if (folder / "plan.json").exists()]
    assert len(left) == 1


def test_what_a_run_that_is_not_over_needs_stays(disk: Disk) -> None:
    running = disk.run("g", "v0002-b", promote=False, is_over=False)
    disk.prune()
    versions, snapshots, runs = disk.there()
    assert "v0002-b" in versions and running in versions and "g" in snapshots and "g" in runs


def test_a_kill_in_between_is_made_good(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import shutil

    class Killed(BaseException):
        pass

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    expected = disk.prune(dry_run=True)
    for target, name in ((os, "rename"), (shutil, "rmtree"), (Path, "rename")):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(target, name, die)
            disk.prune()
        # Every version that is listed is whole.
        for found in disk.registry.versions():
            disk.registry.verify(found.version)
    disk.prune()
    assert not set(expected.adapters) & {m.version for m in disk.registry.versions()}
    left = [*disk.registry.adapters.iterdir(), *Path(disk.settings.training.snapshots).iterdir()]
    assert not [entry.name for entry in left if entry.name.startswith(".")]


def test_the_champion_is_never_removed_and_a_promotion_and_a_removal_keep_apart(disk: Disk) -> None:
    with pytest.raises(Fatal, match="is the champion"):
        disk.registry.remove("v0006-f", now_ms=5)
    with disk.registry.serving_lock(), pytest.raises(Transient):
        prune(disk.settings, _impatient(disk.registry), NOW)


def _impatient(registry: Registry) -> Registry:
    original = registry.serving_lock
    registry.serving_lock = lambda wait_s=0.1: original(wait_s)  # type: ignore[method-assign,misc]
    return registry


def test_a_snapshot_that_cannot_be_read_stays_and_stops_nothing(disk: Disk) -> None:
    (Path(disk.settings.training.snapshots) / "a" / "manifest.json").write_text("{")
    disk.prune()
    assert disk.there()[1] == ["a", "c", "e", "f"]


async def test_snapshots_on_a_remote_store_go_too(tmp_path: Path) -> None:
    from streams.buffer.base import BufferRules
    from streams.snapshots import remove_snapshot

    dest = f"memory://{tmp_path.name}"
    buffers = [MemoryBuffer(BufferRules(1)) for _ in range(2)]
    path = await write_snapshot(dest, "one", *buffers, decision={}, settings={}, now_ms=1)
    other = await write_snapshot(dest, "two", *buffers, decision={}, settings={}, now_ms=1)
    remove_snapshot(path)
    assert list_snapshots(dest) == [other]
