"""Redaction: what goes, what stays, and that equal prompts stay equal."""

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.rules.normalise import normalise, prompt_id
from agents.rules.redact import Redactor
from streams.records import Message
from tests.curation.identifiers import KINDS, SENTENCES

redact = Redactor().text
WHITE = st.sampled_from([" ", "  ", "\n", "\t", " \n ", "\u00a0"])


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("write to jo.doe+x@mail.example.com please", "write to [EMAIL] please"),
        ("call +49 170 1234567 or (212) 555-1234 or 212-555-1234", "call [PHONE] or [PHONE] or [PHONE]"),
        ("in 2026 415-555-2671 2024, ok", "in 2026 [PHONE] 2024, ok"),
        ("0044 20 7946 0958", "[PHONE]"),
        ("card 4111 1111 1111 1111, 3782 822463 10005", "card [CARD], [CARD]"),
        ("DE89 3704 0044 0532 0130 00", "[IBAN]"),
        ("BE68 5390 0754 7034 this from DE89370400440532013000", "[IBAN] this from [IBAN]"),
        ("host 203.0.113.7 and 2001:db8:0:0:0:0:0:1, fe80::1", "host [IP] and [IP], [IP]"),
        ("sk-test-abcdefghijklmnop, ghp_ABCDEFGHIJKLMNOPQRSTUVWXYZ012345", "[SECRET], [SECRET]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----", "[SECRET]"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\nAgEAAoIBAQC7VJTUt9Us8cKj", "[SECRET]"),
        ("https://bob:hunter2@db.example.org/x", "https://[SECRET]@db.example.org/x"),
        ('OPENAI_API_KEY="abcd1234efgh5678ijkl"', 'OPENAI_API_KEY="[SECRET]"'),
        ("Authorization: Bearer abcdefghij0123456789xyz", "Authorization: Bearer [SECRET]"),
    ],
)
def test_what_goes(text: str, cleaned: str) -> None:
    assert redact(text)[0] == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "card 4111 1111 1111 1112",
        "order 1234 5678 9012 3452 of no issuer, by Luhn",
        "DE88 3704 0044 0532 0130 00",
        "version 1.2.3.4.5, 999.1.1.1, 127.0.0.1, 12:30:45",
        "Solve 3.14159 * 2^10 = 1024 for 1234567890123456 and 2026-11-22",
        "def f(x: int) -> int: return x[1:2]  # :: std::vector a::b cafe::babe",
        "sk-learn-based-approach-for-things, pk_customer_orders_identifier",
        "1 2 3 4 5 6 7 8 9 10 11 12 13, 100 200 3000, 415-555-2671-22",
        "token = get_token_from_request(user); password: correct-horse",
    ],
)
def test_what_stays(text: str) -> None:
    assert redact(text) == (text, {})


@pytest.mark.parametrize("kind", KINDS)
def test_made_ones_of_each_kind_are_found_in_any_sentence(kind: str) -> None:
    """All but a few keys that hold hardly a digit and look like a name."""
    rng = random.Random(7)
    missed = []
    for _ in range(200):
        thing = KINDS[kind](rng)
        cleaned, counts = redact(rng.choice(SENTENCES).format(thing))
        if counts.get(kind) != 1 or thing in cleaned:
            missed.append(thing)
    assert len(missed) <= (4 if kind == "secret" else 0), missed


def test_a_country_of_the_settings_has_its_numbers_without_its_code() -> None:
    text = "Ruf 0170 1234567 an"
    assert redact(text)[0] == text
    assert Redactor(["US", "DE"]).text(text)[0] == "Ruf [PHONE] an"
    with pytest.raises(ValueError, match="XX"):
        Redactor(["XX"])


def test_counts_of_a_conversation_add_up() -> None:
    turns = [Message("user", "a@b.example"), Message("assistant", "1.2.3.4"), Message("user", "c@d.example")]
    cleaned, counts = Redactor().messages(turns)
    assert [message.content for message in cleaned] == ["[EMAIL]", "[IP]", "[EMAIL]"]
    assert counts == {"email": 2, "ip": 1}


@given(st.text(alphabet="0123456789-+ ().:@/=[]abcDE\n", max_size=120))
def test_redaction_is_stable(text: str) -> None:
    once, _ = redact(text)
    assert redact(once)[0] == once


@given(seed=st.integers(0, 10**6), data=st.data())
def test_prompts_that_are_equal_stay_equal(seed: int, data: st.DataObject) -> None:
    """White space does not count in `prompt_id`, and must not decide what is redacted either."""
    rng = random.Random(seed)
    text = " ".join(rng.choice(SENTENCES).format(KINDS[rng.choice(sorted(KINDS))](rng)) for _ in range(3))
    other = "".join(data.draw(WHITE) if c.isspace() else c for c in text)
    one, two = normalise([Message("user", text)]), normalise([Message("user", other)])
    assert prompt_id(one) == prompt_id(two)
    (left, counts), (right, other_counts) = Redactor().messages(one), Redactor().messages(two)
    assert prompt_id(left) == prompt_id(right)
    assert counts == other_counts


@given(st.lists(st.sampled_from([*"0123456789", " ", "\n", "+", "(", ")", "-", ".", "a", "@", "_"]), max_size=80))
def test_any_white_space_is_one(characters: list[str]) -> None:
    text = "".join(characters)
    wide = "".join(" \n\t" if c.isspace() else c for c in text)
    left, right = redact(text)[0], redact(wide)[0]
    assert left.split() == right.split()


@pytest.mark.parametrize(
    "part", ["12 ", "12345 ", "::", "a:", "sk-a-", "4111 ", "ab12 ", "-----BEGIN PRIVATE KEY----- -----END "]
)
def test_a_text_made_to_be_slow_is_not(part: str) -> None:
    """Hours without the bounds of the patterns and of the checks; a tenth of a second with them."""
    started = time.process_time()
    redact(part * (100_000 // len(part)))
    assert time.process_time() - started < 3
