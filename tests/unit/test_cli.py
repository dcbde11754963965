"""The command: fast help, exit codes, one line for what is wrong."""

import json
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.commands.common import print_json
from streams.errors import SettingsError

ROOT = Path(__file__).parents[2]
DEAD = {
    "HAYPILE_KAFKA__BOOTSTRAP": "127.0.0.1:1",
    "HAYPILE_REDIS__URL": "redis://:secret@127.0.0.1:1/0",
    "HAYPILE_JUDGE__URLS": '["http://127.0.0.1:1"]',
    "HAYPILE_ANSWER__URLS": '["http://127.0.0.1:1"]',
    "HAYPILE_SERVING__URLS": '["http://127.0.0.1:1"]',
}


def haypile(
    *arguments: str, cwd: Path, environ: dict[str, str] | None = None, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Runs the command in a folder without settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HAYPILE_")}
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli", *arguments],
        cwd=cwd,
        env={**clean, "PYTHONPATH": str(ROOT), "COLUMNS": "120", **(environ or {})},
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_help_is_fast_and_imports_nothing_heavy(tmp_path: Path) -> None:
    heavy = ("torch", "transformers", "faust", "redis", "kafka", "aiohttp", "datasets", "numpy", "pydantic")
    code = (
        "import sys; from deploy import cli\n"
        "try: cli.app(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"

    # Processor time, the best of five: other processes share the machine, and nothing here waits for anything.
    best = 9.0
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert haypile("--help", cwd=tmp_path).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert best < 0.5


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"HAYPILE_BUFFER__CAPACITY": "0"}, "buffer.capacity"),
        ({"HAYPILE_BUFFER__CAPCITY": "5"}, "buffer.capcity"),
        ({"HAYPILE_KAFKA__BOOTSTRAP": "nowhere"}, "kafka.bootstrap"),
        ({"HAYPILE_JUDGE__URLS": '["ftp//x"]'}, "judge.urls"),
        ({"HAYPILE_NONSENSE": "1"}, "HAYPILE_NONSENSE"),
        ({"HAYPILE_REWARD__KIND": "classifier"}, "reward.model"),
    ],
)
def test_wrong_settings_end_with_2_and_one_line(tmp_path: Path, environ: dict[str, str], named: str) -> None:
    run = haypile("config", "show", cwd=tmp_path, environ=environ)
    assert run.returncode == 2
    lines = run.stderr.decode().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("haypile: settings:")
    assert named.lower() in lines[0].lower()


def test_a_settings_file_that_is_not_there_is_wrong_settings(tmp_path: Path) -> None:
    run = haypile("--config", "nowhere.yaml", "config", "show", cwd=tmp_path)
    assert run.returncode == 2
    assert "nowhere.yaml" in run.stderr.decode()


@pytest.mark.parametrize(
    "arguments", [("nope",), ("ingest",), ("buffer", "top", "-n", "0"), ("worker", "--agents", "x"), ("train",)]
)
def test_bad_usage_ends_with_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    run = haypile(*arguments, cwd=tmp_path)
    assert run.returncode == 2
    assert b"Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "--now", "--dry-run"), "one of"),
        (("train", "--cancel", "--reason", "x"), "goes with --now"),
        (("train", "--now", "--reason", "x" * 301), "301 characters"),
        (("pause", "--until", "yesterday"), "'yesterday' is not like"),
        (("pause", "--until", "2020-01-01"), "2020-01-01 00:00 UTC has passed"),
    ],
)
def test_orders_that_make_no_sense_are_bad_usage(arguments: tuple[str, ...], said: str) -> None:
    found = CliRunner().invoke(app, list(arguments), env={"HAYPILE_REDIS__URL": DEAD["HAYPILE_REDIS__URL"]})
    assert isinstance(found.exception, SettingsError), "which is exit code 2"
    assert said in str(found.exception)


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (("topics", "create"), "Kafka at 127.0.0.1:1"),
        (("ingest", "-"), "Kafka at 127.0.0.1:1"),
        (("dlq", "list"), "Kafka at 127.0.0.1:1"),
        (("buffer", "top"), "Redis at 127.0.0.1:1"),
        (("buffer", "stats"), "Redis at 127.0.0.1:1"),
        (("train", "--dry-run"), "Redis at 127.0.0.1:1"),
        (("train", "--now"), "Redis at 127.0.0.1:1"),
    ],
)
def test_what_is_not_there_is_named_within_seconds(tmp_path: Path, arguments: tuple[str, ...], where: str) -> None:
    started = time.monotonic()
    run = haypile(*arguments, cwd=tmp_path, environ=DEAD, stdin=b"hello\n")
    assert time.monotonic() - started < 60
    assert run.returncode == 1
    lines = run.stderr.decode().splitlines()
    assert len(lines) == 1
    assert where in lines[0]
    assert "secret" not in lines[0]


def test_doctor_and_status_say_all_that_is_wrong(tmp_path: Path) -> None:
    doctor = haypile("doctor", "--json", cwd=tmp_path, environ=DEAD)
    assert doctor.returncode == 1
    findings = json.loads(doctor.stdout)
    assert {finding["part"] for finding in findings if not finding["ok"]} == {
        "kafka", "redis", "judge", "teacher", "serving"
    }  # fmt: skip
    assert all(finding["to_do"] for finding in findings if not finding["ok"])

    status = haypile("status", "--json", cwd=tmp_path, environ=DEAD)
    assert status.returncode == 1
    parts = json.loads(status.stdout)
    assert {name for name, part in parts.items() if "error" in part} == {
        "kafka", "buffer", "judge", "vllm", "training", "last_run", "degraded"
    }  # fmt: skip


def test_config_show_tells_origins_and_hides_secrets(tmp_path: Path) -> None:
    (tmp_path / "haypile.yaml").write_text("buffer: {capacity: 77, eval_capacity: 5}\n")
    environ = {
        "HAYPILE_BUFFER__EVAL_CAPACITY": "6",
        "HAYPILE_REDIS__URL": "redis://me:secret@localhost:1/0",
        "HAYPILE_JUDGE__API_KEY": "secret",
    }
    run = haypile("config", "show", "--json", cwd=tmp_path, environ=environ)
    assert run.returncode == 0
    assert b"secret" not in run.stdout
    found = json.loads(run.stdout)
    assert found["buffer.capacity"] == {"value": 77, "origin": "file haypile.yaml"}
    assert found["buffer.eval_capacity"] == {"value": 6, "origin": "environment HAYPILE_BUFFER__EVAL_CAPACITY"}
    assert found["buffer.min_quality"]["origin"] == "default"
    assert found["redis.url"]["value"] == "redis://********@localhost:1/0"


@pytest.mark.parametrize(
    ("secret", "variable"),
    [("judge: {api_key: secret}", "HAYPILE_JUDGE__API_KEY"), ("kafka: {forget_key: x}", "HAYPILE_KAFKA__FORGET_KEY")],
)
def test_secrets_in_the_file_are_refused(tmp_path: Path, secret: str, variable: str) -> None:
    (tmp_path / "haypile.yaml").write_text(f"{secret}\n")
    run = haypile("config", "show", cwd=tmp_path)
    assert run.returncode == 2
    assert variable in run.stderr.decode()


@pytest.mark.parametrize("arguments", [(), ("--user", "a", "--resume"), ("--resume", "--dry-run"), ("--user", "")])
def test_who_is_to_be_forgotten_is_said_once(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, ["forget", *arguments])
    assert isinstance(result.exception, SettingsError)


def test_models_of_an_empty_registry(tmp_path: Path) -> None:
    listed = haypile("models", "list", "--json", cwd=tmp_path)
    assert json.loads(listed.stdout) == {"champion": None, "versions": []}
    shown = haypile("models", "show", "../../etc/passwd", cwd=tmp_path)
    assert shown.returncode == 1
    assert b"no adapter" in shown.stderr
    back = haypile("models", "rollback", cwd=tmp_path)
    assert back.returncode == 1
    assert b"nothing to roll back to" in back.stderr


def test_json_has_no_infinity_and_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"age_s": math.inf, "auc": math.nan, "path": Path("a/b")})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "age_s": None,
        "auc": None,
        "path": "a/b",
    }
