"""One form for equal conversations, and the id that exact repeats are found by."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

from streams.records import Message

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def normalise(messages: Sequence[Message]) -> list[Message]:
    """Unicode NFC, line ends as LF, no control characters but tab and LF, no white space at the ends."""
    return [Message(message.role, _text(message.content)) for message in messages]


def prompt_id(messages: Sequence[Message]) -> str:
    """SHA-256 (hex) of a normalised conversation in which every run of white space counts as one space."""
    digest = hashlib.sha256()
    for message in messages:
        content = " ".join(message.content.split()).encode()
        digest.update(f"{message.role} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _text(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("", unicodedata.normalize("NFC", text)).strip()
