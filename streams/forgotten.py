"""What must not be used any more, and how a record is matched with it. Pure: `streams.forgotten_log` reads the topic.

A deletion record keeps a digest of the user's or the prompt's id (BLAKE2b, keyed with `kafka.forget_key`, salted; RFC
7693), so that the list of those who asked to be forgotten names nobody. To match, a record's own ids are digested the
same way: a few microseconds a record, and nothing at all while the list is empty.

What is forgotten is what was there until the request. A record that stands in `prompts.raw` before the offsets of the
request, or whose `ts` is not after it, is forgotten however late it comes (a replay, a restored Redis, a second sending
of old data); what the same user sends afterwards is a new record, unless the request says `future`.
"""

import hmac
import os
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b, sha256
from typing import Any

from streams.errors import Fatal
from streams.records import AcceptedPrompt, Forgotten
from streams.settings import KafkaSettings

DIGEST_BYTES = 20
SALT_BYTES = 16


@lru_cache(maxsize=10_000)  # a prompt is looked for at each hop
def digest(key: bytes, salt: bytes, kind: str, id: str) -> str:
    """What a deletion record keeps of an id: hex. `key` has at most 64 bytes, `salt` 16, as BLAKE2b wants them."""
    made = blake2b(
        id.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES, key=key, salt=salt, person=kind.encode()
    )
    return made.hexdigest()


def key_of(kafka: KafkaSettings) -> bytes:
    """The key of the digests: 32 bytes, or none."""
    return sha256(kafka.forget_key.get_secret_value().encode()).digest() if kafka.forget_key is not None else b""


def place_of(origin: str) -> tuple[str, str, int] | None:
    """Topic, `topic:partition` and offset of a place `topic:partition:offset`; None if it is none."""
    partition, _, offset = origin.rpartition(":")
    topic, _, number = partition.rpartition(":")
    return (topic, partition, int(offset)) if topic and number.isdigit() and offset.isdigit() else None


class ForgottenList:
    """All deletion records by their digest. `upto` is the offset of the last record that asked for something."""

    def __init__(self, key: bytes = b"") -> None:
        self._key = key
        self._salts: dict[bytes, None] = {}
        self._found: dict[tuple[str, str], Forgotten] = {}
        self.upto = -1

    @classmethod
    def of(cls, kafka: KafkaSettings) -> "ForgottenList":
        """An empty one with the key of the settings."""
        return cls(key_of(kafka))

    def __bool__(self) -> bool:
        return bool(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def records(self) -> list[Forgotten]:
        """All, in the order in which they were asked for."""
        return sorted(self._found.values(), key=lambda record: record.ts)

    def unfinished(self) -> list[Forgotten]:
        """Those that are not out of everything that is stored yet."""
        return [record for record in self.records() if record.done is None]

    def take(self, record: Forgotten, offset: int = -1) -> None:
        """Adds a record; a later one of the same digest takes its place.

        Raises `Fatal` for a digest made with another key: nothing of it would ever match.
        """
        salt = bytes.fromhex(record.salt)
        if not hmac.compare_digest(record.check, digest(self._key, salt, "check", "")):
            raise Fatal(
                "prompts.forgotten has records made with another kafka.forget_key (HAYPILE_KAFKA__FORGET_KEY): with "
                "this one, what was forgotten would come back"
            )
        self._salts[salt] = None
        self._found[record.kind, record.digest] = record
        if record.done is None:
            self.upto = max(self.upto, offset)

    def request(self, kind: str, id: str, *, ends: Mapping[str, int], future: bool, now_ms: int) -> Forgotten:
        """The deletion record of an id, under the salt that is in use (else a new one). The list is not changed.

        `ends`: the next offset of each `topic:partition` of the raw topic.
        """
        salt = next(iter(self._salts), None) or os.urandom(SALT_BYTES)
        return Forgotten(
            kind="user" if kind == "user" else "prompt",
            digest=digest(self._key, salt, kind, id),
            salt=salt.hex(),
            check=digest(self._key, salt, "check", ""),
            until=now_ms,
            ends=dict(ends),
            future=future,
            ts=now_ms,
        )

    def asked(self, kind: str, id: str) -> Forgotten | None:
        """The record about an id itself."""
        digests = (digest(self._key, salt, kind, id) for salt in self._salts)
        return next((self._found[kind, each] for each in digests if (kind, each) in self._found), None)

    def prompt(self, prompt: AcceptedPrompt) -> Forgotten | None:
        """Why a prompt is forgotten, or None."""
        return self.find(prompt.id, prompt.prompt_id, prompt.user_id, prompt.ts, prompt.origin) if self._found else None

    def row(self, row: Mapping[str, Any]) -> Forgotten | None:
        """Why a row of a snapshot is forgotten, or None. (Rows of before the column `origin` count as older.)"""
        if not self._found:
            return None
        return self.find(row["id"], row["prompt_id"], row.get("user_id"), int(row["ts"]), row.get("origin"))

    def find(
        self, id: str | None, prompt_id: str | None, user_id: str | None, ts: int | None, origin: str | None
    ) -> Forgotten | None:
        """The same for its parts. Without `origin` (where it stands in `prompts.raw`) it counts as older."""
        if not self._found:
            return None
        for kind, given in (("user", user_id), ("prompt", id), ("prompt", prompt_id)):
            record = self.asked(kind, given) if given is not None else None
            if record is not None and self._covers(record, ts, origin):
                return record
        return None

    def _covers(self, record: Forgotten, ts: int | None, origin: str | None) -> bool:
        if record.future or origin is None or (ts is not None and ts <= record.until):
            return True
        place = place_of(origin)
        if place is None:
            return True
        topic, partition, offset = place
        if partition in record.ends:
            return offset < record.ends[partition]
        # A partition that was added later, or a topic of which nothing is known.
        return not any(known.rpartition(":")[0] == topic for known in record.ends)
