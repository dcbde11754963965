"""`haypile status`."""

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer

from deploy.commands.common import JsonOption, generations_of, print_json, run
from deploy.commands.rescore import described

if TYPE_CHECKING:
    from streams.settings import Settings


def status(as_json: JsonOption = False) -> None:
    """Where everything stands: dependencies, lag, buffer, last run, champion; and what is degraded since when.

    Exit code 1 if something is down.
    """
    from streams.settings import load_settings

    found = run(_collect(load_settings()))
    if as_json:
        print_json(found)
    else:
        _print(found)
    if any("error" in part for part in found.values()):
        raise typer.Exit(1)


async def _collect(settings: "Settings") -> dict[str, dict[str, Any]]:
    """One entry a part; `error` in it when it cannot be read."""
    from deploy.training_status import training_status
    from streams.errors import HaypileError

    async def guarded(task: Any) -> dict[str, Any]:
        try:
            return dict(await task)
        except HaypileError as error:
            return {"error": str(error)}

    parts = {
        "kafka": asyncio.to_thread(_kafka, settings),
        "buffer": _buffer(settings),
        "judge": _judge(settings),
        "vllm": _vllm(settings),
        "training": training_status(settings),
        "last_run": asyncio.to_thread(_last_run, settings),
        "models": asyncio.to_thread(_models, settings),
        "degraded": _degraded(settings),
    }
    return dict(zip(parts, await asyncio.gather(*(guarded(task) for task in parts.values())), strict=True))


def _kafka(settings: "Settings") -> dict[str, Any]:
    from dataclasses import asdict

    from deploy.kafka import readers_of, topic_states

    states = topic_states(settings.kafka, readers_of(settings))
    return {"bootstrap": settings.kafka.bootstrap, "topics": {name: asdict(state) for name, state in states.items()}}


async def _buffer(settings: "Settings") -> dict[str, Any]:
    async with generations_of(settings) as generations:
        stats, other = await generations.main.stats(), await generations.held_out.stats()
        state = await generations.read()
    return {
        "members": stats.size,
        "capacity": stats.capacity,
        "answered": stats.answered,
        "admitted_total": stats.admitted_total,
        "lowest_difficulty": stats.lowest_difficulty,
        "highest_difficulty": stats.highest_difficulty,
        "held_out": other.size,
        **described(state),
    }


async def _judge(settings: "Settings") -> dict[str, Any]:
    """The judge of these settings, as last measured by a worker."""
    import msgspec

    from agents.anchors import AnchorStore
    from streams.judge import identity_of
    from streams.redis_client import connect

    judge = identity_of(settings.judge)
    client = connect(settings.redis)
    try:
        last = await AnchorStore(client, settings.redis.namespace).last(judge)
    finally:
        await client.aclose()
    return {"id": judge, "anchors": None if last is None else msgspec.to_builtins(last)}


async def _vllm(settings: "Settings") -> dict[str, Any]:
    from deploy.clients import judge_pool, serving_pool, teacher_pool
    from deploy.probes import REACH_S

    served: dict[str, list[str]] = {}
    for new_pool in (judge_pool, teacher_pool, serving_pool):
        async with new_pool(settings, REACH_S) as pool:
            for url in pool.urls:
                if url not in served:
                    served[url] = await pool.models(url)
    return {"serves": served}


async def _degraded(settings: "Settings") -> dict[str, Any]:
    """What processes say about themselves. Without Redis: what the worker on this machine says in its metrics."""
    import time

    import msgspec

    from deploy.degraded import degradations, from_metrics
    from streams.errors import Transient
    from streams.health import HealthStore
    from streams.redis_client import connect

    client = connect(settings.redis)
    try:
        reports = await HealthStore(client, settings.redis.namespace).read()
    except Transient as error:
        lines = await asyncio.to_thread(from_metrics, settings.worker.metrics_port)
        if not lines:
            raise
        return {"lines": msgspec.to_builtins(lines), "processes": [], "note": str(error)}
    finally:
        await client.aclose()
    now = time.time()
    return {
        "lines": msgspec.to_builtins(degradations(reports, now)),
        "processes": [
            {"process": r.process, "agents": r.agents, "started": r.started, "heard_s_ago": now - r.at} for r in reports
        ],
    }


def _last_run(settings: "Settings") -> dict[str, Any]:
    import msgspec

    from deploy.kafka import read_topics
    from streams.records import TrainEvent, decode
    from streams.topics import topic_names

    last: TrainEvent | None = None
    for message in read_topics(settings.kafka, topic_names(settings.kafka).events):
        try:
            event = decode(TrainEvent, message.value)
        except msgspec.MsgspecError:
            continue
        last = event
    return {} if last is None else dict(msgspec.to_builtins(last))


def _models(settings: "Settings") -> dict[str, Any]:
    from trainers.registry import Registry

    registry = Registry(settings.training.registry)
    champion = registry.champion()
    last = champion.history[-1] if champion.history else None
    return {
        "champion": champion.version,
        "versions": len(registry.versions()),
        "since": None if last is None else last.at / 1000,
        "how": None if last is None else f"{last.kind} by {last.by}: {last.reason}",
    }


def _print(found: dict[str, dict[str, Any]]) -> None:
    for part, values in found.items():
        if part == "degraded":
            _print_degraded(values)
        elif "error" in values:
            print(f"{part:9s} DOWN  {values['error']}")
        elif part == "kafka":
            print(f"kafka     up    {values['bootstrap']}")
            for name, topic in values["topics"].items():
                lag = "" if topic["lag"] is None else f", lag {topic['lag']}"
                there = f"{topic['records']} records in {topic['partitions']} partitions{lag}"
                print(f"            {name:18s} {there if topic['partitions'] else 'missing'}")
        elif part == "buffer":
            print(
                f"buffer    up    {values['members']} of {values['capacity']} members, {values['answered']} answered, "
                f"{values['held_out']} held out"
            )
            if values["members"]:
                print(
                    f"            difficulty {values['lowest_difficulty']:.2f} to {values['highest_difficulty']:.2f}, "
                    f"judge {values['judge']}"
                )
            if values["rescoring"]:
                coming = values["rescoring"]
                since = datetime.fromtimestamp(coming["started_ms"] / 1000, UTC)
                print(
                    f"            goes over to judge {coming['judge']}: {coming['left']} of {coming['total']} members "
                    f"left, since {since:%Y-%m-%d %H:%M:%S} UTC"
                )
        elif part == "judge":
            print(f"judge           {values['id']}: {_measured(values['anchors'])}")
        elif part == "vllm":
            for url, names in values["serves"].items():
                print(f"vllm      up    {url} serves {', '.join(names)}")
        elif part == "training":
            for number, line in enumerate(values["lines"]):
                print(f"{'' if number else 'training':15s} {line}")
        elif part == "last_run":
            if values:
                at = datetime.fromtimestamp(values["ts"] / 1000, UTC)
                print(f"last run        {values['run_id']}: {values['phase']} at {at:%Y-%m-%d %H:%M:%S} UTC")
            else:
                print("last run        none yet")
        else:
            print(f"champion        {values['champion'] or 'the base model'} ({values['versions']} versions)")
            if values["how"]:
                print(f"                {_since(values['since'])}, {values['how']}")


def _print_degraded(values: dict[str, Any]) -> None:
    if "error" in values:
        print(f"degraded        not known: {values['error']}")
        return
    if not values["lines"]:
        print("degraded        nothing")
    for line in values["lines"]:
        since = "since when is not known" if line["since"] is None else _since(line["since"])
        print(f"degraded        {line['what']} {since}{': ' if line['detail'] else ''}{line['detail']}")


def _since(moment: float) -> str:
    at = datetime.fromtimestamp(moment, UTC)
    seconds = max(0, int((datetime.now(UTC) - at).total_seconds()))
    for_how_long = (
        f"{seconds} s" if seconds < 120 else f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h"
    )
    return f"since {at:%Y-%m-%d %H:%M:%S} UTC ({for_how_long})"


def _measured(anchors: dict[str, Any] | None) -> str:
    if anchors is None:
        return "not measured on anchors"
    spearman = "none" if anchors["spearman"] is None else f"{anchors['spearman']:.2f}"
    alarm = ", ALARM: what serves it has changed" if anchors["alarm"] else ""
    return f"Spearman {spearman} on {anchors['rated']} anchors, drift {anchors['drift']:.2f}{alarm}"
