"""The harness in its short form, and the harness itself: what it would not see is not proved."""

from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.auditor import Audit
from tests.chaos.run import run
from tests.chaos.schedule import KINDS, Fault, schedule


def test_a_schedule_repeats_for_its_seed_and_has_every_kind() -> None:
    assert schedule(1, 60, 5) == schedule(1, 60, 5) != schedule(2, 60, 5)
    kinds = Counter(fault.kind for fault in schedule(1, 2 * len(KINDS), 5))
    assert kinds == Counter(dict.fromkeys(KINDS, 2))


@pytest.mark.parametrize(
    "finding",
    [
        {"missing": ["c1"]},
        {"contradictory": ["c1"]},
        {"not_in_reference": {"c1"}},
        {"not_in_buffer": {"c1"}},
    ],
)
def test_any_finding_is_not_clean(finding: dict[str, object]) -> None:
    base: dict[str, object] = {
        "sent": 1,
        "missing": [],
        "dead": Counter(),
        "contradictory": [],
        "repeated_on_wire": {},
    }
    assert Audit(**base).clean  # type: ignore[arg-type]
    assert not Audit(**{**base, **finding}).clean  # type: ignore[arg-type]


def test_nothing_is_lost_and_nothing_is_counted_twice(tmp_path: Path) -> None:
    faults = [
        Fault("kill worker", "worker-1", 9, 1),
        Fault("redis comes back older", "redis", 11, 1.5),
        Fault("cut kafka", "kafka", 14, 1.5),
        Fault("vllm answers 503", "vllm-1", 16, 0),
        Fault("kill vllm", "vllm-2", 17, 1),
        Fault("clock jumps", "worker-2", 19, 1.5),
        Fault("kill redis", "redis", 21, 1),
    ]
    report = run(tmp_path, seed=7, records=1500, faults=faults)
    print(report.table())
    assert report.audit.clean, report.table()
    assert report.audit.members == 500
    assert max(report.stopped_s.values()) < 20, "SIGTERM under load ends within the grace period"
