"""Shared by all tests: a real Valkey for the session, a namespace of its own for each test (never a flush)."""

import uuid
from collections.abc import Iterator

import pytest

from tests.support.valkey import Valkey


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Valkey without persistence that ends with the session."""
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    server.start()
    try:
        yield server.url
    finally:
        server.kill()


@pytest.fixture
def namespace() -> str:
    """Keys of one test."""
    return f"test-{uuid.uuid4().hex[:12]}"
