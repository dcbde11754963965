"""docs/metrics.md, made from where the metrics are declared: `python -m deploy.metrics_page > docs/metrics.md`."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from streams.metrics import HttpMetrics, Metrics, TrainerMetrics

INTRO = """\
# Metrics

Made by `python -m deploy.metrics_page > docs/metrics.md`; do not edit.

A worker serves them on `worker.metrics_port` (9108), the trainer on `trainer_metrics_port` (9109), `haypile http` on
`http.metrics_port` (9110), each beside the `process_*` metrics of its own process (memory, CPU, open files). Base units
everywhere; no label holds an id of a prompt, a run or a user. A histogram is three series, `_bucket`, `_sum` and
`_count`. What is shared (the buffer, Redis, the registry) is told by every process that looks at it: take the `max`
over instances, not the sum.
"""


class Declared(NamedTuple):
    """One metric as it is declared; `name` as PromQL knows it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


class _Listing(CollectorRegistry):
    """Remembers what is registered, labels included: a metric with labels and no children yet does not show them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Declared] = []

    def register(self, collector: Collector) -> None:
        super().register(collector)
        metric: Any = collector
        [family] = metric.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        self.found.append(Declared(name, family.type, tuple(metric._labelnames), family.documentation))


def declared() -> dict[str, list[Declared]]:
    """The metrics of each process, in the order of their declaration."""
    worker, trainer, http = _Listing(), _Listing(), _Listing()
    Metrics(worker)
    TrainerMetrics(trainer)
    HttpMetrics(http)
    return {"Worker": worker.found, "Trainer": trainer.found, "HTTP interface": http.found}


def _table(metrics: Iterable[Declared]) -> list[str]:
    rows = [
        f"| `{m.name}` | {m.kind} | {', '.join(f'`{label}`' for label in m.labels)} | {m.help.replace('|', '/')} |"
        for m in metrics
    ]
    return ["| metric | type | labels | meaning |", "|---|---|---|---|", *rows, ""]


def page() -> str:
    """The page as Markdown."""
    lines = [INTRO]
    for process, metrics in declared().items():
        lines += [f"## {process}", "", *_table(metrics)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
