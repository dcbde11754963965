"""The first minutes of a champion: what ends them, what does not, and that a restart does not."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from streams.errors import Transient
from streams.metrics import TrainerMetrics
from streams.settings import ServingSettings
from tests.support.cluster import Cluster, running_cluster
from trainers.history import Champion, Change
from trainers.promotion import Servers, promote, rollback
from trainers.registry import Registry
from trainers.watch import LATE_S, Counts, Watch, too_many, watched_change

SERVING = ServingSettings(watch_s=300)


def change(kind: Any = "promote", version: str | None = "v0001-a", at: int = 1_000_000) -> Change:
    return Change(version=version, kind=kind, reason="r", by="test", at=at)


@pytest.mark.parametrize(
    ("history", "over", "now_s", "watch_s", "expected"),
    [
        ([], None, 1001, 300, False),
        ([change()], None, 1001, 300, True),
        ([change()], None, 1000 + 300, 300, True),
        ([change()], None, 1000 + 300 + LATE_S - 1, 300, True),
        ([change()], None, 1000 + 300 + LATE_S, 300, False),
        ([change()], 1_000_000, 1001, 300, False),
        ([change()], 999_999, 1001, 300, True),
        ([change()], None, 1001, 0, False),
        ([change(), change("rollback", None, 1_000_500)], None, 1001, 300, False),
        ([change(), change("rollback", "v0002-b", 1_000_500)], None, 1001, 300, False),
    ],
)
def test_what_is_watched(
    history: Sequence[Change], over: int | None, now_s: float, watch_s: float, expected: bool
) -> None:
    champion = Champion(version=history[-1].version if history else None, history=list(history))
    serving = SERVING.model_copy(update={"watch_s": watch_s})
    found = watched_change(champion, over, serving, int(now_s * 1000))
    assert found == (history[-1] if expected else None)


@pytest.mark.parametrize(
    ("errors", "requests", "bound", "expected"),
    [(4, 4, 5, False), (5, 100, 5, True), (5, 101, 5, False), (50, 1000, 5, True), (10**6, 10**6, None, False)],
)
def test_how_many_errors(errors: int, requests: int, bound: int | None, expected: bool) -> None:
    assert too_many(errors, requests, SERVING.model_copy(update={"watch_errors": bound})) is expected


class Scrapes:
    """Stands for a server's `/metrics`."""

    urls: Sequence[str] = ["x"]

    def __init__(self, *found: tuple[int, int] | Transient | None) -> None:
        self.found = list(found)

    async def answered(self, url: str) -> tuple[int, int] | None:
        value = self.found.pop(0)
        if isinstance(value, Transient):
            raise value
        return value


async def test_errors_are_counted_from_the_first_look_through_restarts_and_absences() -> None:
    counts = Counts()
    pool = Scrapes((100, 50), (110, 52), Transient("away"), (4, 3), None)
    answered = [await counts.look(pool) for _ in range(5)]  # type: ignore[arg-type]
    assert answered == [True, True, False, True, True]
    assert (counts.errors, counts.requests) == (2 + 1 + 3, 10 + 1 + 4)


class Bench:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.registry: Registry = cluster.registry
        self.metrics = TrainerMetrics(CollectorRegistry())
        self.late_ms = 0
        self.watch = self.new()

    def new(self) -> Watch:
        """As after a restart of the trainer."""
        return Watch(self.cluster.serving, self.registry, self.metrics, self.now_ms)

    def now_ms(self) -> int:
        return self.registry.champion().history[-1].at + self.late_ms

    async def check(self) -> str | None:
        async with Servers(self.cluster.serving) as servers:
            return await self.watch.check(servers)

    def count(self, result: str) -> float | None:
        return self.metrics.registry.get_sample_value("haypile_champion_checks_total", {"result": result})


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with running_cluster(tmp_path) as cluster:
        for version in cluster.versions[:2]:
            await promote(cluster.serving, cluster.registry, version, reason="gate", by="trainer")
        yield Bench(cluster)


async def test_a_champion_that_stays_sane_passes_and_is_left_alone(bench: Bench) -> None:
    assert await bench.check() is None
    assert bench.watch.is_on
    bench.late_ms = 300_000
    assert await bench.check() is None
    bench.cluster.answer(1, text="")
    bench.watch = bench.new()
    assert await bench.check() is None
    assert not bench.watch.is_on and bench.count("passed") == 2
    assert bench.registry.champion().version == bench.cluster.versions[1]


@pytest.mark.parametrize("late_s", [0, 299, 400])
async def test_a_champion_that_fails_goes_back_to_the_one_before(bench: Bench, late_s: int) -> None:
    """Also when the trainer was away all the time, and looks first when the minutes are over."""
    bench.cluster.answer(1, text="")
    bench.late_ms = late_s * 1000
    assert await bench.check() == bench.cluster.name(0)
    last = bench.registry.champion().history[-1]
    assert (last.version, last.kind, last.by) == (bench.cluster.versions[0], "rollback", "watch")
    assert "it is empty" in last.reason
    assert bench.cluster.loaded() == [{bench.cluster.name(0)}] * 2
    assert bench.metrics.registry.get_sample_value("haypile_champion_returns_total") == 1
    bench.cluster.answer(0, text="")
    assert await bench.check() is None, "a rollback is not watched"


async def test_it_is_also_broken_where_only_one_server_serves_it_wrongly(bench: Bench) -> None:
    bench.cluster.fakes[1].answers[bench.cluster.name(1)] = {"as": "base", "text": " "}
    assert await bench.check() == bench.cluster.name(0)


async def test_errors_of_the_server_end_it_and_are_of_this_champion_only(bench: Bench) -> None:
    fake = bench.cluster.fakes[0]
    fake.answered["/v1/chat/completions", "5xx"] = 1000  # before it was promoted
    assert await bench.check() is None
    fake.answered["/v1/chat/completions", "5xx"] += 4
    assert await bench.check() is None
    fake.answered["/v1/chat/completions", "5xx"] += 1
    assert await bench.check() == bench.cluster.name(0)
    assert "5 errors in" in bench.registry.champion().history[-1].reason


async def test_a_server_that_went_away_ends_it_after_some_looks_and_the_pointer_moves_without_it(bench: Bench) -> None:
    assert await bench.check() is None
    await bench.cluster.servers[0].close()
    for _ in range(4):
        assert await bench.check() is None
    assert bench.count("no_answer") == 4
    assert await bench.check() == bench.cluster.name(0)
    assert bench.cluster.loaded()[1] == {bench.cluster.name(0)}


async def test_a_server_that_lost_the_champion_is_the_reconcilers_to_put_right(bench: Bench) -> None:
    bench.cluster.fakes[0].adapters.clear()
    bench.late_ms = 400_000
    for _ in range(6):
        assert await bench.check() is None
    assert bench.registry.champion().version == bench.cluster.versions[1] and bench.watch.is_on
    async with Servers(bench.cluster.serving) as servers:
        assert await servers.reconcile(bench.registry) == 1
    assert await bench.check() is None
    assert (bench.registry.root / "watched.json").exists()


async def test_what_someone_else_undid_is_not_undone_once_more(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trainers see the same failure: the champion before is not rolled back, too."""
    bench.cluster.answer(1, text="")
    previous = bench.registry.previous

    async def by_hand() -> None:
        await rollback(bench.cluster.serving, bench.registry, reason="bad", by="hand")

    async def go_back(self: Watch, servers: Servers, found: Change, reason: str) -> str:
        await by_hand()
        return await original(self, servers, found, reason)

    original = Watch._go_back
    monkeypatch.setattr(Watch, "_go_back", go_back)
    with pytest.raises(Transient, match="changed meanwhile"):
        await bench.check()
    assert previous() is None and bench.registry.champion().version == bench.cluster.versions[0]
