"""What the demo feeds, and its settings: small thresholds, so that one run follows from the sample set."""

import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.feeding import key_of
from streams.settings import CONFIG_VARIABLE, Settings

HERE = Path(__file__).parent
PROMPTS = HERE / "prompts.jsonl"
BAD_RECORDS = HERE / "bad_records.jsonl"


@dataclass(frozen=True)
class Sample:
    """What goes to `prompts.raw`."""

    values: list[bytes]
    bad: int
    """How many of them are no records, on purpose."""

    def keyed(self) -> list[tuple[bytes, bytes | None]]:
        """With the key of each."""
        return [(value, key_of(value)) for value in self.values]


def load_sample(prompts: Path = PROMPTS, bad_records: Path = BAD_RECORDS) -> Sample:
    """The prompts with the bad records spread evenly among them."""
    values = [line for line in prompts.read_bytes().splitlines() if line.strip()]
    bad = [base64.b64decode(json.loads(line)["value_base64"]) for line in bad_records.read_text("utf-8").splitlines()]
    step = max(1, len(values) // (len(bad) + 1))
    for number, value in enumerate(bad, start=1):
        values.insert(number * step + number - 1, value)
    return Sample(values, len(bad))


def own_settings_only(given: Settings) -> dict[str, Any]:
    """The demo's settings, after the user's file and variables are out of the way.

    It feeds a sample set, and must never send it to a Kafka of theirs. Only the section `local` (ports, folders, vLLM's
    Python) is kept.
    """
    for name in [name for name in os.environ if name.upper().startswith("HAYPILE_")]:
        del os.environ[name]
    os.environ[CONFIG_VARIABLE] = os.devnull
    folder = given.local.data_dir / "demo"
    return {
        "local": given.local.model_dump(mode="json", exclude_unset=True),
        "kafka": {"partitions": 4},
        # More than 2 %: of 400 prompts the gate needs a few dozen.
        "ingest": {"eval_share": 0.1},
        # The demo's judge is small, and may call most prompts one category: the cap must not keep the buffer empty.
        "buffer": {"capacity": 72, "eval_capacity": 24, "category_share": 0.8},
        # Two a level are enough to see that the judge is one; each is rated before the first prompt.
        "judge": {"anchors": 18},
        # Each record asks the judge three times: a small window, so that outcomes come steadily.
        "worker": {"window": 32, "drain_s": 3},
        # Short answers, and only for the members of the run: two cores write about 100 tokens a second.
        "answer": {"k": 3, "max_tokens": 48, "when": "run", "interval_s": 1, "batch": 16},
        # More than the capacity has been admitted: of n prompts in random order a buffer of c admits about
        # c·(1 + ln(n / c)), here 175, so this is in the second half of the sample set. One run only.
        "trigger": {"interval_s": 2, "min_members": 50, "min_new": 120, "min_answered": 0.97, "cooldown_s": 86_400},
        "training": {
            "recipe": "demo",
            "snapshots": str(folder / "snapshots"),
            "registry": str(folder / "registry"),
            "work_dir": str(folder / "runs"),
        },
        "serving": {"reconcile_s": 5},
    }
