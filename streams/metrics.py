"""Every metric of haypile, declared once. No ids in labels, base units, on an injected registry.

`Metrics(registry)` is made once a process and handed to the parts; nothing registers at import.
"""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from streams.health import Health

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
