"""Metrics of the trainer, on the registry that is handed in. The workers' are in `streams.metrics`."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

from streams.health import Health
from streams.metrics import DiskMetrics
from streams.records import Phase

PHASES: tuple[Phase, ...] = ("queued", "sft", "dpo", "gate", "promote")
FINAL: tuple[Phase, ...] = ("done", "rejected", "failed")
ROW_SETS = ("prompts", "sft_rows", "dpo_pairs", "validation_rows", "replayed")


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
        self.step = Gauge("haypile_training_step", "Optimizer steps done in a phase.", ["phase"], registry=registry)
        self.steps = Gauge(
            "haypile_training_steps", "Optimizer steps that a phase will have.", ["phase"], registry=registry
        )
        self.learning_rate = Gauge(
            "haypile_training_learning_rate", "Learning rate at the last step.", ["phase"], registry=registry
        )
        self.tokens_per_second = Gauge(
            "haypile_training_tokens_per_second",
            "Tokens of prompts and answers trained on a second, all processes together.",
            ["phase"],
            registry=registry,
        )
        self.rows = Gauge(
            "haypile_training_rows",
            "Rows of the run in progress or the last one: prompts, sft_rows, dpo_pairs, validation_rows, replayed.",
            ["set"],
            registry=registry,
        )
        self.left_out = Gauge(
            "haypile_training_rows_left_out",
            "Rows of that run that were left out, by reason (sft_too_long, held_out, …).",
            ["reason"],
            registry=registry,
        )
        self.runs = Counter("haypile_training_runs", "Runs that ended, by outcome.", ["outcome"], registry=registry)
        self.last_run = Gauge(
            "haypile_training_last_run_timestamp_seconds",
            "When the last run of an outcome ended, `done` being the last success; 0: none is known. Read from files.",
            ["outcome"],
            registry=registry,
        )
        self.rejections = Gauge(
            "haypile_gate_rejections_in_a_row",
            "Challengers that the gate has refused since it let one through, by the registry.",
            registry=registry,
        )
        self.win_rate = Gauge(
            "haypile_gate_win_rate",
            "The challenger's win rate in the last gate (`value`; ties count half), and the ends of its interval "
            "(`lower`, `upper`); by the registry.",
            ["end"],
            registry=registry,
        )
        self.gate_prompts = Gauge("haypile_gate_prompts", "Prompts of the last gate.", registry=registry)
        self.champion = Gauge(
            "haypile_champion_number", "Number of the version that serves; 0 is the base model.", registry=registry
        )
        self.champion_since = Gauge(
            "haypile_champion_since_timestamp_seconds",
            "When the pointer moved to this champion; 0 while nothing was promoted yet.",
            registry=registry,
        )
        self.champion_served = Gauge(
            "haypile_champion_served",
            "1 where a server has the champion; 0 where it has not, or cannot be asked.",
            ["server"],
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
        self.disk = DiskMetrics(registry)
        self.degraded_since = Gauge(
            "haypile_degraded_since_seconds",
            "Unix time since which something is degraded; absent while it is well.",
            ["what"],
            registry=registry,
        )
        self.health = Health(self.degraded_since)
        for outcome in FINAL:  # an increase can only be seen of what was there before
            self.runs.labels(outcome)
            self.last_run.labels(outcome)
        self._reasons: set[str] = set()
        self.show_phase(None)

    def show_point(self, point: Mapping[str, float | int | str]) -> None:
        """A point of the learning curve as `RunFolder.points` has it."""
        gauges = {
            "loss": self.loss,
            "step": self.step,
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "tokens_per_s": self.tokens_per_second,
        }
        for name, gauge in gauges.items():
            if name in point:
                gauge.labels(point["phase"]).set(float(point[name]))

    def show_rows(self, metrics: Mapping[str, float | int | str | bool | None]) -> None:
        """The counts of a training set among a run's metrics; nothing before it is made."""
        if "sft_rows" not in metrics:
            return
        for name in ROW_SETS:
            self.rows.labels(name).set(float(metrics.get(name) or 0))
        prefix = "left_out_"
        reasons = {k.removeprefix(prefix): float(v or 0) for k, v in metrics.items() if k.startswith(prefix)}
        for reason in self._reasons - reasons.keys():  # of the run before
            self.left_out.remove(reason)
        for reason, count in reasons.items():
            self.left_out.labels(reason).set(count)
        self._reasons = set(reasons)

    def show_phase(self, current: Phase | None) -> None:
        """One phase is 1, the others are 0."""
        for phase in PHASES:
            self.phase.labels(phase).set(phase == current)
