"""Shared by all tests: a real Valkey and a real vLLM for the session, a namespace for each test (never a flush)."""

import uuid
from collections.abc import Iterator

import hypothesis
import pytest

from tests.support.real_vllm import running_vllm
from tests.support.valkey import Valkey

# Timings of a busy machine say nothing; the examples of a failure are printed to be repeated.
hypothesis.settings.register_profile(
    "haypile",
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("haypile")


DEAREST_FIRST = (
    "test_loop",
    "test_vllm",
    "test_delivery",
    "test_outage",
    "test_training",
    "test_stack",
    "test_demo_judge",
    "test_console",
    "test_chaos",
    "test_dashboards",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make test` runs two pytest workers, as most tests wait more than they compute: a file stays in one of them, and
    what takes minutes comes first."""

    def rank(item: pytest.Item) -> int:
        return DEAREST_FIRST.index(item.path.stem) if item.path.stem in DEAREST_FIRST else len(DEAREST_FIRST)

    items.sort(key=rank)


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


@pytest.fixture(scope="session")
def vllm_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real vLLM (CPU) with SmolLM2 and the demo's judge. One for the session: it takes a minute to start."""
    with running_vllm(tmp_path_factory.mktemp("vllm")) as url:
        yield url
