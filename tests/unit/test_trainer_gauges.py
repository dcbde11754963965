"""What the trainer shows of its registry and its runs, whoever did them, and after a restart."""

import json
import os
from pathlib import Path

from prometheus_client import CollectorRegistry

from streams.metrics import TrainerMetrics
from streams.settings import TrainingSettings
from trainers.gauges import last_ends, rejections_in_a_row, show, show_served
from trainers.registry import Registry
from trainers.rundir import Record, RunFolder


def ended(work_dir: Path, run_id: str, outcome: str | None, at: float) -> None:
    folder = RunFolder(work_dir / run_id)
    folder.path.mkdir(parents=True)
    folder.write("record.json", Record(outcome=outcome))  # type: ignore[arg-type]
    os.utime(folder.path / "record.json", (at, at))


def publish(registry: Registry, run_id: str, gate: dict[str, object] | None) -> str:
    source = registry.root.parent / "adapter"
    source.mkdir(exist_ok=True)
    (source / "adapter_config.json").write_text(json.dumps({"r": 8}))
    (source / "adapter_model.safetensors").write_bytes(b"weights")
    given = {"snapshot": "s", "base_model": "m", "parent": None, "recipe": {}, "judge": "j", "metrics": {}, "now_ms": 1}
    version = registry.publish(source, run_id=run_id, **given).version  # type: ignore[arg-type]
    if gate is not None:
        registry.set_gate(version, gate)
    return version


def value(metrics: TrainerMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_the_registry_and_the_folders_tell_after_a_restart(tmp_path: Path) -> None:
    registry, work_dir = Registry(tmp_path / "registry"), tmp_path / "runs"
    lost = {"promote": False, "win_rate": 0.4, "lower": 0.3, "upper": 0.5, "prompts": 40}
    first = publish(registry, "r1", lost | {"promote": True})
    registry.set_champion(first, reason="better", by="trainer")
    publish(registry, "r2", lost)
    publish(registry, "r3", lost | {"win_rate": 0.45})
    publish(registry, "r4", None)
    ended(work_dir, "r2", "rejected", 2_000.0)
    ended(work_dir, "r3", "rejected", 3_000.0)
    ended(work_dir, "r4", None, 4_000.0)
    ended(work_dir, "r5", "failed", 2_500.0)
    (work_dir / "damaged").mkdir()
    (work_dir / "damaged" / "record.json").write_text("{")
    metrics = TrainerMetrics(CollectorRegistry())
    show(metrics, registry, TrainingSettings(registry=registry.root, work_dir=work_dir))
    promoted = registry.champion().history[-1].at / 1000
    assert value(metrics, "haypile_champion_number") == 1
    assert value(metrics, "haypile_champion_since_timestamp_seconds") == promoted
    assert value(metrics, "haypile_gate_rejections_in_a_row") == 2
    assert value(metrics, "haypile_gate_win_rate", end="value") == 0.45
    assert value(metrics, "haypile_gate_win_rate", end="upper") == 0.5
    assert value(metrics, "haypile_gate_prompts") == 40
    last = "haypile_training_last_run_timestamp_seconds"
    assert value(metrics, last, outcome="done") == promoted, "though its folder is gone"
    assert value(metrics, last, outcome="rejected") == 3_000.0
    assert value(metrics, last, outcome="failed") == 2_500.0
    assert value(metrics, "haypile_disk_free_bytes", folder="registry")
    size = value(metrics, "haypile_disk_size_bytes", folder="work_dir")
    assert size and size >= (value(metrics, "haypile_disk_free_bytes", folder="work_dir") or 0)


def test_a_fresh_trainer_shows_zeros_and_the_base_model(tmp_path: Path) -> None:
    metrics = TrainerMetrics(CollectorRegistry())
    show(metrics, Registry(tmp_path / "none"), TrainingSettings(registry=tmp_path / "none", work_dir=tmp_path / "no"))
    assert value(metrics, "haypile_champion_number") == 0
    assert value(metrics, "haypile_gate_rejections_in_a_row") == 0
    assert value(metrics, "haypile_training_last_run_timestamp_seconds", outcome="done") == 0
    assert value(metrics, "haypile_training_runs_total", outcome="failed") == 0
    assert last_ends(tmp_path / "no") == {"done": 0, "failed": 0, "rejected": 0}


def test_a_champion_promoted_by_hand_is_no_successful_run(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    registry.set_champion(publish(registry, "r1", None), reason="I like it", by="someone")
    metrics = TrainerMetrics(CollectorRegistry())
    show(metrics, registry, TrainingSettings(registry=registry.root, work_dir=tmp_path / "runs"))
    assert value(metrics, "haypile_training_last_run_timestamp_seconds", outcome="done") == 0
    assert value(metrics, "haypile_champion_since_timestamp_seconds")


def test_rejections_count_from_the_newest() -> None:
    won, lost = {"promote": True}, {"promote": False}
    assert rejections_in_a_row([]) == 0
    assert rejections_in_a_row([lost, won]) == 0
    assert rejections_in_a_row([lost, won, lost, lost]) == 2


def test_the_last_point_of_the_curve_is_shown() -> None:
    metrics = TrainerMetrics(CollectorRegistry())
    metrics.show_point({"phase": "sft", "step": 7, "loss": 1.25, "ts": 1})
    metrics.show_point({"phase": "dpo", "step": 2, "loss": 0.69, "tokens_per_s": 310.5, "ts": 1})
    assert value(metrics, "haypile_training_step", phase="sft") == 7
    assert value(metrics, "haypile_training_loss", phase="sft") == 1.25
    assert value(metrics, "haypile_training_tokens_per_second", phase="sft") is None
    assert value(metrics, "haypile_training_tokens_per_second", phase="dpo") == 310.5


def test_servers_are_shown_by_their_url() -> None:
    metrics = TrainerMetrics(CollectorRegistry())
    show_served(metrics, {"http://a:8000": True, "http://b:8000": False})
    assert value(metrics, "haypile_champion_served", server="http://a:8000") == 1
    assert value(metrics, "haypile_champion_served", server="http://b:8000") == 0
