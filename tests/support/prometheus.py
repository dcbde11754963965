"""Prometheus and promtool for tests: those of `var/prometheus` (`make test` fetches them), else those on the PATH."""

import json
import os
import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.local.processes import Child, free_port
from tests.support.stack import ROOT

DEPLOYED = ROOT / "deploy" / "prometheus"


def binary(name: str) -> str:
    """Path of `prometheus` or `promtool`. Without one the test is skipped at home and fails in CI."""
    unpacked = ROOT / "var" / "prometheus" / "usr" / "bin" / name
    found = str(unpacked) if unpacked.exists() else shutil.which(name)
    if found is None:
        message = f"no {name}: `make test` fetches it where there is apt-get, or put one on the PATH"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


class Prometheus:
    """A running server; raises AssertionError with its word when it refuses a query."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query."""
        return list(self._get("query", query=expression)["result"])

    def rules(self) -> list[dict[str, Any]]:
        """All rules with their health and last error."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, path: str, **parameters: str) -> dict[str, Any]:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None
        assert answer["status"] == "success", answer
        return dict(answer["data"])


@contextmanager
def running_prometheus(folder: Path, targets: dict[str, list[str]]) -> Iterator[Prometheus]:
    """A server with the deployed configuration and rules, every second, and these targets for its jobs."""
    config = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text("utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOYED / pattern) for pattern in config["rule_files"]]
    assert {job["job_name"] for job in config["scrape_configs"]} == targets.keys()
    config["scrape_configs"] = [
        {"job_name": name, "static_configs": [{"targets": addresses}]} for name, addresses in targets.items()
    ]
    file, port = folder / "prometheus.yml", free_port()
    file.write_text(yaml.safe_dump(config), "utf-8")
    command = [binary("prometheus"), f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    child = Child(
        "prometheus",
        [*command, f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"],
        folder / "prometheus.log",
        environ=os.environ,
    )
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=2) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    try:
        child.wait_ready(ready, 30)
        yield Prometheus(url)
    finally:
        child.stop()
