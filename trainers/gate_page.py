"""The gate's report as one HTML page: no script, nothing from elsewhere, inline SVG. Pure.

Prompts and answers are hostile text. All text goes through `html.escape`, and the page forbids by its own policy (CSP)
everything but its style, so that not even a mistake here would run anything.
"""

from collections.abc import Sequence
from html import escape

from trainers.gate_plots import bars, intervals, scatter
from trainers.verdict import Comparison, GateReport, Rate

WORST = 10
"""Losses that are shown with their texts."""
MAX_CHARS = 4_000
"""Of a text that is shown; gate.json has all of it."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5c6675; --line: #d5dae2; --back: #fff; --card: #f6f7f9;
  --win: #14804a; --loss: #b3261e; --tie: #8a93a2; --mark: #2457c5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #a3acba; --line: #3a4250; --back: #14181f;
  --card: #1d232c; --win: #4cc38a; --loss: #ff8a80; --tie: #7d8795; --mark: #8ab4ff; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 0 auto;
  max-width: 62rem; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.4rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p { margin: .3rem 0 .8rem; } .soft { color: var(--soft); }
.verdict { border-left: .4rem solid; background: var(--card); padding: .8rem 1rem; margin: 1rem 0; }
.verdict b { display: block; font-size: 1.15rem; }
.yes { border-color: var(--win); } .yes b { color: var(--win); }
.no { border-color: var(--loss); } .no b { color: var(--loss); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .9rem; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
svg text.strong { fill: var(--ink); } .axis { stroke: var(--line); }
.half { stroke: var(--soft); stroke-dasharray: 4 3; }
.win { fill: var(--win); } .loss { fill: var(--loss); } .tie { fill: var(--tie); }
.dot { fill-opacity: .65; } .mark { fill: var(--mark); stroke: var(--mark); }
.scroll { overflow-x: auto; } .scroll > svg { min-width: 34rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 600; }
details { border: 1px solid var(--line); border-radius: .4rem; padding: .5rem .8rem; margin: .5rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); padding: .6rem .8rem; margin: .3rem 0;
  font: 13px/1.45 ui-monospace, monospace; }
"""


def page(report: GateReport, verdicts: tuple[str, str] = ("Promote", "Reject")) -> str:
    """The page. `report.rows` may be empty: then what needs them is left out. `verdicts`: words for yes and no."""
    hard = [row for row in report.rows if row.set == "hard"]
    parts = [
        f"<h1>{_text(report.challenger)} against {_text(report.champion)}</h1>",
        f'<p class="soft">{_how(report)}</p>',
        _verdict(report, verdicts),
        "<h2>Win rate of the challenger</h2>",
        _intervals(report),
        _lengths(report),
        "<h2>Won, tied, lost</h2>",
        f'<figure class="scroll">{bars(_shares(report))}</figure>',
    ]
    if hard:
        parts += ["<h2>Answer by answer</h2>", f'<div class="pair">{_ratings(hard)}{_by_length(hard)}</div>']
    if len(report.categories) > 1:
        parts += ["<h2>By category</h2>", _categories(report)]
    if report.skipped:
        parts += ["<h2>Prompts that could not be compared</h2>", _skipped(report)]
    for name, rows in (("hard", hard), ("everyday", [row for row in report.rows if row.set == "everyday"])):
        worst = sorted((row for row in rows if row.outcome == "loss"), key=_gap)[:WORST]
        if worst:
            parts += [f"<h2>Worst losses on {name} prompts</h2>", *(_loss(row) for row in worst)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Gate: {_text(report.challenger)}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{chr(10).join(parts)}\n</body></html>\n"
    )


def _text(value: str) -> str:
    shown = value if len(value) <= MAX_CHARS else f"{value[:MAX_CHARS]} … ({len(value) - MAX_CHARS} characters more)"
    return escape(shown)


def _how(report: GateReport) -> str:
    by = (
        "each answer was rated alone, the higher reward wins"
        if report.by == "reward"
        else "the judge compared the two answers, in both orders"
    )
    return f"Both answered the same prompts; {by}. Intervals at {report.confidence:.0%}."


def _verdict(report: GateReport, verdicts: tuple[str, str]) -> str:
    kind, word = ("yes", verdicts[0]) if report.promote else ("no", verdicts[1])
    return f'<div class="verdict {kind}"><b>{_text(word)}</b>{_text(report.reason)}</div>'


def _intervals(report: GateReport) -> str:
    rows = [("hard prompts", report.win_rate, report.lower, report.upper)]
    fair = report.length_controlled
    rows.append(("hard prompts, at equal length", fair.win_rate, fair.lower, fair.upper))
    marks = []
    if report.everyday is not None:
        day = report.everyday
        rows.append((f"everyday prompts (bound {day.min_lower_bound:g})", day.win_rate, day.lower, day.upper))
        same = day.length_controlled
        rows.append(("everyday prompts, at equal length", same.win_rate, same.lower, same.upper))
        marks = [(2, day.min_lower_bound), (3, day.min_lower_bound)]
    used = "at equal length" if report.decided_on == "length_controlled" else "as it is"
    caption = f"<figcaption>The verdict takes the win rate {used}.</figcaption>"
    return f'<figure class="scroll">{intervals(rows, marks)}{caption}</figure>'


def _lengths(report: GateReport) -> str:
    effect = report.length_controlled.effect
    liking = "longer answers win" if effect > 0 else "shorter answers win" if effect < 0 else "length explains nothing"
    told = (
        f"Mean length: champion {report.champion_length:.0f}, challenger {report.challenger_length:.0f} characters. "
        f"Effect of length: {effect:+.2f} log-odds a unit of relative difference ({liking})."
    )
    if report.positions is not None:
        place = report.positions
        told += (
            f" The judge gives the answer shown first {place.first_share:.2f} on average (0.50 is no liking for a"
            f" place); both orders name the same answer for {place.agree:.0%} of the prompts; {place.label_mass:.2f} of"
            " its probability is on A and B."
        )
    elif report.champion_reward is not None and report.challenger_reward is not None:
        told += f" Mean reward: champion {report.champion_reward:.3f}, challenger {report.challenger_reward:.3f}."
    return f"<p>{told}</p>"


def _shares(report: GateReport) -> list[tuple[str, int, int, int]]:
    found = [("hard", report.wins, report.ties, report.losses)]
    if report.everyday is not None:
        found.append(("everyday", report.everyday.wins, report.everyday.ties, report.everyday.losses))
    return found


def _ratings(rows: Sequence[Comparison]) -> str:
    if rows[0].first is not None:
        points = [(row.first[0], 1 - row.first[1], row.outcome) for row in rows if row.first is not None]
        names = ("champion's share, shown first", "champion's share, shown second")
        plot = scatter(points, *names, diagonal=True, limits=(0.0, 1.0))
        told = "The two orders of each pair; a judge without a liking for a place is on the line."
    else:
        points = [
            (row.champion_reward, row.challenger_reward, row.outcome)
            for row in rows
            if row.champion_reward is not None and row.challenger_reward is not None
        ]
        plot = scatter(points, "champion's reward", "challenger's reward", diagonal=True)
        told = "Rewards of each prompt; above the line the challenger's answer is rated higher."
    return f"<figure>{plot}<figcaption>{told}</figcaption></figure>"


def _by_length(rows: Sequence[Comparison]) -> str:
    points = [(float(row.lengths[1] - row.lengths[0]), _gap(row), row.outcome) for row in rows]
    of = "preference above one half" if rows[0].preference is not None else "challenger's reward minus champion's"
    plot = scatter(points, "challenger's characters minus champion's", of, zero=True)
    told = "Length against outcome: a slope says that length pays."
    return f"<figure>{plot}<figcaption>{told}</figcaption></figure>"


def _gap(row: Comparison) -> float:
    if row.preference is not None:
        return row.preference - 0.5
    return (row.challenger_reward or 0.0) - (row.champion_reward or 0.0)


def _categories(report: GateReport) -> str:
    def line(name: str, rate: Rate) -> str:
        return (
            f"<tr><td>{_text(name or '(none)')}</td><td>{rate.prompts}</td><td>{rate.wins}</td><td>{rate.ties}</td>"
            f"<td>{rate.losses}</td><td>{rate.win_rate:.2f}</td><td>{rate.lower:.2f} to {rate.upper:.2f}</td></tr>"
        )

    head = "".join(f"<th>{name}</th>" for name in ("", "prompts", "won", "tied", "lost", "win rate", "interval"))
    body = "".join(line(name, rate) for name, rate in report.categories.items())
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _skipped(report: GateReport) -> str:
    body = "".join(f"<tr><td>{_text(name)}</td><td>{count}</td></tr>" for name, count in report.skipped.items())
    return f'<div class="scroll"><table><tr><th>reason</th><th>prompts</th></tr>{body}</table></div>'


def _loss(row: Comparison) -> str:
    if row.preference is not None:
        figures = f"preference for the challenger {row.preference:.2f}"
    else:
        figures = f"reward {row.champion_reward:.2f} against {row.challenger_reward:.2f}"
    folded = " ".join(row.prompt.split())
    first = folded if len(folded) <= 100 else f"{folded[:99]}…"
    return (
        f"<details><summary>{figures}: {_text(first)}</summary>"
        f"<p class=soft>Prompt</p><pre>{_text(row.prompt)}</pre>"
        f"<p class=soft>Champion, {row.lengths[0]} characters</p><pre>{_text(row.champion_answer)}</pre>"
        f"<p class=soft>Challenger, {row.lengths[1]} characters</p><pre>{_text(row.challenger_answer)}</pre></details>"
    )
