"""What can be said of docker-compose.yml without an engine: it is YAML, its settings are ours, its files are there."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from streams.settings import load_settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{(\w+)[^}]*\}", r"given-\1", TEXT))
OURS = [name for name, service in COMPOSE["services"].items() if "HAYPILE_KAFKA__BOOTSTRAP" in str(service)]


def test_the_parts_are_all_there() -> None:
    parts = {"kafka", "redis", "judge", "policy", "worker", "answerer", "trigger", "trainer", "prometheus", "grafana"}
    assert parts == set(COMPOSE["services"])
    assert len(OURS) == 4


@pytest.mark.parametrize("name", OURS)
def test_the_settings_of_a_service_are_settings_of_haypile(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = COMPOSE["services"][name]
    for key, value in service["environment"].items():
        monkeypatch.setenv(key, value)
    command = service.get("command", [])
    flags = {"worker": {"agents": command[2].split(",")}} if "--agents" in command else {}
    settings = load_settings(flags)
    assert settings.kafka.bootstrap == "kafka:9092"
    for section in (settings.judge, settings.answer, settings.serving):
        for url in section.urls:
            assert re.fullmatch(r"http://(judge|policy):8000", url)


def test_images_are_pinned_and_no_password_has_a_default() -> None:
    for service in COMPOSE["services"].values():
        tag = service["image"].partition(":")[2]
        assert tag not in ("", "latest") or service["image"].startswith("haypile-")
    assert not re.search(r"\$\{\w*PASSWORD\w*:-", TEXT)


def test_the_files_it_names_are_there() -> None:
    assert (ROOT / "deploy/docker/Dockerfile").exists()
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "deploy/docker/Dockerfile").read_text("utf-8"), re.MULTILINE)
    for path in " ".join(copied).split():
        assert (ROOT / path).exists(), path
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
    scrape = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text("utf-8"))
    for job in scrape["scrape_configs"]:
        for group in job.get("static_configs", []):
            for target in group["targets"]:
                assert target.partition(":")[0] in COMPOSE["services"]
