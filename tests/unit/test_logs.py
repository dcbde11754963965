"""What a log line is made of."""

import json
import logging
import subprocess
import sys

SCRIPT = """
import logging, sys
from deploy.logs import set_up_logs
from streams.errors import Transient
from streams.retry import OutageLog
set_up_logs("INFO", sys.argv[1])
clock = iter([0.0, 61.0, 62.5])
outage = OutageLog("score", lambda: next(clock))
outage.failed(Transient("vLLM is away\\nand more"))
outage.failed(Transient("vLLM is away"))
outage.worked()
logging.getLogger("aiokafka.consumer").info("not for operators")
try:
    raise ValueError("defect")
except ValueError:
    logging.getLogger("agents.hop").exception("unexpected")
"""


def lines(form: str) -> list[str]:
    ended = subprocess.run([sys.executable, "-c", SCRIPT, form], capture_output=True, text=True, check=True)
    return ended.stderr.splitlines()


def test_json_is_an_object_a_line_with_the_fields_of_the_event() -> None:
    found = [json.loads(line) for line in lines("json")]
    assert [entry.get("event") for entry in found] == ["waiting", "still_waiting", "goes_on", None]
    assert all({"ts", "level", "logger", "message"} <= entry.keys() for entry in found)
    assert found[0]["message"] == "score: waiting: vLLM is away\nand more"
    assert (found[2]["what"], found[2]["seconds"], found[2]["level"]) == ("score", 62.5, "WARNING")
    assert "ValueError: defect" in found[3]["exc_info"]


def test_text_is_for_people() -> None:
    assert any(line.endswith("WARNING streams.retry: score: goes on after 62 s") for line in lines("text"))
    assert not any("not for operators" in line for line in lines("text"))


def test_the_level_of_the_libraries_is_never_below_ours() -> None:
    script = "import deploy.logs as l; l.set_up_logs('ERROR'); print(l.logging.getLogger('faust').level)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(ended.stdout) == logging.ERROR
