"""Is each part reachable, and is it as the settings say? What `haypile status` and `haypile doctor` look at.

Every probe takes seconds at most and raises nothing: what is wrong is its answer.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from deploy.clients import judge_pool, serving_pool, teacher_pool
from deploy.kafka import forgotten_of, topic_states
from streams.errors import Fatal, HaypileError
from streams.judge import Judge
from streams.records import Message
from streams.redis_client import connect, translate
from streams.settings import KafkaSettings, Settings
from streams.topics import partitions_of, topic_names
from streams.vllm import VllmPool
from trainers.promotion import served_name
from trainers.registry import Registry

REACH_S = 5.0
"""Of one request of a probe."""
ANSWER_S = 60.0
"""The judge may have a queue before it."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor."""

    part: str
    ok: bool
    what: str
    to_do: str = ""
    """What to do about it; empty when it is well."""


async def _guarded(part: str, probe: Callable[[], Awaitable[list[Finding]]], to_do: str) -> list[Finding]:
    try:
        return await probe()
    except HaypileError as error:
        return [Finding(part, False, str(error), to_do)]


async def examine(settings: Settings) -> list[Finding]:
    """All findings, in the order in which the parts depend on each other."""
    probes = (
        _guarded("kafka", lambda: _kafka(settings), "start the broker or set kafka.bootstrap"),
        _guarded("redis", lambda: _redis(settings), "start Redis or set redis.url"),
        _guarded("judge", lambda: _judge(settings), "start vLLM with the judge or set judge.urls and judge.model"),
        _guarded(
            "teacher", lambda: _teacher(settings), "start vLLM with the teacher or set answer.urls and answer.model"
        ),
        _guarded("serving", lambda: _serving(settings), "start vLLM or set serving.urls"),
    )
    return [finding for findings in await asyncio.gather(*probes) for finding in findings]


async def _kafka(settings: Settings) -> list[Finding]:
    kafka = settings.kafka
    names = topic_names(kafka).all()
    states = await asyncio.to_thread(topic_states, kafka, dict.fromkeys(names))
    found = [Finding("kafka", True, f"answers at {kafka.bootstrap}")]
    missing = [name for name in names if states[name].partitions == 0]
    if missing:
        found.append(Finding("topics", False, f"missing: {', '.join(missing)}", "haypile topics create"))
    for name in names:
        have, want = states[name].partitions, partitions_of(kafka, name)
        if have and have != want:
            to_do = "set kafka.partitions to it, or add partitions" if have < want else "set kafka.partitions to it"
            found.append(Finding("topics", False, f"{name} has {have} partitions, the settings say {want}", to_do))
    if len(found) == 1:
        found.append(Finding("topics", True, f"all {len(names)} are there, with the partitions of the settings"))
    return found + await asyncio.to_thread(forgotten_findings, kafka)


def forgotten_findings(kafka: KafkaSettings) -> list[Finding]:
    """Whether what was asked to be forgotten is, and whether this process has the key that says so."""
    try:
        known = forgotten_of(kafka)
    except Fatal as error:
        return [
            Finding("forgotten", False, str(error), "set HAYPILE_KAFKA__FORGET_KEY to the key of the other processes")
        ]
    unfinished = known.unfinished()
    if unfinished:
        what = f"{len(unfinished)} of {len(known)} requests to forget are not finished"
        return [Finding("forgotten", False, what, "haypile forget --resume")]
    return [Finding("forgotten", True, f"{len(known)} requests, all finished")] if known else []


async def _redis(settings: Settings) -> list[Finding]:
    client = connect(settings.redis)
    try:
        with translate(client):
            await client.ping()
            memory = await client.info("memory")
            persistence = await client.info("persistence")
    finally:
        await client.aclose()
    found = [Finding("redis", True, f"answers; {memory['used_memory_human']} in use")]
    policy = str(memory.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        found.append(
            Finding("redis", False, f"maxmemory-policy is {policy}: it may drop members", "set it to noeviction")
        )
    if not int(persistence.get("aof_enabled", 0)):
        found.append(
            Finding("redis", False, "no append-only file: a restart loses the buffer", "start it with appendonly yes")
        )
    return found


async def _names(pool: VllmPool) -> dict[str, list[str]]:
    return {url: await pool.models(url) for url in pool.urls}


def _served(part: str, model: str, names: dict[str, list[str]], to_do: str) -> list[Finding]:
    return [
        Finding(part, True, f"{url} serves {model}")
        if model in served
        else Finding(part, False, f"{url} serves {', '.join(served) or 'nothing'}, not {model}", to_do)
        for url, served in names.items()
    ]


async def _judge(settings: Settings) -> list[Finding]:
    async with judge_pool(settings, REACH_S) as pool:
        found = _served(
            "judge", settings.judge.model, await _names(pool), "load the judge's adapter or set judge.model"
        )
    if not all(finding.ok for finding in found):
        return found
    async with judge_pool(settings, ANSWER_S) as pool:
        judge = Judge(pool, settings.judge)
        rating = await judge.rate([Message("user", "What is the capital of Norway?")])
    found.append(
        Finding("judge", True, f"{judge.identity} rates; {rating.label_mass:.2f} of its probability is on the labels")
    )
    from deploy.commands.common import buffer_of

    async with buffer_of(settings) as buffer:
        members_judge = (await buffer.stats()).judge
    if members_judge not in (None, judge.identity):
        to_do = (
            "a worker that scores takes the buffer over to these settings' judge by itself (`haypile status` shows how "
            "far it is); back to a judge that was replaced: `haypile rescore`"
        )
        found.append(Finding("judge", False, f"the buffer's members were rated by {members_judge}", to_do))
    return found


async def _teacher(settings: Settings) -> list[Finding]:
    async with teacher_pool(settings, REACH_S) as pool:
        return _served("teacher", settings.answer.model, await _names(pool), "serve it or set answer.model")


async def _serving(settings: Settings) -> list[Finding]:
    champion = Registry(settings.training.registry).champion().version
    async with serving_pool(settings, REACH_S) as pool:
        names = await _names(pool)
    found = _served("serving", settings.serving.model, names, "serve it or set serving.model")
    if champion is not None:
        adapter = served_name(settings.serving, champion)
        found += _served("serving", adapter, names, "start `haypile trainer`: its reconciler loads the champion")
    else:
        found.append(Finding("serving", True, "the base model serves: no adapter was promoted yet"))
    return found
