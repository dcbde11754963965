"""What the topics have said so far. Pure: it is fed messages, and read by the demo's progress lines and its story."""

from collections import Counter
from dataclasses import dataclass, field

import msgspec

from deploy.kafka import Message
from streams.records import CuratedOutcome, DeadLetter, TrainEvent, TrainRequest, decode
from streams.topics import Topics

FINAL = ("done", "failed", "rejected")


@dataclass
class Seen:
    """Outcomes, dead letters, the request and the events of one demo."""

    topics: Topics
    outcomes: dict[str, CuratedOutcome] = field(default_factory=dict)
    """The first outcome of each record; `evicted` comes later and is kept apart."""
    evicted: set[str] = field(default_factory=set)
    dead: dict[tuple[str, int, int], DeadLetter] = field(default_factory=dict)
    """By the place of the record: at least once on the wire means that a letter may come twice."""
    request: TrainRequest | None = None
    events: list[TrainEvent] = field(default_factory=list)

    def take(self, message: Message) -> None:
        """Notes one record of any of the followed topics."""
        try:
            if message.topic == self.topics.curated:
                self._outcome(decode(CuratedOutcome, message.value))
            elif message.topic == self.topics.dead:
                letter = decode(DeadLetter, message.value)
                self.dead[letter.topic, letter.partition, letter.offset] = letter
            elif message.topic == self.topics.requests and self.request is None:
                self.request = decode(TrainRequest, message.value)
            elif message.topic == self.topics.events:
                self.events.append(decode(TrainEvent, message.value))
        except msgspec.MsgspecError:
            return  # not ours; the counts then do not add up, and the demo says so

    def _outcome(self, outcome: CuratedOutcome) -> None:
        if outcome.outcome == "evicted":
            self.evicted.add(outcome.id)
        else:
            self.outcomes.setdefault(outcome.id, outcome)

    @property
    def settled(self) -> int:
        """Records of which it is known what became of them."""
        return len(self.outcomes) + len(self.dead)

    def counts(self) -> Counter[str]:
        """Records by outcome; dead letters as `dead: reason`."""
        found: Counter[str] = Counter(outcome.outcome for outcome in self.outcomes.values())
        found.update(f"dead: {letter.reason}" for letter in self.dead.values())
        return found

    @property
    def final(self) -> TrainEvent | None:
        """The event that ended the run."""
        return next((event for event in self.events if event.phase in FINAL), None)

    def metrics(self) -> dict[str, float | int | str | bool | None]:
        """All metrics of the run's events, later ones winning."""
        found: dict[str, float | int | str | bool | None] = {}
        for event in self.events:
            found |= event.metrics
        return found
