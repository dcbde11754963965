"""The story of a prompt, told from evidence: every part of it, and what is not known."""

from deploy.evidence import BUFFERS, At, Evidence, InBuffer, InSnapshot, needles_of, position_of
from deploy.explain import lines, tell
from deploy.log_search import Searched, partition_of
from streams.records import (
    Candidate,
    CuratedOutcome,
    DeadLetter,
    Feedback,
    Member,
    Message,
    RawPrompt,
    ScoredPrompt,
    TrainEvent,
)

TS = 1_790_000_000_000
RATING = [0.0, 0.0, 0.0, 0.1, 0.2, 0.4, 0.3, 0.0, 0.0]


def scored(**changes: object) -> ScoredPrompt:
    fields: dict[str, object] = {
        "id": "p1",
        "prompt_id": "abc",
        "messages": [Message("user", "Ask [EMAIL] about " + "x" * 300)],
        "ts": TS,
        "user_id": "u7",
        "source": "chat",
        "redacted": {"email": 1},
        "origin": "prompts.raw:3:42",
        "language": "en",
        "tokens": 77,
        "difficulty": 5.9,
        "quality": 7.5,
        "category": "math",
        "label_mass": 0.93,
        "judge": "j1",
        "distribution": {"difficulty": RATING, "category": [0.1, 0.8, 0.1, 0, 0, 0, 0, 0]},
        "seen_chars": 200,
    }
    return ScoredPrompt(**{**fields, **changes})  # type: ignore[arg-type]


def outcome(kind: str, at_s: int, **fields: object) -> CuratedOutcome:
    return CuratedOutcome(outcome=kind, ts=TS + at_s * 1000, **{"id": "p1", **fields})  # type: ignore[arg-type]


def evicted() -> Evidence:
    """Admitted, refused one alike, was trained on, and had to go."""
    return Evidence(
        "p1",
        raw=(At("prompts.raw:3:42", TS), RawPrompt(prompt="Ask a@b.example")),
        scored=[(At("prompts.scored:1:7", TS + 1000), scored())],
        outcomes=[
            outcome("admitted", 2, rank_key=1.77),
            outcome("admitted", 3, rank_key=1.77),  # delivered again
            outcome("evicted", 90, rank_key=1.77, threshold=1.77, by="p99"),
        ],
        others=[outcome("near_duplicate", 5, id="p2", detail="p1", value=0.84, bound=0.7, rank_key=1.5)],
        snapshots=[InSnapshot("/s/r1", "r1", "2026-09-21T00:00:00+00:00", "train", 12, 400)],
        replayed=["r2"],
        feedback=[
            Feedback(id="p1", feedback=-0.5, source="app", ts=TS + 9_000),
            Feedback(id="p1", feedback=1, ts=TS + 4_000),
        ],
        events=[TrainEvent(run_id=r, phase=p, ts=TS) for r, p in (("r1", "sft"), ("r1", "done"), ("r2", "rejected"))],  # type: ignore[arg-type]
    )


def test_the_whole_story_of_an_evicted_prompt() -> None:
    story = tell(evicted())
    assert story.known and story.not_known == []
    assert story.now == "evicted from the buffer, at 2026-09-21 14:14:50 UTC"
    assert (story.came["from"], story.came["user_id"], story.came["language"]) == ("prompts.raw:3:42", "u7", "en")
    assert story.redacted == {"email": 1}
    assert story.judged["distribution"]["difficulty"]["6"] == 0.4
    assert story.judged["distribution"]["category"]["math"] == 0.8
    assert len(story.judged["saw"]) == 200 and "characters left out" in story.judged["saw"]
    assert [event["what"] for event in story.history] == ["admitted", "evicted"]
    assert story.history[1]["by"] == "p99"
    assert [(given["feedback"], given["source"]) for given in story.feedback] == [(1.0, None), (-0.5, "app")]
    assert [(near["id"], near["value"]) for near in story.near] == [("p2", 0.84)]
    assert [(s["run_id"], s["row"], s["of"]) for s in story.snapshots] == [("r1", 12, 400)]
    assert [(r["run_id"], r["phase"], r["how"]) for r in story.runs] == [
        ("r1", "done", "its own snapshot"),
        ("r2", "rejected", "replay of an earlier snapshot"),
    ]


def test_the_story_for_people() -> None:
    text = "\n".join(lines(tell(evicted()), chars=100))
    for part in (
        "p1: evicted from the buffer",
        "CAME      from prompts.raw:3:42",
        "REDACTED  1 email",
        "JUDGED    by j1: difficulty 5.90, quality 7.50, math (mass on the labels 0.93)",
        "difficulty 1 0.00",
        "it saw 200 of 318 characters",
        "admitted to the buffer; rank key 1.7700, there was room",
        "evicted from the buffer, for p99; rank key 1.7700 against 1.7700",
        "-0.50, from app",
        "p2 refused: alike to a harder one, similarity 0.84 (bound 0.7): p1",
        "r1: row 12 of 400 (train), /s/r1",
        "r2: rejected, by replay of an earlier snapshot",
    ):
        assert part in text
    assert "x" * 100 not in text  # of a long prompt the begin is shown


def test_a_member_tells_its_place_and_its_answers() -> None:
    answers = [Candidate(text="a", reward=7.5, origin="teacher"), Candidate(text="b", reward=2, origin="teacher")]
    member = Member(prompt=scored(), rank_key=1.77, admitted_at=TS, near_duplicates=2, candidates=answers)
    evidence = Evidence("p1", members=[InBuffer("main", member, 3, 50, 60)])
    story = tell(evidence)
    assert story.now == "a member of the buffer, place 3 of 50"
    assert story.came["from"] == "prompts.raw:3:42" and not story.came["in_the_log"]
    text = "\n".join(lines(story))
    assert "BUFFER    place 3 of 50 (capacity 60)" in text
    assert "2 alike were refused or replaced in its favour" in text
    assert "answers: rewards 7.50, 2.00" in text
    assert "prompts.raw:3:42 (no longer in the log)" in text


def test_where_a_prompt_stands_that_never_was_a_member() -> None:
    refused = outcome("contaminated", 1, detail="arena-hard", value=0.8, bound=0.5, origin="prompts.raw:0:1")
    assert tell(Evidence("p1", outcomes=[refused])).now.startswith("refused: repeats a benchmark")
    assert "share of n-grams 0.8 (bound 0.5): arena-hard" in "\n".join(lines(tell(Evidence("p1", outcomes=[refused]))))
    letter = DeadLetter(
        reason="judge_unreadable", error="mass", topic="prompts.accepted", partition=0, offset=9, value=b"", ts=TS
    )
    assert tell(Evidence("p1", letters=[letter])).now.endswith("judge_unreadable")
    assert tell(Evidence("p1", scored=[(At("x:0:0", TS), scored())])).now.startswith("rated by the judge")
    assert tell(Evidence("p1", raw=(At("prompts.raw:0:0", TS), None))).now.startswith("sent;")
    gone = Evidence("p1", outcomes=[outcome("admitted", 1)])
    assert tell(gone).now.endswith("not there any more")
    gone.unread.append(f"{BUFFERS}: Redis is not reachable")
    assert not tell(gone).now.endswith("not there any more")


def test_what_is_not_known_is_said() -> None:
    searched = [
        Searched("prompts.curated", records=500, not_read=1500, deleted=0),
        Searched("prompts.scored", deleted=40),
    ]
    story = tell(Evidence("p1", searched=searched, unread=["the snapshots: cannot be listed"]))
    assert not story.known and story.now == "not known"
    text = "\n".join(lines(story))
    assert "prompts.curated: the time was too short for its oldest 1500 records (500 were read)" in text
    assert "prompts.scored: 40 records are no longer in the log" in text
    assert "the snapshots: cannot be listed" in text


def test_a_record_of_an_earlier_version_has_no_distribution() -> None:
    story = tell(Evidence("p1", scored=[(At("x:0:0", TS), scored(distribution={}, seen_chars=None))]))
    assert story.judged["distribution"] == {} and story.judged["saw"] is None
    assert lines(story)


def test_ids_and_places() -> None:
    assert needles_of("plain-1") == [b"plain-1"]
    assert needles_of('é"') == ['é\\"'.encode(), b'\\u00e9\\"']
    assert position_of("prompts.raw:3:42") == ("prompts.raw", 3, 42)
    assert position_of("my:id") is None and position_of("x") is None
    # The same partition as the producer's (murmur2, Kafka's default).
    assert {partition_of(f"p{i}", 4) for i in range(50)} == {0, 1, 2, 3}
