"""The canary: what is no sane answer, and that a promotion with one moves nothing on any server."""

import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from streams.errors import Transient
from streams.vllm import ChatAnswer
from tests.support.cluster import Cluster, running_cluster
from trainers.canary import CanaryFailed, is_same, problem_of
from trainers.promotion import Servers, move, promote, rollback


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running_cluster(tmp_path) as cluster:
        yield cluster


def answer(
    text: str, logprob: float = -0.5, finish_reason: str = "stop", tokens: list[str] | None = None
) -> ChatAnswer:
    tokens = text.split() if tokens is None else tokens
    return ChatAnswer(text=text, finish_reason=finish_reason, tokens=tokens, logprobs=[logprob] * len(tokens))


SENTENCE = "The sea is a wide and restless place, and nobody who has seen it once forgets how it sounds at night."


@pytest.mark.parametrize(
    "sane",
    [
        answer(SENTENCE),
        answer(SENTENCE, finish_reason="length"),
        answer("4"),
        answer("Paris."),
        answer("no no no"),
        answer("Red, green and blue.\n\n* red\n* green\n* blue"),
        answer("Das Meer rauscht – größer als alles, was ich kannte. 海はとても広い。🌊", logprob=-1.8),
        # As the base model of the demo answers: one sentence and then nearly the same one.
        answer("The capital of France is Paris. The capital of France is Paris, and it is a large city. It is"),
    ],
)
def test_what_is_sane(sane: ChatAnswer) -> None:
    assert problem_of(sane, -3.0) is None


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (answer(" \n"), "is empty"),
        (answer(SENTENCE, finish_reason="abort"), "ended with abort"),
        (answer(SENTENCE, finish_reason="repetition"), "ended with repetition"),
        (answer(SENTENCE, logprob=math.nan), "not finite"),
        (answer(SENTENCE, logprob=-math.inf), "not finite"),
        (answer(SENTENCE, tokens=[]), "not finite"),
        (answer(SENTENCE, logprob=-9.5), "mean log-probability of -9.50"),
        (answer("!" * 24, tokens=["!"] * 24), "says '!' 24 times in 24 tokens"),
        (answer("a b the the the the the the the the the the"), "says 'the' 10 times in 12 tokens"),
        (answer("on and off and " * 6), "goes round in 3 different tokens of 24"),
        (answer("\ufffd\ufffd\ufffd and \ufffd\ufffd so"), "is not text (38%"),
        (answer("\x00\x01\x02 \ue000\ue001 ok"), "is not text"),
    ],
)
def test_what_is_not(broken: ChatAnswer, says: str) -> None:
    assert says in str(problem_of(broken, -3.0))


def test_the_same_answer_is_one_with_the_same_log_probabilities() -> None:
    assert is_same(answer("Paris."), answer("Paris."))
    assert not is_same(answer("Paris."), answer("Paris.", logprob=-0.5001))
    assert not is_same(answer("Paris."), answer("Lyon."))


BROKEN = [
    ({"text": ""}, "is empty"),
    ({"tokens": ["the"] * 24}, "says 'the' 24 times"),
    ({"logprob": None}, "not finite"),
    ({"logprob": -9.0}, "serving.canary_min_logprob"),
    ({"text": "\ufffd" * 8}, "is not text"),
    ({"finish_reason": "repetition"}, "ended with repetition"),
    ({"as": "base"}, "the adapter has no effect"),
]


@pytest.mark.parametrize(("instead", "says"), BROKEN)
async def test_a_broken_adapter_moves_nothing(cluster: Cluster, instead: dict[str, Any], says: str) -> None:
    await promote(cluster.serving, cluster.registry, cluster.versions[0], reason="gate", by="test")
    cluster.answer(1, **instead)
    with pytest.raises(CanaryFailed, match=says.replace("'", ".")):
        await promote(cluster.serving, cluster.registry, cluster.versions[1], reason="gate", by="test")
    assert cluster.loaded() == [{cluster.name(0)}] * 2
    assert [change.version for change in cluster.registry.champion().history] == [cluster.versions[0]]
    manifest = cluster.registry.show(cluster.versions[1])
    assert manifest.refused and manifest.canary is not None and says in manifest.canary["reason"]
    assert {probe["url"] for probe in manifest.canary["probes"]} == set(cluster.serving.urls)


async def test_it_must_answer_sanely_on_every_server(cluster: Cluster) -> None:
    cluster.fakes[1].answers[cluster.name(0)] = {"text": ""}
    with pytest.raises(CanaryFailed, match=f"4 of 8 answers; of {cluster.serving.urls[1]}"):
        await promote(cluster.serving, cluster.registry, cluster.versions[0], reason="gate", by="test")
    assert cluster.loaded() == [set(), set()] and cluster.registry.champion().version is None


@pytest.mark.parametrize("status", [500, 400])
async def test_errors_under_the_new_name_alone_are_the_adapters(
    cluster: Cluster, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.canary.AGAIN_S", 0.01)
    async with Servers(cluster.serving) as servers:
        await servers.load(cluster.registry, cluster.versions[0])
        cluster.answer(0, status=status)
        with pytest.raises(CanaryFailed, match="made to fail"):
            await servers.canary(cluster.registry, cluster.versions[0])


class Refusing(dict[str, Any]):
    """400 for a number of requests, then ordinary answers."""

    left = 0

    def get(self, key: str, default: Any = None) -> Any:
        if key != "status" or not self.left:
            return super().get(key, default)
        self.left -= 1
        return 400


@pytest.mark.parametrize(("times", "passes"), [(4, True), (5, False)])
async def test_a_request_is_repeated_before_the_adapter_is_blamed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, times: int, passes: bool
) -> None:
    monkeypatch.setattr("trainers.canary.AGAIN_S", 0.01)
    refusing = Refusing(finish_reason="stop")
    refusing.left = times
    async with Servers(cluster.serving.model_copy(update={"canary": ["Hello?"]})) as servers:
        await servers.load(cluster.registry, cluster.versions[0])
        cluster.fakes[0].answers[cluster.name(0)] = refusing
        if passes:
            await servers.canary(cluster.registry, cluster.versions[0])
        else:
            with pytest.raises(CanaryFailed):
                await servers.canary(cluster.registry, cluster.versions[0])
    assert refusing.left == 0


async def test_an_outage_is_not_the_adapters_fault(cluster: Cluster) -> None:
    async with Servers(cluster.serving) as servers:
        await servers.load(cluster.registry, cluster.versions[0])
        cluster.fakes[0].fault("503", 100)
        with pytest.raises(Transient):
            await servers.canary(cluster.registry, cluster.versions[0])
        cluster.fakes[0].fault("503", 0)
        cluster.fakes[0].adapters.clear()  # it was started again
        with pytest.raises(Transient, match="does not serve"):
            await servers.canary(cluster.registry, cluster.versions[0])
    assert cluster.registry.show(cluster.versions[0]).canary is None


async def test_a_server_that_fails_for_a_moment_is_no_failure_of_the_adapter(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.canary.AGAIN_S", 0.01)
    async with Servers(cluster.serving.model_copy(update={"canary": ["Hello?"]})) as servers:
        await servers.load(cluster.registry, cluster.versions[0])
        cluster.fakes[0].fault("500", 2)  # the base's, then the adapter's first
        with pytest.raises(Transient):
            await servers.canary(cluster.registry, cluster.versions[0])
        await servers.canary(cluster.registry, cluster.versions[0])
    canary = cluster.registry.show(cluster.versions[0]).canary
    assert canary is not None and canary["passed"] and canary["reason"] == "2 answers are sane"


async def test_a_rollback_and_a_repeat_ask_nothing(cluster: Cluster) -> None:
    for version in cluster.versions[:2]:
        await promote(cluster.serving, cluster.registry, version, reason="gate", by="test")
    cluster.answer(0, text="")
    cluster.answer(1, text="")
    async with Servers(cluster.serving) as servers:
        await move(servers, cluster.registry, cluster.versions[1], reason="gate", by="test")
    assert await rollback(cluster.serving, cluster.registry, reason="bad", by="test") == cluster.name(0)


async def test_without_prompts_there_is_no_canary(cluster: Cluster) -> None:
    cluster.answer(0, text="")
    serving = cluster.serving.model_copy(update={"canary": []})
    await promote(serving, cluster.registry, cluster.versions[0], reason="gate", by="test")
    assert cluster.registry.show(cluster.versions[0]).canary is None
