"""Training runs as `train.events` tells them: pure."""

from dataclasses import dataclass, field

from streams.records import Phase, TrainEvent

FINAL = ("done", "failed", "rejected")
KEEP = 50
"""Runs; the oldest go first."""


@dataclass
class Run:
    """One run so far."""

    run_id: str
    phases: list[tuple[Phase, int]] = field(default_factory=list)
    """Each phase with the time of its first event (epoch milliseconds)."""
    metrics: dict[str, float | int | str | bool | None] = field(default_factory=dict)
    """Later ones win."""
    points: dict[tuple[str, int], float] = field(default_factory=dict)
    """Loss by phase and step, as far as events carry it."""

    @property
    def phase(self) -> Phase:
        """The last one."""
        return self.phases[-1][0]

    @property
    def over(self) -> bool:
        """Whether it has ended, however."""
        return self.phase in FINAL

    @property
    def seconds(self) -> float:
        """From its first phase to its last."""
        return (self.phases[-1][1] - self.phases[0][1]) / 1000


class Runs:
    """By id, the newest last."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}

    def add(self, event: TrainEvent) -> None:
        """An event may come twice; a phase counts once, and nothing follows a final one."""
        run = self._runs.setdefault(event.run_id, Run(event.run_id))
        if event.phase not in [phase for phase, _ in run.phases] and not (run.phases and run.over):
            run.phases.append((event.phase, event.ts))
        run.metrics |= event.metrics
        step, loss = event.metrics.get("step"), event.metrics.get("loss")
        if isinstance(step, int) and isinstance(loss, int | float):
            run.points[event.phase, step] = float(loss)
        while len(self._runs) > KEEP:
            del self._runs[next(iter(self._runs))]

    def newest_first(self) -> list[Run]:
        """All that are remembered."""
        return list(self._runs.values())[::-1]

    def get(self, run_id: str) -> Run | None:
        """A run, or None."""
        return self._runs.get(run_id)
