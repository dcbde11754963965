"""What `haypile status` says is degraded: what the processes say themselves, and which of them are silent."""

import re
import urllib.request
from collections.abc import Sequence

import msgspec

from streams.health import SILENT_S, ProcessHealth

FLOW = ("ingest", "score", "curate")
"""Hops without which records only pile up."""
_SAMPLE = re.compile(r'^haypile_degraded_since_seconds\{what="(.*)"\} (\S+)$', re.MULTILINE)


class Degradation(msgspec.Struct, kw_only=True):
    """One line of the status."""

    what: str
    since: float | None
    """Epoch seconds, by the process that noticed; None where no process did."""
    detail: str
    processes: list[str]


def degradations(reports: Sequence[ProcessHealth], now: float) -> list[Degradation]:
    """The oldest first. What several processes say counts from the first of them."""
    live = [report for report in reports if now - report.at <= SILENT_S]
    found: dict[str, Degradation] = {}
    for report in live:
        for entry in report.degraded:
            known = found.get(entry.what)
            if known is None:
                found[entry.what] = Degradation(
                    what=entry.what, since=entry.since, detail=entry.detail, processes=[report.process]
                )
            else:
                known.since = min(known.since or entry.since, entry.since)
                known.processes.append(report.process)
    lines = [*found.values(), *_silent(reports, live), *_missing(reports, live)]
    return sorted(lines, key=lambda line: (line.since is None, line.since))


def _silent(reports: Sequence[ProcessHealth], live: Sequence[ProcessHealth]) -> list[Degradation]:
    """Processes that ended without a word, unless one with the same agents was started since."""

    def replaced(gone: ProcessHealth) -> bool:
        return any(set(report.agents) == set(gone.agents) and report.started >= gone.at for report in live)

    return [
        Degradation(
            what=f"{report.process} is silent",
            since=report.at,
            detail=f"it ran {', '.join(report.agents)} and did not end cleanly",
            processes=[report.process],
        )
        for report in reports
        if report not in live and not replaced(report)
    ]


def _missing(reports: Sequence[ProcessHealth], live: Sequence[ProcessHealth]) -> list[Degradation]:
    lines = []
    for agent in FLOW:
        if any(agent in report.agents for report in live):
            continue
        last = [report.at for report in reports if agent in report.agents]
        lines.append(
            Degradation(
                what=f"no worker runs {agent}",
                since=max(last, default=None),
                detail=f"haypile worker --agents {agent}",
                processes=[],
            )
        )
    return lines


def from_metrics(port: int) -> list[Degradation]:
    """What the worker on this machine says in its metrics: for when Redis is away. Empty without such a worker."""
    if not port:
        return []
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=3) as response:  # nosec B310
            text = response.read().decode()
    except (OSError, ValueError):
        return []
    name = f"metrics on port {port}"
    return [
        Degradation(what=what, since=float(since), detail="", processes=[name]) for what, since in _SAMPLE.findall(text)
    ]
