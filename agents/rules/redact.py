"""Personal data and secrets out of a text before anything is stored.

Patterns find candidates, a check of each kind decides: Luhn and the issuer's digits for card numbers, mod 97 for
IBANs, `ipaddress` for addresses, the library `phonenumbers` for telephone numbers. A name or a postal address in plain
words is not found. What is replaced becomes `[KIND]`.

Wherever a pattern takes a space it takes any run of white space: two texts that differ in white space only have one
`prompt_id`, and must stay equal in that sense when they are redacted.
"""

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import phonenumbers

from streams.records import Message

PHONE_REGIONS = ("US",)
"""Countries whose numbers are known without a country code."""


MAX_REJECTED = 250
"""After so many candidates of a kind that are none, the rest of a text is not searched for it: bounds the time in the
event loop of a text made to be slow (a check takes up to a millisecond)."""


@dataclass(frozen=True)
class _Candidate:
    """A span that a pattern found, with its neighbours ("" at an end of the text)."""

    text: str
    before: str
    after: str
    """Two characters."""

    @property
    def continued(self) -> bool:
        """Whether it is the begin of something longer: a number with decimals, a list without spaces."""
        return self.after[1:].isdigit() and self.after[0] in ".,-/"

    def alone(self, touching: str) -> bool:
        """Whether neither neighbour is a letter, a digit or one of `touching`."""
        return not any(c and (c.isalnum() or c in touching) for c in (self.before, self.after[:1]))


@dataclass(frozen=True)
class _Rule:
    kind: str
    marks: tuple[str, ...]
    """A text without any of them holds none: a look for a constant costs next to nothing. Empty: always look."""
    pattern: re.Pattern[str]
    """A group named `secret`, if it has one, is what is replaced."""
    holds: Callable[[_Candidate], bool] = lambda candidate: True
    groups: bool = False
    """Printed in groups: a pattern may take one too many, so the last ones are left off until it holds."""


def _digits(text: str) -> str:
    return "".join(c for c in text if c.isdigit())


_ISSUER = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|(?:6011|64[4-9]\d|65\d\d|35(?:2[89]|[3-8]\d))\d{12}"  # Discover, JCB
    r"|3(?:0[0-5]|[689]\d)\d{11}"  # Diners Club
    r"|62\d{14,17}|(?:50|5[6-9]|6[37])\d{11,17}"  # UnionPay, Maestro
)


def _card(found: _Candidate) -> bool:
    """An issuer's digits and length, and Luhn's sum (ISO/IEC 7812-1, annex B)."""
    digits = _digits(found.text)
    if not found.alone("_") or found.continued or not _ISSUER.fullmatch(digits):
        return False
    doubled = (2 * int(d) if i % 2 else int(d) for i, d in enumerate(reversed(digits)))
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


_IBAN_COUNTRIES = {
    15: "NO",
    16: "BE",
    18: "DK FI FO GL NL",
    19: "MK SI",
    20: "AT BA EE KZ LT LU XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HU LB PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU",
    31: "MT SC",
    32: "LC",
}
"""Length → countries, of the registry of ISO 13616. Without them one in a hundred takes the next word along."""


def _iban(found: _Candidate) -> bool:
    """ISO 13616: its country's length, and with the first four characters at the end it is 1 modulo 97."""
    compact = "".join(found.text.split())
    moved = compact[4:] + compact[:4]
    if not found.alone("_") or compact[:2].upper() not in _IBAN_COUNTRIES.get(len(compact), ""):
        return False
    return int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def _ip(found: _Candidate) -> bool:
    text = found.text
    if not found.alone("_.:" if ":" in text else "_:"):
        return False
    if found.before == "." or (found.after[:1] == "." and found.after[1:].isdigit()):  # a version of more parts
        return False
    if ":" in text and not any(len(group) > 2 and any(c.isdigit() for c in group) for group in text.split(":")):
        return False  # `a::b`, `12::30`: more likely a program's than an address
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


def _phone_of(regions: Sequence[str]) -> Callable[[_Candidate], bool]:
    def holds(found: _Candidate) -> bool:
        if not found.alone("_+*^%$€£") or found.continued or (found.before and found.before in "-/."):
            return False
        text = " ".join(found.text.split())
        if not 7 <= len(_digits(text)) <= 17:
            return False
        if text.startswith("00"):
            text = "+" + text[2:]
        for region in (None,) if text.startswith("+") else regions:
            try:
                if phonenumbers.is_valid_number(phonenumbers.parse(text, region)):
                    return True
            except phonenumbers.NumberParseException:
                pass
        return False

    return holds


def _key(found: _Candidate) -> bool:
    """Not a name in words: `sk-learn-based-approach` is no key."""
    return sum(c.isdigit() for c in found.text) > 2 or (found.text.count("-") < 3 and "_" not in found.text)


def _mixed(found: _Candidate) -> bool:
    """As random as keys are: digits among letters, or capitals among small ones as no camelCase has them."""
    text = found.text
    changes = sum(a.isupper() != b.isupper() for a, b in pairwise(text) if a.isalpha() and b.isalpha())
    digits = sum(c.isdigit() for c in text)
    return any(c.isalpha() for c in text) and (digits > 2 or ("_" not in text and changes > 0.4 * (len(text) - digits)))


_KEY_HEAD = r"-----BEGIN(?:\s+[A-Z0-9]+)*?\s+PRIVATE\s+KEY(?:\s+BLOCK)?-----"
_KEY_END = r"-----END(?:\s+[A-Z0-9]+)*?\s+PRIVATE\s+KEY(?:\s+BLOCK)?-----"

# In this order: a key may contain what looks like a number, a card number looks like a telephone number.
_SECRETS = (
    _Rule("SECRET", ("-----END",), re.compile(_KEY_HEAD + r"(?:[^-]|-(?!----BEGIN)){0,8000}?" + _KEY_END)),
    _Rule("SECRET", ("-----BEGIN",), re.compile(_KEY_HEAD + r"(?:\s+[A-Za-z0-9+/=]{16,})+")),
    # OpenAI, Anthropic and those who copied them; Stripe
    _Rule("SECRET", ("sk-",), re.compile(r"\bsk-(?:[A-Za-z]{1,20}-)?[A-Za-z0-9_-]{16,300}"), _key),
    _Rule("SECRET", ("_live_", "_test_"), re.compile(r"\b[spr]k_(?:live|test)_[A-Za-z0-9]{10,}")),
    # GitHub, GitLab, Slack, AWS, Google, Hugging Face, npm, PyPI, SendGrid
    _Rule("SECRET", ("gh", "github_pat_"), re.compile(r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}")),
    _Rule("SECRET", ("glpat-", "xox"), re.compile(r"\bglpat-[\w-]{20,}|\bxox[abeprs]-[A-Za-z0-9-]{10,}")),
    _Rule("SECRET", ("AKIA", "ASIA"), re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")),
    _Rule("SECRET", ("AIza", "ya29."), re.compile(r"\bAIza[\w-]{35}|\bya29\.[\w-]{20,}")),
    _Rule("SECRET", ("hf_", "npm_"), re.compile(r"\bhf_[A-Za-z0-9]{20,}|\bnpm_[A-Za-z0-9]{36}")),
    _Rule("SECRET", ("pypi-", "SG."), re.compile(r"\bpypi-[\w-]{50,}|\bSG\.[\w-]{16,200}\.[\w-]{16,200}")),
    # JSON Web Tokens, Authorization headers, passwords in URLs
    _Rule("SECRET", ("eyJ",), re.compile(r"\beyJ[\w-]{8,4000}\.[\w-]{8,4000}\.[\w-]{8,4000}")),
    _Rule("SECRET", ("earer", "EARER"), re.compile(r"(?i)(?<=\bbearer\s)\s*(?P<secret>[\w.~+/-]{20,}=*)"), _mixed),
    _Rule("SECRET", ("://",), re.compile(r"(?<=://)[^\s:/@\[\]]{1,100}:[^\s/@\[\]]{1,100}(?=@)")),
    # NAME_KEY = "…", password: …
    _Rule(
        "SECRET",
        ("=", ":"),
        re.compile(
            r"(?i)(?<=key|ret|ken|ord|pwd)[\"']?(?:\s*=\s*|\s*:\s*)[\"']?(?P<secret>[A-Za-z0-9+/_-]{16,500}={0,2})(?![\w(.])"
        ),
        _mixed,
    ),
)
_EMAIL = _Rule("EMAIL", ("@",), re.compile(r"[\w.%+'-]{1,64}@[^\W_](?:[\w-]{0,62}\.)+[^\W\d_](?:[\w-]{0,30}\w)?"))
_IBAN = _Rule(
    "IBAN",
    (),
    re.compile(r"\b[A-Za-z]{2}\d{2}(?:(?:\s+)?[A-Za-z0-9]{4}){2,7}(?:(?:\s+)?[A-Za-z0-9]{1,3})?\b"),
    _iban,
    groups=True,
)
# 13 to 19 digits in a row, or in groups as they are printed
_CARD = _Rule(
    "CARD",
    (),
    re.compile(
        r"\d{13,19}|\d{4}(?:(?:\s+|-)\d{4}){3}(?:(?:\s+|-)\d{3})?(?!\d)|\d{4}(?:\s+|-)\d{6}(?:\s+|-)\d{4,5}(?!\d)"
    ),
    _card,
    groups=True,
)
_IPV4 = _Rule("IP", (".",), re.compile(r"\d{1,3}(?:\.\d{1,3}){3}"), _ip)
_IPV6 = _Rule("IP", (":",), re.compile(r"[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]{0,40}(?:\.\d{1,3}){0,3}"), _ip)
_PHONE = re.compile(
    r"(?:\+|\b00)\s*\d(?:(?:\s+|[.()/-]){0,2}\d){6,14}"
    r"|(?:\(\d{2,5}\)(?:\s+|[.-])?|\b\d{2,5}(?:\s+|[.-]|/))\d{2,8}(?:(?:\s+|[.-])\d{2,8}){0,3}(?!\d)"
)
_EDGE = re.compile(r"\W")
_SEPARATOR = re.compile(r"[\s.()/-]+")
_ENOUGH_DIGITS = re.compile(r"\d(?:[\s().:/-]*\d){6}")


class Redactor:
    """Replaces spans. `phone_regions` are ISO 3166 codes of countries whose numbers need no country code."""

    def __init__(self, phone_regions: Sequence[str] = PHONE_REGIONS) -> None:
        unknown = sorted(set(phone_regions) - set(phonenumbers.SUPPORTED_REGIONS))
        if unknown:
            raise ValueError(f"no telephone numbers are known of {', '.join(unknown)}")
        phone = _Rule("PHONE", (), _PHONE, _phone_of(phone_regions), groups=True)
        self._always = (*_SECRETS, _EMAIL, _IBAN)
        self._phone = phone

    def text(self, text: str) -> tuple[str, dict[str, int]]:
        """The text with each span replaced by `[KIND]`, and how many of each kind (lower case) there were."""
        counts: dict[str, int] = {}
        for rule in self._always:
            text = _replace(rule, text, counts)
        if _ENOUGH_DIGITS.search(text):
            text = _replace(_CARD, text, counts)
        text = _replace(_IPV6, _replace(_IPV4, text, counts), counts)
        if _ENOUGH_DIGITS.search(text):
            text = _replace(self._phone, text, counts)
        return text, counts

    def messages(self, messages: Sequence[Message]) -> tuple[list[Message], dict[str, int]]:
        """`text` over a conversation; the counts of all its messages."""
        total: dict[str, int] = {}
        cleaned = []
        for message in messages:
            text, counts = self.text(message.content)
            cleaned.append(Message(message.role, text))
            add(total, counts)
        return cleaned, total


def add(total: dict[str, int], counts: dict[str, int]) -> None:
    """Adds counts by kind to `total`."""
    for kind, count in counts.items():
        total[kind] = total.get(kind, 0) + count


def _replace(rule: _Rule, text: str, counts: dict[str, int]) -> str:
    if rule.marks and not any(mark in text for mark in rule.marks):
        return text
    part = "secret" if "secret" in rule.pattern.groupindex else 0
    pieces, kept, at, rejected = [], 0, 0, 0
    while rejected < MAX_REJECTED and (match := rule.pattern.search(text, at)):
        start, end = match.span(part)
        held = next((e for e in _ends(text, start, end, rule.groups) if rule.holds(_candidate(text, start, e))), None)
        if held is None:
            rejected += 1
            # What holds may begin inside of what does not, but not within a word.
            edge = _EDGE.search(text, match.start() + 1)
            at = edge.start() if edge else len(text)
            continue
        pieces += [text[kept:start], f"[{rule.kind}]"]
        kept = at = held
        counts[rule.kind.lower()] = counts.get(rule.kind.lower(), 0) + 1
    return "".join((*pieces, text[kept:])) if pieces else text


def _candidate(text: str, start: int, end: int) -> _Candidate:
    return _Candidate(text[start:end], text[max(0, start - 1) : start], text[end : end + 2])


def _ends(text: str, start: int, end: int, groups: bool) -> list[int]:
    """Where the span may end: at its end, or before each of its separators, the last one first."""
    if not groups:
        return [end]
    return [end, *(start + m.start() for m in reversed(list(_SEPARATOR.finditer(text[start:end]))) if m.start())]
