"""The least that a Faust worker can be: one agent that takes a record and acks it, then says so and ends.

`python -m tests.benchmarks.bare_worker BOOTSTRAP GROUP TOPIC SESSION_S` prints the moment (Unix time).
"""

import asyncio
import sys
import time

import faust


def main(bootstrap: str, group: str, topic: str, session_s: str) -> None:
    app = faust.App(
        group,
        env_prefix="BARE_",
        broker=f"kafka://{bootstrap}",
        autodiscover=False,
        web_enabled=False,
        topic_disable_leader=True,
        broker_session_timeout=float(session_s),
        broker_heartbeat_interval=max(1.0, float(session_s) / 10),
        consumer_auto_offset_reset="earliest",
        stream_recovery_delay=0.0,
    )
    handled = asyncio.Event()

    @app.agent(app.topic(topic, value_serializer="raw"))
    async def run(stream: faust.Stream[bytes]) -> None:
        async for _ in stream:
            print(time.time(), flush=True)
            handled.set()

    async def body() -> None:
        await app.start()
        await handled.wait()
        await app.stop()

    asyncio.run(body())


if __name__ == "__main__":
    main(*sys.argv[1:])
