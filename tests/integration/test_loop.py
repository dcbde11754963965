"""The whole loop with real broker, Redis, vLLM (CPU) and training: from a raw record to the adapter that answers."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from deploy.clients import serving_pool
from deploy.demo.follow import Seen
from deploy.demo.plan import load_sample
from deploy.feeding import Feed, key_of
from deploy.kafka import Follower
from deploy.local.stack import SLOW_ANSWER_S, Stack
from streams.topics import topic_names
from tests.support.real_vllm import ROOT, base_model
from trainers.promotion import served_name
from trainers.registry import Registry

RECORDS = 60
DEADLINE_S = 900
"""About three minutes on two idle cores."""


def lenient_recipe(folder: Path) -> Path:
    """The demo's recipe with fewer steps and a gate that lets everything through: promotion is what is tested here."""
    recipe = yaml.safe_load((ROOT / "trainers" / "recipes" / "demo.yaml").read_text("utf-8"))
    recipe["data"] |= {"min_margin": 0.0, "validation_rows": 2}
    recipe["sft"] |= {"max_steps": 4, "save_steps": 4, "logging_steps": 1}
    recipe["dpo"] |= {"max_steps": 3, "save_steps": 3, "logging_steps": 1}
    recipe["gate"] |= {"prompts": 3, "min_prompts": 1, "max_tokens": 16, "min_win_rate": 0.0, "min_lower_bound": 0.0}
    recipe["gate"]["everyday"] = {"prompts": 2, "min_lower_bound": 0.0}
    path = folder / "lenient.yaml"
    path.write_text(yaml.safe_dump(recipe), "utf-8")
    return path


@pytest.mark.slow
@pytest.mark.timeout(DEADLINE_S + 300)
def test_from_a_raw_record_to_the_served_adapter(tmp_path: Path, vllm_url: str) -> None:
    flags = {
        "local": {"data_dir": str(tmp_path / "data")},
        "kafka": {"partitions": 2},
        "ingest": {"eval_share": 0.2},
        "buffer": {"capacity": 12, "eval_capacity": 6, "min_quality": 1.0, "category_share": 1.0},
        "worker": {"window": 16},
        "judge": {"urls": [vllm_url], "concurrency": 8, "timeout_s": SLOW_ANSWER_S},
        "answer": {
            "urls": [vllm_url],
            "k": 2,
            "max_tokens": 24,
            "when": "run",
            "interval_s": 1,
            "timeout_s": SLOW_ANSWER_S,
        },
        "trigger": {"interval_s": 1, "min_members": 10, "min_new": 10, "min_answered": 1.0, "cooldown_s": 86_400},
        "training": {"recipe": str(lenient_recipe(tmp_path)), "base_model": str(base_model())},
        "serving": {"urls": [vllm_url], "reconcile_s": 2},
    }
    with Stack(flags) as stack:
        settings = stack.settings
        topics = topic_names(settings.kafka)
        seen = Seen(topics)
        follower = Follower(settings.kafka, [topics.curated, topics.dead, topics.requests, topics.events])
        deadline = time.monotonic() + DEADLINE_S

        def follow(until: Callable[[], bool]) -> None:
            while not until():
                for message in follower.poll(0.5):
                    seen.take(message)
                stack.check()
                assert time.monotonic() < deadline, (seen.counts(), seen.request, seen.events)

        values = load_sample().values[:RECORDS]
        with Feed(settings) as feed:
            for value in values:
                feed.send(value, key_of(value))
            feed.flush()
        follow(lambda: seen.settled == len(values) and seen.final is not None)
        follower.close()

        final = seen.final
        assert final is not None
        assert final.phase == "done", final
        assert [event.phase for event in seen.events if "step" not in event.metrics] == [
            "queued",
            "sft",
            "dpo",
            "gate",
            "promote",
            "done",
        ]
        metrics = seen.metrics()
        assert metrics["sft_steps"] == 4
        assert metrics["dpo_steps"] == 3
        champion = Registry(settings.training.registry).champion().version
        assert champion is not None
        name = served_name(settings.serving, champion)

        async def ask() -> tuple[list[str], list[str]]:
            async with serving_pool(settings) as pool:
                [url] = pool.urls
                answers = await pool.chat(
                    [{"role": "user", "content": "Say hello."}], model=name, temperature=0.0, max_tokens=8
                )
                return await pool.models(url), answers

        served, [answer] = asyncio.run(ask())
        assert name in served
        assert answer.strip()
