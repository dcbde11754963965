"""What is kept, what is refused, and whether the judge can be believed."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import GREEN, RED, YELLOW, Panel, bars, board, fill, lines, number, states

MAIN = '{buffer="main"}'


def curation() -> Dashboard:
    """The dashboard."""
    made = board("curation", "curation", "The buffer of the hardest prompts: what gets in, what goes, who decides.")
    return fill(
        made,
        {
            "": _now(),
            "What comes in": _coming_in(),
            "The buffer": _buffer(),
            "Judge and teacher": _judge(),
        },
    )


def _now() -> list[Panel]:
    newest = 'max(haypile_buffer_admission_timestamp_seconds{buffer="main", member="newest"})'
    return [
        number(
            "Filled",
            "Members of the buffer, as a share of its capacity.",
            f"max(haypile_buffer_members{MAIN}) / max(haypile_buffer_capacity{MAIN})",
            "percentunit",
            ((None, YELLOW), (1, GREEN)),
        ),
        number(
            "To get in",
            "Difficulty of the member ranked last: a full buffer admits what is ranked higher.",
            'max(haypile_buffer_difficulty{buffer="main", rank="last"})',
            "none",
            decimals=2,
        ),
        number(
            "Admitted",
            "Prompts admitted, an hour.",
            '3600 * sum(hop_outcome:haypile_records:rate5m{hop="curate", outcome="admitted"}) or vector(0)',
            "short",
        ),
        number(
            "Newest member",
            "How long ago the last prompt was admitted.",
            f"time() - {newest}",
            "s",
            ((None, GREEN), (3_600, YELLOW), (86_400, RED)),
        ),
        number(
            "Answered",
            "Share of the members that have answers; a run needs trigger.min_answered of them.",
            f"max(haypile_buffer_answered) / (max(haypile_buffer_members{MAIN}) > 0)",
            "percentunit",
            ((None, YELLOW), (0.8, GREEN)),
        ),
        number(
            "Judge and labels",
            "Spearman of its ratings and the labels on prompts of known difficulty: 1 is the same order, 0 is none.",
            "min(haypile_judge_anchor_spearman)",
            "none",
            ((None, RED), (0.3, YELLOW), (0.6, GREEN)),
            decimals=2,
        ),
    ]


def _coming_in() -> list[Panel]:
    return [
        lines(
            "What becomes of prompts",
            "Outcomes of ingest, score and curate, a second, without those that only go on to the next hop.",
            {
                "{{outcome}}": "sum by (outcome) (hop_outcome:haypile_records:rate5m"
                '{hop=~"ingest|score|curate", outcome!~"accepted|scored|evicted"})'
            },
            "ops",
            stacked=True,
        ),
        lines(
            "In and out",
            "Prompts admitted and evicted by harder ones, a second. A full buffer evicts one for each that it admits.",
            {"{{outcome}}": 'sum by (outcome) (hop_outcome:haypile_records:rate5m{outcome=~"admitted|evicted"})'},
            "ops",
        ),
        lines(
            "Difficulty of what comes in",
            "Of the rated prompts: the median and the hardest tenth, and what there is to beat.",
            {
                "hardest tenth": "histogram_quantile(0.9, sum by (le) (rate(haypile_judge_difficulty_bucket[5m])))",
                "median": "histogram_quantile(0.5, sum by (le) (rate(haypile_judge_difficulty_bucket[5m])))",
                "to get in": 'max(haypile_buffer_difficulty{buffer="main", rank="last"})',
            },
            "none",
            least=1,
            most=9,
        ),
        lines(
            "Quality",
            "Of the rated prompts: median and worst tenth. Under buffer.min_quality a prompt is refused.",
            {
                "median": "histogram_quantile(0.5, sum by (le) (rate(haypile_judge_quality_bucket[5m])))",
                "worst tenth": "histogram_quantile(0.1, sum by (le) (rate(haypile_judge_quality_bucket[5m])))",
            },
            "none",
            least=1,
            most=9,
            bounds=((3, RED),),
        ),
        lines(
            "Languages",
            "Accepted prompts, a second.",
            {"{{language}}": "sum by (language) (rate(haypile_prompts_language_total[5m]))"},
            "ops",
            stacked=True,
        ),
        lines(
            "Redacted",
            "Spans of personal data and secrets replaced, a second.",
            {"{{kind}}": "sum by (kind) (rate(haypile_redactions_total[5m]))"},
            "ops",
            stacked=True,
        ),
    ]


def _buffer() -> list[Panel]:
    return [
        bars(
            "Members by difficulty",
            "Half a point each.",
            {"{{difficulty}}": "max by (difficulty) (haypile_buffer_difficulty_members)"},
            "short",
            by_label=True,
        ),
        bars(
            "Members by category",
            "One category holds at most buffer.category_share of the capacity.",
            {"{{category}}": "sort_desc(max by (category) (haypile_buffer_category_members))"},
            "short",
        ),
        lines(
            "Members",
            "Of the buffer and of the prompts held out for the gate.",
            {
                "{{buffer}}": "max by (buffer) (haypile_buffer_members)",
                "with answers": "max(haypile_buffer_answered)",
            },
            "short",
        ),
        lines(
            "Age of the members",
            "Since the oldest and the newest member were admitted.",
            {"{{member}}": 'time() - max by (member) (haypile_buffer_admission_timestamp_seconds{buffer="main"})'},
            "s",
        ),
        lines(
            "Answers",
            "Candidate answers attached to members, a second, by origin.",
            {"{{origin}}": "sum by (origin) (rate(haypile_answers_total[5m]))"},
            "ops",
        ),
        states(
            "Another judge",
            "Whether the buffer goes through the next judge, and whether the drift of this one is over its bound.",
            {
                "rescoring": 'max(haypile_rescore_members{state="left"}) > bool 0 or vector(0)',
                "drift alarm": "max(haypile_judge_anchor_alarm)",
            },
            {0: ("no", GREEN), 1: ("yes", YELLOW)},
        ),
    ]


def _judge() -> list[Panel]:
    return [
        lines(
            "How sure the judge is",
            "Probability that it puts on the labels, of the least sure twentieth and in the middle. "
            "Under judge.min_label_mass an answer is no rating.",
            {
                "worst twentieth": "histogram_quantile(0.05, sum by (le) (rate(haypile_judge_label_mass_bucket[5m])))",
                "median": "histogram_quantile(0.5, sum by (le) (rate(haypile_judge_label_mass_bucket[5m])))",
            },
            "percentunit",
            most=1,
            bounds=((0.5, RED),),
        ),
        lines(
            "Anchors",
            "The judge on prompts of known difficulty: mean rating, and its distance to its own first ratings. "
            "A drift says that what serves it has changed.",
            {"mean": "max(haypile_judge_anchor_mean)", "drift": "max(haypile_judge_anchor_drift)"},
            "none",
        ),
        lines(
            "Time of an answer",
            "Candidates and rewards for one member: the median and the slowest twentieth.",
            {
                "p95": "histogram_quantile(0.95, sum by (le) (rate(haypile_answer_seconds_bucket[5m])))",
                "p50": "histogram_quantile(0.5, sum by (le) (rate(haypile_answer_seconds_bucket[5m])))",
            },
            "s",
        ),
    ]
