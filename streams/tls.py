"""TLS and SASL: from the settings to what the clients of Kafka and Redis are given."""

import ssl
from pathlib import Path
from typing import Any

from streams.errors import SettingsError
from streams.settings import KafkaSettings, RedisSettings


def context(section: str, ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    """A client's context: verifies certificate and host name, by the system's authorities without `ca`.

    Raises `SettingsError` with the setting and the file that cannot be used.
    """
    try:
        made = ssl.create_default_context(cafile=str(ca) if ca else None)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"settings: {section}.ca_file: {ca} cannot be used ({error})") from None
    if cert is not None:
        try:
            made.load_cert_chain(str(cert), str(key) if key else None)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"settings: {section}.cert_file: {cert} and {key or 'no key'} cannot be used ({error})"
            ) from None
    return made


def kafka_connection(kafka: KafkaSettings) -> dict[str, Any]:
    """Where and how to connect: arguments that kafka-python's clients and aiokafka's have in common."""
    found: dict[str, Any] = {"bootstrap_servers": kafka.bootstrap}
    if kafka.security_protocol == "PLAINTEXT":
        return found
    found["security_protocol"] = kafka.security_protocol
    if kafka.security_protocol.endswith("SSL"):
        found["ssl_context"] = context("kafka", kafka.ca_file, kafka.cert_file, kafka.key_file)
    if kafka.security_protocol.startswith("SASL"):
        found["sasl_mechanism"] = kafka.sasl_mechanism
        found["sasl_plain_username"] = kafka.username
        found["sasl_plain_password"] = kafka.password.get_secret_value() if kafka.password else None
    return found


def faust_credentials(kafka: KafkaSettings) -> Any:
    """The same for Faust; None for PLAINTEXT."""
    import faust

    found = kafka_connection(kafka)
    if kafka.security_protocol.startswith("SASL"):
        return faust.SASLCredentials(
            username=found["sasl_plain_username"],
            password=found["sasl_plain_password"],
            mechanism=found["sasl_mechanism"],
            ssl_context=found.get("ssl_context"),
        )
    return faust.SSLCredentials(found["ssl_context"]) if "ssl_context" in found else None


def redis_connection(settings: RedisSettings) -> dict[str, Any]:
    """Arguments of redis-py besides the URL."""
    found: dict[str, Any] = {}
    if settings.username is not None:
        found["username"] = settings.username
    if settings.password is not None:
        found["password"] = settings.password.get_secret_value()
    if settings.url.startswith("rediss://"):
        context("redis", settings.ca_file, settings.cert_file, settings.key_file)  # says what is wrong with a file
        files = {
            "ssl_ca_certs": settings.ca_file,
            "ssl_certfile": settings.cert_file,
            "ssl_keyfile": settings.key_file,
        }
        found |= {name: str(file) for name, file in files.items() if file is not None}
    return found
