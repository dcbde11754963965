"""Dead letters as `haypile dlq` sees them."""

import json
from collections.abc import Sequence

import pytest

from deploy import letters as module
from deploy.kafka import Message
from deploy.letters import TRAIL, Letter, by_reason, find, read_letters, replay
from streams.errors import Fatal
from streams.forgotten import ForgottenList
from streams.records import DeadLetter, encode
from streams.settings import KafkaSettings


def message(offset: int, reason: str = "not_json", trail: object = None, **changes: object) -> Message:
    """A message of `prompts.dead` about the record at `prompts.raw:0:offset`."""
    fields: dict[str, object] = {"error": "e", "value": b"\xff%d" % offset, "ts": 1000 + offset, **changes}
    letter = DeadLetter(reason=reason, topic="prompts.raw", partition=0, offset=offset, **fields)  # type: ignore[arg-type]
    headers = (("traceparent", b"00"),) + (() if trail is None else ((TRAIL, json.dumps(trail).encode()),))
    return Message("prompts.dead", 0, offset, None, encode(letter), headers)


class Feed:
    """Keeps what is sent back."""

    def __init__(self) -> None:
        self.out: list[tuple[bytes, str, dict[str, bytes]]] = []
        self.failed = 0

    @property
    def sent(self) -> int:
        return len(self.out)

    def send(self, value: bytes, key: bytes, topic: str, headers: Sequence[tuple[str, bytes]]) -> None:
        self.out.append((value, topic, dict(headers)))

    def flush(self) -> None:
        """Nothing is under way."""


@pytest.fixture
def topic(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    messages: list[Message] = []
    monkeypatch.setattr(module, "read_topics", lambda kafka, *names: messages)
    return messages


def read() -> list[Letter]:
    return read_letters(KafkaSettings())


def test_one_written_twice_is_one_and_the_most_frequent_reason_comes_first(topic: list[Message]) -> None:
    topic += [message(3, "empty"), message(1), message(2), message(1)]
    assert [entry.position for entry in read()] == ["prompts.raw:0:1", "prompts.raw:0:2", "prompts.raw:0:3"]
    assert {reason: len(found) for reason, found in by_reason(read()).items()} == {"not_json": 2, "empty": 1}
    assert find(read(), "prompts.raw:0:2").letter.value == b"\xff2"
    with pytest.raises(Fatal, match="dlq list"):
        find(read(), "prompts.raw:0:9")


def test_replaying_what_dies_again_does_not_double_it(topic: list[Message]) -> None:
    topic += [message(1), message(2, "empty")]
    feed = Feed()
    replay(feed, read(), None)  # type: ignore[arg-type]
    assert [(value, to) for value, to, _ in feed.out] == [(b"\xff1", "prompts.raw"), (b"\xff2", "prompts.raw")]
    for value, _, headers in feed.out:
        assert headers["traceparent"] == b"00"
        [death] = json.loads(headers[TRAIL])
        assert death["at"] == f"prompts.raw:0:{value[1:].decode()}"
        assert death["reason"] in ("not_json", "empty")
    topic.append(message(11, trail=json.loads(feed.out[0][2][TRAIL])))  # the first one died again
    assert [entry.position for entry in read()] == ["prompts.raw:0:2", "prompts.raw:0:11"]
    assert find(read(), "prompts.raw:0:1").position == "prompts.raw:0:11", "its last death, with the trail"
    feed = Feed()
    replay(feed, [entry for entry in read() if entry.letter.reason == "not_json"], None)  # type: ignore[arg-type]
    [(_, _, headers)] = feed.out
    assert [death["at"] for death in json.loads(headers[TRAIL])] == ["prompts.raw:0:1", "prompts.raw:0:11"]


def test_an_edit_mends_and_a_failed_one_leaves_the_letter(topic: list[Message]) -> None:
    topic += [message(1, value=b"a b"), message(2, value=b"fail"), message(3, value=b"", left_out=9_000_000)]
    feed = Feed()
    done = replay(feed, read(), "grep -v fail | tr ' ' '_' | grep .")  # type: ignore[arg-type]
    assert [value for value, _, _ in feed.out] == [b"a_b\n"]
    assert done.refused is not None
    assert [what.split(": ")[0] for what in done.refused] == ["prompts.raw:0:2", "prompts.raw:0:3"]
    assert "9000000 bytes are in the source topic only" in done.refused[1]


@pytest.mark.parametrize("header", [b"", b"{}", b"[1]", b"\xff", b"[" * 100_000])
def test_a_trail_that_somebody_else_wrote_is_no_trail(topic: list[Message], header: bytes) -> None:
    topic.append(Message("prompts.dead", 0, 0, None, message(1).value, ((TRAIL, header),)))
    [entry] = read()
    assert entry.attempts == []


def test_what_is_no_dead_letter_is_shown_as_such(topic: list[Message]) -> None:
    topic.append(Message("prompts.dead", 2, 5, None, b"hello"))
    [entry] = read()
    assert (entry.letter.reason, entry.position, entry.letter.value) == (
        "not_a_dead_letter",
        "prompts.dead:2:5",
        b"hello",
    )


def test_a_letter_of_somebody_who_is_forgotten_is_neither_shown_nor_sent_back(topic: list[Message]) -> None:
    known = ForgottenList()
    record = known.request("user", "anna", ends={"prompts.raw:0": 5}, future=False, now_ms=1)
    values = [
        b'{"id": "a", "prompt": 42, "user_id": "anna"}',
        b'{"id": "b", "prompt": 42, "user_id": "berta"}',
        b"no JSON: of nobody",
    ]
    for offset, value in enumerate(values):
        dead = DeadLetter(
            reason="wrong_type", error="e", topic="prompts.raw", partition=0, offset=offset, value=value, ts=1
        )
        topic.append(Message("prompts.dead", 0, offset, b"", encode(dead)))
    topic.insert(0, Message("prompts.forgotten", 0, 0, b"", encode(record)))
    assert [entry.letter.offset for entry in read()] == [1, 2]
