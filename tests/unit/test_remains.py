"""Until when Kafka keeps what was forgotten."""

import pytest

from deploy.commands.forget import _lines
from deploy.forget import Report
from deploy.remains import Remains, kept_for
from trainers.forgetting import Learned

DAY_MS = 86_400_000


@pytest.mark.parametrize(
    ("configs", "kept"),
    [
        ({"retention.ms": DAY_MS, "segment.ms": 7 * DAY_MS, "cleanup.policy": "delete"}, 8 * DAY_MS),
        ({"retention.ms": DAY_MS, "segment.ms": DAY_MS, "cleanup.policy": "compact,delete"}, 2 * DAY_MS),
        ({"retention.ms": -1, "segment.ms": DAY_MS, "cleanup.policy": "delete"}, None),
        ({"retention.ms": DAY_MS, "segment.ms": DAY_MS, "cleanup.policy": "compact"}, None),
        ({"max.message.bytes": 2_000_000}, None),
    ],
)
def test_a_record_is_gone_when_its_segment_is_closed_and_old(configs: dict[str, object], kept: int | None) -> None:
    assert kept_for({name: {"value": str(value)} for name, value in configs.items()}) == kept


def test_the_report_says_what_learned_from_it_what_serves_and_what_stays() -> None:
    report = Report(["d" * 40], members={"main": 2, "eval": 0}, snapshots={"s1": {"train": 2, "eval": 1}})
    report.adapters = [
        Learned(version="v0001-a", how="trained", source="s1"),
        Learned(version="v0002-b", how="parent", source="v0001-a"),
    ]
    report.champion = "v0002-b"
    report.remains = [
        Remains(topic="prompts.raw", places=["prompts.raw:0:1"], oldest=0, newest=DAY_MS, until=9 * DAY_MS),
        Remains(topic="prompts.dead", places=["prompts.dead:0:1"], oldest=0, newest=0, until=None),
    ]
    told = "\n".join(_lines(report))
    for line in (
        "2 members of the main buffer",
        "2 rows to train on and 1 held-out ones of s1",
        "v0001-a: trained on s1",
        "v0002-b: goes on from v0001-a",
        "SERVES    v0002-b, which learned from it",
        "prompts.raw: 1 records from 1970-01-01 00:00 UTC to 1970-01-02 00:00 UTC, gone by 1970-01-10 00:00 UTC",
        "prompts.dead: 1 records from 1970-01-01 00:00 UTC to 1970-01-01 00:00 UTC, the broker does not say",
    ):
        assert line in told
    assert "nothing: it is not stored" in "\n".join(_lines(Report(["d"])))
    report.left = ["1 members of the buffers"]
    assert "--resume" in "\n".join(_lines(report))
