"""Rows leave a snapshot: readers see it before or after, whoever dies on the way."""

import uuid
from pathlib import Path

import msgspec
import pytest

from streams import snapshot_forget
from streams.buffer.base import BufferRules, Offer
from streams.buffer.memory import MemoryBuffer
from streams.forgotten import ForgottenList
from streams.snapshot_forget import forget_rows, forgotten_rows, remove_unfinished, states_with
from streams.snapshots import SnapshotError, list_snapshots, read_manifest, read_rows, write_snapshot
from tests.support.prompts import offer

NOW = 1_790_000_000_000


def of(user_id: str, given: Offer) -> Offer:
    return msgspec.structs.replace(given, prompt=msgspec.structs.replace(given.prompt, user_id=user_id))


async def buffers() -> tuple[MemoryBuffer, MemoryBuffer]:
    main, held_out = MemoryBuffer(BufferRules(10)), MemoryBuffer(BufferRules(10))
    await main.offer([of("anna", offer("a", 3)), of("berta", offer("b", 4)), of("anna", offer("c", 5))], [])
    await held_out.offer([of("anna", offer("d", 3)), of("carla", offer("e", 4))], [])
    return main, held_out


async def snapshot(dest: str) -> str:
    return await write_snapshot(dest, "r1", *await buffers(), {}, {}, NOW)


def forgotten(*users: str) -> ForgottenList:
    found = ForgottenList()
    for user in users:
        found.take(found.request("user", user, ends={}, future=False, now_ms=NOW))
    return found


def ids(path: str) -> list[list[str]]:
    return [[row["id"] for row in read_rows(path, split)] for split in ("train", "eval")]


@pytest.fixture(params=["local", "memory"])
def dest(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}/snapshots"


def files(path: str) -> set[str]:
    import fsspec

    system, root = fsspec.core.url_to_fs(path)
    return {name.rstrip("/").split("/")[-1] for name in system.ls(root, detail=False)}


async def test_rows_leave_and_the_manifest_says_how_many(dest: str) -> None:
    path = await snapshot(dest)
    before = read_manifest(path)
    anna = forgotten("anna")
    gone = forget_rows(path, anna.row, NOW)
    assert {(row.split, row.id, row.prompt_id) for row in gone} == {
        ("train", "a", "p-a"),
        ("train", "c", "p-c"),
        ("eval", "d", "p-d"),
    }
    assert ids(path) == [["b"], ["e"]]
    manifest = read_manifest(path)
    assert [file.ids for file in manifest.files.values()] == [["b"], ["e"]]
    [removal] = manifest.forgotten
    assert (removal.rows, removal.before, removal.at) == ({"train": 2, "eval": 1}, before.train_sha256(), NOW)
    assert len(files(path)) == 3, "the old files are deleted"
    assert "anna" not in msgspec.json.encode(manifest).decode()
    assert forget_rows(path, anna.row, NOW) == [] and read_manifest(path) == manifest, "again changes nothing"
    assert list_snapshots(dest) == [path]
    from datasets import Dataset

    if "://" not in dest:
        kept = Dataset.from_parquet(f"{path}/{manifest.files['train.parquet'].path}", cache_dir=f"{dest}/cache")
        assert kept["id"] == ["b"]


async def test_the_states_that_had_the_rows_are_known_afterwards(dest: str) -> None:
    path = await snapshot(dest)
    states = []
    for users in (["carla"], ["carla", "berta"], ["carla", "berta", "anna"]):
        states.append(read_manifest(path).train_sha256())
        forget_rows(path, forgotten(*users).row, NOW)
    manifest = read_manifest(path)
    carla, berta, anna = (removal.request for removal in manifest.forgotten)
    assert states_with(manifest.forgotten, {carla}) == set(), "held out only: nobody learned from it"
    assert states_with(manifest.forgotten, {berta}) == {states[0]} and states[0] == states[1]
    assert states_with(manifest.forgotten, {anna}) == {states[1], states[2]}
    assert manifest.train_sha256() not in states_with(manifest.forgotten, {berta, anna})


class Killed(BaseException):
    """Stands for a kill: no handler of ours catches it."""


@pytest.mark.parametrize("step", range(5))
async def test_killed_at_any_step_it_is_whole_and_the_next_call_does_the_rest(
    dest: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await snapshot(dest)
    done = 0

    def dying(name: str) -> None:
        real = getattr(snapshot_forget, name)

        def call(*args: object) -> object:
            nonlocal done
            if done == step:
                raise Killed
            done += 1
            return real(*args)

        monkeypatch.setattr(snapshot_forget, name, call)

    # Three files are written (train, eval, manifest), then the old ones go: step 4 is none of them.
    dying("_write")
    dying("_sweep")
    if step < 4:
        with pytest.raises(Killed):
            forget_rows(path, forgotten("anna").row, NOW)
    else:
        forget_rows(path, forgotten("anna").row, NOW)
    assert ids(path) == ([["c", "b", "a"], ["e", "d"]] if step < 3 else [["b"], ["e"]])
    monkeypatch.undo()
    forget_rows(path, forgotten("anna").row, NOW)
    assert ids(path) == [["b"], ["e"]] and len(files(path)) == 3
    assert len(read_manifest(path).forgotten) == 1


async def test_what_killed_processes_left_goes_and_snapshots_stay(dest: str) -> None:
    path = await snapshot(dest)
    if "://" in dest:
        import fsspec

        system, root = fsspec.core.url_to_fs(dest)
        system.pipe(f"{root}/r2/train.parquet", b"the manifest was never written")
    else:
        for name in (".r2.0a1b2c3d.tmp", ".r3.gone"):
            (Path(dest) / name).mkdir()
            (Path(dest) / name / "train.parquet").write_bytes(b"x")
    assert remove_unfinished(dest) == (1 if "://" in dest else 2)
    assert ids(path) == [["c", "b", "a"], ["e", "d"]] and remove_unfinished(dest) == 0
    assert "://" in dest or [each.name for each in Path(dest).iterdir()] == ["r1"]


async def test_who_reads_while_it_is_rewritten_reads_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import streams.snapshots as module

    path = await snapshot(str(tmp_path))
    real, read = module.read_file, []

    def between(file: str) -> bytes:
        content = real(file)
        if not read:  # the manifest of before has been read
            read.append(file)
            forget_rows(path, forgotten("anna").row, NOW)
        return content

    monkeypatch.setattr(module, "read_file", between)
    assert [row["id"] for row in read_rows(path, "train")] == ["b"]
    (tmp_path / "r1" / read_manifest(path).files["train.parquet"].path).write_bytes(b"x")  # type: ignore[operator]
    with pytest.raises(SnapshotError, match="damaged"):
        read_rows(path, "train")


async def test_what_is_forgotten_does_not_go_into_a_new_snapshot(tmp_path: Path) -> None:
    main, held_out = await buffers()

    async def known() -> ForgottenList:
        return forgotten("anna")

    path = await write_snapshot(str(tmp_path), "r1", main, held_out, {}, {}, NOW, known)
    assert ids(path) == [["b"], ["e"]]


async def test_a_snapshot_is_withdrawn_when_something_in_it_is_forgotten_while_it_is_written(tmp_path: Path) -> None:
    main, held_out = await buffers()
    asked = 0

    async def known() -> ForgottenList:
        nonlocal asked
        asked += 1
        return forgotten("anna") if asked > 1 else ForgottenList()

    with pytest.raises(SnapshotError, match="withdrawn"):
        await write_snapshot(str(tmp_path), "r1", main, held_out, {}, {}, NOW, known)
    assert list(tmp_path.iterdir()) == []
    path = await write_snapshot(str(tmp_path), "r1", main, held_out, {}, {}, NOW, known)
    assert forgotten_rows(path, forgotten("anna").row) == []
