"""The trigger's decision as of now, without acting on it."""

import time

from agents.rules.policy import Decision, decide
from agents.trigger import not_ahead, policy_state
from streams.buffer.base import rules
from streams.buffer.redis import RedisBuffer
from streams.redis_client import connect
from streams.run_history import RunHistory
from streams.settings import Settings
from streams.topics import topic_names
from streams.training_orders import TrainingOrders
from streams.training_state import TrainingStateStore


async def decide_now(settings: Settings) -> Decision:
    """Reads the buffer, the trigger's memory, the orders and the runs. Raises `Transient`."""
    client, namespace = connect(settings.redis), settings.redis.namespace
    history = RunHistory(settings.kafka, topic_names(settings.kafka))
    now_ms = int(time.time() * 1000)
    try:
        buffer = RedisBuffer(client, namespace, "main", rules(settings.buffer, "main"))
        state = await TrainingStateStore(client, namespace).load()
        not_ahead(state, now_ms)
        orders = await TrainingOrders(client, namespace).read()
        # Without a run there is nothing to look up, and Kafka need not be there.
        runs = await history.read() if state.last_run_id is not None else {}
        return decide(settings.trigger, policy_state(await buffer.stats(), state, runs, orders, now_ms), now_ms)
    finally:
        await history.close()
        await client.aclose()
