"""`haypile worker` with a judge that costs nothing: it rates by a hash and asks no server.

`python -m tests.benchmarks.free_worker` with the settings of the environment.
"""

import sys
import zlib
from collections.abc import Sequence
from typing import Any

import deploy.worker
from streams.judge import Judge, Rating
from streams.records import Message
from streams.settings import load_settings
from tests.benchmarks.load import CATEGORIES

EVEN = {"difficulty": [0.1111] * 9, "quality": [0.1111] * 9, "category": [0.125] * 8}


class FreeJudge(Judge):
    """Ratings spread over 1..9 by the text's checksum; the quality is good."""

    async def rate(self, messages: Sequence[Message]) -> Rating:
        text = messages[-1].content
        digest = zlib.crc32(text.encode())
        return Rating(
            difficulty=1 + 8 * (digest & 0xFFFF) / 0xFFFF,
            quality=7.0,
            category=CATEGORIES[digest >> 29],
            label_mass=0.93,
            seen_chars=len(text),
            distribution=EVEN,
        )


def main() -> int:
    module: Any = deploy.worker
    module.Judge = FreeJudge
    return deploy.worker.run_worker(load_settings({"worker": {"agents": ["ingest", "score", "curate"]}}))


if __name__ == "__main__":
    sys.exit(main())
