"""Metrics of the trainer, on the registry that is handed in. The workers' are in `streams.metrics`."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from streams.records import Phase

PHASES: tuple[Phase, ...] = ("queued", "sft", "dpo", "gate", "promote")


class TrainerMetrics:
    """The metrics of one trainer process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.phase = Gauge(
            "haypile_training_phase",
            "1 for the phase that a run is in, else 0.",
            ["phase"],
            registry=registry,
        )
        self.loss = Gauge("haypile_training_loss", "Last loss of the phase in progress.", ["phase"], registry=registry)
        self.runs = Counter("haypile_training_runs", "Runs that ended, by outcome.", ["outcome"], registry=registry)
        self.last_success = Gauge(
            "haypile_training_last_success_timestamp_seconds",
            "When the last run ended with a promoted adapter.",
            registry=registry,
        )
        self.win_rate = Gauge(
            "haypile_gate_win_rate", "The challenger's win rate in the last gate (ties count half).", registry=registry
        )
        self.champion = Gauge(
            "haypile_champion_info",
            "1 for the number of the version that serves (0 is the base model).",
            ["number"],
            registry=registry,
        )
        self.reloaded = Counter(
            "haypile_champion_reloads",
            "Times a server had lost the champion and got it again.",
            registry=registry,
        )
        self.watched = Counter(
            "haypile_champion_checks",
            "Looks at a new champion in its first minutes, by result: passed, failed, no_answer.",
            ["result"],
            registry=registry,
        )
        self.returned = Counter(
            "haypile_champion_returns",
            "Times that the watch went back to the version before.",
            registry=registry,
        )
        self.pruned = Counter(
            "haypile_pruned",
            "Adapters, snapshots and run folders that retention removed.",
            ["kind"],
            registry=registry,
        )
        self.show_phase(None)

    def show_phase(self, current: Phase | None) -> None:
        """One phase is 1, the others are 0."""
        for phase in PHASES:
            self.phase.labels(phase).set(phase == current)
