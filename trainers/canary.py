"""The canary: a new adapter answers a few easy prompts on every server before it serves. The rules are pure.

It finds what is broken: weights that are not finite, a model that repeats itself or stammers, a server that answers
under the new name with something else. Which of two sane models is better is the gate's question.
"""

import asyncio
import math
import unicodedata
from collections import Counter
from collections.abc import Sequence

import msgspec

from streams.errors import Fatal, HaypileError, Transient
from streams.settings import ServingSettings
from streams.vllm import BadRequest, ChatAnswer, TooLong, VllmPool

TRIES = 5
"""Requests that a server may fail while it answers as the base model; then it is the adapter's fault."""
AGAIN_S = 2.0
LOOP_TOKENS = 10
"""A shorter answer is never called a loop: "no no no" may be right."""
LEAST_DISTINCT = 0.2
"""Share of different tokens under which an answer is a loop; ordinary sentences of 24 tokens have 0.7 and more."""
MOST_OF_ONE = 0.5
"""Share that one token may have."""
MOST_GARBLED = 0.1
"""Share of characters that are no text: control characters, unassigned or private ones, U+FFFD."""


class Probe(msgspec.Struct, kw_only=True):
    """One prompt on one server."""

    url: str
    prompt: str
    text: str | None = None
    """Null: there was no answer."""
    mean_logprob: float | None = None
    problem: str | None = None
    """What is wrong with the answer; null: nothing."""


class Report(msgspec.Struct, kw_only=True):
    """What the canary found; kept in the version's manifest."""

    passed: bool
    reason: str
    probes: list[Probe]


class CanaryFailed(HaypileError):
    """The adapter must not serve."""

    def __init__(self, report: Report) -> None:
        super().__init__(f"the canary failed: {report.reason}")
        self.report = report


def problem_of(answer: ChatAnswer, min_logprob: float) -> str | None:
    """What is wrong with an answer, None if it is sane: it has text, ends or fills its tokens, does not repeat itself,
    and the model gave its own (greedy) tokens finite log-probabilities of at least `min_logprob` in the mean."""
    text = answer.text.strip()
    if not text:
        return "is empty"
    if answer.finish_reason not in ("stop", "length"):
        return f"ended with {answer.finish_reason}"
    if not answer.logprobs or not all(math.isfinite(value) for value in answer.logprobs):
        return "has log-probabilities that are not finite"
    if _mean(answer.logprobs) < min_logprob:
        return f"has a mean log-probability of {_mean(answer.logprobs):.2f}, under serving.canary_min_logprob"
    garbled = sum(_is_garbled(char) for char in text) / len(text)
    if garbled > MOST_GARBLED:
        return f"is not text ({garbled:.0%} of its characters)"
    if len(answer.tokens) >= LOOP_TOKENS:
        counts = Counter(answer.tokens)
        token, times = counts.most_common(1)[0]
        if times / len(answer.tokens) > MOST_OF_ONE:
            return f"says {token!r} {times} times in {len(answer.tokens)} tokens"
        if len(counts) / len(answer.tokens) < LEAST_DISTINCT:
            return f"goes round in {len(counts)} different tokens of {len(answer.tokens)}"
    return None


def is_same(answer: ChatAnswer, base: ChatAnswer) -> bool:
    """Whether two answers agree in every token and its log-probability: then the adapter was not applied. Weights that
    differ change the log-probabilities long before they change a greedy text."""
    return answer.tokens == base.tokens and list(answer.logprobs) == list(base.logprobs)


def report_of(probes: Sequence[Probe], same: Sequence[bool]) -> Report:
    """The verdict: every prompt on every server is answered sanely, and not all answers are the base model's."""
    bad = [probe for probe in probes if probe.problem is not None]
    if bad:
        first = bad[0]
        reason = f"{len(bad)} of {len(probes)} answers; of {first.url} to {first.prompt!r}: it {first.problem}"
    elif same and all(same):
        reason = "every answer is the base model's, to the last log-probability: the adapter has no effect"
    else:
        return Report(passed=True, reason=f"{len(probes)} answers are sane", probes=list(probes))
    return Report(passed=False, reason=reason, probes=list(probes))


async def probe(pools: Sequence[VllmPool], serving: ServingSettings, name: str) -> Report:
    """Ask every server under `name` and, to compare, as the base model.

    Raises `Transient` when a server cannot be asked at all or has lost the adapter.
    """
    asked = [asyncio.create_task(_ask(pool, serving, name, prompt)) for pool in pools for prompt in serving.canary]
    try:
        async with asyncio.timeout(serving.timeout_s):
            found = await asyncio.gather(*asked)
    except TimeoutError:
        raise Transient(f"the canary of {name} took longer than serving.timeout_s {serving.timeout_s:g}") from None
    finally:
        for task in asked:
            task.cancel()
    return report_of([one for one, _ in found], [same for _, same in found if same is not None])


async def _ask(pool: VllmPool, serving: ServingSettings, name: str, prompt: str) -> tuple[Probe, bool | None]:
    """The probe, and whether the base model answers the same (None: there is nothing to compare)."""
    [url] = pool.urls
    base = await _base(pool, serving, prompt)
    answer: ChatAnswer | None = None
    problem: str | None = None
    for attempt in range(1, TRIES + 1):
        try:
            answer = await _inspect(pool, serving, name, prompt)
            problem = problem_of(answer, serving.canary_min_logprob)
            break
        except Fatal as error:
            raise Transient(f"{url} does not serve {name} any more ({error})") from None
        except (Transient, BadRequest, TooLong) as error:
            # vLLM answers 400 when a log-probability is NaN; pages of its cache that another adapter's NaN has spoiled
            # are clean again after some requests.
            if base is None or (attempt == TRIES and await _base(pool, serving, prompt) is None):
                raise Transient(str(error)) from None  # it is the server, not the adapter
            problem = f"did not come, while {serving.model} answers: {error}"
            if attempt < TRIES:
                await asyncio.sleep(AGAIN_S)
    if answer is None:
        return Probe(url=url, prompt=prompt, problem=problem), None
    mean = _mean(answer.logprobs) if answer.logprobs else math.nan
    found = Probe(
        url=url,
        prompt=prompt,
        text=answer.text,
        mean_logprob=round(mean, 3) if math.isfinite(mean) else None,
        problem=problem,
    )
    return found, None if base is None else is_same(answer, base)


async def _base(pool: VllmPool, serving: ServingSettings, prompt: str) -> ChatAnswer | None:
    """The base model's answer; None where the server gives none."""
    try:
        return await _inspect(pool, serving, serving.model, prompt)
    except HaypileError:
        return None


async def _inspect(pool: VllmPool, serving: ServingSettings, model: str, prompt: str) -> ChatAnswer:
    turns = [{"role": "user", "content": prompt}]
    return await pool.inspect(pool.urls[0], turns, model=model, max_tokens=serving.canary_tokens)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _is_garbled(char: str) -> bool:
    if char in "\n\r\t":
        return False
    return char == "\ufffd" or unicodedata.category(char) in ("Cc", "Cn", "Co", "Cs")
