"""Kafka and Redis over TLS with certificates on both sides, before the real broker and the real Valkey."""

import asyncio
import json
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

from deploy.local import broker
from deploy.local.processes import free_port
from deploy.probes import examine
from streams.errors import Transient
from streams.settings import KafkaSettings, load_settings
from streams.topics import create_topics
from tests.support.flow import prompts, wait_accounted
from tests.support.stack import Topics, Worker, fake_vllm, wait_for
from tests.support.tls_proxy import tls_in_front_of
from tests.support.valkey import Valkey


class Secured(NamedTuple):
    """A broker and a Redis behind TLS, and the files of who may come in."""

    kafka: str
    redis: str
    files: dict[str, str]


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    ca = trustme.CA()
    server, client = ca.issue_cert("127.0.0.1"), ca.issue_cert("haypile@example.org")
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    client.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "client.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(context)
    server.configure_cert(context)
    inside, outside = free_port(), free_port()
    child = broker.start(inside, tmp_path / "broker.log", os.environ, advertised=outside)
    valkey = Valkey(tmp_path, "--requirepass", "sesame", "--appendonly", "yes")
    valkey.start()
    try:
        child.wait_ready(lambda: broker.ready(inside), 20)
        with tls_in_front_of(inside, context, outside), tls_in_front_of(valkey.port, context) as redis_port:
            files = {"ca_file": str(tmp_path / "ca.pem"), "cert_file": str(tmp_path / "client.pem")}
            yield Secured(f"127.0.0.1:{outside}", f"rediss://127.0.0.1:{redis_port}/0", files)
    finally:
        child.stop()
        valkey.kill()


def test_records_flow_over_tls_and_without_the_certificates_nobody_comes_in(
    tmp_path: Path, secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = Topics(secured.kafka, "tls.", security_protocol="SSL", **secured.files)
    raw = prompts(200, seed=5)
    topics.send([*raw.values(), b'{"prompt": "a secret that is cut'])
    with fake_vllm(tmp_path) as vllm:
        environ = {
            **topics.environ(),
            "HAYPILE_REDIS__URL": secured.redis,
            "HAYPILE_REDIS__PASSWORD": "sesame",
            "HAYPILE_REDIS__CA_FILE": secured.files["ca_file"],
            "HAYPILE_REDIS__CERT_FILE": secured.files["cert_file"],
            "HAYPILE_JUDGE__URLS": f'["{vllm}"]',
            "HAYPILE_LOG_FORMAT": "json",
        }
        worker = Worker(tmp_path, "worker", "ingest,score,curate", environ)
        try:
            wait_for("the worker handles records", lambda: worker.handled("curate"), 60)
            wait_accounted(topics, set(raw), dead=1)
            assert worker.terminate(30) == 0
            assert topics.lag(topics.names.scored) == 0
            assert_no_prompt_in(worker, [json.loads(value)["prompt"] for value in raw.values()])
        finally:
            worker.kill()
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        assert wrong() == set()
        monkeypatch.delenv("HAYPILE_REDIS__CERT_FILE")
        monkeypatch.delenv("HAYPILE_KAFKA__CERT_FILE")
        assert wrong() == {"kafka", "redis"}, "without a certificate of its own"
    with pytest.raises(Transient, match="is not reachable"):
        create_topics(KafkaSettings(bootstrap=secured.kafka))


def wrong() -> set[str]:
    """What `haypile doctor` finds wrong of Kafka and Redis by the environment."""
    findings = asyncio.run(examine(load_settings()))
    return {finding.part for finding in findings if not finding.ok} & {"kafka", "redis", "topics"}


def assert_no_prompt_in(worker: Worker, prompts: list[str]) -> None:
    """Each line of the log is JSON, and none has a prompt's text, whole or in part."""
    events = [json.loads(line) for line in worker.text().splitlines()]
    assert {"started", "dead_letter", "ended"} <= {event.get("event") for event in events}
    for prompt in [*prompts, "a secret that is cut"]:
        assert prompt[:20] not in worker.text()
