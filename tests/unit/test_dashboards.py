"""The dashboards of Grafana without a Grafana: they are the generator's, complete, and ask for what is declared."""

import json
import re
from typing import Any

import pytest
import yaml

from deploy.grafana.__main__ import rendered
from tests.support.dashboards import FOLDER, boards, choices, panels, queries
from tests.unit.test_alerts import SERIES, known_series

BOARDS = boards()
VLLM = {"vllm:num_requests_running", "vllm:num_requests_waiting"}
"""Which vLLM itself serves: see tests/contract/test_vllm.py."""
PROVISIONING = FOLDER.parent / "provisioning"


def test_the_files_are_the_generators() -> None:
    there = {file.name: file.read_text("utf-8") for file in FOLDER.glob("*.json")}
    assert there == rendered(), "python -m deploy.grafana"
    assert set(BOARDS) == {"flow", "curation", "training"}


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_a_dashboard_can_be_understood(board: dict[str, Any]) -> None:
    shown = panels(board)
    assert len(shown) <= 24
    assert len({panel["title"] for panel in shown}) == len(shown)
    for panel in shown:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["targets"], panel["title"]
        if panel["type"] != "state-timeline":
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        if panel["type"] == "stat":
            assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"], panel["title"]
        if len(panel["targets"]) > 1:
            assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]
        # Not the name of one source of data: the variable of the dashboard.
        assert panel["datasource"]["uid"] == "${datasource}"


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_panels_lie_in_the_grid_and_not_on_each_other(board: dict[str, Any]) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_every_query_asks_for_what_is_declared(board: dict[str, Any]) -> None:
    for query in queries(board):
        asked = set(SERIES.findall(query.expr))
        assert asked <= known_series() | VLLM, query
        assert asked or "ALERTS" in query.expr or "process_" in query.expr, query
        # A label of the legend that the query aggregates away would be blank.
        for label in re.findall(r"{{(\w+)}}", query.legend):
            kept = re.findall(r"by \(([^)]*)\)", query.expr)
            assert not kept or any(label in names.split(", ") for names in kept), query
    assert choices(board)


def test_what_is_provisioned_fits_together() -> None:
    [source] = yaml.safe_load((PROVISIONING / "datasources" / "haypile.yml").read_text("utf-8"))["datasources"]
    assert source["type"] == "prometheus" and source["isDefault"]
    [provider] = yaml.safe_load((PROVISIONING / "dashboards" / "haypile.yml").read_text("utf-8"))["providers"]
    compose = yaml.safe_load((FOLDER.parents[2] / "docker-compose.yml").read_text("utf-8"))
    volumes = dict(volume.split(":")[:2] for volume in compose["services"]["grafana"]["volumes"])
    assert volumes["./deploy/grafana/dashboards"] == provider["options"]["path"]
    assert volumes["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    assert source["url"] == "http://prometheus:9090" and "prometheus" in compose["services"]
    assert json.loads((FOLDER / "flow.json").read_text("utf-8"))["uid"] == "haypile-flow"
