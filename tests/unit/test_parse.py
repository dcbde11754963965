"""From raw bytes to a prompt, or to a reason."""

import base64
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.rules.parse import parse
from streams.errors import InvalidRecord
from streams.records import AcceptedPrompt

BROKER_MS = 1_790_000_000_000
BAD_RECORDS = Path(__file__).parents[2] / "deploy/demo/bad_records.jsonl"


def read(value: bytes, max_bytes: int = 10_000) -> AcceptedPrompt:
    return parse(value, topic="prompts.raw", partition=3, offset=7, broker_ms=BROKER_MS, max_bytes=max_bytes)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "empty"),
        (b"hello", "not_json"),
        (b'{"prompt": "cut o', "not_json"),
        (b"\xff\xfe{}", "not_utf8"),
        (b'{"prompt": "\\ud800"}', "lone_surrogate"),
        (b'{"prompt": "a\\udc00b"}', "lone_surrogate"),
        (b'["prompt"]', "wrong_type"),
        (b"null", "wrong_type"),
        (b'{"prompt": 3}', "wrong_type"),
        (b'{"prompt": "a", "user_id": 5}', "wrong_type"),
        (b'{"prompt": "a", "metadata": {"x": 1}}', "wrong_type"),
        (b'{"messages": [{"role": "wizard", "content": "a"}]}', "wrong_type"),
        (b"{}", "no_prompt"),
        (b'{"prompt": " \\n"}', "no_prompt"),
        (b'{"messages": []}', "no_prompt"),
        (b'{"messages": [{"role": "assistant", "content": "a"}]}', "bad_messages"),
        (b'{"prompt": "a", "messages": [{"role": "user", "content": "a"}]}', "bad_messages"),
        (b'{"prompt": "a", "id": ""}', "bad_id"),
        (b'{"prompt": "a", "id": "a\\nb"}', "bad_id"),
        (b'{"prompt": "a", "ts": "yesterday"}', "bad_ts"),
        (b'{"prompt": "a", "ts": "2026-01-01T00:00:00"}', "bad_ts"),
        (b'{"prompt": "a", "ts": -1}', "bad_ts"),
        (b'{"prompt": "a", "feedback": 2}', "bad_feedback"),
        (b"[" * 100_000, "too_large"),
        (b"[" * 9_000, "wrong_type"),
    ],
)
def test_bad_records_are_named(value: bytes, reason: str) -> None:
    with pytest.raises(InvalidRecord) as error:
        read(value)
    assert error.value.reason == reason
    assert error.value.error


def test_the_demo_s_bad_records_are_all_refused() -> None:
    with BAD_RECORDS.open(encoding="utf-8") as file:
        for line in file:
            with pytest.raises(InvalidRecord):
                read(base64.b64decode(json.loads(line)["value_base64"]))


def test_what_is_given_is_kept_and_unknown_fields_are_ignored() -> None:
    prompt = read(
        json.dumps(
            {
                "id": "x-1",
                "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u", "name": "z"}],
                "user_id": "u1",
                "ts": "2026-01-01T00:00:00Z",
                "response": "r",
                "feedback": -0.5,
                "metadata": {"k": "v"},
                "later": [1, 2],
            }
        ).encode()
    )
    assert (prompt.id, prompt.ts, prompt.user_id, prompt.response) == ("x-1", 1_767_225_600_000, "u1", "r")
    assert [m.role for m in prompt.messages] == ["system", "user"]
    assert (prompt.feedback, prompt.metadata) == (-0.5, {"k": "v"})


def test_without_id_the_position_names_it_the_same_on_every_delivery() -> None:
    assert read(b'{"prompt": "a"}').id == read(b'{"prompt": "a"}').id == "prompts.raw:3:7"


def test_a_clock_ahead_gains_nothing() -> None:
    assert read(json.dumps({"prompt": "a", "ts": BROKER_MS + 10**9}).encode()).ts == BROKER_MS


@given(st.binary(max_size=300))
def test_any_bytes_give_a_prompt_or_a_reason(value: bytes) -> None:
    try:
        assert isinstance(read(value), AcceptedPrompt)
    except InvalidRecord:
        pass


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("prompt", "messages", "id", "ts", "feedback"), _JSON)))
def test_any_json_gives_a_prompt_or_a_reason(record: dict[str, object]) -> None:
    try:
        prompt = read(json.dumps(record).encode())
    except InvalidRecord:
        return
    assert prompt.messages[-1].content.strip()
    assert msgspec.json.decode(msgspec.json.encode(prompt), type=AcceptedPrompt) == prompt
