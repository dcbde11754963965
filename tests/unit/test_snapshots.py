"""Snapshots: what goes in comes out, whole or not at all."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import streams.snapshots
from streams.buffer.base import BufferRules
from streams.buffer.memory import MemoryBuffer
from streams.records import Candidate
from streams.snapshots import SnapshotError, read_manifest, read_rows, write_snapshot
from tests.support.prompts import HandClock, offer

ANSWERS = [
    Candidate(text="yes", reward=7.5, origin="teacher", model="t"),
    Candidate(text="no\n", reward=2.0, origin="production"),
]
NOW = 1_700_000_000_000


@pytest.fixture
async def main() -> MemoryBuffer:
    buffer = MemoryBuffer(BufferRules(10, near_duplicate=0.8), HandClock())
    await buffer.offer([offer("b", 3.0), offer("a", 7.0, "Ünï\x00ⓒ"), offer("c", 5.0, category="code")], [])
    await buffer.attach("a", ANSWERS)
    return buffer


@pytest.fixture
async def held_out() -> MemoryBuffer:
    buffer = MemoryBuffer(BufferRules(10), HandClock())
    await buffer.offer([offer("e", 4.0)], [])
    return buffer


async def write(dest: str, main: MemoryBuffer, held_out: MemoryBuffer, run_id: str = "r1") -> str:
    return await write_snapshot(dest, run_id, main, held_out, {"train": True}, {"buffer": {"capacity": 10}}, NOW)


async def test_rows_and_manifest(tmp_path: Path, main: MemoryBuffer, held_out: MemoryBuffer) -> None:
    path = await write(str(tmp_path), main, held_out)
    assert path == str(tmp_path / "r1")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["eval.parquet", "manifest.json", "r1", "train.parquet"]
    rows = read_rows(path, "train")
    assert [r["id"] for r in rows] == ["a", "c", "b"]
    first = (await main.top(1))[0]
    assert rows[0] == {
        "id": "a",
        "prompt_id": first.prompt.prompt_id,
        "messages": [{"role": "user", "content": "Ünï\x00ⓒ"}],
        "difficulty": 7.0,
        "quality": 6.0,
        "category": "math",
        "judge": "j1",
        "rank_key": 7.0,
        "candidates": [
            {"text": "yes", "reward": 7.5, "origin": "teacher", "model": "t"},
            {"text": "no\n", "reward": 2.0, "origin": "production", "model": None},
        ],
        "user_id": None,
        "source": None,
        "ts": 1,
        "near_duplicates": 0,
        "origin": None,
    }
    assert rows[1]["candidates"] == []
    assert [r["id"] for r in read_rows(path, "eval")] == ["e"]
    manifest = read_manifest(path)
    assert (manifest.run_id, manifest.judge, manifest.created_at) == ("r1", "j1", "2023-11-14T22:13:20+00:00")
    assert manifest.files["train.parquet"].ids == ["a", "c", "b"]
    assert {name: f.rows for name, f in manifest.files.items()} == {"train.parquet": 3, "eval.parquet": 1}
    assert manifest.decision == {"train": True} and manifest.settings == {"buffer": {"capacity": 10}}


async def test_datasets_reads_it(tmp_path: Path, main: MemoryBuffer, held_out: MemoryBuffer) -> None:
    from datasets import Dataset

    path = await write(str(tmp_path), main, held_out)
    dataset = Dataset.from_parquet(f"{path}/train.parquet", cache_dir=str(tmp_path / "cache"))
    assert dataset[0]["messages"] == [{"role": "user", "content": "Ünï\x00ⓒ"}]


async def test_empty_buffers(tmp_path: Path) -> None:
    empty = MemoryBuffer(BufferRules(10))
    path = await write(str(tmp_path), empty, empty)
    assert read_rows(path, "train") == read_rows(path, "eval") == []
    assert read_manifest(path).judge is None


async def test_a_repeat_keeps_the_whole_snapshot(tmp_path: Path, main: MemoryBuffer, held_out: MemoryBuffer) -> None:
    path = await write(str(tmp_path), main, held_out)
    before = (Path(path) / "manifest.json").stat()
    await main.remove(["a"])
    assert await write(str(tmp_path), main, held_out) == path
    assert (Path(path) / "manifest.json").stat() == before
    assert len(read_rows(path, "train")) == 3


def break_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def miss_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def other_version(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / "train.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "train.parquet").write_bytes(content)


def cut(folder: Path) -> None:
    (folder / "train.parquet").write_bytes((folder / "train.parquet").read_bytes()[:-20])


def miss_rows(folder: Path) -> None:
    (folder / "train.parquet").unlink()


@pytest.mark.parametrize("damage", [break_manifest, miss_manifest, other_version, flip_a_byte, cut, miss_rows])
async def test_damage_is_noticed(
    tmp_path: Path, main: MemoryBuffer, held_out: MemoryBuffer, damage: Callable[[Path], None]
) -> None:
    path = await write(str(tmp_path), main, held_out)
    damage(Path(path))
    with pytest.raises(SnapshotError, match="r1"):
        read_rows(path, "train")
    with pytest.raises(SnapshotError, match="not a whole snapshot"):
        await write(str(tmp_path), main, held_out)


@pytest.mark.parametrize("run_id", ["", "..", "../x", "a/b", "/etc", ".hidden", "a\\b", "a\n", "x" * 200, "s3://b"])
async def test_a_name_cannot_leave_its_folder(
    tmp_path: Path, main: MemoryBuffer, held_out: MemoryBuffer, run_id: str
) -> None:
    with pytest.raises(SnapshotError, match="name of a folder"):
        await write(str(tmp_path / "deep"), main, held_out, run_id)
    assert list(tmp_path.iterdir()) == []


async def test_nothing_is_visible_when_writing_fails(
    tmp_path: Path, main: MemoryBuffer, held_out: MemoryBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, content: bytes) -> int:
        if self.name == "manifest.json":
            raise OSError(28, "No space left on device")
        return write_bytes(self, content)

    write_bytes = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SnapshotError, match="No space left"):
        await write(str(tmp_path), main, held_out)
    assert list(tmp_path.iterdir()) == []


async def test_an_object_store_gets_the_manifest_last(
    main: MemoryBuffer, held_out: MemoryBuffer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    opened: list[str] = []
    fsspec_open = fsspec.open

    def spy(url: str, mode: str) -> object:
        if mode == "wb":
            opened.append(url.rsplit("/", 1)[1])
        return fsspec_open(url, mode)

    monkeypatch.setattr(fsspec, "open", spy)
    path = await write(f"memory://{namespace}/", main, held_out)
    assert path == f"memory://{namespace}/r1"
    assert opened == ["train.parquet", "eval.parquet", "manifest.json"]
    assert [r["id"] for r in read_rows(path, "train")] == ["a", "c", "b"]
    assert await write(f"memory://{namespace}", main, held_out) == path
    assert len(opened) == 3


@pytest.mark.parametrize("path", ["/nonexistent/r1", "nosuchprotocol://b/r1"])
def test_a_missing_snapshot(path: str) -> None:
    with pytest.raises(SnapshotError, match="r1"):
        read_manifest(path)


async def test_a_protocol_that_nobody_knows(main: MemoryBuffer, held_out: MemoryBuffer) -> None:
    with pytest.raises(SnapshotError, match="nosuchprotocol"):
        await write("nosuchprotocol://bucket", main, held_out)


def test_the_module_itself_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    program = f"import {streams.snapshots.__name__}, sys; print({{'datasets', 'pyarrow', 'rensa'}} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


async def test_ratings_of_two_judges_are_never_in_one_snapshot(tmp_path: Path, main: MemoryBuffer) -> None:
    switched = MemoryBuffer(BufferRules(10), HandClock())
    await switched.offer([offer("e", 4.0, judge="j2")], [])
    with pytest.raises(SnapshotError, match="another judge's ratings"):
        await write(str(tmp_path), main, switched)
    assert list(tmp_path.iterdir()) == []
