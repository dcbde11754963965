"""Every metric of haypile, declared once. No ids in labels, base units, on an injected registry.

`Metrics(registry)` of a worker or `TrainerMetrics(registry)` of a trainer is made once a process and handed to its
parts; nothing registers at import.
"""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from streams.health import Health
from streams.records import Phase

LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Bucket bounds in seconds: from one Redis call to a long generation."""

SHARE = tuple(i / 20 for i in range(1, 21))
"""Bucket bounds of a probability."""

RATING = tuple(1 + i / 2 for i in range(1, 17))
"""Bucket bounds of a rating 1..9, half a point wide."""


class DiskMetrics:
    """Room for what haypile writes into folders of its own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.free = Gauge(
            "haypile_disk_free_bytes",
            "Room left where a folder of the settings is (`snapshots`, `registry`, `work_dir`).",
            ["folder"],
            registry=registry,
        )
        self.size = Gauge("haypile_disk_size_bytes", "Size of that file system.", ["folder"], registry=registry)

    def look(self, folders: Mapping[str, Path]) -> None:
        """Shows the room of each folder (of the nearest parent of one that is not made yet); one that cannot be looked
        at is absent. Blocks as long as the file system does."""
        for name, folder in folders.items():
            try:
                usage = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists()))
            except (OSError, StopIteration):
                self.free.remove(name)
                self.size.remove(name)
                continue
            self.free.labels(name).set(usage.free)
            self.size.labels(name).set(usage.total)


class Metrics:
    """The metrics of one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

        # What happens to records
        self.records = Counter(
            "haypile_records", "Records handled, by hop and outcome.", ["hop", "outcome"], registry=registry
        )
        self.record_seconds = Histogram(
            "haypile_record_seconds",
            "Time from taking a record to being done with it, waiting for dependencies included.",
            ["hop"],
            buckets=LATENCY_S,
            registry=registry,
        )
        self.in_flight = Gauge(
            "haypile_records_in_flight", "Records taken and not yet acknowledged.", ["hop"], registry=registry
        )
        self.abandoned = Counter(
            "haypile_records_abandoned",
            "Records left for redelivery because a drain reached its deadline.",
            ["hop"],
            registry=registry,
        )
        self.dead_letters = Counter(
            "haypile_dead_letters", "Dead letters written, by hop and reason.", ["hop", "reason"], registry=registry
        )
        self.retries = Counter(
            "haypile_retries", "Attempts that failed because of a dependency.", ["hop"], registry=registry
        )
        self.redactions = Counter(
            "haypile_redactions", "Spans of personal data and secrets replaced, by kind.", ["kind"], registry=registry
        )
        self.languages = Counter(
            "haypile_prompts_language",
            "Accepted prompts by language (ISO 639; `unknown` where the detector is not sure).",
            ["language"],
            registry=registry,
        )

        # The judge
        self.judge_seconds = Histogram(
            "haypile_judge_seconds", "Time of one rating (three answers).", buckets=LATENCY_S, registry=registry
        )
        self.judge_label_mass = Histogram(
            "haypile_judge_label_mass",
            "Probability on the labels, the least of a rating.",
            buckets=SHARE,
            registry=registry,
        )
        self.judge_difficulty = Histogram(
            "haypile_judge_difficulty", "Difficulty of rated prompts, 1..9.", buckets=RATING, registry=registry
        )
        self.judge_quality = Histogram(
            "haypile_judge_quality", "Quality of rated prompts, 1..9.", buckets=RATING, registry=registry
        )
        self.judge_tokens = Counter(
            "haypile_judge_prompt_tokens",
            "Tokens that the judge was given, by vLLM's count; what its prefix cache saves is not taken off.",
            registry=registry,
        )
        self.judge_shortened = Counter(
            "haypile_judge_shortened", "Prompts of which the judge saw only head and tail.", registry=registry
        )

        self.screen_recall = Gauge(
            "haypile_screen_recall",
            "Share of the prompts over the threshold that screening lets through, measured on explored ones.",
            registry=registry,
        )
        self.screen_trusted = Gauge(
            "haypile_screen_trusted", "1 where that recall is proven and prompts are skipped.", registry=registry
        )

        # The buffer
        self.buffer_members = Gauge("haypile_buffer_members", "Members of the buffer.", ["buffer"], registry=registry)
        self.buffer_capacity = Gauge(
            "haypile_buffer_capacity", "Capacity of the buffer.", ["buffer"], registry=registry
        )
        self.buffer_threshold = Gauge(
            "haypile_buffer_threshold",
            "Rank key to beat; absent until the buffer is full.",
            ["buffer"],
            registry=registry,
        )
        self.buffer_difficulty = Gauge(
            "haypile_buffer_difficulty",
            "Difficulty of the member ranked `first` and of the one ranked `last`; absent while it is empty.",
            ["buffer", "rank"],
            registry=registry,
        )
        self.buffer_admission = Gauge(
            "haypile_buffer_admission_timestamp_seconds",
            "When the `oldest` and the `newest` member were admitted; absent while it is empty.",
            ["buffer", "member"],
            registry=registry,
        )
        self.buffer_histogram = Gauge(
            "haypile_buffer_difficulty_members",
            "Members by difficulty: from this label's value up to half a point more.",
            ["difficulty"],
            registry=registry,
        )
        self.buffer_answered = Gauge("haypile_buffer_answered", "Members that have answers.", registry=registry)
        self.buffer_category = Gauge(
            "haypile_buffer_category_members", "Members by category.", ["category"], registry=registry
        )
        self.buffer_replayed = Counter(
            "haypile_buffer_replayed", "Records replayed from the log because Redis was behind it.", registry=registry
        )

        # The judge on prompts of known difficulty
        self.anchor_spearman = Gauge(
            "haypile_judge_anchor_spearman",
            "Spearman of the anchors' ratings and labels; NaN until it is measured, like the next two.",
            registry=registry,
        )
        self.anchor_mean = Gauge("haypile_judge_anchor_mean", "Mean rating of the anchors, 1..9.", registry=registry)
        self.anchor_drift = Gauge(
            "haypile_judge_anchor_drift",
            "Mean distance of the anchors' ratings to the judge's own first ones, in points.",
            registry=registry,
        )
        for unmeasured in (self.anchor_spearman, self.anchor_mean, self.anchor_drift):
            unmeasured.set(math.nan)  # 0 would be a bad judge
        self.anchor_alarm = Gauge(
            "haypile_judge_anchor_alarm", "1 where the drift is over judge.max_anchor_drift.", registry=registry
        )
        self.anchor_unreadable = Gauge(
            "haypile_judge_anchor_unreadable", "Anchors that the judge could not rate.", registry=registry
        )

        # Another judge
        self.rescore_members = Gauge(
            "haypile_rescore_members",
            "Members that go through the next judge: all when it began, and those left; 0 while nothing is rescored.",
            ["state"],
            registry=registry,
        )
        self.rescored = Counter(
            "haypile_rescored", "Members rated by the next judge, by outcome.", ["outcome"], registry=registry
        )
        self.generation_switches = Counter(
            "haypile_generation_switches", "Times that the buffer went over to another judge.", registry=registry
        )

        # Answers
        self.answers = Counter(
            "haypile_answers", "Candidate answers attached, by origin.", ["origin"], registry=registry
        )
        self.answer_seconds = Histogram(
            "haypile_answer_seconds", "Time to answer and reward one member.", buckets=LATENCY_S, registry=registry
        )

        # The trigger
        self.trigger_condition = Gauge(
            "haypile_trigger_condition", "1 where a condition of the policy holds.", ["condition"], registry=registry
        )
        self.trigger_value = Gauge(
            "haypile_trigger_value", "Value that a condition of the policy looks at.", ["condition"], registry=registry
        )
        self.trigger_bound = Gauge(
            "haypile_trigger_bound",
            "Bound of a condition of the policy; absent where none is set.",
            ["condition"],
            registry=registry,
        )
        self.trigger_changes = Gauge(
            "haypile_trigger_changes_timestamp_seconds",
            "When a condition changes by time alone (end of cooldown, of quiet hours; next scheduled time).",
            ["condition"],
            registry=registry,
        )
        self.train_requests = Counter("haypile_train_requests", "Training runs requested.", registry=registry)
        self.trigger_leader = Gauge(
            "haypile_trigger_leader", "1 where this process holds the lease.", registry=registry
        )

        # Dependencies, and what else does not work
        self.dependency_up = Gauge(
            "haypile_dependency_up", "1 where the last use of a dependency worked.", ["dependency"], registry=registry
        )
        self.degraded_since = Gauge(
            "haypile_degraded_since_seconds",
            "Unix time since which something is degraded; absent while it is well.",
            ["what"],
            registry=registry,
        )
        self.lag = Gauge(
            "haypile_lag_records",
            "Records of a partition that its worker has not taken yet; known once it has taken one.",
            ["topic", "partition"],
            registry=registry,
        )
        self.redis_memory = Gauge("haypile_redis_memory_bytes", "Memory that Redis uses.", registry=registry)
        self.redis_limit = Gauge(
            "haypile_redis_memory_limit_bytes",
            "Its `maxmemory`, or the memory of its machine where none is set.",
            registry=registry,
        )
        self.disk = DiskMetrics(registry)
        self.health = Health(self.degraded_since)


class HttpMetrics:
    """The metrics of `haypile http`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            "haypile_http_requests", "Requests answered, by path and status.", ["path", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "haypile_http_request_seconds",
            "Time from a request's head to its answer.",
            ["path"],
            buckets=LATENCY_S,
            registry=registry,
        )
        self.records = Counter(
            "haypile_http_records",
            "Records of valid requests: `accepted` (Kafka has them) or `unknown` (no word from Kafka in time).",
            ["path", "outcome"],
            registry=registry,
        )
        self.in_progress = Gauge("haypile_http_requests_in_progress", "Requests in progress.", registry=registry)
        self.kafka_up = Gauge("haypile_http_kafka_up", "1 where the last use of Kafka worked.", registry=registry)


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
