"""Every record that flows, in the order in which it flows. JSON on Kafka, `msgspec.Struct` in code.

Unknown fields are ignored on decode; a missing or wrong required field raises `msgspec.ValidationError`.
This module imports neither faust nor redis nor torch (tested).
"""

from typing import Annotated, Literal, TypeVar

import msgspec

Role = Literal["system", "user", "assistant", "tool"]
Split = Literal["train", "eval"]
Outcome = Literal[
    "admitted",
    "below_threshold",
    "low_quality",
    "near_duplicate",
    "category_full",
    "evicted",
    "held_out",
    "exact_repeat",
    "contaminated",
    "too_short",
    "too_long",
    "wrong_language",
    "predicted_below",
    "unreadable_again",
    "other_judge",
    "forgotten",
]
"""`predicted_below`: the judge was not asked (`agents.screen`). `unreadable_again`: a member that the next judge cannot
read (`agents.rescore`). Not published: `other_judge` (the record is rated again) and `forgotten` (nothing new is
written about what was forgotten)."""
Phase = Literal["queued", "sft", "dpo", "gate", "promote", "done", "failed", "rejected"]


class Message(msgspec.Struct, frozen=True):
    """One turn of an OpenAI chat list."""

    role: Role
    content: str


class RawPrompt(msgspec.Struct, omit_defaults=True):
    """`prompts.raw`: what any app may write. Exactly one of `prompt` and `messages` is given."""

    prompt: str | None = None
    messages: list[Message] | None = None
    id: str | None = None
    user_id: str | None = None
    source: str | None = None
    ts: str | int | float | None = None
    """RFC 3339 text or epoch milliseconds."""
    response: str | None = None
    """What production answered."""
    feedback: float | None = None
    """-1..1, what the user thought of `response`."""
    metadata: dict[str, str] = {}


class AcceptedPrompt(msgspec.Struct, kw_only=True):
    """`prompts.accepted`: a valid, normalised, redacted prompt that was not seen before."""

    id: str
    """The given id, or `topic:partition:offset`: the same on every redelivery."""
    prompt_id: str
    """SHA-256 (hex) of the normalised conversation: what exact repeats are found by."""
    messages: list[Message]
    """The last one has the role `user`."""
    split: Split = "train"
    """`eval` for the share set aside for evaluation; never trained on."""
    ts: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
    """Epoch milliseconds (64 bits, like Kafka's)."""
    user_id: str | None = None
    source: str | None = None
    response: str | None = None
    feedback: float | None = None
    metadata: dict[str, str] = {}
    redacted: dict[str, int] = {}
    """How many spans of each kind were replaced."""
    origin: str | None = None
    """Where the raw record stands: `topic:partition:offset`."""
    language: str | None = None
    """ISO 639 code of the user's text; null where the detector is not sure (or its text is no language: `zxx`)."""
    tokens: int | None = None
    """Length of the conversation, by the tokenizer of the settings or estimated."""


class ScoredPrompt(AcceptedPrompt, kw_only=True):
    """`prompts.scored`: with the judge's answers."""

    difficulty: float
    """1..9, the mean of the judge's distribution."""
    quality: float
    """1..9, the same."""
    category: str
    label_mass: float
    """0..1, probability that the judge put on the labels at all (the least of its answers)."""
    judge: str
    """Id of the judge: scores of two judges are never compared."""
    distribution: dict[str, list[float]] = {}
    """What the judge answered to each question: the probability of each label among the labels, in their order (four
    decimals). Empty: a record from before this field."""
    seen_chars: int | None = None
    """How much of the prompt the judge saw, in characters of the text that it is shown."""


def accepted(prompt: AcceptedPrompt) -> AcceptedPrompt:
    """The prompt as it was before any judge rated it."""
    return AcceptedPrompt(**{name: getattr(prompt, name) for name in AcceptedPrompt.__struct_fields__})


class CuratedOutcome(msgspec.Struct, kw_only=True):
    """`prompts.curated`: what became of a record, with the numbers that decided."""

    id: str
    outcome: Outcome
    rank_key: float | None = None
    threshold: float | None = None
    """Rank key to beat at that moment; null while the buffer has room."""
    detail: str | None = None
    """The other record (near duplicate, exact repeat), the category, the benchmark, the language."""
    value: float | None = None
    """What failed, where that is a number: quality, similarity, share of n-grams, tokens, members of the category."""
    bound: float | None = None
    """What `value` was held against."""
    by: str | None = None
    """Of an eviction: the id that was admitted instead."""
    origin: str | None = None
    """Where the raw record stands (`topic:partition:offset`), when it was refused at `ingest`."""
    judge: str | None = None
    """Among whose ratings it competed; null for what never reached a buffer."""
    ts: int
    """Epoch milliseconds."""


class DeadLetter(msgspec.Struct, kw_only=True):
    """`prompts.dead`: the original bytes and why they could not go on."""

    reason: str
    error: str
    topic: str
    partition: int
    offset: int
    value: bytes
    """Base64 in JSON."""
    left_out: int = 0
    """Bytes of a value that does not fit `kafka.max_message_bytes` in base64: then `value` is empty, and what it was is
    in the source topic only."""
    ts: int


class Forgotten(msgspec.Struct, kw_only=True):
    """`prompts.forgotten`: what must not be used any more (`streams.forgotten`). The newest record of a key counts."""

    kind: Literal["user", "prompt"]
    """`prompt` is a record's id or a prompt_id."""
    digest: str
    """Of the id, hex; the id itself is not kept."""
    salt: str
    """Of the digest, hex."""
    check: str
    """Of the key that the digest was made with: a process that has another key notices that it would find nothing."""
    until: int
    """Epoch milliseconds: what says by its `ts` that it is older is forgotten, whenever it comes."""
    ends: dict[str, int] = {}
    """`topic:partition` of `prompts.raw` → the next offset then: what stands before is forgotten, whatever its `ts`."""
    future: bool = False
    """What comes later, too."""
    done: int | None = None
    """Epoch milliseconds since which it is out of everything that is stored; null: not yet."""
    ts: int
    """Of the request, epoch milliseconds."""


class Candidate(msgspec.Struct, kw_only=True):
    """An answer to a member's prompt with its reward."""

    text: str
    reward: float
    origin: Literal["teacher", "production"]
    model: str | None = None


class Member(msgspec.Struct, kw_only=True):
    """An item of the buffer."""

    prompt: ScoredPrompt
    rank_key: float
    admitted_at: int
    """Epoch milliseconds."""
    near_duplicates: int = 0
    """How many alike were refused or replaced in its favour."""
    candidates: list[Candidate] = []
    """Empty until `answer` has been there."""


class TrainRequest(msgspec.Struct, kw_only=True):
    """`train.requests`: one run to do. The run id is the request's identity."""

    run_id: str
    snapshot: str
    """Folder (local path or fsspec URL) with `manifest.json`."""
    reasons: list[str]
    base_model: str
    parent_adapter: str | None = None
    """Registry version that training starts from; null starts from the base model."""
    requested_at: int
    fencing: int = 0
    """Number of the trigger's lease: a request with a lower number than one already seen is stale."""


class TrainEvent(msgspec.Struct, kw_only=True):
    """`train.events`: a run reached a phase."""

    run_id: str
    phase: Phase
    metrics: dict[str, float | int | str | bool | None] = {}
    ts: int


class Feedback(msgspec.Struct, kw_only=True):
    """`prompts.feedback`: what a user thought of the answer to an earlier prompt. Keyed by the prompt's id."""

    id: str
    """Of the prompt."""
    feedback: float
    """-1..1."""
    source: str | None = None
    ts: int
    """Epoch milliseconds."""


T = TypeVar("T")


def encode(record: msgspec.Struct) -> bytes:
    """JSON bytes of a record."""
    return msgspec.json.encode(record)


_decoders: dict[type, msgspec.json.Decoder[object]] = {}


def decode(kind: type[T], value: bytes) -> T:
    """The record in `value`. Raises `msgspec.MsgspecError` and nothing else, whatever the bytes."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders.setdefault(kind, msgspec.json.Decoder(kind))
    try:
        return decoder.decode(value)  # type: ignore[return-value]
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise msgspec.DecodeError("nested too deeply") from None
