"""The experiment of `make evidence`: its statistics, its division of the stream, its settings."""

import json
from pathlib import Path

import pytest

from streams.errors import SettingsError
from tests.evidence import stream as streams_of
from tests.evidence.experiment import FOLDER, Experiment, load
from tests.evidence.result import gain, table, wins
from tests.evidence.run import curated
from tests.evidence.stream import chosen, read_stream


def test_a_constant_difference_is_found_with_no_spread() -> None:
    assert gain([[1.0, 2.0], [3.0, 4.0]], [[1.5, 2.5], [3.5, 4.5]]) == (0.5, 0.5, 0.5)
    assert wins([[1.0, 2.0]], [[1.5, 1.5]]) == 0.5


def test_a_difference_within_the_noise_has_an_interval_over_zero() -> None:
    noisy = [[(-1.0) ** (seed + prompt) for prompt in range(20)] for seed in range(4)]
    mean, low, high = gain([[0.0] * 20] * 4, noisy)
    assert mean == 0 and low < 0 < high


def test_one_seed_that_differs_is_no_proof() -> None:
    _, low, _ = gain([[0.0] * 50] * 3, [[0.0] * 50, [0.0] * 50, [1.0] * 50])
    assert low == 0


def test_the_table_has_a_row_an_arm_and_says_by_how_much() -> None:
    text = table({"hard": [2.0, 2.0]}, {"curated": {"hard": [[1.0, 1.0]]}, "random": {"hard": [[1.25, 1.25]]}})
    assert "| nothing | 2.0000 |" in text
    assert "| random | 1.2500 | +0.2500 [+0.2500, +0.2500] | 100% |" in text


def _stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int = 400) -> Experiment:
    file = tmp_path / "stream.jsonl"
    words = ["rivers", "markets", "proofs", "engines", "letters", "gardens", "orbits", "treaties"]
    rows = [{"prompt": f"{words[i % 8]} {i * 7919} {'x' * (i % 50)}", "response": f"answer {i}"} for i in range(count)]
    file.write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(streams_of, "difficulties", lambda texts: [1 + len(text) / 20 for text in texts])
    return load("cpu").model_copy(update={"stream": file, "k": 20, "held_out": 20})


async def test_what_is_set_aside_is_offered_to_no_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = _stream(tmp_path, monkeypatch)
    stream = read_stream(experiment)
    measured = {p.id for p in stream.hard + stream.other}
    assert len(measured) == 20 and not measured & {p.id for p in stream.offered}
    assert min(p.difficulty for p in stream.hard) >= max(p.difficulty for p in stream.other)
    best = await curated(stream.offered, 20)
    assert len(best) == 20
    for arm in (best, chosen("random", stream.offered, 20, 1), chosen("longest", stream.offered, 20, 1)):
        assert not measured & {p.id for p in arm}
    assert min(p.difficulty for p in best) > sum(p.difficulty for p in stream.offered) / len(stream.offered)
    assert chosen("random", stream.offered, 20, 1) != chosen("random", stream.offered, 20, 2)


def test_a_stream_that_is_too_small_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="are set aside"):
        read_stream(_stream(tmp_path, monkeypatch, count=50))


def test_a_stream_without_answers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = _stream(tmp_path, monkeypatch)
    assert experiment.stream is not None
    experiment.stream.write_text('{"prompt": "hello"}')
    with pytest.raises(SettingsError, match=r"stream.jsonl:1: needs `prompt` and `response`"):
        read_stream(experiment)


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_experiments_are_valid(file: Path) -> None:
    assert load(file.stem).arms[0] == "curated"


def test_an_experiment_without_a_number_of_steps_is_refused(tmp_path: Path) -> None:
    text = (FOLDER / "cpu.yaml").read_text().replace("max_steps: 12", "max_steps: null")
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(SettingsError, match="max_steps must be given"):
        load(str(tmp_path / "own.yaml"))
