"""What `ingest` judges by, as the settings name it: formats of benchmarks, tokenizers, languages; clear errors."""

import json
from pathlib import Path

import pytest

from agents.rules.contamination import Contamination, Match
from agents.rules.length import estimate, tokens_of
from deploy import intake
from deploy.benchmarks import benchmark_prompts
from streams.errors import SettingsError
from streams.records import Message
from streams.settings import IngestSettings

ROWS = {
    "arena-hard v2": {"uid": "x", "category": "hard_prompt", "prompt": "ask this"},
    "arena-hard v0.1": {"question_id": "x", "cluster": "c", "turns": [{"content": "ask this"}]},
    "alpaca_eval": {"dataset": "helpful_base", "instruction": "ask this", "output": "no", "generator": "g"},
    "mt-bench": {"question_id": 1, "turns": ["ask this"], "reference": ["no"]},
    "gsm8k": {"question": "ask this", "answer": "no"},
    "math": {"problem": "ask this", "answer": "no"},
    "chat": {"messages": [{"role": "system", "content": "no"}, {"role": "user", "content": "ask this"}]},
    "a first field that is empty": {"prompt": "", "question": "ask this"},
}


@pytest.mark.parametrize("name", ROWS)
def test_formats_of_benchmarks(tmp_path: Path, name: str) -> None:
    lines, array = tmp_path / "lines.jsonl", tmp_path / "array.json"
    lines.write_text(json.dumps(ROWS[name]) + "\n\n" + json.dumps(ROWS[name]))
    array.write_text(json.dumps([ROWS[name]]))
    assert list(benchmark_prompts([lines, array])) == [("lines", "ask this")] * 2 + [("array", "ask this")]


def test_folders_are_read_whole_and_name_what_says_nothing(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    (tmp_path / "data" / "arena-hard-v2.0").mkdir(parents=True)
    (tmp_path / "data" / "arena-hard-v2.0" / "question.jsonl").write_text('{"prompt": "one"}\n')
    (tmp_path / "data" / "alpaca_eval.json").write_text('[{"instruction": "two"}]')
    (tmp_path / "data" / "README.md").write_text("not this")
    write_table(pyarrow.table({"problem": ["three"]}), tmp_path / "data" / "math500.parquet")
    assert sorted(benchmark_prompts([tmp_path / "data"])) == [
        ("alpaca_eval", "two"),
        ("arena-hard-v2.0", "one"),
        ("math500", "three"),
    ]


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("a.jsonl", '{"prompt": "x"}\n{"text": "y"}\n', "a.jsonl, row 2: none of prompt"),
        ("a.jsonl", '{"prompt": \n', "a.jsonl, line 1"),
        ("a.json", '{"prompt": "x"}', "not a list"),
        ("a.parquet", "x", "cannot read"),
        ("folder/a.txt", "x", "no .jsonl, .json, .parquet in the folder"),
        (None, "", "cannot read"),
    ],
)
def test_files_that_are_no_benchmarks(tmp_path: Path, file: str | None, content: str, says: str) -> None:
    path = tmp_path / (file or "nowhere.jsonl")
    if file is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    with pytest.raises(SettingsError, match=r"ingest\.decontaminate") as error:
        list(benchmark_prompts([path.parent if path.suffix == ".txt" else path]))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_the_share_of_a_benchmark_prompt_decides_and_the_largest_is_told() -> None:
    rule = Contamination([("half", "a b c d e f g h"), ("whole", "a b c d")], 3, 0.6)
    assert len(rule) == 2
    assert rule.find([Message("user", "A, b; c. D")]) == Match("whole", 1.0)
    assert rule.find([Message("user", "d e f g h")]) is None
    assert rule.nearest([Message("user", "d e f g h")]) == Match("half", 0.5)


def test_tokens_are_counted_by_a_tokenizer_and_estimated_without(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        count = intake.token_counter(path)
        assert tokens_of([Message("user", "a b"), Message("assistant", "a")], count) == 3
    assert intake.token_counter(None) is estimate
    assert (estimate(""), estimate("Word, 42!"), estimate("internationalisation")) == (0, 5, 4)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"ingest\.tokenizer: cannot read"):
        intake.token_counter(tmp_path)


def test_codes_that_nobody_knows_are_wrong_settings() -> None:
    with pytest.raises(SettingsError, match=r"ingest\.languages.*xx-klingon"):
        intake.language_detector(IngestSettings(languages=["en", "xx-klingon"]))
    with pytest.raises(SettingsError, match=r"ingest\.phone_regions.*ZZZ"):
        intake.redactor(IngestSettings(phone_regions=["ZZZ"]))
    assert intake.redactor(IngestSettings(redact=False)) is None
