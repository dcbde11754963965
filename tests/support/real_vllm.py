"""A real vLLM (its CPU build) with SmolLM2 and the demo's judge, for a whole test session."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.local import vllm
from deploy.local.processes import free_port
from streams.settings import load_settings

ROOT = Path(__file__).parents[2]
BASE = ROOT / "var" / "local" / "base"
"""Where `haypile up` has it too: made once a clone."""

READY_S = 300


def base_model() -> Path:
    """SmolLM2-135M-Instruct as a folder."""
    command = [sys.executable, "-m", "trainers.base_model", str(BASE)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return BASE


@contextmanager
def running_vllm(folder: Path) -> Iterator[str]:
    """Yields its URL."""
    port = free_port()
    settings = load_settings({"local": {"vllm_python": str(ROOT / ".venv-vllm/bin/python")}})
    child = vllm.start(settings, base_model(), port, folder / "vllm.log", os.environ)
    try:
        child.wait_ready(lambda: vllm.ready(port), READY_S)
        yield f"http://127.0.0.1:{port}"
    finally:
        child.stop()
