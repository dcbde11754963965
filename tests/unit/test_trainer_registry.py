"""The registry: whole versions or none, one a run, a pointer with a history, and names that stay in the folder."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

import trainers.registry as module
from streams.errors import Fatal, Transient
from trainers.history import Change, champions
from trainers.registry import Registry, UnknownVersion


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "adapter"
    (folder / "ref").mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8, "base_model_name_or_path": "/tmp/somewhere"}))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "ref" / "adapter_model.safetensors").write_bytes(b"reference")
    (folder / "training_args.bin").write_bytes(b"a pickle")
    return folder


def publish(registry: Registry, adapter: Path, run_id: str = "run1", parent: str | None = None) -> str:
    manifest = registry.publish(
        adapter,
        run_id=run_id,
        snapshot=f"snapshots/{run_id}",
        base_model="org/model",
        parent=parent,
        recipe={"r": 8},
        judge="j1",
        metrics={"sft_loss_after": 1.5},
        now_ms=1_000,
    )
    return manifest.version


def test_a_version_holds_the_adapter_and_nothing_else(registry: Registry, adapter: Path) -> None:
    version = publish(registry, adapter)
    assert version == "v0001-run1"
    folder = registry.path(version)
    assert sorted(f.name for f in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/model"
    assert folder.is_absolute() and folder.stat().st_mode & 0o005 == 0o005
    manifest = registry.show(version)
    assert (manifest.run_id, manifest.judge, manifest.parent) == ("run1", "j1", None)
    registry.verify(version)


def test_a_run_publishes_once(registry: Registry, adapter: Path) -> None:
    first = publish(registry, adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"other weights")
    assert publish(registry, adapter) == first
    assert len(registry.versions()) == 1
    registry.verify(first)


def test_two_publishers_at_once_get_two_numbers(registry: Registry, adapter: Path) -> None:
    threads = [threading.Thread(target=publish, args=(registry, adapter, f"run{i}")) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(m.version[:5] for m in registry.versions()) == [f"v{i:04d}" for i in range(1, 9)]


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_only_safetensors_adapters_are_taken(registry: Registry, adapter: Path, missing: str) -> None:
    (adapter / missing).unlink()
    (adapter / "adapter_model.bin").write_bytes(b"a pickle")
    with pytest.raises(Fatal, match="safetensors only"):
        publish(registry, adapter)
    assert registry.versions() == [] and list(registry.adapters.iterdir()) == []


@pytest.mark.parametrize("step", ["copyfileobj", "rename"])
def test_a_crash_while_publishing_leaves_no_version_and_the_next_attempt_works(
    registry: Registry, adapter: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil if step == "copyfileobj" else module.os, step, die)
        # A kill cleans nothing up.
        patch.setattr(module.shutil, "rmtree", lambda *a, **k: None)
        with pytest.raises(Killed):
            publish(registry, adapter)
    assert registry.versions() == []
    assert len(list(registry.adapters.glob(".new-*"))) == 1
    assert publish(registry, adapter) == "v0001-run1"
    assert list(registry.adapters.glob(".new-*")) == []


@pytest.mark.parametrize("name", ["../../etc", "v0001-../x", "", ".", "v0001", "v0001-a/b", "v0009-nothing"])
def test_names_cannot_leave_the_registry(registry: Registry, adapter: Path, name: str) -> None:
    publish(registry, adapter)
    for use in (registry.path, registry.show, registry.verify):
        with pytest.raises(UnknownVersion, match="the latest: v0001-run1"):
            use(name)
    with pytest.raises(UnknownVersion):
        registry.set_champion(name, reason="r", by="test")
    assert registry.champion().version is None


@pytest.mark.parametrize("run_id", ["../x", "a/b", "", ".hidden", "a" * 101])
def test_run_ids_that_are_no_names_are_refused(registry: Registry, adapter: Path, run_id: str) -> None:
    with pytest.raises(Fatal, match="cannot be part of a version"):
        publish(registry, adapter, run_id)


def test_a_changed_file_is_found(registry: Registry, adapter: Path) -> None:
    version = publish(registry, adapter)
    with (registry.path(version) / "adapter_model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(Fatal, match=r"adapter_model\.safetensors was changed"):
        registry.verify(version)


def test_the_gate_report_is_kept_once_and_its_rows_apart(registry: Registry, adapter: Path) -> None:
    version = publish(registry, adapter)
    registry.set_gate(version, {"promote": True, "rows": [{"prompt_id": "p"}]})
    registry.set_gate(version, {"promote": False, "rows": []})
    assert registry.show(version).gate == {"promote": True}
    assert json.loads((registry.path(version) / "gate.json").read_text())["rows"] == [{"prompt_id": "p"}]
    registry.verify(version)


def test_lineage_goes_to_the_first_and_ends_where_one_is_gone(registry: Registry, adapter: Path) -> None:
    first = publish(registry, adapter, "a")
    second = publish(registry, adapter, "b", parent=first)
    third = publish(registry, adapter, "c", parent=second)
    assert [m.version for m in registry.lineage(third)] == [third, second, first]
    shutil.rmtree(registry.path(first))
    assert [m.version for m in registry.lineage(third)] == [third, second]
    assert registry.lineage(None) == []


def test_rollback_goes_back_and_further_back_not_to_and_fro(registry: Registry, adapter: Path) -> None:
    a, b, c = (publish(registry, adapter, name) for name in "abc")
    for version in (a, b, c):
        registry.set_champion(version, reason="gate", by="trainer")
    assert registry.rollback(reason="bad", by="me").version == b
    assert registry.rollback(reason="worse", by="me").version == a
    registry.set_champion(c, reason="fixed", by="me")
    assert registry.rollback(reason="no", by="me").version == a
    assert registry.rollback(reason="all", by="me").version is None
    with pytest.raises(UnknownVersion, match="nothing to roll back to"):
        registry.rollback(reason="more", by="me")
    history = registry.champion().history
    assert [(h.version, h.kind) for h in history[:4]] == [
        (a, "promote"),
        (b, "promote"),
        (c, "promote"),
        (b, "rollback"),
    ]
    assert history[3].reason == "bad" and history[3].by == "me" and history[3].at > 0


def change(kind: Any, version: str | None) -> Change:
    return Change(version=version, kind=kind, reason="", by="", at=1)


@pytest.mark.parametrize(
    ("moves", "path"),
    [
        ([], [None]),
        ([("promote", "a"), ("promote", "b"), ("promote", "a"), ("rollback", "b")], [None, "a", "b"]),
        ([("promote", "a"), ("promote", "b"), ("promote", "c"), ("rollback", "a")], [None, "a"]),
        ([("promote", "a"), ("promote", "b"), ("rollback", None), ("promote", "c")], [None, "c"]),
        # To one that never served: it takes the place of the one that is left.
        ([("promote", "a"), ("promote", "b"), ("rollback", "x")], [None, "a", "x"]),
    ],
)
def test_the_champions_that_led_to_this_one(moves: list[tuple[Any, str | None]], path: list[str | None]) -> None:
    assert champions([change(kind, version) for kind, version in moves]) == path


def test_a_pointer_that_stays_adds_no_history(registry: Registry, adapter: Path) -> None:
    version = publish(registry, adapter)
    registry.set_champion(version, reason="gate", by="trainer")
    registry.set_champion(version, reason="again", by="trainer")
    assert len(registry.champion().history) == 1


def test_a_damaged_pointer_is_said(registry: Registry) -> None:
    registry.root.mkdir(parents=True)
    (registry.root / "champion.json").write_text("{")
    with pytest.raises(Fatal, match=r"champion\.json is not readable"):
        registry.champion()


def test_the_serving_lock_keeps_others_out(registry: Registry) -> None:
    with registry.serving_lock(), pytest.raises(Transient, match="held by another"), registry.serving_lock(0.1):
        pass
    with registry.serving_lock(0.1):
        pass
