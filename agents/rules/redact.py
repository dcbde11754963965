"""Personal data and secrets out of a text before anything is stored.

Patterns, each with a check where one exists (Luhn for card numbers, mod 97 for IBANs); a name or an address in plain
words is not found. What is replaced becomes `[KIND]`.
"""

import ipaddress
import re
from collections.abc import Callable, Sequence

from streams.records import Message


def _luhn(text: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    digits = [int(c) for c in text if c.isdigit()]
    if not 13 <= len(digits) <= 19:
        return False
    total = sum(d if i % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d) for i, d in enumerate(reversed(digits)))
    return total % 10 == 0


def _iban(text: str) -> bool:
    """ISO 13616: the number with its first four characters at the end is 1 modulo 97."""
    compact = text.replace(" ", "")
    moved = compact[4:] + compact[:4]
    return 15 <= len(compact) <= 34 and int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def _ip(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


def _phone(text: str) -> bool:
    return 8 <= sum(c.isdigit() for c in text) <= 15


def _always(text: str) -> bool:
    return True


# In this order: a key may contain what looks like a number, a card number looks like a phone number.
_KINDS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    (
        "SECRET",
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]+?-----END [A-Z ]*PRIVATE KEY-----"
            r"|\b(?:sk|pk|rk)[-_](?:[A-Za-z]+[-_])?[A-Za-z0-9_-]{12,}"
            r"|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bxox[abprs]-[A-Za-z0-9-]{10,}"
            r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[\w-]{35}\b|\bhf_[A-Za-z0-9]{20,}"
            r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}"
        ),
        _always,
    ),
    ("EMAIL", re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+\b"), _always),
    ("IBAN", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), _iban),
    ("CARD", re.compile(r"(?<![\w.])\d(?:[ -]?\d){12,18}(?![\w.]\d|\w)"), _luhn),
    ("IP", re.compile(r"(?<![\w.:])(?:\d{1,3}\.){3}\d{1,3}(?![\w:]|\.\d)"), _ip),
    ("IP", re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{1,4}:){3,7}[0-9A-Fa-f]{0,4}(?:::?[0-9A-Fa-f]{1,4})*(?![\w:])"), _ip),
    (
        "PHONE",
        re.compile(
            r"(?<![\w+.-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?|\(\d{2,4}\)[ .-]?)\d(?:[ .-]?\d){5,12}(?!\w)"
        ),
        _phone,
    ),
    ("PHONE", re.compile(r"(?<![\w+.-])\d{3}[ .-]\d{3}[ .-]\d{4}(?![\w-])"), _phone),
)


def redact(text: str) -> tuple[str, dict[str, int]]:
    """The text with each span replaced by `[KIND]`, and how many of each kind (lower case) there were."""
    counts: dict[str, int] = {}
    for kind, pattern, holds in _KINDS:

        def replace(match: re.Match[str], kind: str = kind, holds: Callable[[str], bool] = holds) -> str:
            if not holds(match.group()):
                return match.group()
            counts[kind.lower()] = counts.get(kind.lower(), 0) + 1
            return f"[{kind}]"

        text = pattern.sub(replace, text)
    return text, counts


def redact_messages(messages: Sequence[Message]) -> tuple[list[Message], dict[str, int]]:
    """`redact` over a conversation; the counts of all its messages."""
    cleaned: list[Message] = []
    total: dict[str, int] = {}
    for message in messages:
        text, counts = redact(message.content)
        cleaned.append(Message(message.role, text))
        for kind, count in counts.items():
            total[kind] = total.get(kind, 0) + count
    return cleaned, total
