"""The harness in its short forms."""

from pathlib import Path

from tests.chaos.run import run
from tests.chaos.schedule import Fault
from tests.chaos.system import CAPACITY


def test_nothing_is_lost_and_nothing_is_counted_twice(tmp_path: Path) -> None:
    flow = [
        Fault("kill worker at score", "worker-1", 1, 1),
        Fault("redis comes back older", "redis", 3, 1.5),
        Fault("cut kafka", "everyone", 6, 1.5),
        Fault("kill vllm", "vllm-2", 8, 1),
    ]
    training = [Fault("kill trainer in dpo", "trainers", 1, 0.5)]
    report = run(tmp_path, seed=7, records=700, flow=flow, training=training)
    print(report.table())
    assert report.audit.clean, report.table()
    assert report.audit.members == CAPACITY
    assert report.hits["kill trainer in dpo"] == 1
    assert max(report.stopped_s.values()) < 20, "SIGTERM under load ends within the grace period"


def test_every_rule_holds_with_near_duplicates_and_caps(tmp_path: Path) -> None:
    flow = [
        Fault("kill worker at curate", "worker-2", 1, 0.5),
        Fault("redis comes back older", "redis", 2, 1),
        Fault("cut redis", "worker-1", 4, 1),
    ]
    report = run(tmp_path, seed=8, records=700, flow=flow, rules=True)
    print(report.table())
    assert report.audit.clean, report.table()
    assert report.audit.account["refused: near_duplicate"] > 0
