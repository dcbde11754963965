"""All settings, one section a part. `haypile.yaml` < environment `HAYPILE_SECTION__FIELD` < flags of the command.

Unknown keys are errors. Secrets (fields of type `SecretStr`) are taken from the environment only.
"""

import os
from collections.abc import Mapping
from datetime import UTC
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AnyHttpUrl,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)
from pydantic_settings import (
    SettingsError as PydanticSettingsError,
)

from streams.errors import SettingsError
from streams.timetable import next_time, quiet_periods, zone_of

Url = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A section: frozen, unknown keys are errors, docstrings become descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _http_url(value: str) -> str:
    AnyHttpUrl(value)
    return value.rstrip("/")


class KafkaSettings(Section):
    """The broker and how we consume from it."""

    bootstrap: str = "127.0.0.1:9092"
    """Comma-separated host:port."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """Of the broker's listener. `SASL_PLAINTEXT` sends the password in clear (PLAIN) over the network."""
    ca_file: Path | None = None
    """Certificates (PEM) of the authorities that are believed; null: the system's."""
    cert_file: Path | None = None
    """Our own certificate (PEM), for a broker that asks for one."""
    key_file: Path | None = None
    """Its key (PEM), if that is not in `cert_file`."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    """For the SASL protocols."""
    username: str | None = None
    """For the SASL protocols."""
    password: SecretStr | None = None
    """For the SASL protocols. From the environment only."""
    topic_prefix: str = ""
    """Before every topic name; lets several haypiles share a cluster."""
    group: str = "haypile"
    """Consumer group of the workers."""
    partitions: int = Field(8, ge=1, le=10_000)
    """Of each prompts topic when haypile creates it: the upper bound of workers on one hop."""
    replication: int = Field(1, ge=1)
    """Of each topic when haypile creates it. 3 in production."""
    session_timeout_s: float = Field(30, ge=6, le=300)
    """A silent worker's partitions move after this."""
    idempotence: bool = True
    """Idempotent producers. Off for a broker that does not have them (Tansu refuses aiokafka's InitProducerId): a
    repeated send may then be on the wire twice, which changes nothing, because every effect is idempotent by id."""
    max_message_bytes: int = Field(2_000_000, ge=10_000)
    """Largest record that we produce (dead letters carry the original in base64: 4/3 of its size)."""
    forget_key: SecretStr | None = None
    """Secret that the digests in `prompts.forgotten` are made with, the same for every process; null: whoever may read
    that topic can try out user ids. Set it before the first `haypile forget`. From the environment only."""

    @field_validator("bootstrap")
    @classmethod
    def _bootstrap(cls, value: str) -> str:
        for part in value.split(","):
            host, _, port = part.strip().rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 65536:
                raise ValueError(f"{part!r} is not host:port")
        return value

    @model_validator(mode="after")
    def _security_is_whole(self) -> Self:
        if self.security_protocol.startswith("SASL"):
            if not self.username or not self.password:
                raise ValueError(
                    f"security_protocol {self.security_protocol} needs username, and password from the environment "
                    "(HAYPILE_KAFKA__PASSWORD)"
                )
        elif self.username or self.password:
            raise ValueError(f"username and password are of no use with security_protocol {self.security_protocol}")
        if not self.security_protocol.endswith("SSL") and (self.ca_file or self.cert_file or self.key_file):
            raise ValueError(f"certificates are of no use with security_protocol {self.security_protocol}")
        if self.key_file and not self.cert_file:
            raise ValueError("key_file needs cert_file")
        return self


class RedisSettings(Section):
    """Redis or Valkey."""

    url: str = "redis://127.0.0.1:6379/0"
    """redis://, rediss:// (TLS) or unix://. With a password in it: from the environment only."""
    username: str | None = None
    """Of an ACL; null: the default user."""
    password: SecretStr | None = None
    """From the environment only; instead of one in the URL."""
    ca_file: Path | None = None
    """Certificates (PEM) of the authorities that are believed; null: the system's."""
    cert_file: Path | None = None
    """Our own certificate (PEM), for a server that asks for one."""
    key_file: Path | None = None
    """Its key (PEM), if that is not in `cert_file`."""
    namespace: str = Field("haypile", pattern=r"^[A-Za-z0-9_.-]+$")
    """All keys are `{namespace}:…`: one hash slot."""

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        if not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return value

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if not self.url.startswith("rediss://") and (self.ca_file or self.cert_file or self.key_file):
            raise ValueError("certificates are of no use without a rediss:// URL")
        if self.key_file and not self.cert_file:
            raise ValueError("key_file needs cert_file")
        return self


class IngestSettings(Section):
    """What is let in."""

    max_bytes: int = Field(200_000, ge=100)
    """A larger raw record is a dead letter (`too_large`)."""
    repeat_window_s: int = Field(30 * 86_400, ge=1)
    """An exact repeat within this is refused. 30 days: about 100 bytes of Redis a prompt."""
    eval_share: float = Field(0.02, ge=0, lt=1)
    """Share of prompts (by hash) set aside for evaluation."""
    min_tokens: int = Field(1, ge=0)
    """A shorter conversation is refused (`too_short`)."""
    max_tokens: int | None = Field(8192, ge=1)
    """A longer one is refused (`too_long`): training would cut or drop it (Magpie's recipe takes 8,192 with the
    answer). Null: `max_bytes` is the only bound."""
    tokenizer: Path | None = None
    """A `tokenizer.json`, or a model's folder with one, that counts tokens; null: they are estimated."""
    languages: list[str] | None = None
    """ISO 639 codes of the languages that are let in; null: all. What no language can be told of is let in."""
    language_confidence: float = Field(0.5, ge=0, le=1)
    """Under this the language counts as unknown; half of all two-word prompts are."""
    redact: bool = True
    """Replace personal data and secrets before anything is stored."""
    phone_regions: list[str] = ["US"]
    """ISO 3166 codes of countries whose telephone numbers are known without a country code; each one more finds more
    numbers that are none."""
    decontaminate: list[Path] = []
    """Files of benchmark prompts (JSONL, JSON, Parquet), or folders of them; what repeats one is `contaminated`."""
    decontaminate_ngram: int = Field(5, ge=2)
    """Words of an n-gram. Short ones, because the share decides: GPT-3's 13 (arXiv 2005.14165, appendix C) misses half
    of the copies with typos (docs/curation.md)."""
    decontaminate_overlap: float = Field(0.5, gt=0, le=1)
    """Share of a benchmark prompt's n-grams from which a prompt repeats it."""


class JudgeSettings(Section):
    """The model that rates prompts."""

    urls: list[Url] = ["http://127.0.0.1:8000"]
    """vLLM servers; all serve the same model and adapter."""
    model: str = "judge"
    """Name under which vLLM serves the judge (a base model or a LoRA)."""
    revision: str = ""
    """Free text that tells judges of the same name apart (a digest of its weights): part of the judge's id."""
    rubric: Path | None = None
    """File with a rubric of your own; null takes the built-in one."""
    max_chars: int = Field(4000, ge=200)
    """The judge sees at most this much of a prompt (its head and tail); halved when vLLM says it is too long."""
    min_label_mass: float = Field(0.5, ge=0, le=1)
    """Under this probability on the labels an answer is not a rating: `judge_unreadable`."""
    concurrency: int = Field(32, ge=1)
    """Requests in flight for each URL."""
    anchors: int = Field(54, ge=0)
    """Prompts of known difficulty that a worker has rated before its judge rates anything else; 0: the judge is
    believed unmeasured. 54 of the project's 162 are six a level and cost as much as 54 prompts."""
    anchors_file: Path | None = None
    """Anchors of your own (JSON lines with `prompt` and `difficulty` 1..9); null takes the project's."""
    anchors_every_s: float = Field(3_600, gt=0)
    """How often they are rated again."""
    min_anchor_spearman: float | None = Field(0.3, ge=-1, le=1)
    """Under this Spearman of ratings and labels the judge is refused and the worker stops; null: never."""
    max_anchor_drift: float | None = Field(0.3, gt=0)
    """Mean distance (points of 1..9) to the judge's own first ratings from which the alarm is raised; null: never.
    Batches on a GPU or in bf16 alone move single ratings by some hundredths."""
    rescore_concurrency: int = Field(8, ge=1)
    """Members rated at once when the buffer goes over to another judge; few, so that new arrivals go first."""
    timeout_s: float = Field(30, gt=0)
    """Of one request. Under the Kafka session timeout, so that a rebalance never waits for it."""
    api_key: SecretStr | None = None
    """Sent as a bearer token. From the environment only."""

    _check = field_validator("urls")(lambda cls, urls: [_http_url(u) for u in urls])


class BufferSettings(Section):
    """The rolling top-k."""

    capacity: int = Field(30_000, ge=1)
    """Members. 30,000 is PiKa's size (arXiv 2510.06670)."""
    eval_capacity: int = Field(1_000, ge=1)
    """Held-out prompts that are kept (the hardest) for the gate."""
    half_life_s: float | None = Field(None, gt=0)
    """After this time a prompt counts like one of half the difficulty; null: rank by difficulty alone."""
    category_share: float = Field(0.4, gt=0, le=1)
    """A category holds at most this share of the capacity; 1 is no cap."""
    near_duplicate: float | None = Field(0.7, gt=0, lt=1)
    """Jaccard similarity of word shingles from which two prompts are alike; null: keep both. docs/curation.md has
    precision and recall of other values; a lower one also takes prompts for alike that share a long template. Stored
    sketches are made for one value: `haypile buffer rebuild` after a change."""
    min_quality: float = Field(3.0, ge=1, le=9)
    """Under this the prompt is refused whatever its difficulty."""


class ScreenSettings(Section):
    """Which prompts the judge need not see (`agents/screen.py`)."""

    enabled: bool = False
    """Learn from the judge's ratings and, once that is proven to be safe, skip prompts."""
    min_recall: float = Field(0.95, gt=0, lt=1)
    """Share of the prompts over the buffer's threshold that must be let through, with 95 % confidence; until that is
    measured every prompt is judged. 0.95 needs at least 52 of them."""
    quantile: float = Field(0.99, gt=0.5, lt=1)
    """Of what predictions were short of the judge's rating: the margin that is added to a prediction."""
    explore_share: float = Field(0.1, gt=0, le=1)
    """Of all prompts are judged whatever is predicted: what the recall is measured on."""
    warmup: int = Field(1000, ge=32)
    """Ratings to learn from before anything is concluded."""


class AnswerSettings(Section):
    """Candidate answers of members."""

    urls: list[Url] = ["http://127.0.0.1:8000"]
    """vLLM servers of the teacher."""
    model: str = "teacher"
    """Name under which vLLM serves the teacher."""
    k: int = Field(5, ge=1, le=64)
    """Answers a prompt; Magpie's and PiKa's recipe takes 5."""
    temperature: float = Field(0.8, ge=0, le=2)
    """Magpie's value."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Nucleus."""
    max_tokens: int = Field(1024, ge=1)
    """Of one answer."""
    when: Literal["admission", "settled", "run"] = "settled"
    """At admission, once a member has stayed for `settle_s`, or only when a run needs it."""
    settle_s: float = Field(600, ge=0)
    """For `settled`: most newcomers of a young buffer are evicted soon; answers for them are wasted."""
    batch: int = Field(16, ge=1)
    """Members answered at once."""
    interval_s: float = Field(5, gt=0)
    """How often to look for members without answers."""
    concurrency: int = Field(16, ge=1)
    """Requests in flight for each URL."""
    timeout_s: float = Field(300, gt=0)
    """Of one request."""
    api_key: SecretStr | None = None
    """Sent as a bearer token. From the environment only."""

    _check = field_validator("urls")(lambda cls, urls: [_http_url(u) for u in urls])


class RewardSettings(Section):
    """How answers are rewarded."""

    kind: Literal["judge", "classifier"] = "judge"
    """`judge`: the judge's rating of the answer; `classifier`: a reward model behind vLLM's `/classify`."""
    urls: list[Url] = []
    """For `classifier`; empty: the judge's."""
    model: str | None = None
    """For `classifier`: its served name. For `judge`: null means the judge's."""
    max_chars: int = Field(6000, ge=200)
    """The rewarder sees at most this much of the prompt and of the answer together."""

    _check = field_validator("urls")(lambda cls, urls: [_http_url(u) for u in urls])

    @model_validator(mode="after")
    def _classifier_has_a_model(self) -> Self:
        if self.kind == "classifier" and not self.model:
            raise ValueError("reward.kind: classifier needs reward.model, the name under which vLLM serves it")
        return self


class TriggerSettings(Section):
    """When to train (the policy)."""

    interval_s: float = Field(60, gt=0)
    """How often to decide."""
    min_members: int = Field(5_000, ge=1)
    """Minimum fill."""
    min_answered: float = Field(0.8, ge=0, le=1)
    """Share of members that must have answers; with `answer.when: run` they are made once all else holds."""
    min_new: int | None = Field(3_000, ge=0)
    """Members admitted since the last run's snapshot: a reason to train; null: never by their count."""
    min_new_share: float | None = Field(None, gt=0)
    """The same as a share of the members (over 1 where many were evicted again): a reason to train; null: never."""
    max_age_s: float | None = Field(7 * 86_400, gt=0)
    """Longest time since the last run: a reason to train; null: never by age."""
    schedule: str | None = None
    """Cron expression of five fields, in `timezone`: a time since the last run is a reason to train, also one that
    passed while something else forbade it; null: never by the clock. `0 3 * * sat` is Saturdays at three."""
    min_shift: float | None = Field(0.2, gt=0)
    """Shift of the difficulty distribution since the last run: a reason to train; null: never by it. PSI over 0.2 is
    called large (`agents/rules/shift.py`); KS goes from 0 to 1."""
    shift_measure: Literal["psi", "ks"] = "psi"
    """Population stability index, or the Kolmogorov-Smirnov statistic, which is not moved by a few rare bins."""
    cooldown_s: float = Field(6 * 3_600, ge=0)
    """Shortest time between two runs."""
    max_runs_per_day: int = Field(4, ge=1)
    """Budget: runs requested in the last 24 hours."""
    max_trainer_hours_per_day: float | None = Field(None, gt=0)
    """Budget: hours of the last 24 between the first and the final event of runs; null: no bound."""
    quiet_hours: list[str] = []
    """Local times when no run is begun, as `22:00-06:00` or `Mon-Fri 08:00-20:00` (the days on which they start)."""
    timezone: str = "UTC"
    """Of `schedule` and `quiet_hours`: an IANA name such as `Europe/Berlin`."""
    paused: bool = False
    """Never train while set. `haypile pause` needs no restart."""
    lease_s: float = Field(60, gt=1)
    """A trigger that died is replaced after this."""

    @field_validator("timezone")
    @classmethod
    def _timezone(cls, value: str) -> str:
        zone_of(value)
        return value

    @field_validator("schedule")
    @classmethod
    def _schedule(cls, value: str | None) -> str | None:
        if value is not None and next_time(value, UTC, 0) is None:
            raise ValueError(f"{value!r} names no time at all")
        return value

    @field_validator("quiet_hours")
    @classmethod
    def _quiet_hours(cls, value: list[str]) -> list[str]:
        quiet_periods(value)
        return value


class TrainingSettings(Section):
    """Where and how runs are done."""

    recipe: str = "qwen2.5-7b"
    """Name of a recipe in `trainers/recipes` or a path to a YAML file."""
    base_model: str | None = None
    """Folder or hub name; null takes the recipe's."""
    snapshots: str = "var/snapshots"
    """Local folder or fsspec URL."""
    registry: Path = Path("var/registry")
    """Folder of the adapters; every vLLM server must see it under the same path."""
    work_dir: Path = Path("var/runs")
    """Checkpoints and logs of runs."""
    everyday: Path | None = None
    """Ordinary prompts (JSON lines with `prompt` or `messages`, and a `category` if you like) on which the gate looks
    for regressions; null takes the project's."""
    keep_adapters: int = Field(10, ge=1)
    """Former champions that stay on the disk, newest first; so far back a rollback can lead."""
    keep_rejected: int = Field(5, ge=0)
    """Adapters that never served (rejected by the gate or the canary), newest first."""
    keep_snapshots: int = Field(10, ge=1)
    """Newest first, and whatever replay of a kept adapter's lineage draws from."""
    keep_runs: int = Field(20, ge=0)
    """Folders of runs that are over (checkpoints, logs), newest first."""
    keep_days: float | None = Field(90, gt=0)
    """What never served, snapshots and runs go after so many days even if there are few; null: by number alone."""
    prune_every_s: float | None = Field(3_600, gt=0)
    """How often the trainer clears away what is not kept; null: never (`haypile models prune` does it by hand)."""
    group: str = "haypile-trainer"
    """Group under which the trainers keep how far `train.requests` is done; it has no members."""


class ServingSettings(Section):
    """The vLLM servers that serve the trained model to users."""

    urls: list[Url] = ["http://127.0.0.1:8000"]
    """Each loads every promoted adapter."""
    model: str = "base"
    """Name under which vLLM serves the base model."""
    adapter_prefix: str = Field("haypile", pattern=r"^[A-Za-z0-9_.-]+$")
    """Adapters are served as `prefix-version`."""
    timeout_s: float = Field(120, gt=0)
    """Of loading an adapter."""
    reconcile_s: float = Field(15, gt=0)
    """How often the trainer looks whether every server has the champion."""
    canary: list[Annotated[str, Field(min_length=1)]] = [
        "Say hello to a new user in one sentence.",
        "What is the capital of France?",
        "Write one sentence about the sea.",
        "Name three colours.",
    ]
    """Prompts that a new adapter must answer sanely on every server before it serves (`trainers/canary.py`); none: no
    canary. Easy on purpose: it is for adapters that are broken, the gate is for those that are worse."""
    canary_tokens: int = Field(24, ge=1)
    """Of one answer: enough to see a loop."""
    canary_min_logprob: float = Field(-2.0, lt=0)
    """Least mean log-probability of an answer's tokens (greedy). SmolLM2-135M has -0.4 to -1.1 on these prompts, with
    random weights added until it talks nonsense -1.8 to -2.4 (docs/training.md); larger models are surer."""
    watch_s: float = Field(300, ge=0)
    """After a promotion the trainer repeats the canary and counts errors for so long, and returns to the version before
    when something fails; 0: it does not."""
    watch_every_s: float = Field(15, gt=0)
    """How often in that time."""
    watch_errors: int | None = Field(5, ge=1)
    """So many errors of a server since the promotion (and 5 % of its requests) end it: answers with 5xx that its
    `/metrics` count, and looks at it that found nobody; null: errors end nothing."""
    api_key: SecretStr | None = None
    """Sent as a bearer token. From the environment only."""

    _check = field_validator("urls")(lambda cls, urls: [_http_url(u) for u in urls])


class WorkerSettings(Section):
    """The process that runs agents."""

    agents: list[Literal["ingest", "score", "curate", "answer", "trigger"]] = [
        "ingest",
        "score",
        "curate",
        "answer",
        "trigger",
    ]
    """Which hops this process runs."""
    window: int = Field(256, ge=1, le=100_000)
    """Records in progress for each hop: bounds memory, and what is repeated after a kill."""
    drain_s: float = Field(10, gt=0)
    """On SIGTERM and on a rebalance, records in progress get this long; then they are left for redelivery."""
    max_attempts: int = Field(3, ge=1)
    """Of a record whose handling raises something unexpected or kills the process; then it is a dead letter."""
    max_dead_share: float = Field(0.5, gt=0, le=1)
    """Of the last 1,000 records of a hop, at most this share may become dead letters; above it the worker stops."""
    metrics_port: int = Field(9108, ge=0, le=65535)
    """Prometheus; 0 is off."""


class HttpSettings(Section):
    """`haypile http`: prompts and feedback from apps that have no Kafka client."""

    host: str = "127.0.0.1"
    """Address to listen on. Keys are sent in clear: put a proxy with TLS before it."""
    port: int = Field(8100, ge=0, le=65535)
    """0 takes a free port."""
    api_keys: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = {}
    """Name of a client → SHA-256 (hex) of its key; `haypile http --new-key NAME` makes both. The keys themselves are
    random and long, so that a plain digest is safe to keep in a file. Without any nobody is let in."""
    max_body_bytes: int = Field(5_000_000, ge=1_000)
    """A larger request is refused while it is read."""
    max_batch: int = Field(500, ge=1, le=10_000)
    """Records of one request."""
    rate: float = Field(200, gt=0)
    """Records a second that each key may send in the long run. Each process counts for itself."""
    burst: int = Field(2_000, ge=1)
    """Records that a key which was silent may send at once."""
    max_requests: int = Field(32, ge=1)
    """Requests in progress; more are told to come back. Bounds memory with `max_body_bytes`."""
    timeout_s: float = Field(10, gt=0)
    """Kafka must have taken a request's records within this."""
    metrics_port: int = Field(9110, ge=0, le=65535)
    """Prometheus; 0 is off."""

    @model_validator(mode="after")
    def _a_batch_fits(self) -> Self:
        if self.burst < self.max_batch:
            raise ValueError(
                f"http.burst {self.burst} is under http.max_batch {self.max_batch}: no full batch would fit"
            )
        return self


class ConsoleSettings(Section):
    """`haypile console`: the web page for people."""

    host: str = "127.0.0.1"
    """Address to listen on. It shows what users wrote (redacted): put a proxy with TLS and your own login before it
    where others reach it."""
    port: int = Field(8200, ge=0, le=65535)
    """0 takes a free port."""
    allowed_hosts: list[str] = []
    """Names under which it is reached, besides `host`, `localhost` and 127.0.0.1: requests for any other are refused,
    so that no foreign page can read it through a name of its own (DNS rebinding)."""
    token: SecretStr | None = Field(None, min_length=16)
    """Who knows it may log in and change something (promote, roll back, replay, pause); null: nobody may, here. From
    the environment only."""
    session_s: float = Field(12 * 3_600, gt=0)
    """A login ends after this."""
    interval_s: float = Field(5, ge=1)
    """How often it looks at Kafka and Redis."""


class TracingSettings(Section):
    """OpenTelemetry."""

    endpoint: str | None = None
    """Where spans go (OTLP over HTTP), `http://collector:4318/v1/traces` say; null: none are made, and a record's trace
    context is passed on as it came."""
    share: float = Field(0.01, gt=0, le=1)
    """Of the records that come without a trace context; with one, its own flag decides."""

    _check = field_validator("endpoint")(lambda cls, url: None if url is None else _http_url(url))


class LocalSettings(Section):
    """The local stack (`haypile up`, `haypile demo`). A part whose URL is set elsewhere is not started."""

    data_dir: Path = Path("var/local")
    """Logs, the local Redis, the demo's base model, snapshots, runs and adapters."""
    vllm_python: Path = Path(".venv-vllm/bin/python")
    """Python of the venv that holds vLLM: it cannot share one with the rest."""
    model: Path | None = None
    """Folder of the model that the local vLLM serves; null makes SmolLM2-135M-Instruct from its wheel."""
    kafka_port: int = Field(0, ge=0, le=65535)
    """0 takes a free port."""
    redis_port: int = Field(0, ge=0, le=65535)
    """0 takes a free port."""
    vllm_port: int = Field(0, ge=0, le=65535)
    """0 takes a free port."""
    vllm_kv_cache_gib: int = Field(2, ge=1)
    """Memory for the KV cache of the local vLLM; 2 GiB hold tens of full contexts of SmolLM2-135M."""
    ready_s: float = Field(600, gt=0)
    """Longest start of one part. vLLM takes 40-100 s on two idle cores, minutes on busy ones; one that fails ends."""


class Settings(BaseSettings):
    """Everything. See each section."""

    model_config = SettingsConfigDict(
        env_prefix="HAYPILE_",
        env_nested_delimiter="__",
        env_parse_none_str="null",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    ingest: IngestSettings = IngestSettings()
    judge: JudgeSettings = JudgeSettings()
    screen: ScreenSettings = ScreenSettings()
    buffer: BufferSettings = BufferSettings()
    answer: AnswerSettings = AnswerSettings()
    reward: RewardSettings = RewardSettings()
    trigger: TriggerSettings = TriggerSettings()
    training: TrainingSettings = TrainingSettings()
    serving: ServingSettings = ServingSettings()
    worker: WorkerSettings = WorkerSettings()
    http: HttpSettings = HttpSettings()
    console: ConsoleSettings = ConsoleSettings()
    tracing: TracingSettings = TracingSettings()
    local: LocalSettings = LocalSettings()
    trainer_metrics_port: int = Field(9109, ge=0, le=65535)
    """Prometheus of the trainer; 0 is off."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Of haypile's own loggers."""
    log_format: Literal["text", "json"] = "text"
    """`json`: an object a line, with the fields of each event."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags (which come in as `init`) > environment > file; no dotenv, no secrets folder."""
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls, yaml_file=config_file())


CONFIG_VARIABLE = "HAYPILE_CONFIG"


def config_file() -> Path | None:
    """The settings file: `HAYPILE_CONFIG` (set by `--config`, inherited by child processes), else ./haypile.yaml."""
    named = os.environ.get(CONFIG_VARIABLE)
    if named:
        return Path(named)
    default = Path("haypile.yaml")
    return default if default.exists() else None


def load_settings(flags: Mapping[str, Any] | None = None) -> Settings:
    """Settings of this process; `flags` is a nested mapping that beats all else.

    Raises `SettingsError` with one line that names the key, where it comes from and what is wrong.
    """
    _check_file(config_file())
    _check_environment(os.environ)
    try:
        return Settings(**dict(flags or {}))
    except ValidationError as error:
        problems = "; ".join(_describe(e["loc"], e["msg"], e["type"]) for e in error.errors())
        raise SettingsError(f"settings: {problems}") from None
    except PydanticSettingsError as error:
        raise SettingsError(f"settings: {error}") from None


def _describe(loc: tuple[int | str, ...], message: str, kind: str) -> str:
    key = ".".join(str(part) for part in loc)
    if kind == "extra_forbidden":
        return f"{key} is not a setting (see `haypile config show`)"
    return f"{key}: {message.removeprefix('Value error, ')}"


def _check_environment(environ: Mapping[str, str]) -> None:
    for name in environ:
        if not name.upper().startswith("HAYPILE_") or name.upper() == CONFIG_VARIABLE:
            continue
        top = name[len("HAYPILE_") :].lower().split("__")[0]
        if top not in Settings.model_fields:
            raise SettingsError(
                f"settings: the environment variable {name} is not a setting (see `haypile config show`)"
            )


def _check_file(path: Path | None) -> None:
    if path is None:
        return
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings: cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"settings: {path} is not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return
    if not isinstance(content, dict):
        raise SettingsError(f"settings: {path} must be a mapping of sections")
    for name, section in content.items():
        for key in _secrets(name, section):
            variable = f"HAYPILE_{str(name).upper()}__{key.upper()}"
            raise SettingsError(f"settings: {name}.{key} does not belong in {path}; set {variable} in the environment")


def _secrets(name: object, section: object) -> list[str]:
    """The keys of a section of the file that hold a secret."""
    field = Settings.model_fields.get(str(name))
    if not isinstance(section, dict) or field is None:
        return []
    fields = getattr(field.annotation, "model_fields", {})
    found = [key for key in section if key in fields and "SecretStr" in str(fields[key].annotation)]
    url = section.get("url")
    if isinstance(url, str) and urlsplit(url).password:
        found.append("url")
    return found
