"""Writes the lock files with pip's resolver (which, unlike uv's and poetry's, finds torch's CPU build): `make lock`.

A resolution of the requirements, without installing them, as `name==version` lines: no index, no host, no local
version suffix (`+cpu` is what one index calls the build; elsewhere the same version has another), no CUDA libraries
(torch names them itself where they are needed).
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = "# Made by `make lock`; do not edit.\n"
LOCKS = {
    # torch as in the other lock: of this version pip finds a CPU build (200 MB, not 3 GB) where one is offered.
    "requirements.lock": [f"{ROOT}[worker,http,console,trainer,tracing,local,dev]", "torch==2.13.0"],
    "requirements-vllm.lock": ["-r", str(ROOT / "requirements-vllm.in")],
}
LEFT_OUT = {"haypile", "torchaudio", "torchcodec", "torchvision", "triton"}
"""Ours; those whose builds break vLLM's import; and torch's own dependency on some platforms only."""


def resolve(requirements: list[str]) -> list[str]:
    """`name==version` of everything that the requirements need here, sorted."""
    command = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed", "--report", "-"]
    report = json.loads(subprocess.run([*command, *requirements], check=True, stdout=subprocess.PIPE).stdout)
    metadata = [item["metadata"] for item in report["install"]]
    found = {package["name"].lower().replace("_", "-"): package["version"] for package in metadata}
    return sorted(
        f"{name}=={version.partition('+')[0]}"
        for name, version in found.items()
        if name not in LEFT_OUT and not name.startswith(("nvidia-", "cuda-"))
    )


def main() -> None:
    for name, requirements in LOCKS.items():
        lines = resolve(requirements)
        (ROOT / name).write_text(HEADER + "".join(f"{line}\n" for line in lines), encoding="utf-8")
        print(f"{name}: {len(lines)} packages")


if __name__ == "__main__":
    main()
