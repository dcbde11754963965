"""What the demo says while a run goes on."""

import json
from pathlib import Path

from deploy.demo.follow import Seen
from deploy.demo.run import training_progress
from streams.records import Phase, TrainEvent, TrainRequest
from streams.settings import KafkaSettings, load_settings
from streams.topics import topic_names


def test_a_phase_is_told_with_its_own_points_though_they_come_late(tmp_path: Path) -> None:
    settings = load_settings({"training": {"work_dir": str(tmp_path)}})
    seen = Seen(topic_names(KafkaSettings()))
    seen.request = TrainRequest(run_id="r", snapshot="s", reasons=[], base_model="b", requested_at=1)
    (tmp_path / "r").mkdir()

    def after(phase: Phase, step: int | None = None) -> str:
        metrics = {} if step is None else {"step": step, "loss": 2.0}
        seen.events.append(TrainEvent(run_id="r", phase=phase, metrics=metrics, ts=1))
        return training_progress(settings, seen)

    def point(phase: str, step: int) -> None:
        with (tmp_path / "r" / "curve.jsonl").open("a") as curve:
            curve.write(json.dumps({"phase": phase, "step": step, "steps": 8, "loss": 2.0, "ts": 1}) + "\n")

    assert training_progress(settings, seen) == "waiting for the trainer"
    assert after("sft") == "sft goes on"
    point("sft", 8)
    assert after("dpo") == "dpo goes on"
    assert after("sft", 8) == "dpo goes on", "the event of a point is late"
    point("dpo", 2)
    assert after("dpo", 2) == "dpo goes on, step 2: loss 2.000"
    assert after("gate") == "gate goes on"
