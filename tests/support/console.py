"""A small haypile for the console to show: prompts went through a real worker, a run ended, two adapters
were judged."""

import json
import random
import time
from pathlib import Path
from typing import Any

from deploy.demo.plan import load_sample
from streams.records import TrainEvent, encode
from tests.support.stack import Topics, Worker, wait_for
from trainers.registry import Registry
from trainers.rundir import RunFolder

HOSTILE = '<img src=x onerror="window.hostile=1"><script>window.hostile=1</script>{{ 1 + 1 }} ${alert(1)} <b>bold</b>'
"""Prompt, answer, id and error alike may hold it."""
HOSTILE_ID = '"><svg onload=window.hostile=1>&id=x#y/../'
USER = "anna.secret@example.com"
HOSTILE_RUN = "../../<img src=x onerror=window.hostile=1>"
RUN = "20261122t120000-1"


def feed(topics: Topics, folder: Path, environ: dict[str, str], prompts: int) -> None:
    """Prompts of the demo through a real worker, two hostile ones and three broken ones among them."""
    records: list[dict[str, Any]] = [
        {"id": "hostile", "prompt": f"{HOSTILE} and why does it matter to anybody?", "user_id": USER},
        {"id": HOSTILE_ID, "prompt": f"Another one with a strange id: {HOSTILE}", "user_id": USER},
    ]
    sample = [value for value in load_sample().values if value.startswith(b"{")][:prompts]
    broken = [
        json.dumps({"id": "bad", "prompt": 42, "user_id": USER, "note": f"write to {USER}"}).encode(),
        b'{"prompt": "no end',
        json.dumps({"prompt": "", "source": HOSTILE}).encode(),
    ]
    worker = Worker(folder, "worker", "ingest,score,curate", environ)
    try:
        values = [*sample, *(json.dumps(record).encode() for record in records), *broken]
        topics.send(values)
        wait_for(
            "all outcomes",
            lambda: len(topics.accounted()[0]) + len(topics.accounted()[1]) >= len(values),
            90,
            every_s=1,
        )
    finally:
        worker.kill()


def train(topics: Topics, data: Path) -> None:
    """A run that ended, as the topic and its folder tell it, and one with a hostile id that is in the topic only."""
    now = int(time.time() * 1000)
    hostile = TrainEvent(run_id=HOSTILE_RUN, phase="sft", metrics={"reason": HOSTILE}, ts=now - 600_000)
    topics.send([encode(hostile)], topics.names.events, partition=0)
    events = [
        TrainEvent(run_id=RUN, phase=phase, metrics=metrics, ts=now - 60_000 * (6 - minute))  # type: ignore[arg-type]
        for minute, (phase, metrics) in enumerate(
            [
                ("queued", {}),
                ("sft", {"sft_rows": 60}),
                ("dpo", {"sft_loss": 2.18}),
                ("gate", {"dpo_loss": 0.68}),
                ("promote", {"win_rate": 0.6}),
                ("done", {"version": f"v0001-{RUN}"}),
            ]
        )
    ]
    topics.send([encode(event) for event in events], topics.names.events, partition=0)
    folder = RunFolder.of(data / "runs", RUN)
    folder.path.mkdir(parents=True)
    rng = random.Random(1)
    points = [{"phase": "sft", "step": n, "loss": 2.4 - 0.02 * n + rng.uniform(-0.05, 0.05)} for n in range(1, 25)]
    points += [{"phase": "dpo", "step": n, "loss": 0.69 - 0.004 * n + rng.uniform(-0.01, 0.01)} for n in range(1, 17)]
    folder.curve.write_text("".join(json.dumps(point) + "\n" for point in points))


def adapters(data: Path) -> list[str]:
    """Two versions: the first passed the gate and serves, the second was rejected. Returns their names."""
    registry = Registry(data / "registry")
    source = data / "adapter"
    source.mkdir(parents=True)
    (source / "adapter_config.json").write_text(json.dumps({"r": 8}))
    (source / "adapter_model.safetensors").write_bytes(b"weights")
    versions = []
    for run_id, parent, wins, losses in ((RUN, None, 13, 7), ("20261122t180000-1", f"v0001-{RUN}", 8, 12)):
        manifest = registry.publish(
            source,
            run_id=run_id,
            snapshot=str(data / "snapshots" / run_id),
            base_model="SmolLM2-135M-Instruct",
            parent=parent,
            recipe={},
            judge="d574e88b201b",
            metrics={"sft_loss": 2.18, "dpo_loss": 0.68},
            now_ms=int(time.time() * 1000),
        )
        page = f"<p>{manifest.version}</p><script>document.title = 'ran'</script>{HOSTILE}"
        registry.set_gate(
            manifest.version,
            {
                "champion": f"haypile-{parent}" if parent else "base",
                "challenger": f"haypile-{manifest.version}",
                "prompts": 24,
                "wins": wins,
                "losses": losses,
                "ties": 4,
                "win_rate": (wins + 2) / 24,
                "lower": 0.3,
                "upper": 0.8,
                "promote": wins > losses,
                "reason": f"win rate {(wins + 2) / 24:.3f}, over 24 prompts",
                "rows": [],
            },
            page,
        )
        versions.append(manifest.version)
    registry.set_champion(versions[0], reason="it won", by="trainer")
    return versions


def settings_of(data: Path, vllm: str, token: str) -> dict[str, str]:
    """For the console, besides those of Kafka and Redis."""
    urls = json.dumps([vllm])
    return {
        "HAYPILE_CONSOLE__PORT": "0",
        "HAYPILE_CONSOLE__TOKEN": token,
        "HAYPILE_CONSOLE__INTERVAL_S": "1",
        "HAYPILE_SERVING__URLS": urls,
        "HAYPILE_TRAINING__REGISTRY": str(data / "registry"),
        "HAYPILE_TRAINING__WORK_DIR": str(data / "runs"),
        "HAYPILE_TRAINING__SNAPSHOTS": str(data / "snapshots"),
    }
