"""A snapshot: the buffer's members as Parquet, with a manifest that says what they are and proves that they are whole.

A folder `<dest>/<run_id>` with `train.parquet`, `eval.parquet` and `manifest.json`. On a local disk it appears by one
rename. Object stores have no rename: there the manifest is written last, and readers trust nothing without a manifest
whose checksums fit.
"""

import asyncio
import hashlib
import io
import re
import shutil
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from streams.buffer.base import SWITCHED, Buffer
from streams.errors import HaypileError
from streams.forgotten import ForgottenList
from streams.records import Member

if TYPE_CHECKING:
    import pyarrow

VERSION = 1
MANIFEST = "manifest.json"
SPLITS: tuple["SnapshotSplit", ...] = ("train", "eval")
SnapshotSplit = Literal["train", "eval"]

_run_id = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class SnapshotError(HaypileError):
    """The snapshot is missing, damaged, of another version, or cannot be written."""


class SnapshotFile(msgspec.Struct):
    """A file of the snapshot."""

    rows: int
    size: int
    """Bytes."""
    sha256: str
    ids: list[str]
    """Of the rows, in their order (hardest first)."""
    path: str | None = None
    """Its name, where it is not the usual one: rows were forgotten, and the file was written anew."""


class Removal(msgspec.Struct, kw_only=True):
    """Rows that were taken out because they were forgotten (`streams.snapshot_forget`)."""

    request: str
    """Digest of the deletion record."""
    rows: dict[SnapshotSplit, int]
    before: str
    """SHA-256 of `train.parquet` before: what was trained on that has seen the rows."""
    at: int
    """Epoch milliseconds."""


class Manifest(msgspec.Struct, kw_only=True):
    """`manifest.json`."""

    version: int
    run_id: str
    created_at: str
    """RFC 3339."""
    judge: str | None
    """Whose ratings these are."""
    files: dict[str, SnapshotFile]
    """By file name: `train.parquet`, `eval.parquet`."""
    decision: dict[str, Any]
    """Why the run was decided."""
    settings: dict[str, Any]
    """The settings then, without secrets."""
    forgotten: list[Removal] = []
    """Oldest first."""

    def train_sha256(self) -> str:
        """What tells one state of the rows to train on from another."""
        return self.files["train.parquet"].sha256


Forget = Callable[[], Awaitable[ForgottenList]]
"""Gives the list of what is forgotten as of now."""


async def write_snapshot(
    dest: str,
    run_id: str,
    main: Buffer,
    held_out: Buffer,
    decision: dict[str, Any],
    settings: dict[str, Any],
    now_ms: int,
    forget: Forget | None = None,
) -> str:
    """Write all members under `dest` (local folder or fsspec URL); returns the snapshot's path (absolute) or URL.

    A whole snapshot of that run that is already there is kept: a repeat after a crash changes nothing. What is in the
    list of `forget` is left out; what was asked to be forgotten while this was written is not written either: the
    snapshot is withdrawn, for the caller to make it again. Raises `SnapshotError`, and what the buffers and `forget`
    raise.
    """
    if not _run_id.fullmatch(run_id):
        raise SnapshotError(f"snapshot: {run_id!r} cannot be the name of a folder")
    path = join(dest if "://" in dest else str(Path(dest).absolute()), run_id)
    if await asyncio.to_thread(_is_whole, path):
        await _withdraw_forgotten(path, forget)
        return path
    forgotten = ForgottenList() if forget is None else await forget()
    created = datetime.fromtimestamp(now_ms / 1000, UTC).isoformat()
    try:
        splits = {split: await _read(buffer, forgotten) for split, buffer in zip(SPLITS, (main, held_out), strict=True)}
        judges = set[str]().union(*(split.judges for split in splits.values()))
        if len(judges) > 1:
            raise SnapshotError(f"snapshot: {SWITCHED}")
        judge = judges.pop() if judges else (await main.stats()).judge

        def build() -> None:
            contents = {f"{name}.parquet": _parquet(split.tables) for name, split in splits.items()}
            manifest = Manifest(
                version=VERSION,
                run_id=run_id,
                created_at=created,
                judge=judge,
                files={
                    name: SnapshotFile(
                        rows=len(split.ids),
                        size=len(contents[name]),
                        sha256=hashlib.sha256(contents[name]).hexdigest(),
                        ids=split.ids,
                    )
                    for name, split in zip(contents, splits.values(), strict=True)
                },
                decision=decision,
                settings=settings,
            )
            contents[MANIFEST] = msgspec.json.format(msgspec.json.encode(manifest))
            (_publish_remote if "://" in path else _publish_local)(path, contents)

        await asyncio.to_thread(build)
    except (OSError, ImportError, ValueError) as error:
        raise SnapshotError(f"snapshot: cannot write {path}: {error}") from error
    await _withdraw_forgotten(path, forget)
    return path


async def _withdraw_forgotten(path: str, forget: Forget | None) -> None:
    """Looks again once the snapshot can be seen: who asks later finds it there (`haypile forget`)."""
    if forget is None:
        return
    forgotten = await forget()

    def is_in_it() -> bool:
        return any(forgotten.row(row) is not None for split in SPLITS for row in read_rows(path, split))

    found = await asyncio.to_thread(is_in_it) if forgotten else False
    if found:
        await asyncio.to_thread(remove_snapshot, path)
        raise SnapshotError(f"snapshot: {path} is withdrawn: something in it was forgotten meanwhile")


def list_snapshots(dest: str) -> list[str]:
    """Paths of the snapshots under `dest` (local folder or fsspec URL), by name. Raises `SnapshotError`."""
    try:
        if "://" not in dest:
            found = sorted(file.parent for file in Path(dest).absolute().glob(f"*/{MANIFEST}"))
            return [str(path) for path in found if not path.name.startswith(".")]
        import fsspec

        system, root = fsspec.core.url_to_fs(dest)
        return [join(dest, file.split("/")[-2]) for file in sorted(system.glob(join(root, f"*/{MANIFEST}")))]
    except (OSError, ImportError, ValueError) as error:
        raise SnapshotError(f"snapshot: cannot list {dest}: {error}") from None


def remove_snapshot(path: str) -> None:
    """Delete a snapshot: one whose deletion was cut short is no snapshot any more. Raises `SnapshotError`."""
    try:
        if "://" not in path:
            folder = Path(path)
            for left in folder.parent.glob(".*.gone"):
                shutil.rmtree(left, ignore_errors=True)
            gone = folder.rename(folder.with_name(f".{folder.name}.gone"))
            shutil.rmtree(gone)
            return
        import fsspec

        system, root = fsspec.core.url_to_fs(path)
        system.rm(join(root, MANIFEST))  # without it nobody reads the rest
        system.rm(root, recursive=True)
    except (OSError, ImportError, ValueError) as error:
        raise SnapshotError(f"snapshot: cannot remove {path}: {error}") from None


def read_manifest(path: str) -> Manifest:
    """The manifest of the snapshot at `path`. Raises `SnapshotError`."""
    text = read_file(join(path, MANIFEST))
    try:
        manifest = msgspec.json.decode(text, type=Manifest)
    except msgspec.MsgspecError as error:
        raise SnapshotError(f"snapshot: {join(path, MANIFEST)} is not a manifest: {error}") from None
    if manifest.version != VERSION:
        raise SnapshotError(f"snapshot: {path} has version {manifest.version}, this haypile reads {VERSION}")
    return manifest


def read_rows(path: str, split: SnapshotSplit) -> list[dict[str, Any]]:
    """Rows of one split, hardest first, checked against the manifest; columns as `_table` makes them.

    Raises `SnapshotError`.
    """
    import pyarrow.parquet

    found: list[dict[str, Any]] = pyarrow.parquet.read_table(io.BytesIO(read_split(path, split))).to_pylist()
    return found


def read_split(path: str, split: SnapshotSplit) -> bytes:
    """The Parquet file of one split, checked against the manifest. Raises `SnapshotError`."""
    name = f"{split}.parquet"
    manifest = read_manifest(path)
    while True:
        expected = manifest.files.get(name)
        if expected is None:
            raise SnapshotError(f"snapshot: {path} has no {name}")
        file = join(path, expected.path or name)
        try:
            content = read_file(file)
            if hashlib.sha256(content).hexdigest() == expected.sha256:
                return content
            error = SnapshotError(f"snapshot: {file} is damaged: its SHA-256 is not the manifest's")
        except SnapshotError as missing:
            error = missing
        # Something in it may have been forgotten between the two readings.
        before, manifest = manifest, read_manifest(path)
        if before.files == manifest.files:
            raise error


def rows(members: list[Member]) -> list[dict[str, Any]]:
    """The rows of a snapshot of these members, in their order."""
    found: list[dict[str, Any]] = _table(members).to_pylist()
    return found


class _Split(NamedTuple):
    """What was read of one buffer."""

    tables: list["pyarrow.Table"]
    ids: list[str]
    judges: set[str]


async def _read(buffer: Buffer, forgotten: ForgottenList) -> _Split:
    """Made into columns piece by piece, while Redis reads the next one: the garbage collector does not go through all
    members again and again."""
    building, ids, judges = [asyncio.create_task(asyncio.to_thread(_table, []))], list[str](), set[str]()
    async for chunk in buffer.iterate():
        members = [member for member in chunk if forgotten.prompt(member.prompt) is None]
        building.append(asyncio.create_task(asyncio.to_thread(_table, members)))
        ids += (member.prompt.id for member in members)
        judges |= {member.prompt.judge for member in members}
    return _Split(await asyncio.gather(*building), ids, judges)


def _table(members: list[Member]) -> "pyarrow.Table":
    """Column by column, from flat lists: pyarrow takes longer over dicts."""
    import pyarrow

    text, number, integer = pyarrow.string(), pyarrow.float64(), pyarrow.int64()
    prompts = [member.prompt for member in members]

    # Types are given, not inferred: an empty list or a column of nulls has no type of its own.
    def column(of: Sequence[Any], name: str, kind: pyarrow.DataType) -> pyarrow.Array:
        return pyarrow.array([getattr(one, name) for one in of], type=kind)

    def nested(lists: list[Any], kinds: dict[str, pyarrow.DataType]) -> pyarrow.Array:
        flat = [one for listed in lists for one in listed]
        columns = [column(flat, name, kind) for name, kind in kinds.items()]
        offsets = pyarrow.array(accumulate(map(len, lists), initial=0), type=pyarrow.int32())
        return pyarrow.ListArray.from_arrays(offsets, pyarrow.StructArray.from_arrays(columns, names=list(kinds)))

    answer = {"text": text, "reward": number, "origin": text, "model": text}
    return pyarrow.table(
        {
            "id": column(prompts, "id", text),
            "prompt_id": column(prompts, "prompt_id", text),
            "messages": nested([prompt.messages for prompt in prompts], {"role": text, "content": text}),
            "difficulty": column(prompts, "difficulty", number),
            "quality": column(prompts, "quality", number),
            "category": column(prompts, "category", text),
            "judge": column(prompts, "judge", text),
            "rank_key": column(members, "rank_key", number),
            "candidates": nested([member.candidates for member in members], answer),
            "user_id": column(prompts, "user_id", text),
            "source": column(prompts, "source", text),
            "ts": column(prompts, "ts", integer),
            "near_duplicates": column(members, "near_duplicates", integer),
            "origin": column(prompts, "origin", text),
        }
    )


def _parquet(tables: "list[pyarrow.Table]") -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    # A dictionary of texts that are all different costs more than it saves.
    pyarrow.parquet.write_table(
        pyarrow.concat_tables(tables), buffer, use_dictionary=["category", "judge", "user_id", "source"]
    )
    return buffer.getvalue()


def _publish_local(path: str, contents: dict[str, bytes]) -> None:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    try:
        for name, content in contents.items():
            (temporary / name).write_bytes(content)
        if target.exists():  # an earlier attempt that is not whole, or the folder was filled by hand
            raise FileExistsError(f"{target} exists and is not a whole snapshot; move it away")
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish_remote(path: str, contents: dict[str, bytes]) -> None:
    import fsspec

    for name, content in contents.items():  # the manifest is the last
        with fsspec.open(join(path, name), "wb") as file:
            file.write(content)


def read_file(path: str) -> bytes:
    """A file of a local folder or an fsspec URL. Raises `SnapshotError`."""
    try:
        if "://" not in path:
            return Path(path).read_bytes()
        import fsspec

        with fsspec.open(path, "rb") as file:
            content: bytes = file.read()
            return content
    except (OSError, ImportError, ValueError) as error:
        raise SnapshotError(f"snapshot: cannot read {path}: {error}") from None


def _is_whole(path: str) -> bool:
    try:
        manifest = read_manifest(path)
        return all(
            hashlib.sha256(read_file(join(path, file.path or name))).hexdigest() == file.sha256
            for name, file in manifest.files.items()
        )
    except SnapshotError:
        return False


def join(path: str, name: str) -> str:
    """A file of a snapshot."""
    return f"{path.rstrip('/')}/{name}"
