"""A broker and a fast judge for the module, topics and settings for each test."""

import json
import uuid
from collections.abc import Iterator

import pytest

from tests.support.flow import CAPACITY
from tests.support.stack import Topics, fake_vllm, running_broker


@pytest.fixture(scope="module")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_broker(tmp_path_factory.mktemp("broker")) as address:
        yield address


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with fake_vllm(tmp_path_factory.mktemp("vllm")) as url:
        yield url


@pytest.fixture
def topics(bootstrap: str) -> Topics:
    return Topics(bootstrap, f"t{uuid.uuid4().hex[:8]}.")


@pytest.fixture
def environ(topics: Topics, redis_url: str, namespace: str, judge: str) -> dict[str, str]:
    return {
        **topics.environ(),
        "HAYPILE_REDIS__URL": redis_url,
        "HAYPILE_REDIS__NAMESPACE": namespace,
        "HAYPILE_JUDGE__URLS": json.dumps([judge]),
        "HAYPILE_BUFFER__CAPACITY": str(CAPACITY),
        "HAYPILE_BUFFER__CATEGORY_SHARE": "1",
        "HAYPILE_BUFFER__NEAR_DUPLICATE": "null",
        "HAYPILE_WORKER__WINDOW": "64",
        "HAYPILE_WORKER__DRAIN_S": "5",
    }
