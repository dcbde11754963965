"""The trigger's decision as of now, without acting on it."""

import time

from agents.rules.policy import Decision, decide
from agents.trigger import EndedRuns, is_running, policy_state
from streams.buffer.base import rules
from streams.buffer.redis import RedisBuffer
from streams.redis_client import connect
from streams.settings import Settings
from streams.topics import topic_names
from streams.training_state import TrainingStateStore


async def decide_now(settings: Settings) -> Decision:
    """Reads the buffer, the trigger's memory and the ended runs. Raises `Transient`."""
    client = connect(settings.redis)
    ended = EndedRuns(settings.kafka, topic_names(settings.kafka))
    now_ms = int(time.time() * 1000)
    try:
        buffer = RedisBuffer(client, settings.redis.namespace, "main", rules(settings.buffer, "main"))
        state = await TrainingStateStore(client, settings.redis.namespace).load()
        # Without a run there is nothing to look up, and Kafka need not be there.
        running = state.last_run_id is not None and is_running(state, await ended.read())
        return decide(settings.trigger, policy_state(await buffer.stats(), state, running, now_ms), now_ms)
    finally:
        await ended.close()
        await client.aclose()
