"""Promotion: everywhere or nowhere, the pointer after the servers, and a server that forgot is told again."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from streams.errors import Fatal, HaypileError, Transient
from streams.settings import ServingSettings
from tests.support.cluster import Cluster, running_cluster
from trainers.promotion import Servers, move, promote, rollback, served_name
from trainers.registry import UnknownVersion


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running_cluster(tmp_path) as cluster:
        yield cluster


async def test_promotion_loads_everywhere_then_moves_the_pointer_then_unloads_the_old(cluster: Cluster) -> None:
    for version in cluster.versions[:2]:
        name = await promote(cluster.serving, cluster.registry, version, reason="gate", by="test")
    assert name == cluster.name(1) == f"haypile-{cluster.versions[1]}"
    assert cluster.loaded() == [{name}, {name}]
    assert cluster.fakes[0].adapters[name] == str(cluster.registry.path(cluster.versions[1]))
    assert cluster.registry.champion().version == cluster.versions[1]


@pytest.mark.parametrize(("fault", "error"), [("500", Transient), ("400", Fatal)])
async def test_where_one_server_fails_none_keeps_it_and_the_old_one_serves(
    cluster: Cluster, fault: str, error: type[HaypileError]
) -> None:
    await promote(cluster.serving, cluster.registry, cluster.versions[0], reason="gate", by="test")
    cluster.fakes[1].fault(fault, 1)
    with pytest.raises(error):
        await promote(cluster.serving, cluster.registry, cluster.versions[1], reason="gate", by="test")
    assert cluster.loaded() == [{cluster.name(0)}] * 2
    assert cluster.registry.champion().version == cluster.versions[0]


async def test_a_server_that_loads_but_does_not_answer_fails_the_promotion(cluster: Cluster) -> None:
    async with Servers(cluster.serving) as servers:
        await servers.load(cluster.registry, cluster.versions[0])  # loaded: the next request is the probe
        cluster.fakes[0].fault("garbage", 1)
        with pytest.raises(Transient, match="not JSON"):
            await move(servers, cluster.registry, cluster.versions[0], reason="gate", by="test")
    assert cluster.registry.champion().version is None


async def test_a_server_that_is_down_fails_the_promotion(cluster: Cluster) -> None:
    await cluster.servers[1].close()
    with pytest.raises(Transient, match="not reachable"):
        await promote(cluster.serving, cluster.registry, cluster.versions[0], reason="gate", by="test")
    assert cluster.loaded()[0] == set() and cluster.registry.champion().version is None


async def test_damaged_files_are_not_loaded(cluster: Cluster) -> None:
    (cluster.registry.path(cluster.versions[0]) / "adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(Fatal, match="sha256 differs"):
        await promote(cluster.serving, cluster.registry, cluster.versions[0], reason="gate", by="test")
    assert cluster.loaded() == [set(), set()]


async def test_whoever_lost_the_lease_moves_nothing(cluster: Cluster) -> None:
    async def lost() -> None:
        raise Fatal("the lease is lost")

    async with Servers(cluster.serving) as servers:
        with pytest.raises(Fatal, match="lease"):
            await move(servers, cluster.registry, cluster.versions[0], reason="gate", by="test", still_ours=lost)
    assert cluster.registry.champion().version is None


async def test_rollback_serves_the_champion_before_and_then_the_base(cluster: Cluster) -> None:
    for version in cluster.versions[:2]:
        await promote(cluster.serving, cluster.registry, version, reason="gate", by="test")
    assert await rollback(cluster.serving, cluster.registry, reason="bad", by="test") == cluster.name(0)
    assert cluster.loaded() == [{cluster.name(0)}] * 2
    assert await rollback(cluster.serving, cluster.registry, reason="bad", by="test") == cluster.serving.model
    assert cluster.loaded() == [set(), set()]
    assert served_name(cluster.serving, cluster.registry.champion().version) == cluster.serving.model
    with pytest.raises(UnknownVersion):
        await rollback(cluster.serving, cluster.registry, reason="bad", by="test")


async def test_a_rollback_does_not_wait_for_a_server_that_is_down(cluster: Cluster) -> None:
    for version in cluster.versions[:2]:
        await promote(cluster.serving, cluster.registry, version, reason="gate", by="test")
    await cluster.servers[1].close()
    assert await rollback(cluster.serving, cluster.registry, reason="bad", by="test") == cluster.name(0)
    assert cluster.loaded()[0] == {cluster.name(0)}
    assert cluster.registry.champion().version == cluster.versions[0]


async def test_the_reconciler_reloads_what_a_restart_forgot_and_unloads_leftovers(cluster: Cluster) -> None:
    old, champion, challenger = cluster.versions
    for version in (old, champion):
        await promote(cluster.serving, cluster.registry, version, reason="gate", by="test")
    cluster.fakes[0].adapters.clear()
    cluster.fakes[1].adapters |= {
        cluster.name(0): "left by a crash",
        cluster.name(2): "in the gate",
        "judge-2": "other",
    }
    async with Servers(cluster.serving) as servers:
        assert await servers.reconcile(cluster.registry) == 1
        assert cluster.loaded() == [{cluster.name(1)}, {cluster.name(1), cluster.name(2), "judge-2"}]
        cluster.registry.set_gate(challenger, {"promote": False})
        assert await servers.reconcile(cluster.registry) == 0
        assert cluster.loaded()[1] == {cluster.name(1), "judge-2"}
        cluster.fakes[1].adapters[cluster.name(0)] = "loaded by hand, then removed"
        cluster.registry.remove(old, now_ms=5)
        await servers.reconcile(cluster.registry)
        assert cluster.loaded()[1] == {cluster.name(1), "judge-2"}


async def test_the_reconciler_puts_right_what_it_can_reach(cluster: Cluster) -> None:
    await promote(cluster.serving, cluster.registry, cluster.versions[0], reason="gate", by="test")
    cluster.fakes[1].adapters.clear()
    await cluster.servers[0].close()
    async with Servers(cluster.serving) as servers:
        with pytest.raises(Transient, match="not reachable"):
            await servers.reconcile(cluster.registry)
        assert [servers.serves[url] for url in cluster.serving.urls] == [False, True]
    assert cluster.loaded()[1] == {cluster.name(0)}


async def test_a_server_that_refuses_the_champion_does_not_serve_it(cluster: Cluster) -> None:
    await promote(cluster.serving, cluster.registry, cluster.versions[0], reason="gate", by="test")
    async with Servers(cluster.serving) as servers:
        await servers.reconcile(cluster.registry)
        assert [servers.serves[url] for url in cluster.serving.urls] == [True, True]
        cluster.fakes[0].adapters.clear()
        cluster.fakes[0].fault("400", 1)
        with pytest.raises(Transient, match="made to fail"):
            await servers.reconcile(cluster.registry)
        assert [servers.serves[url] for url in cluster.serving.urls] == [False, True]


async def test_two_promotions_at_once_leave_one_champion_that_is_served(cluster: Cluster) -> None:
    await asyncio.gather(
        *(promote(cluster.serving, cluster.registry, v, reason="gate", by="test") for v in cluster.versions)
    )
    champion = cluster.registry.champion()
    assert len(champion.history) == 3
    assert cluster.loaded() == [{served_name(cluster.serving, champion.version)}] * 2


async def test_the_key_is_sent(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    @web.middleware
    async def note(request: web.Request, handler: object) -> web.StreamResponse:
        seen.append(request.headers.get("Authorization"))
        return web.json_response({"data": []})

    server = TestServer(web.Application(middlewares=[note]))
    await server.start_server()
    serving = ServingSettings(urls=[str(server.make_url("")).rstrip("/")], api_key="secret")
    async with Servers(serving) as servers:
        await servers.reconcile(cluster.registry)
    await server.close()
    assert seen == ["Bearer secret"]
