"""`haypile eval` as a user runs it: against a server, killed and run again, an adapter of the registry, exit codes."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from deploy.cli import main
from tests.support.fake_vllm import FakeVllm
from trainers.registry import Registry

ROOT = Path(__file__).parents[2]


class Bench:
    """A fake server, a suite of twenty questions, and the command: in a process of its own, or in this one."""

    def __init__(self, vllm: FakeVllm, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.vllm = vllm
        self.folder = folder
        self._capsys = capsys
        rows = [{"uid": f"u{i}", "category": "hard_prompt", "prompt": f"question {i}"} for i in range(20)]
        self.suite = folder / "question.jsonl"
        self.suite.write_text("".join(json.dumps(row) + "\n" for row in rows))

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        command = (sys.executable, "-m", "deploy.cli", "eval", "--suite", str(self.suite), *arguments)
        return await asyncio.create_subprocess_exec(
            *command, cwd=self.folder, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )

    async def run(self, *arguments: str) -> tuple[object, str, str]:
        def command() -> object:
            try:
                main()
            except SystemExit as end:
                return end.code
            return None

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["haypile", "eval", "--suite", str(self.suite), *arguments])
            self._capsys.readouterr()
            code = await asyncio.to_thread(command)
        out, error = self._capsys.readouterr()
        return code, out, error

    def answers(self, model: str) -> dict[str, str]:
        lines = (self.folder / "var" / "eval" / "model_answer" / f"{model}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert {row["model"] for row in rows} == {model}
        return {row["uid"]: row["messages"][-1]["content"]["answer"] for row in rows}


@pytest.fixture
async def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> AsyncIterator[Bench]:
    vllm = FakeVllm()
    server = TestServer(vllm.app)
    await server.start_server()
    urls = json.dumps([str(server.make_url("")).rstrip("/")])
    for name in [name for name in os.environ if name.startswith("HAYPILE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HAYPILE_SERVING__URLS", urls)
    monkeypatch.setenv("HAYPILE_JUDGE__URLS", urls)
    monkeypatch.setenv("HAYPILE_TRAINING__REGISTRY", str(tmp_path / "registry"))
    monkeypatch.chdir(tmp_path)
    yield Bench(vllm, tmp_path, capsys)
    await server.close()


async def test_killed_and_run_again(bench: Bench) -> None:
    bench.vllm.answer_delay_s = 0.1
    process = await bench.start("--concurrency", "2", "--max-tokens", "100")
    while bench.vllm.requests < 9:  # noqa: ASYNC110 (the fake has no event)
        await asyncio.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    assert not (bench.folder / "var" / "eval" / "model_answer").exists()
    asked, bench.vllm.answer_delay_s = bench.vllm.requests, 0.0

    code, out, error = await bench.run("--concurrency", "2", "--max-tokens", "100")
    assert (code, out) == (0, "base: 20 of 20 questions answered: var/eval/model_answer/base.jsonl\n")
    assert "base: 20 of 20 answered" in error and "waiting" not in error
    assert bench.answers("base") == {f"u{i}": f"base answer 0 to: question {i}" for i in range(20)}
    assert bench.vllm.requests - asked <= 20 - 5, "what was answered before the kill is not asked again"

    asked = bench.vllm.requests
    assert (await bench.run("--max-tokens", "100"))[0] == 0 and bench.vllm.requests == asked
    code, _, error = await bench.run("--max-tokens", "9")
    assert code == 2 and error.startswith("haypile: --out: ") and len(error.splitlines()) == 1


async def test_an_adapter_of_the_registry_against_a_baseline(bench: Bench, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "adapter_config.json").write_text("{}")
    (source / "adapter_model.safetensors").write_bytes(b"weights")
    version = (
        Registry(tmp_path / "registry")
        .publish(
            source,
            run_id="run1",
            snapshot="s",
            base_model="m",
            parent=None,
            recipe={},
            judge=None,
            metrics={},
            now_ms=1,
        )
        .version
    )
    code, out, error = await bench.run("--model", version, "--baseline", "teacher", "--json")
    assert code == 0, error
    told = json.loads(out)
    assert [model["answered"] for model in told["models"]] == [20, 20]
    assert told["compared"]["prompts"] == 20 and told["compared"]["champion"] == "teacher"
    assert bench.answers(version)["u3"] == f"haypile-eval-{version} answer 0 to: question 3"
    assert bench.answers("teacher")["u3"].startswith("teacher")
    assert bench.vllm.adapters == {}, "what was loaded for it is unloaded"
    assert "Promote" not in (page := (tmp_path / "var" / "eval" / "compare.html").read_text())
    assert "the baseline</b>" in page
    assert len(json.loads((tmp_path / "var" / "eval" / "compare.json").read_text())["rows"]) == 20


async def test_a_question_that_the_model_cannot_take_ends_with_1(bench: Bench) -> None:
    row = {"uid": "long", "category": "hard_prompt", "prompt": "x" * 30_000}
    with bench.suite.open("a") as file:
        file.write(json.dumps(row) + "\n")
    code, out, _ = await bench.run()
    assert code == 1
    assert "base: 20 of 21 questions answered" in out and "no answer to long: " in out and "context length" in out
    assert len(bench.answers("base")) == 20


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--model", "gone"), 1, "does not serve 'gone' (it serves base, teacher, judge)"),
        (("--model", "v0009-gone"), 1, "no adapter 'v0009-gone'"),
        (("--model", "base", "--baseline", "champion"), 2, "--baseline: champion is the model itself"),
        (("--suite", "nowhere.jsonl"), 2, "--suite: cannot read nowhere.jsonl"),
        (("--out", "question.jsonl"), 1, "eval: cannot write"),
    ],
)
async def test_what_is_wrong_is_one_line(bench: Bench, arguments: tuple[str, ...], code: int, says: str) -> None:
    returned, _, error = await bench.run(*arguments)
    assert returned == code and says in error and "Traceback" not in error
    assert error.startswith("haypile: ") and len(error.splitlines()) == 1
    assert bench.vllm.requests == 0
