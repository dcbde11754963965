"""The gate's comparisons, one by one, and its page, as they are kept beside an adapter."""

from typing import Any

import msgspec

from trainers.registry import GATE, Registry

GATE_PAGE = "gate.html"


def worst_losses(registry: Registry, version: str, n: int) -> list[dict[str, Any]]:
    """The prompts that the version lost by most, with both answers; empty where no rows are kept.

    Raises `UnknownVersion`.
    """
    try:
        report = msgspec.json.decode((registry.path(version) / GATE).read_bytes())
        rows = [row for row in report.get("rows", []) if gap(row) < 0]
    except (OSError, msgspec.MsgspecError, AttributeError, KeyError, TypeError):
        return []
    return sorted(rows, key=gap)[:n]


def gap(row: dict[str, Any]) -> float:
    """Challenger's reward less the champion's."""
    return float(row["challenger_reward"]) - float(row["champion_reward"])


def gate_page(registry: Registry, version: str) -> bytes | None:
    """The report as a page of its own, where there is one. Raises `UnknownVersion`."""
    try:
        return (registry.path(version) / GATE_PAGE).read_bytes()
    except OSError:
        return None
