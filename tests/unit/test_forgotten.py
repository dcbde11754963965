"""Who is forgotten, and that the list of them names nobody."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.errors import Fatal
from streams.forgotten import ForgottenList, key_of
from streams.records import AcceptedPrompt, Forgotten, Message, encode
from streams.settings import KafkaSettings

NOW = 1_790_000_000_000
ENDS = {"prompts.raw:0": 10, "prompts.raw:1": 0}


def prompt(user_id: str | None = "anna", ts: int = NOW - 1, origin: str | None = "prompts.raw:0:9") -> AcceptedPrompt:
    return AcceptedPrompt(
        id="r1", prompt_id="p1", messages=[Message("user", "?")], ts=ts, user_id=user_id, origin=origin
    )


def asked(kind: str, id: str, key: bytes = b"", future: bool = False) -> ForgottenList:
    found = ForgottenList(key)
    found.take(found.request(kind, id, ends=ENDS, future=future, now_ms=NOW), 0)
    return found


def test_a_user_and_a_prompt_are_found_by_all_their_ids() -> None:
    assert asked("user", "anna").prompt(prompt()) is not None
    assert asked("user", "anna").prompt(prompt(user_id="berta")) is None
    assert asked("user", "anna").prompt(prompt(user_id=None)) is None
    for id in ("r1", "p1"):
        assert asked("prompt", id).prompt(prompt(user_id=None)) is not None
    assert asked("prompt", "anna").prompt(prompt()) is None, "a prompt's id is no user's"
    assert asked("user", "r1").prompt(prompt()) is None
    assert ForgottenList().prompt(prompt()) is None


@pytest.mark.parametrize(
    ("ts", "origin", "is_forgotten"),
    [
        (NOW + 5, "prompts.raw:0:9", True),  # sent before, under a clock that was ahead
        (NOW, "prompts.raw:0:10", True),  # sent again, and says that it is older
        (NOW + 5, "prompts.raw:0:10", False),
        (NOW + 5, "prompts.raw:7:0", False),  # a partition that was added later
        (NOW + 5, None, True),  # of before records kept where they come from
        (NOW + 5, "other.raw:0:99", True),  # nothing is known of that topic
    ],
)
def test_what_was_there_until_the_request_is_forgotten_and_nothing_else(
    ts: int, origin: str | None, is_forgotten: bool
) -> None:
    found = asked("user", "anna").prompt(prompt(ts=ts, origin=origin))
    assert (found is not None) is is_forgotten
    assert asked("user", "anna", future=True).prompt(prompt(ts=ts, origin=origin)) is not None


def test_the_newest_record_of_an_id_counts_and_all_share_a_salt() -> None:
    found = asked("user", "anna", future=True)
    later = found.request("user", "anna", ends={"prompts.raw:0": 20}, future=False, now_ms=NOW + 9)
    assert later.digest == found.records()[0].digest and len(later.salt) == 32
    found.take(later, 5)
    assert len(found) == 1 and found.upto == 5
    assert found.prompt(prompt(ts=NOW + 10, origin="prompts.raw:0:20")) is None
    assert found.unfinished() == [later]
    found.take(msgspec.structs.replace(later, done=NOW + 10), 6)
    assert found.unfinished() == [] and found.upto == 5, "that it is done is nothing new to sweep for"
    assert found.prompt(prompt()) is not None


@given(st.text(), st.binary(max_size=32))
def test_a_deletion_record_names_nobody_and_is_found_again_by_those_who_have_the_key(id: str, key: bytes) -> None:
    found = ForgottenList(key)
    id = f"anna-{id}"
    record = found.request("user", id, ends={}, future=False, now_ms=NOW)
    assert id.encode("utf-8", "replace") not in encode(record)
    again = ForgottenList(key)
    again.take(msgspec.json.decode(encode(record), type=Forgotten))
    assert again.asked("user", id) == record
    with pytest.raises(Fatal, match="made with another"):
        ForgottenList(key[:-1] if key else b"x").take(record)


def test_the_key_is_the_settings_secret() -> None:
    settings = KafkaSettings.model_validate({"forget_key": "pepper"})
    assert len(key_of(settings)) == 32 and key_of(KafkaSettings()) == b""
    assert "pepper" not in repr(settings) + str(settings.model_dump(mode="json"))


def test_rows_of_snapshots() -> None:
    row = {"id": "r1", "prompt_id": "p1", "user_id": "anna", "ts": NOW + 5, "origin": "prompts.raw:0:10"}
    assert asked("user", "anna").row(row) is None
    assert asked("user", "anna").row(row | {"origin": "prompts.raw:0:9"}) is not None
    del row["origin"]
    assert asked("user", "anna").row(row) is not None
