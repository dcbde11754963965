"""Rows leave a snapshot because they were forgotten. Readers see the snapshot before or after, never in between.

The files without the rows are written beside the old ones under new names, then the manifest that names them takes the
place of the old one (one rename; of an object store: one put), then what no manifest names is deleted. A kill between
two of these steps leaves a whole snapshot, and the next call does the rest. One process at a time (`haypile forget`
holds a lease). An object store that keeps versions keeps the old ones until its own rules delete them.
"""

import hashlib
import io
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from streams.records import Forgotten
from streams.snapshots import (
    MANIFEST,
    SPLITS,
    Manifest,
    Removal,
    SnapshotError,
    SnapshotFile,
    SnapshotSplit,
    join,
    read_manifest,
    read_rows,
    read_split,
)

Find = Callable[[Mapping[str, Any]], Forgotten | None]
"""Why a row is forgotten, or None (`ForgottenList.row`)."""


class ForgottenRow(msgspec.Struct, kw_only=True, frozen=True):
    """What a forgotten row was known by."""

    split: SnapshotSplit
    id: str
    prompt_id: str
    digest: str
    """Of the deletion record."""


def forgotten_rows(path: str, find: Find) -> list[ForgottenRow]:
    """The rows of a snapshot that are forgotten. Raises `SnapshotError`."""
    found = []
    for split in SPLITS:
        for row in read_rows(path, split):
            record = find(row)
            if record is not None:
                found.append(ForgottenRow(split=split, id=row["id"], prompt_id=row["prompt_id"], digest=record.digest))
    return found


def forget_rows(path: str, find: Find, now_ms: int) -> list[ForgottenRow]:
    """Take the forgotten rows out of a snapshot; which they were. Again changes nothing. Raises `SnapshotError`."""
    manifest = read_manifest(path)
    gone = forgotten_rows(path, find)
    try:
        if gone:
            before = manifest.train_sha256()
            for split in dict.fromkeys(row.split for row in gone):
                manifest.files[f"{split}.parquet"] = _without(path, split, find)
            counts: dict[str, Counter[SnapshotSplit]] = {}
            for row in gone:
                counts.setdefault(row.digest, Counter())[row.split] += 1
            manifest.forgotten += [
                Removal(request=digest, rows=dict(rows), before=before, at=now_ms) for digest, rows in counts.items()
            ]
            _write(join(path, MANIFEST), msgspec.json.format(msgspec.json.encode(manifest)))
        _sweep(path, manifest)
    except (OSError, ImportError, ValueError) as error:
        raise SnapshotError(f"snapshot: cannot take rows out of {path}: {error}") from error
    return gone


def states_with(forgotten: Sequence[Removal], digests: set[str]) -> set[str]:
    """SHA-256 of `train.parquet` in every state of a snapshot that had rows to train on of these deletion records, by
    what its manifest says of rows that left."""
    states: list[str] = []
    found: set[str] = set()
    for removal in forgotten:
        if removal.before not in states:
            states.append(removal.before)
        if removal.request in digests and removal.rows.get("train", 0):
            found.update(states)  # rows only ever leave: every state before had them, too
    return found


def remove_unfinished(dest: str) -> int:
    """Delete what killed processes left under `dest`: snapshots not published, or whose deletion was cut short; how
    many there were. One that is being written just now is made again by its writer. Raises `SnapshotError`."""
    count = 0
    try:
        if "://" not in dest:
            for pattern in (".*.tmp", ".*.gone"):
                for left in Path(dest).glob(pattern):
                    shutil.rmtree(left, ignore_errors=True)
                    count += 1
            return count
        import fsspec

        system, root = fsspec.core.url_to_fs(dest)
        for file in system.glob(join(root, "*/*.parquet")):
            if not system.exists(join(file.rpartition("/")[0], MANIFEST)):
                system.rm_file(file)
                count += 1
        return count
    except (OSError, ImportError, ValueError) as error:
        raise SnapshotError(f"snapshot: cannot tidy {dest}: {error}") from error


def _without(path: str, split: SnapshotSplit, find: Find) -> SnapshotFile:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(io.BytesIO(read_split(path, split)))
    kept = table.filter(pyarrow.array([find(row) is None for row in table.to_pylist()], pyarrow.bool_()))
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(kept, buffer)
    content = buffer.getvalue()
    sha256 = hashlib.sha256(content).hexdigest()
    name = f"{split}-{sha256[:12]}.parquet"
    _write(join(path, name), content)
    ids = [str(id) for id in kept.column("id").to_pylist()]
    return SnapshotFile(rows=kept.num_rows, size=len(content), sha256=sha256, ids=ids, path=name)


def _write(path: str, content: bytes) -> None:
    if "://" in path:
        import fsspec

        with fsspec.open(path, "wb") as file:
            file.write(content)
        return
    scratch = Path(path).with_name(f".{uuid.uuid4().hex[:8]}.tmp")
    with scratch.open("wb") as local:
        local.write(content)
        local.flush()
        os.fsync(local.fileno())
    os.replace(scratch, path)


def _sweep(path: str, manifest: Manifest) -> None:
    """Delete the files that the manifest does not name: what a removal, or a killed one, left."""
    named = {MANIFEST} | {file.path or name for name, file in manifest.files.items()}
    if "://" not in path:
        for file in Path(path).iterdir():
            if file.name not in named and (file.name.endswith((".parquet", ".tmp"))):
                file.unlink(missing_ok=True)
        return
    import fsspec

    system, root = fsspec.core.url_to_fs(path)
    for name in system.ls(root, detail=False):
        if name.endswith(".parquet") and name.rstrip("/").split("/")[-1] not in named:
            system.rm_file(name)
