"""Suites: the published layouts of questions and answers, resuming, outages, what a model cannot take."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from streams.errors import Fatal, SettingsError
from streams.vllm import BadRequest, TooLong, VllmPool
from tests.support.fake_vllm import FakeVllm
from trainers.suite import (
    Answer,
    Suite,
    answers_file,
    file_name,
    formatted,
    gpt4o_tokens,
    markdown_elements,
    read_suite,
)
from trainers.suite_run import Journal, Run, answer_suite

ARENA = [
    {"uid": "a1", "category": "hard_prompt", "subcategory": "coding", "prompt": "first"},
    {"uid": "b2", "category": "creative_writing", "subcategory": "x", "prompt": "second"},
]
ALPACA = [
    {"instruction": "first", "output": "reference", "generator": "other", "dataset": "helpful_base"},
    {"instruction": "second", "input": "of this", "dataset": "koala"},
]
MT_BENCH = [{"question_id": 81, "category": "writing", "turns": ["first", "and then"], "reference": ["no"]}]
OLD_ARENA = [{"question_id": "q1", "category": "c", "cluster": "d", "turns": [{"content": "first"}]}]


def suite_of(folder: Path, rows: Sequence[object], name: str = "question.jsonl") -> Suite:
    file = folder / name
    text = json.dumps(rows) if file.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    file.write_text(text)
    return read_suite(file)


def answer(key: str, *turns: str, refused: str | None = None) -> Answer:
    return Answer(key=key, id=f"id-{key}", at=5.0, turns=list(turns), refused=refused)


def test_arena_hard(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, ARENA)
    assert suite.format == "arena-hard" and [question.turns for question in suite.questions] == [["first"], ["second"]]
    lines = formatted(suite, [answer("b2", "B"), answer("a1", "A")], "mine").splitlines()
    # As gen_answer.py of arena-hard-auto writes them, and gen_judgment.py reads them.
    assert json.loads(lines[0]) == {
        "uid": "a1",
        "ans_id": "id-a1",
        "model": "mine",
        "messages": [{"role": "user", "content": "first"}, {"role": "assistant", "content": {"answer": "A"}}],
        "tstamp": 5.0,
    }
    assert json.loads(lines[1])["messages"][-1]["content"]["answer"] == "B"
    assert answers_file(suite, tmp_path, "mine") == tmp_path / "model_answer" / "mine.jsonl"


def test_arena_hard_with_what_its_style_control_reads(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, ARENA[:1])
    text = "# Title\n\n1. **one**\n- two\n* three\n## Sub\n```\n# not this\n- nor this\n```\n__u__"
    [line] = formatted(suite, [answer("a1", text)], "mine", len).splitlines()
    metadata = json.loads(line)["metadata"]
    assert list(metadata) == ["token_len", "header_count", "list_count", "bold_count"]
    assert metadata["token_len"] == len(text)
    assert metadata["header_count"] == {"h1": 1, "h2": 1, "h3": 0, "h4": 0, "h5": 0, "h6": 0}
    assert metadata["list_count"] == {"ordered": 1, "unordered": 2}
    assert metadata["bold_count"] == {"**": 1, "__": 1}
    assert markdown_elements("plain")["list_count"] == {"ordered": 0, "unordered": 0}


def test_gpt4os_tokens_are_counted_where_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def encoding_for_model(name: str) -> SimpleNamespace:
        assert name == "gpt-4o"
        return SimpleNamespace(encode=lambda text, disallowed_special: text.split())

    monkeypatch.setitem(sys.modules, "tiktoken", SimpleNamespace(encoding_for_model=encoding_for_model))
    count = gpt4o_tokens()
    assert count is not None and count("three <|endoftext|> words") == 3
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    assert gpt4o_tokens() is None


@pytest.mark.parametrize("name", ["alpaca_eval.json", "alpaca_eval.jsonl"])
def test_alpaca_eval(tmp_path: Path, name: str) -> None:
    suite = suite_of(tmp_path, ALPACA, name)
    assert suite.format == "alpaca_eval"
    assert [question.turns for question in suite.questions] == [["first"], ["second\n\nof this"]]
    made = json.loads(formatted(suite, [answer("1", " A\n"), answer("2", "B")], "mine"))
    assert made == [
        {"dataset": "helpful_base", "instruction": "first", "output": "A", "generator": "mine"},
        {"dataset": "koala", "instruction": "second", "input": "of this", "output": "B", "generator": "mine"},
    ]
    assert answers_file(suite, tmp_path, "mine") == tmp_path / "results" / "mine" / "model_outputs.json"


@pytest.mark.parametrize(
    ("rows", "turns"),
    [(MT_BENCH, ["A", "B"]), (OLD_ARENA, [{"content": "A"}])],
)
def test_fastchat(tmp_path: Path, rows: list[dict[str, Any]], turns: list[Any]) -> None:
    suite = suite_of(tmp_path, rows)
    key = str(rows[0]["question_id"])
    [line] = formatted(suite, [answer(key, *"AB"[: len(turns)])], "mine").splitlines()
    assert json.loads(line) == {
        "question_id": rows[0]["question_id"],
        "answer_id": f"id-{key}",
        "model_id": "mine",
        "choices": [{"index": 0, "turns": turns}],
        "tstamp": 5.0,
    }


def test_what_has_no_answer_is_left_out(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, ARENA)
    text = formatted(suite, [answer("a1", refused="too long"), answer("b2", "B")], "mine")
    assert [json.loads(line)["uid"] for line in text.splitlines()] == ["b2"]


def test_line_separators_in_an_answer_do_not_break_a_line(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, ARENA[:1])
    text = formatted(suite, [answer("a1", "a\u2028b\x85c\nd")], "mine")
    [line] = text.rstrip("\n").split("\n")
    assert json.loads(line)["messages"][1]["content"]["answer"] == "a\u2028b\x85c\nd"


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "has no question"),
        ([{"text": "x"}], "row 1: not a question of Arena-Hard"),
        (["x"], "row 1: not a question of Arena-Hard"),
        ([*ARENA, ALPACA[0]], "row 3: not a question of arena-hard, as the first row is"),
        ([*ARENA, ARENA[0]], "row 3: the id a1 is row 1's already"),
        ([{"uid": "a", "prompt": 5}], "row 1: 5 is not a text"),
        ([{"question_id": 1, "turns": []}], "row 1: turns is not a list"),
        ([{"question_id": 1, "turns": [{"x": 1}]}], "row 1: null is not a text"),
    ],
)
def test_files_that_are_no_suites(tmp_path: Path, rows: list[Any], says: str) -> None:
    with pytest.raises(SettingsError, match="--suite: ") as error:
        suite_of(tmp_path, rows)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "name"),
    [("org/model-7B", "org-model-7B"), ("../../etc", "etc"), ("v0001-run.1", "v0001-run.1"), ("/", "model")],
)
def test_a_models_name_is_a_files_name(model: str, name: str) -> None:
    assert file_name(model) == name


RUN = Run(suite="s", model="base", max_tokens=100, temperature=0.0, seed=1)


def test_a_journal_goes_on_after_a_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, RUN) as journal:
        journal.add(answer("a", "A"))
        journal.add(answer("b", "B"))
    path.write_bytes(path.read_bytes()[:-7])
    with Journal(path, RUN) as journal:
        assert list(journal.answers) == ["a"]
        journal.add(answer("b", "B2"))
    with Journal(path, RUN) as journal:
        assert [a.turns for a in journal.answers.values()] == [["A"], ["B2"]]
    path.write_bytes(path.read_bytes()[:5])  # not even the first line
    with Journal(path, RUN) as journal:
        assert journal.answers == {}


def test_a_journal_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, RUN) as journal:
        journal.add(answer("a", "A"))
    before = path.read_bytes()
    other = Run(suite="s", model="base", max_tokens=200, temperature=0.5, seed=1)
    with pytest.raises(SettingsError, match="another max_tokens, temperature"), Journal(path, other):
        pass
    assert path.read_bytes() == before
    path.write_text('{"no": "journal"}\n')
    with pytest.raises(SettingsError, match="no journal"), Journal(path, RUN):
        pass


def test_two_processes_do_not_write_one_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, RUN), pytest.raises(Fatal, match="another process"), Journal(path, RUN):
        pass


@pytest.fixture
async def fake() -> AsyncIterator[tuple[FakeVllm, str]]:
    vllm = FakeVllm()
    server = TestServer(vllm.app)
    await server.start_server()
    yield vllm, str(server.make_url("")).rstrip("/")
    await server.close()


async def nothing() -> None:
    pass


async def answered(suite: Suite, path: Path, pool: Any, **changes: Any) -> dict[str, Answer]:
    given: dict[str, Any] = {"model": "base", "run": RUN, "concurrency": 4, "make_ready": nothing}
    with Journal(path, RUN) as journal:
        await answer_suite(suite, journal, pool=pool, **(given | changes))
        return journal.answers


async def test_an_outage_is_waited_out_and_only_the_rest_is_asked(tmp_path: Path, fake: tuple[FakeVllm, str]) -> None:
    vllm, url = fake
    rows = [{"uid": str(i), "prompt": f"question {i}"} for i in range(12)]
    path = tmp_path / "journal.jsonl"
    async with VllmPool([url]) as pool:
        await answered(suite_of(tmp_path, rows[:5]), path, pool)
        asked = vllm.requests
        vllm.fault("503", 2)
        found = await answered(suite_of(tmp_path, rows), path, pool)
    assert asked == 5 and vllm.requests == 12 + 2
    assert {key: found[key].turns for key in found} == {str(i): [f"base answer 0 to: question {i}"] for i in range(12)}
    assert vllm.most_at_once <= 4


class Scripted:
    """Answers with what was said so far; a question that has a name in `trouble` raises it."""

    def __init__(self, trouble: Mapping[str, Exception] | None = None) -> None:
        self.trouble = dict(trouble or {})
        self.asked: list[tuple[list[str], int | None]] = []

    async def chat(self, messages: Sequence[Mapping[str, str]], *, max_tokens: int | None = 512, **_: Any) -> list[str]:
        said = [message["content"] for message in messages]
        self.asked.append((said, max_tokens))
        if (trouble := self.trouble.get(said[-1])) and not (isinstance(trouble, TooLong) and max_tokens is None):
            raise trouble
        return [f"re {said[-1]}"]


async def test_later_turns_see_the_answers_to_the_earlier_ones(tmp_path: Path) -> None:
    model = Scripted()
    found = await answered(suite_of(tmp_path, MT_BENCH), tmp_path / "j", model)
    assert found["81"].turns == ["re first", "re and then"]
    assert model.asked[1][0] == ["first", "re first", "and then"]


async def test_what_a_model_refuses_is_noted_and_not_asked_again(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, ARENA)
    model = Scripted({"first": BadRequest("no pictures")})
    found = await answered(suite, tmp_path / "j", model)
    assert (found["a1"].refused, found["a1"].turns) == ("no pictures", [])
    assert found["b2"].turns == ["re second"]
    again = Scripted()
    await answered(suite, tmp_path / "j", again)
    assert again.asked == []


async def test_a_question_that_fits_without_the_room_for_a_whole_answer_gets_what_is_left(tmp_path: Path) -> None:
    model = Scripted({"first": TooLong("2048 tokens")})
    found = await answered(suite_of(tmp_path, ARENA[:1]), tmp_path / "j", model)
    assert found["a1"].turns == ["re first"] and [most for _, most in model.asked] == [100, None]


async def test_a_server_that_forgot_the_model_is_made_ready_once_a_question(tmp_path: Path) -> None:
    model, called = Scripted({"first": Fatal("does not exist")}), []

    async def make_ready() -> None:
        called.append(1)
        model.trouble.clear()

    suite = suite_of(tmp_path, ARENA)
    assert len(await answered(suite, tmp_path / "j", model, make_ready=make_ready)) == 2
    assert called == [1]
    with pytest.raises(Fatal, match="does not exist"):
        await answered(suite, tmp_path / "k", Scripted({"second": Fatal("does not exist")}))


async def test_ending_in_the_middle_keeps_what_is_answered(tmp_path: Path, fake: tuple[FakeVllm, str]) -> None:
    vllm, url = fake
    rows = [{"uid": str(i), "prompt": f"question {i}"} for i in range(40)]
    suite, path = suite_of(tmp_path, rows), tmp_path / "journal.jsonl"
    vllm.answer_delay_s = 0.02
    async with VllmPool([url]) as pool:
        task = asyncio.create_task(answered(suite, path, pool))
        while vllm.requests < 13:  # noqa: ASYNC110 (the fake has no event)
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with Journal(path, RUN) as journal:
            kept = len(journal.answers)
        assert 4 <= kept < 40
        before = vllm.requests
        assert len(await answered(suite, path, pool)) == 40
    assert vllm.requests - before == 40 - kept
