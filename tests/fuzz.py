"""Malformed records through the frame that every record goes through: decoder, normaliser, redaction, dead letters.

`python -m tests.fuzz --records 1000000 --seed 1` (`make fuzz`) mutates valid records and gives each to a real `Hop`
with the real `Ingest`; only Redis and the broker are replaced by dictionaries, which get the same bytes as the real
ones. Every record must be accounted for: accepted, refused as a repeat, or a dead letter whose base64 gives back the
exact bytes. Any exception but `InvalidRecord` is a defect. The bytes also go through what else reads records that
strangers can write.
"""

import argparse
import asyncio
import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from agents.hop import Hop
from agents.ingest import Ingest
from agents.rules.contamination import Contamination
from agents.rules.dead_letter_limit import DeadLetterLimit
from agents.scored_log import read_scored
from deploy import intake
from deploy.feeding import key_of, lines_of
from streams.app import Inbound
from streams.metrics import Metrics
from streams.records import (
    AcceptedPrompt,
    CuratedOutcome,
    DeadLetter,
    ScoredPrompt,
    TrainEvent,
    TrainRequest,
    decode,
    encode,
)
from streams.settings import IngestSettings, KafkaSettings, TracingSettings
from streams.topics import topic_names
from streams.tracing import Tracing

NOW_MS = 1_790_000_000_000
TOPICS = topic_names(KafkaSettings())
MAX_BYTES = 200_000

# -- records ---------------------------------------------------------------------------------------------------------

SEEDS: tuple[dict[str, Any], ...] = (
    {"prompt": "Why is the sky blue?"},
    {"id": "a-1", "prompt": "Prove that √2 is irrational — ‘briefly’, please. 😀", "ts": "2026-11-22T10:00:00Z"},
    {
        "id": "b-7",
        "user_id": "u-3",
        "source": "web",
        "ts": 1_789_000_000_000,
        "messages": [
            {"role": "system", "content": "You are terse."},
            {"role": "user", "content": "write to jo@example.com"},
            {"role": "assistant", "content": "done"},
            {"role": "user", "content": "call +49 170 1234567, then?"},
        ],
        "metadata": {"lang": "de", "tier": "pro"},
    },
    {"id": "c", "prompt": "x\ty\r\nz", "response": "production's answer", "feedback": 0.5, "later": [1, {"a": None}]},
)

VALUES: tuple[str, ...] = (
    "null", "true", "0", "-0", "-1", "1e400", "-1e400", "1e-400", "NaN", "-Infinity", "9" * 30, "9" * 400,
    "1" + "0" * 5000, "1.7976931348623157e308", "1e308", "9223372036854775808", "-9223372036854775809",
    "0x1f", "01", "1.", ".5", "+1",
    '""', '" "', '"\\u0000"', '"\\ud800"', '"\\udc00\\ud800"', '"\\ud83d\\ude00"', '"\\u200b\\ufeff"', '"\\x"', "'a'",
    "[]", "{}", "[[[[]]]]",
    '{"role": "user"}', '[{"role": "user", "content": 1}]', '[{"role": "user", "content": "a"}]',
    '"2026-13-45T99:99:99Z"', '"2026-01-01T00:00:00+99:99"', '"0001-01-01T00:00:00+23:59"',
    '"9999-12-31T23:59:59-23:59"',
    '"user"', '{"a": 1}', '{"a": "b", "a": "c"}', "undefined", "", "\x00", "\ufeff",
)  # fmt: skip
"""JSON values, and what looks like one."""

BYTES: tuple[bytes, ...] = (
    b"\x00", b"\xef\xbb\xbf", b"\xff", b"\xfe\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82",
    b"\x80", b"\xf0\x9f\x98", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\n",
    b"\x1b[31m", b"\\u", b"\\ud800", b"/*", b"//",
)  # fmt: skip
"""Pieces that break an encoding or a parser."""

FIELDS = ("prompt", "messages", "id", "user_id", "source", "ts", "response", "feedback", "metadata", "later")


def _valid(rng: random.Random) -> bytes:
    record = dict(rng.choice(SEEDS))
    if "prompt" in record:
        record["prompt"] = f"{record['prompt']} {rng.getrandbits(40)}"
    return json.dumps(record, ensure_ascii=rng.random() < 0.5).encode()


def _bits(value: bytes, rng: random.Random) -> bytes:
    changed = bytearray(value)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(value: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(value) + 1)
    return value[:at] if rng.random() < 0.7 else value[at:]


def _splice(value: bytes, rng: random.Random) -> bytes:
    first, last = sorted((rng.randrange(len(value) + 1), rng.randrange(len(value) + 1)))
    return value[:first] + value[first:last] * rng.choice((0, 2, 3)) + value[last:]


def _insert(value: bytes, rng: random.Random) -> bytes:
    at = rng.choice((0, len(value), rng.randrange(len(value) + 1)))
    return value[:at] + rng.choice(BYTES) * rng.choice((1, 1, 3)) + value[at:]


def _swap(value: bytes, rng: random.Random) -> bytes:
    """Another value (or another type) for a field; or the field twice."""
    fields = {name: json.dumps(field) for name, field in rng.choice(SEEDS).items()}
    for _ in range(rng.choice((1, 1, 2))):
        fields[rng.choice(FIELDS)] = rng.choice(VALUES)
    pairs = [f'"{name}": {text}' for name, text in fields.items()]
    if rng.random() < 0.2:
        pairs.append(f'"{rng.choice(FIELDS)}": {rng.choice(VALUES)}')
    return ("{" + ", ".join(pairs) + "}").encode("utf-8", "surrogatepass")


def _deep(value: bytes, rng: random.Random) -> bytes:
    depth = rng.choice((10, 200, 900, 1100, 3000))
    opened, closed = rng.choice((("[", "]"), ('{"a":', "}")))
    nested = opened * depth + "1" + (closed * depth if rng.random() < 0.7 else "")
    return f'{{"prompt": "a", "{rng.choice(FIELDS)}": {nested}}}'.encode()


def _long(value: bytes, rng: random.Random) -> bytes:
    piece = rng.choice(("a", "é", "😀", "a ", "\\ud83d\\ude00", "\\n", "1", "4111 "))
    text = piece * (rng.choice((1_000, 20_000, MAX_BYTES)) // len(piece.encode()))
    return f'{{"{rng.choice(FIELDS)}": "{text}", "prompt": "{text[:200]}x"}}'.encode()


def _other_encoding(value: bytes, rng: random.Random) -> bytes:
    text = value.decode("utf-8", "replace")
    return text.encode(rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-7", "latin-1", "cp1252")), "replace")


def _noise(value: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice((0, 1, 2, 16, 300)))


_MUTATIONS: tuple[tuple[Callable[[bytes, random.Random], bytes], int], ...] = (
    (_bits, 25), (_cut, 10), (_splice, 12), (_insert, 16), (_swap, 28), (_deep, 1), (_other_encoding, 3), (_noise, 4),
)  # fmt: skip
_LONG_EVERY = 5_000
"""Records of a hundred kilobytes are dear; everything else costs a fraction of a millisecond."""


def record(rng: random.Random) -> bytes:
    """A record that somebody could have written: mostly broken, now and then valid."""
    value = _valid(rng)
    if rng.randrange(_LONG_EVERY) == 0:
        return _long(value, rng)
    mutations, weights = zip(*_MUTATIONS, strict=True)
    for mutate in rng.choices(mutations, weights, k=rng.choice((0, 1, 1, 1, 2, 3))):
        value = mutate(value, rng)
    return value


# -- the path --------------------------------------------------------------------------------------------------------


class _Broker:
    """What was sent for the record at hand, in the bytes that the real producer would send."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []

    async def send(self, topic: str, record: msgspec.Struct, key: str, headers: object = None) -> None:
        key.encode()
        self.sent.append((topic, encode(record)))


class _Seen:
    def __init__(self) -> None:
        self._first: dict[str, str] = {}

    async def first(self, prompt_id: str, id: str) -> str:
        if len(self._first) > 100_000:
            self._first.clear()
        return self._first.setdefault(prompt_id, id)


class _NoPoison:
    async def suspects(self, record: Inbound) -> bool:
        return False


class Fuzz:
    """Counts what becomes of records; `defects` is what must not have happened."""

    def __init__(self) -> None:
        self._broker = _Broker()
        self._fatal: list[BaseException] = []
        metrics = Metrics(CollectorRegistry())
        settings = IngestSettings(max_bytes=MAX_BYTES)
        ingest = Ingest(
            settings,
            TOPICS,
            seen=_Seen(),  # type: ignore[arg-type]
            contamination=Contamination([("bench", "one two three four five six seven eight")], 8, 0.5),
            languages=intake.language_detector(settings),
            count_tokens=intake.token_counter(settings.tokenizer),
            redactor=intake.redactor(settings),
            producer=self._broker,  # type: ignore[arg-type]
            metrics=metrics,
            now_ms=lambda: NOW_MS,
        )
        self._hop = Hop(
            "ingest",
            ingest,
            producer=self._broker,  # type: ignore[arg-type]
            dead_topic=TOPICS.dead,
            metrics=metrics,
            poison=_NoPoison(),  # type: ignore[arg-type]
            limit=DeadLetterLimit(1),
            attempts=1,
            tracing=Tracing(TracingSettings()),
            on_fatal=self._fatal.append,
            now_ms=lambda: NOW_MS,
        )
        self._offset = 0
        self.outcomes: Counter[str] = Counter()
        self.defects: list[str] = []

    async def feed(self, value: bytes) -> str:
        """What became of the record: `accepted`, an outcome of `prompts.curated`, or `dead:` and the reason."""
        self._offset += 1
        self._broker.sent.clear()
        inbound = Inbound(TOPICS.raw, self._offset % 8, self._offset, value, NOW_MS, (("traceparent", b"00"),))
        try:
            await asyncio.wait_for(self._hop(inbound), 60)
            outcome = self._account(value)
            self._read_elsewhere(value)
        except Exception as error:
            outcome = "defect"
            self.defects.append(f"{type(error).__name__}: {error} by {value[:120]!r}")
        self.outcomes[outcome] += 1
        return outcome

    def _account(self, value: bytes) -> str:
        if len(self._broker.sent) != 1:
            raise AssertionError(f"{len(self._broker.sent)} records were sent for it")
        [(topic, sent)] = self._broker.sent
        if topic == TOPICS.dead:
            letter = decode(DeadLetter, sent)
            if letter.value != value:
                raise AssertionError("the dead letter does not hold its bytes")
            if (letter.topic, letter.offset) != (TOPICS.raw, self._offset):
                raise AssertionError("the dead letter names another place")
            if letter.reason in ("unexpected", "poison") or not letter.error:
                raise AssertionError(f"{letter.reason}: {letter.error}")
            return f"dead:{letter.reason}"
        if topic == TOPICS.curated:
            return str(decode(CuratedOutcome, sent).outcome)
        accepted = decode(AcceptedPrompt, sent)
        if topic != TOPICS.accepted or not accepted.messages[-1].content or not accepted.id:
            raise AssertionError(f"{topic} got {accepted}")
        return "accepted"

    @staticmethod
    def _read_elsewhere(value: bytes) -> None:
        read_scored(0, 0, value)
        key_of(value)
        list(lines_of([value], "auto", "fuzz"))
        for kind in (AcceptedPrompt, ScoredPrompt, DeadLetter, TrainRequest, TrainEvent):
            try:
                decode(kind, value)
            except msgspec.MsgspecError:
                pass


async def run(records: int, seed: int, progress: Callable[[int], None] = lambda _: None) -> Fuzz:
    """Feeds `records` records of a seed."""
    rng, fuzz = random.Random(seed), Fuzz()
    for number in range(1, records + 1):
        await fuzz.feed(record(rng))
        if number % 100_000 == 0:
            progress(number)
    return fuzz


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # a line for each of a million dead letters
    started = time.monotonic()
    fuzz = asyncio.run(
        run(options.records, options.seed, lambda n: print(f"{n} after {time.monotonic() - started:.0f} s", flush=True))
    )
    for outcome, count in sorted(fuzz.outcomes.items(), key=lambda item: -item[1]):
        print(f"{count:9d} {outcome}")
    accounted = sum(fuzz.outcomes.values()) - fuzz.outcomes["defect"]
    took = time.monotonic() - started
    print(f"{options.records} records of seed {options.seed}, {accounted} accounted for, in {took:.0f} s")
    for defect in fuzz.defects[:20]:
        print(f"DEFECT {defect}")
    sys.exit(1 if fuzz.defects or accounted != options.records else 0)


if __name__ == "__main__":
    main()
