"""Made personal data and secrets, none of anybody: each kind in the forms in which people write it."""

import base64
import json
import random
import string
from collections.abc import Callable

DIGITS, LETTERS = string.digits, string.ascii_letters
COUNTRIES = {"DE": 18, "FR": 23, "GB": 18, "NL": 14, "ES": 20, "CH": 17, "PL": 24, "BE": 12}
"""Country of an IBAN → digits of its account part (letters where the country has them are left out)."""
PHONES = (
    "+1 415 555 {4}",
    "+1 (212) 555-{4}",
    "(312) 555-{4}",
    "646-555-{4}",
    "202.555.{4}",
    "+44 20 7946 0{3}",
    "+49 170 {7}",
    "+33 6 12 34 {2} {2}",
    "+34 612 34 {2} {2}",
    "0044 20 7946 0{3}",
    "+81 90 1234 {4}",
    "+91 98765 4{4}",
)
FIRST = ("anna", "j.smith", "li.wei", "o'brien", "maría.gómez", "info", "first_last", "dev+test")
HOSTS = ("example.com", "mail.example.org", "uni.example.edu", "example.co.uk", "müller-example.de")


def luhn(digits: str) -> str:
    """The digits with Luhn's check digit."""
    doubled = (2 * int(d) if i % 2 == 0 else int(d) for i, d in enumerate(reversed(digits)))
    return digits + str(-sum(d - 9 if d > 9 else d for d in doubled) % 10)


def digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(DIGITS, k=count))


def token(rng: random.Random, count: int, alphabet: str = LETTERS + DIGITS) -> str:
    return "".join(rng.choices(alphabet, k=count))


def email(rng: random.Random) -> str:
    return f"{rng.choice(FIRST)}{rng.choice(['', digits(rng, 2)])}@{rng.choice(HOSTS)}"


def phone(rng: random.Random) -> str:
    form = rng.choice(PHONES)
    for count in range(2, 8):
        while "{" + str(count) + "}" in form:
            form = form.replace("{" + str(count) + "}", "1" + digits(rng, count - 1), 1)
    return form


def card(rng: random.Random) -> str:
    number = luhn(
        rng.choice(["4" + digits(rng, 14), "52" + digits(rng, 13), "6011" + digits(rng, 11), "37" + digits(rng, 12)])
    )
    if len(number) == 15:
        return rng.choice([number, f"{number[:4]} {number[4:10]} {number[10:]}"])
    separator = rng.choice(["", " ", "-"])
    return separator.join(number[i : i + 4] for i in range(0, 16, 4))


def iban(rng: random.Random) -> str:
    country = rng.choice(sorted(COUNTRIES))
    account = digits(rng, COUNTRIES[country])
    check = 98 - int("".join(str(int(c, 36)) for c in account + country + "00")) % 97
    compact = f"{country}{check:02d}{account}"
    return rng.choice([compact, " ".join(compact[i : i + 4] for i in range(0, len(compact), 4))])


def ip(rng: random.Random) -> str:
    if rng.random() < 0.7:
        return ".".join(str(rng.randrange(1, 255)) for _ in range(4)).replace("127.", "128.", 1)
    groups = [f"{rng.randrange(0x1000, 0xFFFF):x}" for _ in range(4)]
    return rng.choice([f"2001:db8:{groups[0]}::{groups[1]}", "2001:0db8:85a3:0000:" + ":".join(groups)])


def secret(rng: random.Random) -> str:
    jwt = ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": "HS256", "typ": "JWT"}, {"sub": digits(rng, 10), "name": token(rng, 8)})
    )
    body = "\n".join(token(rng, 64, LETTERS + DIGITS + "+/") for _ in range(6))
    kinds = ("RSA PRIVATE KEY", "OPENSSH PRIVATE KEY", "PRIVATE KEY")
    name = rng.choice(kinds)
    return rng.choice(
        [
            f"sk-{token(rng, 48)}",
            f"sk-proj-{token(rng, 40)}",
            f"sk-ant-api03-{token(rng, 40)}",
            f"sk_live_{token(rng, 24)}",
            f"ghp_{token(rng, 36)}",
            f"github_pat_{token(rng, 22)}_{token(rng, 40)}",
            f"glpat-{token(rng, 20)}",
            f"AKIA{token(rng, 16, string.ascii_uppercase + DIGITS)}",
            f"AIza{token(rng, 35)}",
            f"hf_{token(rng, 34)}",
            f"xoxb-{digits(rng, 12)}-{token(rng, 24)}",
            f"{jwt}.{token(rng, 43)}",
            f"npm_{token(rng, 36)}",
            f"-----BEGIN {name}-----\n{body}\n-----END {name}-----",
            f"postgres://admin:{token(rng, 12)}@db.example.com/app",
            f"AWS_SECRET_ACCESS_KEY={token(rng, 40)}",
            f'api_key: "{token(rng, 32)}"',
            f"Authorization: Bearer {token(rng, 40)}",
        ]
    )


KINDS: dict[str, Callable[[random.Random], str]] = {
    "email": email,
    "phone": phone,
    "card": card,
    "iban": iban,
    "ip": ip,
    "secret": secret,
}
SENTENCES = (
    "Please write to {} and ask when it ships.",
    "My data: {}",
    "{} is what it says in the log. Why?",
    "It fails with ({}).",
    "Translate this into French: contact {}, thanks.",
    "value={}\nWhat is wrong here?",
    "I have {}; and she has another one.",
)
