"""Two fake serving vLLMs and a registry with three versions."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp.test_utils import TestServer

from streams.settings import ServingSettings
from tests.support.fake_vllm import FakeVllm
from trainers.promotion import adapter_name
from trainers.registry import Registry


class Cluster:
    def __init__(
        self, fakes: list[FakeVllm], servers: list[TestServer], registry: Registry, versions: list[str]
    ) -> None:
        self.fakes = fakes
        self.servers = servers
        self.registry = registry
        self.versions = versions
        self.serving = ServingSettings(urls=[str(s.make_url("")).rstrip("/") for s in servers], timeout_s=5)

    def loaded(self) -> list[set[str]]:
        return [set(fake.adapters) for fake in self.fakes]

    def name(self, index: int) -> str:
        return adapter_name(self.serving, self.versions[index])

    def answer(self, index: int, **instead: Any) -> None:
        """What both servers say as a version, see `FakeVllm.answers`; nothing: they answer as usual."""
        for fake in self.fakes:
            fake.answers[self.name(index)] = instead


def publish(registry: Registry, folder: Path, run_id: str, **changes: Any) -> str:
    """A version with made-up weights."""
    adapter = folder / "adapter"
    adapter.mkdir(parents=True, exist_ok=True)
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 8}))
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    given: dict[str, Any] = {
        "snapshot": f"snapshots/{run_id}",
        "base_model": "m",
        "parent": None,
        "recipe": {},
        "judge": None,
        "metrics": {},
        "now_ms": 1,
    }
    return registry.publish(adapter, run_id=run_id, **(given | changes)).version


@asynccontextmanager
async def running_cluster(folder: Path) -> AsyncIterator[Cluster]:
    registry = Registry(folder / "registry")
    versions = [publish(registry, folder, name) for name in "abc"]
    fakes = [FakeVllm(), FakeVllm()]
    servers = [TestServer(fake.app) for fake in fakes]
    for server in servers:
        await server.start_server()
    try:
        yield Cluster(fakes, servers, registry, versions)
    finally:
        for server in servers:
            await server.close()
