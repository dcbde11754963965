"""The whole story of one prompt, as `haypile explain` tells it."""

import asyncio
from typing import Any

from nicegui import ui

from deploy.console.context import Context
from deploy.console.pages.buffer import member_link
from deploy.console.parts import axis, card, chart, frame, legend, pair, problem, tag, text
from deploy.evidence import gather
from deploy.explain import Story, sentence, tell
from streams.errors import HaypileError

SECONDS = 15.0
"""Longest search in the topics; `haypile explain --seconds` takes as long as it is told."""


def register(context: Context) -> None:
    """The page `/prompt?id=…`."""

    @ui.page("/prompt")
    def prompt(id: str = "") -> None:
        with frame(context, "/buffer", "One prompt"):
            text(id, "hp-mono")
            body = ui.element("div").classes("hp-rows").style("gap: 16px")
            with body:
                text("Looking in the buffer, the topics, the snapshots and the runs …", "hp-note")

        async def load() -> None:
            try:
                # Its own loop in a thread: what it reads from files and Kafka must not hold up this one.
                async with context.searches:
                    story = await asyncio.to_thread(lambda: tell(asyncio.run(gather(context.settings, id, SECONDS))))
            except HaypileError as error:
                body.clear()
                with body:
                    problem(str(error))
                return
            body.clear()
            with body:
                _show(story, context)

        ui.timer(0.05, load, once=True)


def _show(story: Story, context: Context) -> None:
    with card():
        text(story.now[:1].upper() + story.now[1:], "hp-verdict hp-wrap")
        for message in story.text:
            text(message["role"], "hp-muted hp-small")
            text(message["content"], "hp-text")
        if story.redacted:
            hidden = ", ".join(f"{count} {kind}" for kind, count in sorted(story.redacted.items()))
            text(f"Redacted: {hidden}", "hp-muted hp-small")
    with ui.element("div").classes("hp-grid"):
        if story.judged:
            _judged(story.judged)
        with card("Where it came from"):
            for name, value in story.came.items():
                if value is None or name == "in_the_log":
                    continue
                pair(name.replace("_", " "), context.mask.user(str(value)) if name == "user_id" else value)
            for given in story.feedback:
                pair("feedback", f"{given['feedback']:+.2f} at {given['at']}")
        with card("What became of it"):
            if not story.history:
                text("No outcome is in the log.", "hp-muted")
            for event in story.history:
                pair(event["at"], sentence(event))
        for place in story.buffer:
            with card("In the buffer" if place["buffer"] == "main" else "In the held-out buffer"):
                pair("place", f"{place['place']:,} of {place['of']:,} (capacity {place['capacity']:,})")
                pair("rank key", f"{place['rank_key']:.4f}")
                pair("admitted", place["admitted_at"])
                pair("alike to it", f"{place['near_duplicates']} refused or replaced in its favour")
                rewards = ", ".join(f"{reward:.2f}" for reward in place["rewards"])
                pair("answers", f"rewards {rewards}" if rewards else "none yet")
        if story.near:
            with card("Others, because of it"):
                for event in story.near:
                    with ui.element("div").classes("hp-row pair"):
                        link = ui.element("a").classes("hp-mono")
                        link.props["href"] = member_link(event["id"])
                        with link:
                            text(event["id"], tag="span")
                        text(sentence(event), "hp-wrap")
        if story.snapshots or story.runs:
            with card("Who learned from it"):
                for found in story.snapshots:
                    pair(found["run_id"], f"row {found['row']} of {found['of']} ({found['split']})")
                for run in story.runs:
                    pair(run["run_id"], f"{run['phase'] or 'no event in the log'}, by {run['how']}")
    if story.not_known:
        with card("Not known"):
            for line in story.not_known:
                text(line, "hp-muted hp-wrap")


def _judged(judged: dict[str, Any]) -> None:
    with card("What the judge said"):
        with ui.element("div").classes("hp-line"):
            tag(f"difficulty {judged['difficulty']:.2f}", "now")
            tag(f"quality {judged['quality']:.2f}")
            tag(judged["category"])
        pair("judge", judged["judge"], "hp-mono")
        pair("on the labels", f"{judged['label_mass']:.2f} of its probability")
        if judged["seen_chars"] is not None:
            pair("it saw", f"{judged['seen_chars']:,} of {judged['chars']:,} characters")
        ratings = {
            name: judged["distribution"][name] for name in ("difficulty", "quality") if name in judged["distribution"]
        }
        if ratings:
            _distribution(ratings)


def _distribution(ratings: dict[str, dict[str, float]]) -> None:
    labels = list(next(iter(ratings.values())))
    series = [
        {"name": name, "type": "bar", "data": [shares.get(label, 0.0) for label in labels]}
        for name, shares in ratings.items()
    ]
    chart(
        {
            "grid": {"left": 40, "right": 8, "top": 34, "bottom": 22},
            "legend": legend(itemWidth=10),
            "xAxis": axis(type="category", data=labels),
            "yAxis": axis(type="value", min=0),
            "series": series,
        },
        "Probability of each rating",
        low=True,
    )
