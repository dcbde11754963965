"""TLS and SASL settings: what the clients are given, and what is refused."""

from pathlib import Path

import pytest
import trustme

from streams.errors import SettingsError
from streams.settings import load_settings
from streams.tls import faust_credentials, kafka_connection, redis_connection


def given(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"HAYPILE_{name}", value)


SASL = {"KAFKA__SECURITY_PROTOCOL": "SASL_SSL", "KAFKA__USERNAME": "haypile", "KAFKA__PASSWORD": "sesame"}


def test_sasl_reaches_kafka_python_aiokafka_and_faust(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, **SASL)
    kafka = load_settings().kafka
    found = kafka_connection(kafka)
    context = found.pop("ssl_context")
    assert context.check_hostname
    assert found == {
        "bootstrap_servers": "127.0.0.1:9092",
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "haypile",
        "sasl_plain_password": "sesame",
    }
    credentials = faust_credentials(kafka)
    assert (credentials.username, credentials.password) == ("haypile", "sesame")
    assert (credentials.protocol.value, credentials.mechanism.value) == ("SASL_SSL", "SCRAM-SHA-512")
    assert "sesame" not in repr(kafka) + repr(credentials)


def test_without_security_nothing_changes() -> None:
    kafka = load_settings().kafka
    assert kafka_connection(kafka) == {"bootstrap_servers": "127.0.0.1:9092"}
    assert faust_credentials(kafka) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"KAFKA__SECURITY_PROTOCOL": "SASL_SSL"}, r"needs username, and password .*HAYPILE_KAFKA__PASSWORD"),
        ({"KAFKA__USERNAME": "x", "KAFKA__PASSWORD": "x"}, "of no use with security_protocol PLAINTEXT"),
        ({"KAFKA__CA_FILE": "ca.pem"}, "certificates are of no use"),
        ({"KAFKA__SECURITY_PROTOCOL": "SSL", "KAFKA__KEY_FILE": "k.pem"}, "key_file needs cert_file"),
        ({"REDIS__CA_FILE": "ca.pem"}, "certificates are of no use without a rediss:// URL"),
    ],
)
def test_half_a_security_is_refused(monkeypatch: pytest.MonkeyPatch, values: dict[str, str], message: str) -> None:
    given(monkeypatch, **values)
    with pytest.raises(SettingsError, match=message):
        load_settings()


@pytest.mark.parametrize(
    ("text", "variable"),
    [
        ("kafka: {password: sesame}", "HAYPILE_KAFKA__PASSWORD"),
        ("redis: {password: sesame}", "HAYPILE_REDIS__PASSWORD"),
        ("redis: {url: 'redis://:sesame@host:6379/0'}", "HAYPILE_REDIS__URL"),
        ("judge: {api_key: sesame}", "HAYPILE_JUDGE__API_KEY"),
    ],
)
def test_no_secret_is_taken_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, variable: str
) -> None:
    (tmp_path / "haypile.yaml").write_text(text)
    monkeypatch.setenv("HAYPILE_CONFIG", str(tmp_path / "haypile.yaml"))
    with pytest.raises(SettingsError, match=variable) as refused:
        load_settings()
    assert "sesame" not in str(refused.value)


def test_a_certificate_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    given(monkeypatch, KAFKA__SECURITY_PROTOCOL="SSL", KAFKA__CA_FILE=str(tmp_path / "ca.pem"))
    with pytest.raises(SettingsError, match=r"kafka.ca_file: .*ca.pem cannot be used"):
        kafka_connection(load_settings().kafka)
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    given(monkeypatch, KAFKA__CERT_FILE=str(tmp_path / "ca.pem"))
    with pytest.raises(SettingsError, match=r"kafka.cert_file: .*ca.pem and no key cannot be used"):
        kafka_connection(load_settings().kafka)


def test_redis_gets_its_password_and_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    given(
        monkeypatch,
        REDIS__URL="rediss://host:6380/0",
        REDIS__USERNAME="haypile",
        REDIS__PASSWORD="sesame",
        REDIS__CA_FILE=str(tmp_path / "ca.pem"),
    )
    assert redis_connection(load_settings().redis) == {
        "username": "haypile",
        "password": "sesame",
        "ssl_ca_certs": str(tmp_path / "ca.pem"),
    }
