"""What the console remembers, hides and lets in: its pure parts."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from agents.rules.rank import rank_key
from agents.rules.redact import Redactor
from deploy.browse import browse
from deploy.console.history import KEEP_S, History, Outcomes, Sample, bar
from deploy.console.parts import POINTS, thin
from deploy.console.privacy import SHOWN_CHARS, Mask
from deploy.console.runs import KEEP, Runs
from deploy.console.sessions import TRIES, Sessions, TooManyTries
from streams.buffer.base import BufferRules
from streams.buffer.memory import MemoryBuffer
from streams.errors import SettingsError
from streams.records import TrainEvent
from streams.settings import load_settings
from tests.support.prompts import offer

NOW_S = 1_790_000_000.0


@given(st.floats(1, 9), st.one_of(st.none(), st.floats(3_600, 1e8)))
def test_the_bar_is_the_difficulty_that_reaches_the_threshold_now(difficulty: float, half_life_s: float | None) -> None:
    threshold = rank_key(difficulty, int(NOW_S * 1000), half_life_s)
    found = bar(threshold, half_life_s, NOW_S)
    assert found is not None and math.isclose(found, difficulty, rel_tol=1e-6)


def test_the_bar_falls_with_time_where_members_age_and_without_a_threshold_there_is_none() -> None:
    threshold = rank_key(8, int(NOW_S * 1000), 3_600)
    assert bar(threshold, 3_600, NOW_S + 3_600) == pytest.approx(4)
    assert bar(None, 3_600, NOW_S) is None


def test_rates_are_of_the_offsets_and_a_topic_made_anew_has_none() -> None:
    history = History()
    for at, written in ((0, 100), (5, 150), (10, 150), (15, 20)):
        history.add(Sample(at=at, written={"raw": written}))
    assert list(history.rates("raw")) == [(5, 10.0), (10, 0.0), (15, 0.0)]
    assert list(history.rates("scored")) == []
    assert history.rate("scored") is None


def test_the_rate_of_now_is_over_the_last_half_minute_and_an_outage_leaves_a_gap() -> None:
    history = History()
    history.add(Sample(at=0, written={"raw": 0}))
    assert history.rate("raw") is None
    history.add(Sample(at=100, written={"raw": 1_000}))
    assert history.rate("raw") == 10
    history.add(Sample(at=105))  # Kafka was away
    history.add(Sample(at=120, written={"raw": 1_100}))
    assert history.rate("raw") == 5
    history.add(Sample(at=101 + KEEP_S, written={"raw": 1_200}))
    assert [sample.at for sample in history.samples] == [105, 120, 101 + KEEP_S]


def test_outcomes_are_counted_by_their_own_time_and_forgotten_after_an_hour() -> None:
    outcomes = Outcomes()
    for name, at in (("admitted", 0), ("admitted", 29), ("evicted", 31)):
        outcomes.count(name, at * 1000)
    assert outcomes.buckets == {0: {"admitted": 2}, 30: {"evicted": 1}}
    assert outcomes.totals() == {"admitted": 2, "evicted": 1}
    outcomes.forget(KEEP_S + 10)
    assert outcomes.totals() == {"evicted": 1}


def event(run: str, phase: str, at: int, **metrics: float) -> TrainEvent:
    return TrainEvent(run_id=run, phase=phase, metrics=dict(metrics), ts=at * 1000)  # type: ignore[arg-type]


def test_a_run_is_told_once_however_often_its_events_come() -> None:
    runs = Runs()
    story = [
        event("a", "queued", 0),
        event("a", "sft", 5),
        event("a", "sft", 9, step=10, loss=2.5),
        event("b", "sft", 7),
    ]
    for told in (*story, *story, event("a", "done", 20, win_rate=0.6), event("a", "failed", 30)):
        runs.add(told)
    newest, first = runs.newest_first()
    assert (newest.run_id, newest.over) == ("b", False)
    assert [phase for phase, _ in first.phases] == ["queued", "sft", "done"]
    assert (first.over, first.seconds, first.metrics["win_rate"]) == (True, 20, 0.6)
    assert first.points == {("sft", 10): 2.5}
    for number in range(KEEP):
        runs.add(event(f"later-{number}", "queued", 100))
    assert len(runs.newest_first()) == KEEP and runs.get("a") is None


def test_a_session_opens_with_the_token_only_and_ends() -> None:
    now = [0.0]
    sessions = Sessions(SecretStr("the right token"), 100, lambda: now[0])
    assert sessions.login("the wrong token") is None
    id = sessions.login("the right token")
    assert id is not None and sessions.valid(id)
    assert sessions.login("the right token") != id
    assert not sessions.valid(None) and not sessions.valid("") and not sessions.valid(id + "x")
    now[0] = 101
    assert not sessions.valid(id)
    again = sessions.login("the right token")
    sessions.logout(again)
    assert not sessions.valid(again)


def test_without_a_token_nobody_is_let_in() -> None:
    sessions = Sessions(None, 100)
    assert not sessions.possible
    assert sessions.login("") is None and sessions.login("None") is None


def test_who_guesses_is_slowed_down_and_who_knows_is_not() -> None:
    now = [0.0]
    sessions = Sessions(SecretStr("the right token"), 100, lambda: now[0])
    for number in range(TRIES):
        assert sessions.login(f"guess {number}") is None
    with pytest.raises(TooManyTries):
        sessions.login("one more")
    assert sessions.login("the right token") is not None
    now[0] = 13
    assert sessions.login("after a while") is None


def test_a_user_is_one_short_hash_in_a_process_and_another_in_the_next() -> None:
    one, other = Mask(Redactor()), Mask(Redactor())
    assert one.user("anna@example.com") == one.user("anna@example.com") != one.user("bert@example.com")
    assert one.user("anna@example.com") != other.user("anna@example.com")
    assert "anna" not in one.user("anna") and len(one.user("x" * 500)) == len("user ") + 8


@pytest.mark.parametrize(
    "value",
    [
        b'{"prompt": 1, "user_id": "anna-17"}',
        b'{"user_id" : "anna-17 \\" and", "prompt": "x"}',
        b'{"prompt": "x", "user_id": "anna-17',
        b'{"user_id": anna-17, "prompt": "x"}',
        b"\xff\xfe{\"user_id\":\"anna-17\"}",
    ],
)  # fmt: skip
def test_a_dead_letter_is_shown_without_its_user(value: bytes) -> None:
    shown = Mask(Redactor()).letter(value)
    assert "anna" not in shown and "(hidden)" in shown


def test_a_dead_letter_is_redacted_and_cut() -> None:
    mask = Mask(Redactor())
    assert mask.letter(b'{"prompt": ["write to anna@example.com"]}') == '{"prompt": ["write to [EMAIL]"]}'
    assert len(mask.letter(b"x" * 100_000)) <= SHOWN_CHARS + 2


async def test_members_come_a_page_at_a_time_and_by_words_id_and_category() -> None:
    buffer = MemoryBuffer(BufferRules(100))
    offers = [offer(f"p{number}", rank=1 + number / 10) for number in range(30)]
    await buffer.offer(offers, [])
    page = await browse(buffer, 10, 5)
    assert page.found == 30
    assert [(place, member.prompt.id) for place, member in page.rows] == [(n, f"p{30 - n}") for n in range(11, 16)]
    [(place, member)] = (await browse(buffer, 0, 5, "P3 ")).rows
    assert (place, member.prompt.id) == (27, "p3")
    words = member.prompt.messages[-1].content.upper()
    assert [found.prompt.id for _, found in (await browse(buffer, 0, 5, words)).rows] == ["p3"]
    assert (await browse(buffer, 0, 5, "no member says this")).found == 0
    of_category = await browse(buffer, 28, 5, category=member.prompt.category)
    assert (of_category.found, len(of_category.rows)) == (30, 2)
    assert (await browse(buffer, 0, 5, category="no such")).rows == []


def test_a_line_is_thinned_and_keeps_its_newest_point() -> None:
    points = [[float(n), 0.0] for n in range(1_000)]
    thinned = thin(points)
    assert len(thinned) <= POINTS and thinned[-1] == points[-1] and thinned == sorted(thinned)
    assert thin(points[:10]) == points[:10]


def test_the_token_is_for_the_environment_only(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path_factory.mktemp("settings") / "haypile.yaml"
    file.write_text("console: {token: a token in a file}\n")
    monkeypatch.setenv("HAYPILE_CONFIG", str(file))
    with pytest.raises(SettingsError, match="HAYPILE_CONSOLE__TOKEN"):
        load_settings()
    file.write_text("{}")
    monkeypatch.setenv("HAYPILE_CONSOLE__TOKEN", "short")
    with pytest.raises(SettingsError, match=r"console\.token"):
        load_settings()
