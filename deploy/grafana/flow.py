"""Does it flow? Records, lag, latency, dependencies."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import GREEN, RED, YELLOW, Panel, bars, board, fill, lines, number, states


def flow() -> Dashboard:
    """The dashboard."""
    made = board(
        "flow", "flow", "Records from Kafka to the buffer: how many, how fast, what waits for what.", per_hop=True
    )
    return fill(
        made,
        {
            "": _now(),
            "Records": _records(),
            "What waits, and for what": _waiting(),
            "The judge": _judge(),
            "Over HTTP": _http(),
            "Machines": _machines(),
        },
    )


def _now() -> list[Panel]:
    return [
        number(
            "Records in",
            "Raw records that ingest is done with, a second.",
            'sum(hop_outcome:haypile_records:rate5m{hop="ingest"}) or vector(0)',
            "ops",
        ),
        number(
            "Waiting",
            "Records of all topics that no worker has taken yet.",
            "sum(topic:haypile_lag_records:sum) or vector(0)",
            "short",
            ((None, GREEN), (1_000, YELLOW), (100_000, RED)),
        ),
        number(
            "Dead letters",
            "Share of the last quarter of an hour's records that was diverted, of the worst hop.",
            "max(hop:haypile_dead_letters:share15m) or vector(0)",
            "percentunit",
            ((None, GREEN), (0.01, YELLOW), (0.05, RED)),
        ),
        number(
            "Dependencies down",
            "Dependencies that no worker reaches.",
            "count(max by (dependency) (haypile_dependency_up) == 0) or vector(0)",
            "short",
            ((None, GREEN), (1, RED)),
        ),
        number(
            "Degraded",
            "Things that the processes themselves call degraded; `haypile status` says which and since when.",
            "count(count by (what) (haypile_degraded_since_seconds)) or vector(0)",
            "short",
            ((None, GREEN), (1, YELLOW)),
        ),
        number(
            "Alerts",
            "Alerts of haypile that fire.",
            'count(ALERTS{alertname=~"Haypile.*", alertstate="firing"}) or vector(0)',
            "short",
            ((None, GREEN), (1, RED)),
        ),
    ]


def _records() -> list[Panel]:
    return [
        lines(
            "Records by hop",
            "What each hop is done with, a second. Where a later hop does less than an earlier one, records wait.",
            {"{{hop}}": 'sum by (hop) (hop_outcome:haypile_records:rate5m{hop=~"$hop", outcome!="evicted"})'},
            "ops",
        ),
        lines(
            "Outcomes",
            "What becomes of records, a second.",
            {"{{hop}} {{outcome}}": 'sum by (hop, outcome) (hop_outcome:haypile_records:rate5m{hop=~"$hop"})'},
            "ops",
            stacked=True,
        ),
        lines(
            "Dead letters by reason",
            "Records diverted, a second. `haypile dlq list` has them.",
            {"{{hop}} {{reason}}": "sum by (hop, reason) (rate(haypile_dead_letters_total[5m]))"},
            "ops",
            stacked=True,
        ),
    ]


def _waiting() -> list[Panel]:
    return [
        lines(
            "Lag",
            "Records of a topic that no worker has taken yet.",
            {"{{topic}}": "topic:haypile_lag_records:sum"},
            "short",
        ),
        bars(
            "Lag by partition",
            "The ten partitions that are furthest behind. One alone points to its worker.",
            {"{{topic}} {{partition}}": "topk(10, min by (topic, partition) (haypile_lag_records))"},
            "short",
            bounds=((None, GREEN), (1_000, YELLOW), (100_000, RED)),
        ),
        lines(
            "In progress",
            "Records taken and not yet acknowledged, up to worker.window for each hop of a process.",
            {"{{hop}}": 'sum by (hop) (haypile_records_in_flight{hop=~"$hop", instance=~"$instance"})'},
            "short",
        ),
        lines(
            "Time of a record",
            "From taking a record to being done with it, waiting included: the median and the slowest twentieth.",
            {
                "{{hop}} p95": 'hop:haypile_record_seconds:p95_5m{hop=~"$hop"}',
                "{{hop}} p50": 'hop:haypile_record_seconds:p50_5m{hop=~"$hop"}',
            },
            "s",
        ),
        lines(
            "Failed attempts",
            "Attempts that failed because of a dependency, a second; their records wait.",
            {"{{hop}}": 'sum by (hop) (rate(haypile_retries_total{hop=~"$hop", instance=~"$instance"}[5m]))'},
            "ops",
        ),
        states(
            "Dependencies",
            "Whether any worker reaches it.",
            {"{{dependency}}": "max by (dependency) (haypile_dependency_up)"},
            {1: ("up", GREEN), 0: ("down", RED)},
        ),
    ]


def _judge() -> list[Panel]:
    return [
        lines(
            "Ratings",
            "Prompts that the judge rates, a second.",
            {"ratings": "sum(rate(haypile_judge_seconds_count[5m]))"},
            "ops",
        ),
        lines(
            "Time of a rating",
            "The slowest twentieth.",
            {"p95": "judge:haypile_judge_seconds:p95_5m"},
            "s",
        ),
        lines(
            "Tokens to the judge",
            "A second, by vLLM's count; what its prefix cache saves is not taken off.",
            {"tokens/s": "sum(rate(haypile_judge_prompt_tokens_total[5m]))"},
            "short",
        ),
        lines(
            "Queue of vLLM",
            "Requests that vLLM runs and that wait in it. Many that wait: more servers, or a lower judge.concurrency.",
            {
                "{{instance}} running": "sum by (instance) (vllm:num_requests_running)",
                "{{instance}} waiting": "sum by (instance) (vllm:num_requests_waiting)",
            },
            "short",
        ),
    ]


def _http() -> list[Panel]:
    return [
        lines(
            "Requests",
            "What `haypile http` answers, a second. 429: a key is over its limit; 503: Kafka did not take it.",
            {"{{path}} {{status}}": "sum by (path, status) (rate(haypile_http_requests_total[5m]))"},
            "ops",
            stacked=True,
        ),
        lines(
            "Time of a request",
            "The slowest twentieth. It includes Kafka's word that it has the record.",
            {
                "{{path}} p95": "histogram_quantile(0.95,"
                " sum by (path, le) (rate(haypile_http_request_seconds_bucket[5m])))"
            },
            "s",
        ),
    ]


def _machines() -> list[Panel]:
    return [
        lines(
            "Memory",
            "Resident memory of the processes. It is bounded by worker.window: a steady rise is a fault.",
            {"{{job}} {{instance}}": 'process_resident_memory_bytes{job=~"haypile-.*", instance=~"$instance"}'},
            "bytes",
        ),
        lines(
            "Memory of Redis",
            "What it uses and what it may use. At the limit it refuses writes.",
            {"used": "max(haypile_redis_memory_bytes)", "limit": "max(haypile_redis_memory_limit_bytes)"},
            "bytes",
        ),
        lines(
            "Disks",
            "How full the file systems are that haypile writes to.",
            {"{{folder}} {{instance}}": 'instance_folder:haypile_disk_used:ratio{instance=~"$instance"}'},
            "percentunit",
            most=1,
            bounds=((0.9, RED),),
        ),
    ]
