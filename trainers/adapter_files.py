"""The two files of an adapter, copied so that they survive a power cut. Only safetensors: a pickle would run code."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec

from streams.errors import Fatal

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def copy_adapter(source: Path, target: Path, base_model: str) -> dict[str, str]:
    """Copy config and weights, synced to disk; returns their digests. The config is made to name `base_model`. Raises
    `Fatal` when one is missing or is not readable."""
    if not (source / WEIGHTS).is_file() or not (source / CONFIG).is_file():
        raise Fatal(f"{source} is no adapter: it needs {CONFIG} and {WEIGHTS} (safetensors only)")
    try:
        config = msgspec.json.decode((source / CONFIG).read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise Fatal(f"{source / CONFIG} is not readable: {error}") from None
    config["base_model_name_or_path"] = base_model
    config["inference_mode"] = True
    write_synced(target / CONFIG, msgspec.json.format(msgspec.json.encode(config)))
    with (source / WEIGHTS).open("rb") as weights, (target / WEIGHTS).open("wb") as copy:
        shutil.copyfileobj(weights, copy)
        copy.flush()
        os.fsync(copy.fileno())
    return {name: sha256_of(target / name) for name in (CONFIG, WEIGHTS)}


def sha256_of(file: Path) -> str:
    """Hex digest."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and see that it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """See that a rename in the folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
