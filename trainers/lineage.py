"""Where an adapter comes from, gathered from the registry and the snapshots: what `models show` and the card tell."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from streams.snapshots import Manifest as SnapshotManifest
from streams.snapshots import SnapshotError, read_manifest
from trainers.history import Change
from trainers.registry import Manifest, Registry


class Ancestor(msgspec.Struct, kw_only=True):
    """One step of the lineage."""

    version: str
    snapshot: str
    prompts: int | None
    """That training took from the snapshot; null where it did not say."""
    judge: str | None
    win_rate: float | None
    removed: bool
    """Retention has removed its weights."""


class Lineage(msgspec.Struct, kw_only=True):
    """All that is known of a version."""

    manifest: Manifest
    is_champion: bool
    ancestors: list[Ancestor]
    """The version itself, its parent and so on; after the last comes the base model."""
    snapshot: dict[str, Any] | None
    """Of its own snapshot: when, prompts for training and held out, why the run was decided; null: it is gone."""
    history: list[Change]
    """Moves of the pointer to it and away from it."""


def lineage_of(registry: Registry, version: str) -> Lineage:
    """Gather it. Raises `UnknownVersion`, and `Fatal` for a damaged registry."""
    manifest = registry.manifest(version)
    champion = registry.champion()
    changes = champion.history
    about = [
        change
        for before, change in zip([None, *changes], changes, strict=False)
        if version in (change.version, before.version if before else None)
    ]
    return Lineage(
        manifest=manifest,
        is_champion=champion.version == version,
        ancestors=[_ancestor(found) for found in registry.lineage(version)],
        snapshot=_snapshot(manifest.snapshot),
        history=about,
    )


def learned_from(lineage: Sequence[Manifest]) -> list[str]:
    """The snapshots that a version has learned from, its own and by replay or through its parents; newest first."""
    found = [s for m in lineage for s in (m.snapshot, *m.metrics.get("earlier_snapshots", []))]
    return list(dict.fromkeys(found))


def when(epoch_ms: int) -> str:
    """Epoch milliseconds for people."""
    return f"{datetime.fromtimestamp(epoch_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def _ancestor(manifest: Manifest) -> Ancestor:
    prompts = manifest.metrics.get("prompts")
    return Ancestor(
        version=manifest.version,
        snapshot=manifest.snapshot,
        prompts=prompts if isinstance(prompts, int) else None,
        judge=manifest.judge,
        win_rate=(manifest.gate or {}).get("win_rate"),
        removed=manifest.pruned_at is not None,
    )


def _snapshot(path: str) -> dict[str, Any] | None:
    try:
        found: SnapshotManifest = read_manifest(path)
    except SnapshotError:
        return None
    return {
        "created_at": found.created_at,
        "judge": found.judge,
        "rows": {name.removesuffix(".parquet"): file.rows for name, file in found.files.items()},
        "reasons": found.decision.get("reasons"),
    }
