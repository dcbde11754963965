"""The dashboards as they are deployed: panels, their queries, and the queries of the variables."""

import json
import re
from typing import Any, NamedTuple

from tests.support.stack import ROOT

FOLDER = ROOT / "deploy" / "grafana" / "dashboards"
VARIABLES = {"$instance": ".*", "$hop": ".*"}
"""What Grafana puts in for "All"."""


class Query(NamedTuple):
    """One line of one panel."""

    panel: str
    legend: str
    expr: str


def boards() -> dict[str, dict[str, Any]]:
    """Name → the dashboard."""
    return {file.stem: json.loads(file.read_text("utf-8")) for file in sorted(FOLDER.glob("*.json"))}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that show something."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries(board: dict[str, Any]) -> list[Query]:
    """Every query of every panel, with all variables at "All"."""
    found = []
    for panel in panels(board):
        for target in panel["targets"]:
            expr = target["expr"]
            for name, value in VARIABLES.items():
                expr = expr.replace(name, value)
            assert "$" not in expr, f"{panel['title']}: a variable that nobody sets: {expr}"
            found.append(Query(panel["title"], target["legendFormat"], expr))
    return found


def choices(board: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Variables that are asked for: name → series and the label whose values are offered."""
    found = {}
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            [(series, label)] = re.findall(r"^label_values\((.+), (\w+)\)$", variable["query"])
            found[variable["name"]] = (series, label)
    return found
