"""What three answers about a prompt cost beside one: the prefix cache pays for the text once.

Prompts are longer than 200 tokens, and new in every run: what hits the cache is the rubric, and the text the second and
third time.
"""

import asyncio
import time
from itertools import count

from streams.rubric import ASKED_OF_PROMPTS, Question
from tests.benchmarks.harness import Effort, Goal, Row, Spread, ratio, take_turns
from tests.benchmarks.judged import ask_all, counter
from tests.benchmarks.load import Texts

CHARS = 1400
"""About 350 tokens."""
CONCURRENCY = 8


def measure(effort: Effort) -> list[Row]:
    """Seconds for the same number of prompts, in turns."""
    [url] = effort.vllm(1)
    prompts = effort.pick(24, 8)
    seeds = count(5000)
    cached: list[float] = []

    def run(questions: tuple[Question, ...]) -> float:
        made = Texts(next(seeds))
        texts = [made.of(CHARS) for _ in range(prompts)]
        hits, asked = _cache(url)
        started = time.perf_counter()
        asyncio.run(ask_all(url, texts, CONCURRENCY, questions))
        seconds = time.perf_counter() - started
        hits_after, asked_after = _cache(url)
        if len(questions) > 1 and asked_after > asked:
            cached.append((hits_after - hits) / (asked_after - asked))
        return seconds

    values = take_turns(
        {"three": lambda: run(ASKED_OF_PROMPTS), "one": lambda: run((Question.difficulty,))}, effort.few_rounds, 1
    )
    return [
        Row(
            question="what do three answers cost?",
            haypile=f"difficulty + quality + category of {prompts} prompts of about {CHARS // 4} tokens",
            against="difficulty alone",
            goal=Goal(at_most=1.2),
            ours=Spread(values["three"], "s"),
            theirs=Spread(values["one"], "s"),
            measured=ratio(values["three"], values["one"]),
            notes=(f"tokens of the three that vLLM had in its prefix cache: {Spread(tuple(cached))} of all",)
            if cached
            else (),
        )
    ]


def _cache(url: str) -> tuple[float, float]:
    """Tokens found in the prefix cache, and looked up in it, since the server started."""
    return counter(url, "prefix_cache_hits_total"), counter(url, "prefix_cache_queries_total")
