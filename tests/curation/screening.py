"""Cheap first, dear second: the judge's calls saved, against the share of the true top-k that is kept.

The demo's judge rates a draw of all sets once, about ten minutes on two cores. Then the stream of them passes through
`agents.screen`.
"""

import hashlib
import heapq
import random
from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from agents.rules.rank import rank_key
from agents.screen import Screen
from streams.intervals import wilson
from streams.metrics import Metrics
from streams.records import AcceptedPrompt, Message
from streams.settings import BufferSettings, ScreenSettings
from tests.curation.corpus import corpus
from tests.curation.rated import difficulties

PROMPTS = 1200
TOP = 120
"""k: the buffer holds a tenth of the stream."""
WARMUP = 250
"""Less than the default, as the stream is short."""
QUANTILES = (0.6, 0.8, 0.9, 0.95, 0.99)


def table() -> str:
    """Markdown: a row a quantile, without and with the rule that recall must be proven first."""
    rated = ratings()
    top = set(sorted(range(len(rated)), key=lambda n: -rated[n][1])[:TOP])
    rows = [
        f"{len(rated):,} prompts in random order; the judge's hardest {TOP} are to be found. The first {WARMUP} only "
        "teach it. On the left the prediction is trusted at once, on the right when a recall of 0.95 is proven.",
        "",
        "| quantile | calls saved | recall of the top-k | calls saved, proven | recall, proven |",
        "|---:|---:|---:|---:|---:|",
    ]
    for quantile in QUANTILES:
        cells = []
        for floor in (0.001, 0.95):
            skipped = screened(rated, quantile, floor)
            kept = len(top - skipped)
            low, high = wilson(kept, TOP, 0.95)
            cells += [f"{len(skipped) / len(rated):.0%}", f"{kept / TOP:.3f} [{low:.3f}, {high:.3f}]"]
        rows.append(f"| {quantile} | {' | '.join(cells)} |")
    return "\n".join(rows)


def screened(rated: Sequence[tuple[str, float]], quantile: float, floor: float) -> set[int]:
    """Indices of the prompts that the judge was spared, one pass over the stream."""
    settings = ScreenSettings(enabled=True, min_recall=floor, quantile=quantile, warmup=WARMUP)
    screen = Screen(settings, BufferSettings(half_life_s=None), Metrics(CollectorRegistry()))
    members: list[float] = []
    skipped = set()
    for number, (text, difficulty) in enumerate(rated):
        identity = hashlib.sha256(text.encode()).hexdigest()
        prompt = AcceptedPrompt(id=str(number), prompt_id=identity, messages=[Message("user", text)], ts=0)
        look = screen.look(prompt)
        if look.skip:
            skipped.add(number)
            continue
        screen.learn(look, prompt, difficulty)
        heapq.heappush(members, rank_key(difficulty, 0, None))
        if len(members) > TOP:
            heapq.heappop(members)
            screen.threshold = members[0]
    return skipped


def ratings() -> list[tuple[str, float]]:
    """(text, the judge's difficulty) of a fixed draw of all sets, shuffled."""
    texts = [text for name, texts in sorted(corpus().items()) for text in texts]
    texts = random.Random(3).sample(texts, min(PROMPTS, len(texts)))
    return list(zip(texts, difficulties(texts), strict=True))
