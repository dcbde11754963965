"""From the trigger's decision to the training process: snapshot, request, `haypile trainer`, subprocess.

The training process locks its run's folder as the first thing it does; what it imports after that (torch, transformers,
TRL) is not ours to shorten. A full buffer is decided about, with the trainer waiting, as in production.
"""

import asyncio
import random
import signal
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from prometheus_client import CollectorRegistry

from agents.scored_log import BATCH
from agents.trigger import Trigger
from deploy.local.processes import free_port, port_open
from streams.buffer.base import rules
from streams.buffer.redis_generations import RedisGenerations
from streams.lease import Lease
from streams.metrics import Metrics
from streams.producer import Producer
from streams.redis_client import connect
from streams.run_history import RunHistory
from streams.settings import Settings, load_settings
from streams.topics import topic_names
from streams.training_orders import TrainingOrders
from streams.training_state import TrainingStateStore
from tests.benchmarks.harness import Effort, Goal, Row, Spread
from tests.benchmarks.load import offers
from tests.benchmarks.services import Stack, running_stack
from tests.support.stack import Process, wait_for
from tests.support.training import quick_recipe

GOAL_S = 3.0
RECORD_BYTES = 2000


def measure(effort: Effort) -> list[Row]:
    """Seconds of each run; every run is of a trainer and a buffer of its own."""
    members = effort.pick(30_000, 200)
    runs: list[tuple[float, float]] = []
    with running_stack() as stack:
        for _ in range(effort.few_rounds):
            runs.append(_one(stack, members))
    return [
        Row(
            question="reaction",
            haypile=f"decision to training subprocess, {members:,} members of {RECORD_BYTES // 1000} kB",
            against="",
            goal=Goal(at_most=GOAL_S, unit="s beyond its imports"),
            ours=Spread(tuple(total for total, _ in runs), "s"),
            measured=Spread(tuple(total for total, _ in runs), "s"),
            notes=(f"of which until the request is with the broker {Spread(tuple(sent for _, sent in runs), 's')}",),
        )
    ]


def _one(stack: Stack, members: int) -> tuple[float, float]:
    """Seconds until the process locks its folder, and until the request is sent."""
    topics = stack.topics()
    with TemporaryDirectory(prefix="haypile-bench-") as name:
        folder = Path(name)
        recipe = folder / "recipe.yaml"
        recipe.write_text(quick_recipe().model_dump_json())
        training = {
            "recipe": str(recipe),
            "base_model": str(folder / "no-model"),
            "snapshots": str(folder / "snapshots"),
            "registry": str(folder / "registry"),
            "work_dir": str(folder / "runs"),
            "group": f"{topics.kafka.topic_prefix}trainer",
        }
        port = free_port()
        environ = stack.environ(
            topics,
            HAYPILE_TRAINER_METRICS_PORT=str(port),
            **{f"HAYPILE_TRAINING__{key.upper()}": value for key, value in training.items()},
        )
        settings = load_settings(
            {
                "kafka": topics.kafka.model_dump() | {"idempotence": False},
                "redis": {"url": stack.redis_url, "namespace": stack.namespace(topics)},
                "training": training,
                "trigger": {"min_members": 1, "min_answered": 0, "min_new": 1},
            }
        )
        trainer = Process(["-m", "deploy.cli", "trainer"], folder / "trainer.log", environ)
        try:
            wait_for("the trainer", lambda: port_open(port), 60)
            sent, decided_at = asyncio.run(_decide(settings, members))
            [lock] = wait_for("the run's folder", lambda: [*folder.glob("runs/*/.lock")], 120, 0.01)
            return lock.stat().st_mtime - decided_at, sent
        finally:
            trainer.signal(signal.SIGTERM)
            trainer.popen.wait(60)
            topics.delete()


async def _decide(settings: Settings, members: int) -> tuple[float, float]:
    """Fills the buffer, then lets the trigger decide once; how long that took, and when (Unix time) it began."""
    client = connect(settings.redis)
    namespace = settings.redis.namespace
    generations = RedisGenerations(client, namespace, rules(settings.buffer, "main"), rules(settings.buffer, "eval"))
    rng = random.Random(1)
    standing = offers(members, 1, [rng.uniform(1, 9) for _ in range(members)], RECORD_BYTES)
    for start in range(0, members, BATCH):
        await generations.main.offer(standing[start : start + BATCH], [])
    topics = topic_names(settings.kafka)
    history = RunHistory(settings.kafka, topics)
    async with Producer(settings.kafka) as producer:
        trigger = Trigger(
            settings,
            topics,
            main=generations.main,
            held_out=generations.held_out,
            store=TrainingStateStore(client, namespace),
            lease=Lease(client, namespace, "trigger", settings.trigger.lease_s),
            orders=TrainingOrders(client, namespace),
            history=history,
            base_model=settings.training.base_model or "",
            champion=lambda: None,
            producer=producer,
            metrics=Metrics(CollectorRegistry()),
        )
        began = time.time()
        decision = await trigger.once()
        seconds = time.time() - began
    await history.close()
    await client.aclose()
    if decision is None or not decision.train:
        raise RuntimeError(f"the trigger did not decide to train: {decision}")
    return seconds, began
