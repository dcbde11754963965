"""Runs the demo: a fresh stack, the sample set into `prompts.raw`, and one training run, followed to its end."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass

from deploy.commands.common import buffer_of, run
from deploy.demo.follow import Seen
from deploy.demo.plan import Sample, load_sample, own_settings_only
from deploy.demo.story import gather, tell
from deploy.feeding import Feed
from deploy.kafka import Follower
from deploy.local.signals import Stopped, stop_on_signals
from deploy.local.stack import Part, Stack
from streams.errors import Fatal, Transient
from streams.settings import Settings, load_settings
from streams.topics import topic_names
from trainers.rundir import RunFolder

STALL_S = 600.0
"""A stage in which nothing moves for this long will not happen. No deadline for the whole: busy machines are slow."""
REPORT_EVERY_S = 10.0
POLL_S = 0.5


@dataclass
class Clock:
    """Progress lines with the time since the start."""

    started: float

    def say(self, text: str) -> None:
        """Prints one line at once."""
        print(f"[{time.monotonic() - self.started:4.0f} s] {text}", flush=True)


def run_demo() -> int:
    """Exit code: 0 for a promoted or rejected challenger, 128 + n on signal n. `Fatal` when a stage did not happen."""
    clock = Clock(time.monotonic())
    flags = own_settings_only(load_settings())
    try:
        with stop_on_signals():
            return _run(flags, clock)
    except Stopped as stopped:
        clock.say(f"{stopped}: all parts have ended")
        return stopped.exit_code


def _run(flags: dict[str, object], clock: Clock) -> int:
    clock.say("starting broker, Redis, vLLM (40-100 s), worker, trainer and console")

    def show(part: Part) -> None:
        if part.state == "ready" and part.ready_after_s is not None:
            clock.say(f"  {part.name} is ready after {part.ready_after_s:.0f} s, {part.address}")
        elif part.state == "starting" and part.child is None and part.name == "vllm" and "making" in part.address:
            clock.say(f"  {part.address} (once; a minute)")

    with Stack(flags, on_change=show, before_start=_forget_earlier_demos) as stack:
        settings = stack.settings
        topics = topic_names(settings.kafka)
        seen = Seen(topics)
        follower = Follower(settings.kafka, [topics.curated, topics.dead, topics.requests, topics.events])
        try:
            watch = Watch(stack, follower, seen, clock)
            sample = load_sample()
            _feed(settings, sample, clock)
            watch.until("curate", lambda: seen.settled >= len(sample.values), lambda: _settling(seen, sample))
            clock.say(_settling(seen, sample))
            watch.until("answer and trigger", lambda: seen.request is not None, lambda: _answering(settings))
            watch.until("train", lambda: seen.final is not None, lambda: training_progress(settings, seen))
        finally:
            follower.close()
        final = seen.final
        if final is None or final.phase == "failed":
            reason = final.metrics.get("reason") or final.metrics.get("error") if final else "it did not end"
            raise Fatal(f"demo: the run failed: {reason} (see {settings.training.work_dir} and the trainer's log)")
        tell(run(gather(settings, seen, sample)))
        clock.say("ending all parts")
    clock.say("done; nothing is left running")
    return 0


def _forget_earlier_demos(settings: Settings) -> None:
    shutil.rmtree(settings.training.registry.parent, ignore_errors=True)


def _feed(settings: Settings, sample: Sample, clock: Clock) -> None:
    with Feed(settings) as feed:
        for value, key in sample.keyed():
            feed.send(value, key)
        feed.flush()
    if feed.failed:
        raise Fatal(f"demo: the broker did not take {feed.failed} records ({feed.last_error})")
    clock.say(f"{feed.sent} records are in {topic_names(settings.kafka).raw}, {sample.bad} of them broken on purpose")


@dataclass
class Watch:
    """Follows the topics while a stage goes on, and says how it goes."""

    stack: Stack
    follower: Follower
    seen: Seen
    clock: Clock

    def until(self, stage: str, happened: Callable[[], bool], progress: Callable[[], str]) -> None:
        """Returns when it happened; raises `Fatal` that names the stage when a part ends or nothing moves any more."""
        moved = reported = time.monotonic()
        latest = ""
        while not happened():
            known = len(self.seen.events), self.seen.request
            for message in self.follower.poll(POLL_S):
                self.seen.take(message)
            self._tell_news(*known)
            self.stack.check()
            now = time.monotonic()
            if now - reported < REPORT_EVERY_S:
                continue
            reported = now
            text = progress()
            if text != latest:
                moved, latest = now, text
                self.clock.say(f"  {text}")
            elif now - moved > STALL_S:
                raise Fatal(f"demo: the stage `{stage}` did not happen; nothing has moved for {STALL_S:g} s: {text}")

    def _tell_news(self, events_before: int, request_before: object) -> None:
        if self.seen.request is not None and request_before is None:
            self.clock.say(f"run {self.seen.request.run_id} is requested: {', '.join(self.seen.request.reasons)}")
        for event in self.seen.events[events_before:]:
            if "step" in event.metrics:
                continue  # a point of a learning curve: the progress line has it
            self.clock.say(f"  {event.run_id}: {event.phase}")


def _settling(seen: Seen, sample: Sample) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in seen.counts().most_common())
    return f"{seen.settled} of {len(sample.values)} records have an outcome: {counts or 'none yet'}"


def _answering(settings: Settings) -> str:
    async def read() -> str:
        async with buffer_of(settings) as buffer:
            stats = await buffer.stats()
        return f"{stats.answered} of {stats.size} members have their answers"

    try:
        return run(read())
    except Transient as error:
        return str(error)


def training_progress(settings: Settings, seen: Seen) -> str:
    if seen.request is None:
        return "no run was requested"
    # Points of the curve come a little later than what they are of.
    phases = [event.phase for event in seen.events if "step" not in event.metrics]
    if not phases:
        return "waiting for the trainer"
    points = RunFolder.of(settings.training.work_dir, seen.request.run_id).points()
    losses = [point for point in points if "loss" in point and point["phase"] == phases[-1]]
    told = f", step {losses[-1]['step']}: loss {losses[-1]['loss']:.3f}" if losses else ""
    return f"{phases[-1]} goes on{told}"
