"""The registry: a directory an adapter, a pointer to the champion, and the pointer's history. Pure file code.

    adapters/v0001-<run_id>/   adapter_config.json, adapter_model.safetensors, manifest.json; published by one rename
                               gate.json after the comparison: every prompt, both answers, what was said of them;
                               gate.html the same as a page
    pruned/v0001-<run_id>.json the manifest of a version that retention removed: lineage goes on through it
    champion.json              the champion and how it came to be; replaced by rename
    .lock                      flock of writers; .serving.lock of who changes what the servers have loaded

Only safetensors are taken: a pickle would run code in every server that loads it. A version is never changed except for
its manifest's `gate` (set once, after the comparison) and `canary`.
"""

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from streams.errors import Fatal, HaypileError, Transient
from trainers.adapter_files import copy_adapter, sha256_of, sync_folder, write_synced
from trainers.history import Champion, Change, Kind, champions
from trainers.rundir import RUN_ID, write_atomic

MANIFEST = "manifest.json"
GATE = "gate.json"
GATE_PAGE = "gate.html"

VERSION = re.compile(rf"v(\d{{4,}})-({RUN_ID.pattern})")


class UnknownVersion(HaypileError):
    """There is no such version in the registry."""


class Manifest(msgspec.Struct, kw_only=True):
    """Where an adapter comes from and what is known of it."""

    version: str
    run_id: str
    snapshot: str
    base_model: str
    parent: str | None
    """Version that training started from; null: the base model."""
    recipe: dict[str, Any]
    judge: str | None
    """Id of the judge that scored the snapshot."""
    metrics: dict[str, Any]
    created_at: int
    """Epoch milliseconds."""
    sha256: dict[str, str]
    """File name → hex digest."""
    gate: dict[str, Any] | None = None
    """The gate's report without its rows (they are in `gate.json`); null before the comparison."""
    canary: dict[str, Any] | None = None
    """The last canary before it was to serve (`trainers.canary.Report`); null before that."""
    pruned_at: int | None = None
    """When retention removed the weights (epoch milliseconds); null: they are there."""
    trained_on: dict[str, str] = {}
    """Snapshots that its rows may come from, replay included → SHA-256 of their `train.parquet` when it read them."""

    @property
    def refused(self) -> bool:
        """The gate or the canary said no."""
        by_gate = self.gate is not None and not self.gate.get("promote")
        return by_gate or (self.canary is not None and not self.canary.get("passed"))


class Registry:
    """Raises `UnknownVersion`, `Fatal` (damaged files, wrong content) and `Transient` (a lock is held for too long)."""

    def __init__(self, root: Path) -> None:
        # Absolute, because vLLM is given these paths and runs in another directory.
        self.root = root.absolute()
        self.adapters = self.root / "adapters"
        self.graves = self.root / "pruned"

    def path(self, version: str) -> Path:
        """The folder of a version."""
        if not VERSION.fullmatch(version) or not (self.adapters / version / MANIFEST).is_file():
            if VERSION.fullmatch(version) and (self.graves / f"{version}.json").is_file():
                raise UnknownVersion(f"the adapter {version} was removed by retention (training.keep_*)")
            known = ", ".join(m.version for m in self.versions()[-5:]) or "none"
            raise UnknownVersion(f"no adapter {version!r} in {self.root} (the latest: {known})")
        return self.adapters / version

    def versions(self) -> list[Manifest]:
        """All versions, oldest first."""
        found = [entry.name for entry in self.adapters.glob("v*") if VERSION.fullmatch(entry.name)]
        return [self._manifest(name) for name in sorted(found, key=_number)]

    def pruned(self) -> list[Manifest]:
        """The versions that retention removed, oldest first."""
        found = [file for file in self.graves.glob("v*.json") if VERSION.fullmatch(file.stem)]
        return [_read_manifest(file) for file in sorted(found, key=lambda file: _number(file.stem))]

    def show(self, version: str) -> Manifest:
        """The manifest of a version whose weights are there."""
        self.path(version)
        return self._manifest(version)

    def manifest(self, version: str) -> Manifest:
        """The manifest of a version, also of one that retention removed."""
        grave = self.graves / f"{version}.json"
        if VERSION.fullmatch(version) and not (self.adapters / version).is_dir() and grave.is_file():
            return _read_manifest(grave)
        return self.show(version)

    def of_run(self, run_id: str) -> Manifest | None:
        """The version that a run published, also one that retention removed."""
        return next((m for m in [*self.versions(), *self.pruned()] if m.run_id == run_id), None)

    def lineage(self, version: str | None) -> list[Manifest]:
        """The version, its parent, and so on to the first, through those that retention removed; ends where an ancestor
        is not known."""
        chain: list[Manifest] = []
        while version is not None and version not in {m.version for m in chain}:
            try:
                chain.append(self.manifest(version))
            except UnknownVersion:
                break
            version = chain[-1].parent
        return chain

    def publish(
        self,
        source: Path,
        *,
        run_id: str,
        snapshot: str,
        base_model: str,
        parent: str | None,
        recipe: dict[str, Any],
        judge: str | None,
        metrics: dict[str, Any],
        now_ms: int,
        trained_on: dict[str, str] | None = None,
    ) -> Manifest:
        """Copy the adapter in the folder `source` into the registry under a new version and return its manifest.

        A run publishes once: a second call for its id returns what is there. `adapter_config.json` is made to name
        `base_model` (training knows it under a path of its own machine).
        """
        if not RUN_ID.fullmatch(run_id):
            raise Fatal(f"run id {run_id!r} cannot be part of a version")
        self.adapters.mkdir(parents=True, exist_ok=True)
        with self._lock(".lock"):
            there = self.of_run(run_id)
            if there is not None:
                return there
            number = max((_number(m.version) for m in [*self.versions(), *self.pruned()]), default=0) + 1
            version = f"v{number:04d}-{run_id}"
            self._sweep()
            scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=self.adapters))
            try:
                sha256 = copy_adapter(source, scratch, base_model)
                manifest = Manifest(
                    version=version,
                    run_id=run_id,
                    snapshot=snapshot,
                    base_model=base_model,
                    parent=parent,
                    recipe=recipe,
                    judge=judge,
                    metrics=metrics,
                    created_at=now_ms,
                    sha256=sha256,
                    trained_on=trained_on or {},
                )
                write_synced(scratch / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
                scratch.chmod(0o755)  # mkdtemp makes it private; vLLM may run as another user
                os.rename(scratch, self.adapters / version)
                sync_folder(self.adapters)
            except BaseException:
                shutil.rmtree(scratch, ignore_errors=True)
                raise
        return manifest

    def set_gate(self, version: str, report: dict[str, Any], page: str | None = None) -> None:
        """Record the gate's report: numbers and verdict in the manifest, the rows and the page (HTML) beside it. The
        first one stays."""
        with self._lock(".lock"):
            manifest = self.show(version)
            if manifest.gate is None:
                folder = self.adapters / version
                write_atomic(folder / GATE, msgspec.json.format(msgspec.json.encode(report)))
                if page is not None:
                    write_atomic(folder / GATE_PAGE, page.encode("utf-8", "replace"))
                manifest.gate = {name: value for name, value in report.items() if name != "rows"}
                write_atomic(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))

    def set_canary(self, version: str, report: dict[str, Any]) -> None:
        """Record the canary's report; a later one takes its place."""
        with self._lock(".lock"):
            manifest = self.show(version)
            manifest.canary = report
            write_atomic(self.adapters / version / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))

    def remove(self, version: str, now_ms: int) -> None:
        """Delete a version's weights and answers; its manifest stays in `pruned/`. Hold `serving_lock` around it.

        Killed half-way it is either still a version, or gone with what is left swept away by the next writer. Raises
        `Fatal` for the champion.
        """
        with self._lock(".lock"):
            if self.champion().version == version:
                raise Fatal(f"{version} is the champion and stays")
            manifest = self.show(version)
            manifest.pruned_at = now_ms
            self.graves.mkdir(exist_ok=True)
            write_atomic(self.graves / f"{version}.json", msgspec.json.format(msgspec.json.encode(manifest)))
            os.rename(self.adapters / version, self.adapters / f".gone-{version}")
            self._sweep()

    def forget_rows(
        self, version: str, prompt_ids: Collection[str], page: Callable[[dict[str, Any]], str | None], *, dry_run: bool
    ) -> int:
        """Take prompts out of a gate's report; how many there were. Its figures stay as they were measured.

        `page` makes the page of what is left of the report (None: there is none any more).
        """
        with self._lock(".lock"):
            folder = self.path(version)
            file = folder / GATE
            try:
                report = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
            except FileNotFoundError:
                return 0
            except (OSError, msgspec.MsgspecError) as error:
                raise Fatal(f"{file} is not readable: {error}") from None
            rows = report.get("rows", [])
            kept = [row for row in rows if row.get("prompt_id") not in prompt_ids]
            if len(kept) < len(rows) and not dry_run:
                report["rows"], report["forgotten"] = kept, report.get("forgotten", 0) + len(rows) - len(kept)
                made = page(report)
                # The page first: a kill between the two leaves the rows, and with them a reason to come again.
                if made is not None:
                    write_atomic(folder / GATE_PAGE, made.encode("utf-8", "replace"))
                else:
                    (folder / GATE_PAGE).unlink(missing_ok=True)
                write_atomic(file, msgspec.json.format(msgspec.json.encode(report)))
            return len(rows) - len(kept)

    def verify(self, version: str) -> None:
        """Check the digests. Raises `Fatal` with the file that differs."""
        folder = self.path(version)
        for name, digest in self.show(version).sha256.items():
            try:
                actual = sha256_of(folder / name)
            except OSError as error:
                raise Fatal(f"cannot read {folder / name}: {error}") from None
            if actual != digest:
                raise Fatal(f"{folder / name} was changed after it was published (its sha256 differs)")

    def champion(self) -> Champion:
        """The pointer with its history; the base model when nothing was promoted yet."""
        file = self.root / "champion.json"
        try:
            return msgspec.json.decode(file.read_bytes(), type=Champion)
        except FileNotFoundError:
            return Champion()
        except (OSError, msgspec.MsgspecError) as error:
            raise Fatal(f"{file} is not readable: {error}") from None

    def set_champion(self, version: str | None, *, reason: str, by: str, kind: Kind = "promote") -> Champion:
        """Move the pointer (null: the base model) and append to the history. Nothing changes if it points there."""
        if version is not None:
            self.path(version)
        self.root.mkdir(parents=True, exist_ok=True)
        with self._lock(".lock"):
            champion = self.champion()
            if champion.version == version:
                return champion
            change = Change(version=version, kind=kind, reason=reason, by=by, at=int(time.time() * 1000))
            champion = Champion(version=version, history=[*champion.history, change])
            write_atomic(self.root / "champion.json", msgspec.json.format(msgspec.json.encode(champion)))
        return champion

    def previous(self) -> str | None:
        """Where a rollback leads: the champion before the current one (null: the base model) whose weights are there.

        Raises `UnknownVersion` when the base model serves and there is nothing before it.
        """
        *before, now = champions(self.champion().history)
        there = {m.version for m in self.versions()} | {None}
        found = [version for version in before if version in there and version != now]
        if not found:
            raise UnknownVersion(f"nothing to roll back to: no adapter was promoted in {self.root}")
        return found[-1]

    def rollback(self, *, reason: str, by: str) -> Champion:
        """Move the pointer to `previous()`. Servers are not told: see `trainers.promotion.rollback`."""
        return self.set_champion(self.previous(), reason=reason, by=by, kind="rollback")

    @contextmanager
    def serving_lock(self, wait_s: float = 30) -> Iterator[None]:
        """Held while servers are changed, so that promotion, rollback and reconciler do not undo each other."""
        self.root.mkdir(parents=True, exist_ok=True)
        with self._lock(".serving.lock", wait_s):
            yield

    def _manifest(self, version: str) -> Manifest:
        return _read_manifest(self.adapters / version / MANIFEST)

    def _sweep(self) -> None:
        """Remove what a killed writer left (we hold the lock: nobody else is writing)."""
        for left in [*self.adapters.glob(".new-*"), *self.adapters.glob(".gone-*")]:
            shutil.rmtree(left, ignore_errors=True)

    @contextmanager
    def _lock(self, name: str, wait_s: float = 30) -> Iterator[None]:
        deadline = time.monotonic() + wait_s
        with (self.root / name).open("a") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise Transient(f"{self.root / name} is held by another process") from None
                    time.sleep(0.05)
            yield


def _read_manifest(file: Path) -> Manifest:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise Fatal(f"{file} is not readable: {error}") from None


def _number(version: str) -> int:
    found = VERSION.fullmatch(version)
    return int(found.group(1)) if found else 0
