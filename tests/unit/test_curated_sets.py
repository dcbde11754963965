"""Sets out of the buffer and into `prompts.raw`: the columns are those of others, and nothing is lost on the way."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.curated_sets import Curated, curate, write_sets
from deploy.feeding import lines_of, rows_of_set
from deploy.published_sets import raw_record
from deploy.set_formats import SetFormat
from streams.errors import Fatal, SettingsError
from streams.records import Candidate, Member, Message
from tests.support.training import quick_recipe, scored

pyarrow = pytest.importorskip("pyarrow.parquet")


def member(key: str, turns: list[tuple[str, str]], answers: list[tuple[str, float]]) -> Member:
    prompt = scored(key, "")
    prompt.messages = [Message(role=role, content=text) for role, text in turns]  # type: ignore[arg-type]
    prompt.user_id = "user-1"
    candidates = [Candidate(text=text, reward=reward, origin="teacher", model="t") for text, reward in answers]
    return Member(prompt=prompt, rank_key=1.0, admitted_at=1, candidates=candidates)


MEMBERS = [
    member("one", [("user", "What is 2 + 2?")], [("It is 4.\n", 8.0), ("5", 2.0)]),
    member("system", [("system", "Be terse."), ("user", "Name a prime.")], [("7", 7.0), ("8", 1.0)]),
    member(
        "turns",
        [("user", "Hi"), ("assistant", "Hello!"), ("user", "Who are you?")],
        [("A model.", 6.0), ("A | pipe\nand a line", 3.0)],
    ),
    member("tool", [("user", "Look"), ("tool", "{}"), ("user", "And?")], [("Seen.", 6.0), ("No.", 2.0)]),
    member("close", [("user", "Say x.")], [("x", 5.0), ("X", 4.9)]),
    member("bare", [("user", "Nobody answered this.")], []),
    member("kept-out", [("user", "Held out.")], [("a", 9.0), ("b", 1.0)]),
]


def curated(format: SetFormat, members: list[Member] | None = None) -> Curated:
    return curate(
        MEMBERS if members is None else members, {"prompt-kept-out"}, quick_recipe(data={"min_margin": 0.5}), format
    )


@pytest.fixture(params=list(SetFormat))
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[SetFormat, Path]]:
    write_sets(curated(request.param), tmp_path, request.param)
    yield request.param, tmp_path


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pyarrow.read_table(folder / name / "train.parquet").to_pylist()
    return rows


def test_what_is_left_out_is_counted_by_reason(exported: tuple[SetFormat, Path]) -> None:
    format, folder = exported
    expected = {"no_answer": 1, "held_out": 1, "small_margin": 1}
    expected |= {"not_alpaca": 2} if format is SetFormat.alpaca else {}
    assert curated(format).left_out == expected
    assert (len(table(folder, "sft")), len(table(folder, "preference"))) == (
        (4, 3) if format is SetFormat.alpaca else (5, 4)
    )
    card = (folder / "README.md").read_text()
    assert "| no_answer | 1 |" in card and "judge-1" in card


def test_nothing_of_a_user_and_nothing_held_out_is_written(exported: tuple[SetFormat, Path]) -> None:
    everything = b"".join(file.read_bytes() for file in exported[1].rglob("*") if file.is_file())
    rows = json.dumps([table(exported[1], name) for name in ("sft", "preference")])
    for secret in ("user-1", "kept-out", "Held out.", '"one"'):
        assert secret not in rows and secret.encode() not in everything


def test_it_comes_back_as_it_was(exported: tuple[SetFormat, Path]) -> None:
    format, folder = exported
    known = {
        key: [(m.role, m.content) for m in member.prompt.messages] for key, member in zip("abcd", MEMBERS, strict=False)
    }
    best = {"a": "It is 4.", "b": "7", "c": "A model.", "d": "Seen."}
    for name in ("sft", "preference"):
        found = {}
        for place, value, _, problem in rows_of_set(folder / name):
            assert problem is None, place
            record = json.loads(value)
            turns = [(m["role"], m["content"]) for m in record.get("messages", [])] or [("user", record["prompt"])]
            found[json.dumps(turns)] = record
        for key, turns in known.items():
            if key != "d" or format is not SetFormat.alpaca:
                assert found[json.dumps(turns)]["response"] == best[key]
                assert found[json.dumps(turns)]["source"] == name


def test_the_card_and_the_files_are_what_datasets_loads(exported: tuple[SetFormat, Path], tmp_path: Path) -> None:
    from datasets import load_dataset
    from huggingface_hub import DatasetCard

    format, folder = exported
    card = DatasetCard((folder / "README.md").read_text())
    assert [config["config_name"] for config in card.data.to_dict()["configs"]] == ["sft", "preference"]
    loaded = load_dataset(str(folder), "preference", cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded[0]["score_chosen"] - loaded[0]["score_rejected"] >= 0.5
    if format is SetFormat.pika:
        assert loaded[0]["chosen"][-1]["role"] == "assistant" and set(loaded.features) >= {"uuid", "instruction"}


def test_columns_are_those_of_the_others() -> None:
    sft = {format: curated(format).rows["sft"] for format in SetFormat}
    pair = {format: curated(format).rows["preference"] for format in SetFormat}
    assert {"uuid", "instruction", "response", "conversations"} <= set(sft[SetFormat.pika][0])
    assert {"uuid", "instruction", "chosen", "rejected"} <= set(pair[SetFormat.pika][0])
    by_text = {row["conversations"][-1]["value"]: row for row in sft[SetFormat.sharegpt]}
    assert by_text["7"]["system"] == "Be terse."
    assert by_text["7"]["conversations"] == [{"from": "human", "value": "Name a prime."}, {"from": "gpt", "value": "7"}]
    alpaca = {row["output"]: row for row in sft[SetFormat.alpaca]}
    assert alpaca["A model."]["history"] == [["Hi", "Hello!"]] and alpaca["7"]["system"] == "Be terse."
    assert {row["chosen"]: row["rejected"] for row in pair[SetFormat.alpaca]}["It is 4."] == "5"


def test_without_a_row_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match=r"nothing to write of 1 members \(1 no_answer"):
        write_sets(curated(SetFormat.pika, [MEMBERS[5]]), tmp_path, SetFormat.pika)
    with pytest.raises(Fatal, match="the buffer is empty"):
        write_sets(curated(SetFormat.pika, []), tmp_path, SetFormat.pika)


QUESTION = "Why is the sky blue?"
USER, ANSWER = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": "Rayleigh."}
WORSE = {"role": "assistant", "content": "Paint."}
MAGPIE = {
    "uuid": "u-1",
    "model": "m",
    "gen_input_configs": {"temperature": 1.0, "seed": None},
    "instruction": QUESTION,
    "response": "Rayleigh.",
    "conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": "Rayleigh."}],
    "difficulty": "easy",
    "instruct_reward": 1.5,
}
MAGPIE_OLD = {"uuid": "u-1", "input": QUESTION, "output": "Rayleigh."}
MAGPIE_DPO = {
    "uuid": "u-1",
    "instruction": QUESTION,
    "responses": ["Rayleigh.", "Paint."],
    "rewards_armorm": [{"score": 0.2}, {"score": 0.1}],
    "chosen": [USER, ANSWER],
    "rejected": [USER, WORSE],
}
ULTRAFEEDBACK = {
    "prompt": QUESTION,
    "prompt_id": "u-1",
    "chosen": [USER, ANSWER],
    "rejected": [USER, WORSE],
    "messages": [USER, ANSWER],
    "score_chosen": 8.5,
    "score_rejected": 4.0,
}
ALPACA = {"instruction": QUESTION, "input": "", "output": "Rayleigh.", "id": 1}
SHAREGPT = {"id": "u-1", "conversations": MAGPIE["conversations"], "system": ""}
SHAREGPT_PAIR = {
    "conversations": [{"from": "human", "value": QUESTION}],
    "chosen": {"from": "gpt", "value": "Rayleigh."},
    "rejected": {"from": "gpt", "value": "Paint."},
}
TRL = [
    {"messages": [USER, ANSWER]},
    {"prompt": [USER], "completion": [ANSWER]},
    {"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]},
    {"prompt": QUESTION, "chosen": "Rayleigh.", "rejected": "Paint."},
]
KNOWN = [MAGPIE, MAGPIE_OLD, MAGPIE_DPO, ULTRAFEEDBACK, ALPACA, SHAREGPT, SHAREGPT_PAIR, *TRL]


@pytest.mark.parametrize("row", KNOWN)
def test_rows_of_published_sets(row: dict[str, Any]) -> None:
    record = raw_record(row, "set")
    assert (record.prompt, record.messages, record.response, record.source) == (QUESTION, None, "Rayleigh.", "set")
    assert record.id is not None and record.id.startswith("set:") and record.id == raw_record(row, "set").id
    if "u-1" in row.values():
        assert record.id == "set:u-1"


def test_a_longer_conversation_keeps_its_turns_and_the_last_answer() -> None:
    turns = [USER, ANSWER, {"role": "user", "content": "And the sea?"}, {"role": "assistant", "content": "It mirrors."}]
    record = raw_record({"messages": turns, "system": "Be kind."}, "set")
    assert record.messages is not None and record.response == "It mirrors."
    assert [m.role for m in record.messages] == ["system", "user", "assistant", "user"]
    alpaca = {"instruction": "And the sea?", "input": "Here: …", "output": "It mirrors.", "history": [["a", "b"]]}
    found = raw_record(alpaca, "set")
    assert found.messages is not None and found.messages[-1].content == "And the sea?\nHere: …"
    assert [m.content for m in found.messages[:2]] == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "x"}, "none of the columns"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "no turn of a user"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "the role 'narrator'"),
        ({"conversations": ["x"]}, "not an object"),
        ({"conversations": [{"from": "human", "value": None}]}, "None is not text"),
        ({"instruction": "x", "history": [["a"]]}, "pairs"),
    ],
)
def test_what_a_row_lacks_is_said(row: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        raw_record(row, "set")


def test_json_lines_are_a_set_when_the_first_one_is_and_raw_records_stay_byte_for_byte() -> None:
    lines = [json.dumps(row).encode() for row in (ULTRAFEEDBACK, MAGPIE, {"text": "x"})]
    found = list(lines_of([*lines, b"[1]", b"{"], "jsonl", "uf", may_be_set=True))
    assert [problem for *_, problem in found][:2] == [None, None]
    assert [number for number, *_, problem in found if problem] == [3, 4, 5]
    raw = b'{"prompt": "x",  "instruction": "a field of the app\'s own"}'
    assert [value for _, value, _, _ in lines_of([raw, raw], "auto", "x")] == [raw, raw]
    [(_, value, _, _)] = lines_of([json.dumps(ULTRAFEEDBACK).encode()], "auto", "stdin")
    assert json.loads(value)["response"] == "Rayleigh."


def test_a_set_of_raw_records_keeps_their_fields(tmp_path: Path) -> None:
    own = {"id": "r-1", "prompt": "x", "user_id": "u", "feedback": 0.5, "metadata": {"a": "b"}}
    rows = [own | {"messages": None}, {"prompt": "y", "response": "z"}, {"prompt": "y", "completion": "z"}]
    (tmp_path / "own.json").write_text(json.dumps(rows))
    (tmp_path / "lines.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("own", "lines"):
        lines = list(rows_of_set(tmp_path / f"{name}.json"))
        found = [json.loads(value) for _, value, _, _ in lines]
        assert [key for _, _, key, _ in lines] == [b"u", None, None]
        assert found[0] == own | {"source": name}
        assert [(record["prompt"], record["response"]) for record in found[1:]] == [("y", "z")] * 2
        assert found[1]["id"] == found[2]["id"]


def test_files_folders_and_what_datasets_saves(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = [MAGPIE | {"uuid": f"u-{i}"} for i in range(3)]
    (tmp_path / "magpie.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "magpie.json").write_text(json.dumps(rows))
    Dataset.from_list(rows).to_parquet(tmp_path / "magpie.parquet")
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved" / "magpie")
    DatasetDict({"a": Dataset.from_list(rows), "b": Dataset.from_list(rows)}).save_to_disk(tmp_path / "both" / "magpie")
    (tmp_path / "parts" / "magpie" / "data").mkdir(parents=True)
    Dataset.from_list(rows[:2]).to_parquet(tmp_path / "parts" / "magpie" / "data" / "train-0.parquet")
    (tmp_path / "parts" / "magpie" / "data" / "train-1.jsonl").write_text(json.dumps(rows[2]))
    (tmp_path / "parts" / "magpie" / "dataset_infos.json").write_text("{}")
    for name in ("magpie.jsonl", "magpie.json", "magpie.parquet", "saved/magpie", "both/magpie", "parts/magpie"):
        found = [json.loads(value) for _, value, _, problem in rows_of_set(tmp_path / name) if problem is None]
        assert {record["id"] for record in found} == {"magpie:u-0", "magpie:u-1", "magpie:u-2"}, name
        assert len(found) == (6 if name.startswith("both") else 3)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [("x.parquet", b"no", "cannot read"), ("x.json", b"[1,", "cannot read"), ("x.jsonl", b"\xff", "cannot read")],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingsError, match=says) as raised:
        list(rows_of_set(tmp_path / name))
    assert name in str(raised.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match=r"no \.parquet"):
        list(rows_of_set(tmp_path / "empty"))
