"""What was forgotten and the trainer: which adapters have learned from it, and what of it stands in reports and runs.

An adapter has learned from a row when the row was in a snapshot that it was trained on, in the state in which it read
it; when it came by replay from an earlier one; or when its parent has, because its weights go on from there.
"""

import shutil
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from streams.errors import HaypileError, InvalidRecord
from streams.forgotten import ForgottenList
from streams.snapshot_forget import states_with
from streams.snapshots import read_manifest
from trainers.gate_page import page
from trainers.registry import Manifest, Registry
from trainers.rundir import Plan, RunFolder
from trainers.verdict import GateReport

Forget = Callable[[], Awaitable[ForgottenList]]
"""Gives the list of what is forgotten as of now."""

How = Literal["trained", "replay", "parent"]


class Learned(msgspec.Struct, kw_only=True, frozen=True):
    """An adapter that has learned from something forgotten."""

    version: str
    how: How
    source: str
    """The snapshot, or the parent."""


def learned(
    manifests: Sequence[Manifest], states: Mapping[str, Collection[str]], removed_at: Mapping[str, int]
) -> list[Learned]:
    """The adapters that have learned from forgotten rows, oldest first.

    `states`: snapshot → SHA-256 of its `train.parquet` in all states that had such rows; `removed_at`: when they left
    (epoch milliseconds), for adapters whose manifest does not say which states they read.
    """
    found: dict[str, Learned] = {}
    for manifest in manifests:
        direct = _direct(manifest, states, removed_at)
        if direct is not None:
            found[manifest.version] = direct
        elif manifest.parent in found:
            found[manifest.version] = Learned(version=manifest.version, how="parent", source=str(manifest.parent))
    return list(found.values())


def _direct(manifest: Manifest, states: Mapping[str, Collection[str]], removed_at: Mapping[str, int]) -> Learned | None:
    for snapshot, state in manifest.trained_on.items():
        if state in states.get(snapshot, ()):
            how: How = "trained" if snapshot == manifest.snapshot else "replay"
            return Learned(version=manifest.version, how=how, source=snapshot)
    says_nothing = not manifest.trained_on and states.get(manifest.snapshot)
    if says_nothing and manifest.created_at <= removed_at.get(manifest.snapshot, 0):
        return Learned(version=manifest.version, how="trained", source=manifest.snapshot)
    return None


def untold(manifests: Sequence[Manifest], known: Collection[str]) -> list[str]:
    """Versions of which nothing can be told: a snapshot that they learned from is not there any more."""
    return [m.version for m in manifests if not {m.snapshot, *m.trained_on} <= set(known)]


def has_learned(registry: Registry, version: str) -> bool:
    """Whether a version, or what it goes on from, learned from a row that was forgotten since."""
    lineage = registry.lineage(version)
    states: dict[str, set[str]] = {}
    removed_at: dict[str, int] = {}
    for path in {path for manifest in lineage for path in (manifest.snapshot, *manifest.trained_on)}:
        try:
            gone = read_manifest(path).forgotten
            states[path] = states_with(gone, {removal.request for removal in gone})
        except HaypileError:
            continue
        removed_at[path] = max((removal.at for removal in gone), default=0)
    return bool(learned(lineage[::-1], states, removed_at))


def family(registry: Registry) -> list[Manifest]:
    """All versions with all that they go on from, parents before children."""
    known = {manifest.version: manifest for manifest in registry.versions()}
    for manifest in list(known.values()):
        if manifest.parent is not None and manifest.parent not in known:
            known |= {ancestor.version: ancestor for ancestor in registry.lineage(manifest.parent)}
    return sorted(known.values(), key=lambda manifest: (manifest.created_at, manifest.version))


def clean_ancestor(registry: Registry, version: str | None, tainted: Collection[str]) -> str | None:
    """The newest ancestor of a version that has not learned from it and can be served; None: the base model."""
    there = {manifest.version for manifest in registry.versions()}
    for manifest in registry.lineage(version):
        if manifest.version in there - set(tainted):
            return manifest.version
    return None


def states_of(paths: Sequence[str]) -> dict[str, str]:
    """Snapshot → SHA-256 of its `train.parquet` now; without those that cannot be read."""
    found = {}
    for path in paths:
        try:
            found[path] = read_manifest(path).train_sha256()
        except HaypileError:
            continue
    return found


def has_changed(plan: Plan) -> bool:
    """Whether rows left a snapshot since the run was planned: it may have learned from them."""
    now = states_of(list(plan.trained_on))
    return any(now.get(path, state) != state for path, state in plan.trained_on.items())


def start_over(folder: RunFolder) -> None:
    """Forget all that a run has done: its next attempt plans and trains anew. Again changes nothing."""
    for name in ("sft", "dpo"):
        shutil.rmtree(folder.path / name, ignore_errors=True)
    for name in ("progress.json", "curve.jsonl", "plan.json"):
        (folder.path / name).unlink(missing_ok=True)


def clear_runs(work_dir: Path, states: Mapping[str, Collection[str]], *, dry_run: bool = False) -> list[str]:
    """Delete checkpoints and adapters in the folders of runs that are over and learned from forgotten rows.

    Plan, curve and record stay. Returns the run ids. (Runs that are not over start over by themselves.)
    """
    cleared = []
    for path in sorted(work_dir.iterdir()) if work_dir.is_dir() else ():
        try:
            folder = RunFolder.of(work_dir, path.name)
        except InvalidRecord:
            continue
        plan = folder.read(Plan, "plan.json") if path.is_dir() else None
        if plan is None or not folder.is_final():
            continue
        if any(state in states.get(snapshot, ()) for snapshot, state in plan.trained_on.items()) or (
            not plan.trained_on and states.get(plan.snapshot)
        ):
            left = [name for name in ("sft", "dpo") if (path / name).exists()]
            for name in left if not dry_run else ():
                shutil.rmtree(path / name, ignore_errors=True)
            if left:
                cleared.append(path.name)
    return cleared


def forget_answers(registry: Registry, prompt_ids: Collection[str], *, dry_run: bool = False) -> dict[str, int]:
    """Take forgotten prompts out of the gates' reports; version → rows. Figures and verdicts stay."""
    found = {}
    for manifest in registry.versions():
        gone = forget_answers_of(registry, manifest.version, prompt_ids, dry_run=dry_run)
        if gone:
            found[manifest.version] = gone
    return found


def forget_answers_of(registry: Registry, version: str, prompt_ids: Collection[str], *, dry_run: bool = False) -> int:
    """The same for one version; how many rows there were."""

    def made(report: dict[str, Any]) -> str | None:
        try:
            return page(msgspec.convert(report, GateReport))
        except msgspec.ValidationError:  # of a version that had other reports, and no page
            return None

    return registry.forget_rows(version, prompt_ids, made, dry_run=dry_run)


def prompt_ids(rows: Sequence[Mapping[str, Any]], forgotten: ForgottenList) -> set[str]:
    """Of the rows of a snapshot that are forgotten."""
    return {str(row["prompt_id"]) for row in rows if forgotten.row(row) is not None}
