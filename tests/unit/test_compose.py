"""What can be said of docker-compose.yml and the Dockerfile without an engine."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from streams.settings import load_settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text("utf-8")
CPU = (ROOT / "deploy/docker/compose.cpu.yml").read_text("utf-8")
DOCKERFILE = ROOT / "deploy/docker/Dockerfile"


class Reset:
    """Compose's `!reset`: the key is taken away."""


class Loader(yaml.SafeLoader):
    """Knows `!reset`."""


Loader.add_constructor("!reset", lambda loader, node: Reset())


def given(text: str) -> dict[str, Any]:
    """The file with `given-NAME` for each variable (or its default)."""
    text = re.sub(r"\$\{(\w+):-((?:[^{}]|\{\})*)\}", r"\2", text)
    text = re.sub(r"(?<!\$)\$\{(\w+)[^}]*\}", r"given-\1", text)
    found: dict[str, Any] = yaml.load(text, Loader)  # a SafeLoader
    return found


def merged(below: Any, above: Any) -> Any:
    """Compose's way with mappings; of anything else the upper one stays."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    both = {name: merged(below.get(name), value) for name, value in above.items()}
    return {name: value for name, value in {**below, **both}.items() if not isinstance(value, Reset)}


COMPOSE = given(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "HAYPILE_KAFKA__BOOTSTRAP" in str(service)]


def test_the_parts_are_all_there() -> None:
    assert set(SERVICES) == {
        *("data", "kafka", "redis", "judge", "policy", "worker", "answerer", "trigger", "trainer"),
        *("http", "console", "prometheus", "grafana"),
    }
    assert len(OURS) == 6


@pytest.mark.parametrize("name", OURS)
def test_the_settings_of_a_service_are_settings_of_haypile(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = SERVICES[name]
    for key, value in service["environment"].items():
        if key.startswith("HAYPILE_"):
            made_up = {"TOKEN": "given-" + "x" * 32, "KEYS": '{"app": "' + "0" * 64 + '"}'}
            monkeypatch.setenv(key, made_up.get(key.rpartition("_")[2], str(value)))
    command = service.get("command", [])
    settings = load_settings({"worker": {"agents": command[2].split(",")}} if "--agents" in command else {})
    assert settings.kafka.bootstrap == "kafka:9092"
    assert settings.redis.password is not None
    for section in (settings.judge, settings.answer, settings.serving):
        for url in section.urls:
            assert re.fullmatch(r"http://(judge|policy):8000", url)


def test_images_are_pinned_and_no_password_has_a_default() -> None:
    for name, service in SERVICES.items():
        image, _, tag = service["image"].partition(":")
        assert re.search(r"\d+\.\d+\.\d+", tag), f"{name}: {image}"
    for secret in ("REDIS_PASSWORD", "CONSOLE_TOKEN", "GRAFANA_PASSWORD"):
        assert f"${{{secret}:?" in TEXT
    assert not re.search(r"\$\{\w*(PASSWORD|TOKEN)\w*:-", TEXT)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_healthy_bounded_and_not_root(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["deploy"]["resources"]["limits"]["memory"]
    if name == "data":  # gives a new volume to the others, and ends; without a network
        assert service["network_mode"] == "none"
        return
    assert service["restart"] == "unless-stopped"
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["healthcheck"]["test"]
    assert not str(service.get("user", "10001")).startswith(("0", "root"))
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), "nothing is open to the network that nobody asked for"


def test_volumes_are_declared_and_the_files_are_there() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).exists(), volume
        for other in service.get("depends_on", {}):
            assert other in SERVICES
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text("utf-8"), re.MULTILINE)
    for path in " ".join(copied).split():
        assert (ROOT / path).exists(), path


def test_prometheus_asks_services_that_are_there() -> None:
    scrape = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text("utf-8"))
    names = []
    for job in scrape["scrape_configs"]:
        for group in job.get("static_configs", []):
            names += [target.partition(":")[0] for target in group["targets"]]
        for group in job.get("dns_sd_configs", []):
            names += group["names"]
    assert set(names) - {"localhost", "127.0.0.1"} <= set(SERVICES)


def test_the_override_leaves_no_gpu() -> None:
    assert "nvidia" in str(SERVICES)
    without = merged(COMPOSE, given(CPU))["services"]
    assert "nvidia" not in str(without)
    assert without.keys() == SERVICES.keys()
    assert without["judge"]["image"].startswith("vllm/vllm-openai-cpu:")
    assert without["judge"]["command"] == SERVICES["judge"]["command"]
    assert without["trainer"]["environment"]["HAYPILE_KAFKA__BOOTSTRAP"] == "kafka:9092"


def test_the_images_are_targets_of_the_dockerfile() -> None:
    targets = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE.read_text("utf-8"), re.MULTILINE)
    for name in OURS:
        assert SERVICES[name]["build"]["target"] in targets


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    ended = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
