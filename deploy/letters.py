"""The dead letters: reading them, and sending them back to where they came from."""

import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from deploy.feeding import Feed
from deploy.kafka import Message, forgotten_in, read_topics
from streams.errors import Fatal
from streams.forgotten import ForgottenList
from streams.records import DeadLetter, Forgotten, decode
from streams.settings import KafkaSettings
from streams.topics import topic_names

TRAIL = "haypile-attempts"
"""Header of a replayed record: a JSON list of its earlier deaths, oldest first. Hops pass headers on."""


@dataclass(frozen=True)
class Letter:
    """A dead letter with the headers that the record had."""

    letter: DeadLetter
    headers: tuple[tuple[str, bytes], ...]

    @property
    def position(self) -> str:
        """Where the record stood: `topic:partition:offset`."""
        return f"{self.letter.topic}:{self.letter.partition}:{self.letter.offset}"

    @property
    def attempts(self) -> list[dict[str, object]]:
        """Deaths before this one."""
        for name, value in self.headers:
            if name == TRAIL:
                try:
                    found = json.loads(value)
                except (ValueError, RecursionError):  # anyone may write headers
                    return []
                return [death for death in found if isinstance(death, dict)] if isinstance(found, list) else []
        return []


def read_letters(kafka: KafkaSettings) -> list[Letter]:
    """All dead letters, as `letters_of` has them. Raises `Transient`."""
    names = topic_names(kafka)
    messages = read_topics(kafka, names.forgotten, names.dead)
    return letters_of((m for m in messages if m.topic == names.dead), forgotten_in(kafka, messages))


def letters_of(messages: Iterable[Message], forgotten: ForgottenList) -> list[Letter]:
    """The dead letters in records of `prompts.dead`, the oldest first; one that was written twice (a redelivery) once,
    one that is forgotten not at all.

    One that was sent back and died again is told by its last death only, which has the others in its trail: else each
    replay would double what the next one sends.
    """
    found: dict[tuple[str, str], Letter] = {}
    for message in messages:
        letter = letter_of(message)
        entry = Letter(letter, message.headers)
        if whose(letter, forgotten) is not None:
            continue
        found.setdefault((entry.position, letter.reason), entry)
    earlier = {attempt.get("at") for entry in found.values() for attempt in entry.attempts}
    last = [entry for entry in found.values() if entry.position not in earlier]
    return sorted(last, key=lambda entry: entry.letter.ts)


def letter_of(message: Message) -> DeadLetter:
    """The dead letter in a record of `prompts.dead`; one of its own for what is none."""
    try:
        return decode(DeadLetter, message.value)
    except msgspec.MsgspecError as error:
        return DeadLetter(
            reason="not_a_dead_letter",
            error=str(error),
            topic=message.topic,
            partition=message.partition,
            offset=message.offset,
            value=message.value,
            ts=0,
        )


def whose(letter: DeadLetter, forgotten: ForgottenList) -> Forgotten | None:
    """Why the record in a dead letter is forgotten, as far as its bytes say whose it is; or None.

    It may be a raw record or one of a later hop; bytes that are no JSON object name nobody.
    """
    if not forgotten:
        return None
    place = f"{letter.topic}:{letter.partition}:{letter.offset}"
    try:
        record = json.loads(letter.value)
    except (ValueError, RecursionError):
        record = {}
    if not isinstance(record, dict):
        record = {}

    def text(name: str) -> str | None:
        value = record.get(name)
        return str(value) if isinstance(value, str | int) else None

    # A raw record says in many ways when it was, or does not: where it stands is enough.
    origin = text("origin") or place
    return forgotten.find(text("id") or place, text("prompt_id"), text("user_id"), None, origin)


def by_reason(letters: Iterable[Letter]) -> dict[str, list[Letter]]:
    """The most frequent reason first."""
    found: dict[str, list[Letter]] = {}
    for entry in letters:
        found.setdefault(entry.letter.reason, []).append(entry)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


@dataclass
class Replayed:
    """What a replay did."""

    sent: int = 0
    failed: int = 0
    refused: list[str] | None = None
    """What was not sent, and why."""


def replay(feed: Feed, letters: Iterable[Letter], edit_with: str | None) -> Replayed:
    """Sends original bytes back to their topics, each with the trail of its deaths in a header.

    `edit_with` is a shell command that gets the bytes on standard input and prints what to send instead; an exit code
    other than 0 leaves the letter where it is. Nothing is removed from `prompts.dead`: replaying twice sends twice,
    which changes nothing for records with an id.
    """
    refused: list[str] = []
    for entry in letters:
        value = entry.letter.value
        if entry.letter.left_out:
            refused.append(f"{entry.position}: its {entry.letter.left_out} bytes are in the source topic only")
            continue
        if edit_with is not None:
            # The operator's own command, as typed; the record comes on standard input, never into the command.
            edited = subprocess.run(edit_with, shell=True, input=value, capture_output=True, check=False)  # nosec B602
            if edited.returncode != 0:
                refused.append(f"{entry.position}: its edit failed")
                continue
            value = edited.stdout
        death = {"reason": entry.letter.reason, "error": entry.letter.error[:200], "ts": entry.letter.ts}
        trail = json.dumps([*entry.attempts, {**death, "at": entry.position}]).encode()
        kept = [(name, header) for name, header in entry.headers if name != TRAIL]
        feed.send(value, entry.position.encode(), entry.letter.topic, [*kept, (TRAIL, trail)])
    feed.flush()
    return Replayed(feed.sent, feed.failed, refused)


def find(letters: Iterable[Letter], position: str) -> Letter:
    """The letter of a place (`topic:partition:offset`); of a record that was sent back from there and died again, its
    last one. Raises `Fatal` when there is none.
    """
    for entry in letters:
        if position in (entry.position, *(death.get("at") for death in entry.attempts)):
            return entry
    raise Fatal(f"no dead letter from {position}; `haypile dlq list` shows the places")
