"""The registry: a directory an adapter, a pointer to the champion, and the pointer's history. Pure file code.

    adapters/v0001-<run_id>/   adapter_config.json, adapter_model.safetensors, manifest.json; published by one rename
                               gate.json after the comparison: every prompt, both answers, what was said of them;
                               gate.html the same as a page
    champion.json              the champion and how it came to be; replaced by rename
    .lock                      flock of writers; .serving.lock of who changes what the servers have loaded

Only safetensors are taken: a pickle would run code in every server that loads it. A version is never changed except for
its manifest's `gate` (set once, after the comparison).
"""

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from streams.errors import Fatal, HaypileError, Transient
from trainers.rundir import RUN_ID, write_atomic

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
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


class Change(msgspec.Struct, kw_only=True):
    """One move of the pointer."""

    version: str | None
    """Null is the base model."""
    kind: Literal["promote", "rollback"]
    reason: str
    by: str
    at: int
    """Epoch milliseconds."""


class Champion(msgspec.Struct, kw_only=True):
    """`champion.json`."""

    version: str | None = None
    history: list[Change] = []


class Registry:
    """Raises `UnknownVersion`, `Fatal` (damaged files, wrong content) and `Transient` (a lock is held for too long)."""

    def __init__(self, root: Path) -> None:
        # Absolute, because vLLM is given these paths and runs in another directory.
        self.root = root.absolute()
        self.adapters = self.root / "adapters"

    def path(self, version: str) -> Path:
        """The folder of a version."""
        if not VERSION.fullmatch(version) or not (self.adapters / version / MANIFEST).is_file():
            known = ", ".join(m.version for m in self.versions()[-5:]) or "none"
            raise UnknownVersion(f"no adapter {version!r} in {self.root} (the latest: {known})")
        return self.adapters / version

    def versions(self) -> list[Manifest]:
        """All versions, oldest first."""
        found = [entry.name for entry in self.adapters.glob("v*") if VERSION.fullmatch(entry.name)]
        return [self._manifest(name) for name in sorted(found, key=_number)]

    def show(self, version: str) -> Manifest:
        """The manifest of a version."""
        self.path(version)
        return self._manifest(version)

    def of_run(self, run_id: str) -> Manifest | None:
        """The version that a run published."""
        return next((m for m in self.versions() if m.run_id == run_id), None)

    def lineage(self, version: str | None) -> list[Manifest]:
        """The version, its parent, and so on to the first; ends where an ancestor is no longer there."""
        chain: list[Manifest] = []
        while version is not None and version not in {m.version for m in chain}:
            try:
                chain.append(self.show(version))
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
            number = max((_number(m.version) for m in self.versions()), default=0) + 1
            version = f"v{number:04d}-{run_id}"
            self._sweep()
            scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=self.adapters))
            try:
                sha256 = _copy_adapter(source, scratch, base_model)
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
                )
                _write_synced(scratch / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
                scratch.chmod(0o755)  # mkdtemp makes it private; vLLM may run as another user
                os.rename(scratch, self.adapters / version)
                _sync_folder(self.adapters)
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

    def verify(self, version: str) -> None:
        """Check the digests. Raises `Fatal` with the file that differs."""
        folder = self.path(version)
        for name, digest in self.show(version).sha256.items():
            try:
                actual = _sha256(folder / name)
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

    def set_champion(
        self, version: str | None, *, reason: str, by: str, kind: Literal["promote", "rollback"] = "promote"
    ) -> Champion:
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
        """Where a rollback leads: the champion before the current one (null: the base model).

        Two rollbacks go two champions back, not to and fro: the history is replayed as a stack. Raises
        `UnknownVersion` when the base model serves and there is nothing before it.
        """
        stack: list[str | None] = [None]
        for change in self.champion().history:
            if change.kind == "rollback" and len(stack) > 1:
                stack.pop()
            else:
                stack.append(change.version)
        if len(stack) < 2:
            raise UnknownVersion(f"nothing to roll back to: no adapter was promoted in {self.root}")
        return stack[-2]

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
        file = self.adapters / version / MANIFEST
        try:
            return msgspec.json.decode(file.read_bytes(), type=Manifest)
        except (OSError, msgspec.MsgspecError) as error:
            raise Fatal(f"{file} is not readable: {error}") from None

    def _sweep(self) -> None:
        """Remove what a killed publisher left (we hold the lock: nobody else is writing)."""
        for left in self.adapters.glob(".new-*"):
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


def _number(version: str) -> int:
    found = VERSION.fullmatch(version)
    return int(found.group(1)) if found else 0


def _copy_adapter(source: Path, target: Path, base_model: str) -> dict[str, str]:
    """Copies config and weights, synced to disk; returns their digests."""
    if not (source / WEIGHTS).is_file() or not (source / CONFIG).is_file():
        raise Fatal(f"{source} is no adapter: it needs {CONFIG} and {WEIGHTS} (safetensors only)")
    try:
        config = msgspec.json.decode((source / CONFIG).read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise Fatal(f"{source / CONFIG} is not readable: {error}") from None
    config["base_model_name_or_path"] = base_model
    config["inference_mode"] = True
    _write_synced(target / CONFIG, msgspec.json.format(msgspec.json.encode(config)))
    with (source / WEIGHTS).open("rb") as weights, (target / WEIGHTS).open("wb") as copy:
        shutil.copyfileobj(weights, copy)
        copy.flush()
        os.fsync(copy.fileno())
    return {name: _sha256(target / name) for name in (CONFIG, WEIGHTS)}


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
