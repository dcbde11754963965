"""What the console must not show as it is: user ids, and what dead letters hold from before redaction."""

import hashlib
import re
import secrets

from agents.rules.redact import Redactor

_KEYED = re.compile(r'("user_id"\s*:\s*)("(?:[^"\\]|\\.)*"?|[^,}\]\s]+)')
SHOWN_CHARS = 4_000
"""Of a dead letter's value."""


class Mask:
    """Hides what belongs to a person. User ids become short keyed hashes: one user's are alike while the process lives,
    and nobody can find the id by hashing guesses."""

    def __init__(self, redactor: Redactor) -> None:
        self._key = secrets.token_bytes(16)
        self._redactor = redactor

    def user(self, user_id: str) -> str:
        """Stands for a user id."""
        return "user " + hashlib.blake2b(user_id.encode("utf-8", "replace"), key=self._key, digest_size=4).hexdigest()

    def letter(self, value: bytes) -> str:
        """The original bytes of a dead letter as text, redacted as `ingest` would have, without its user id."""
        text = value[: 4 * SHOWN_CHARS].decode("utf-8", "backslashreplace")[:SHOWN_CHARS]
        hidden, _ = self._redactor.text(_KEYED.sub(r'\1"(hidden)"', text))
        return hidden + (" …" if len(value) > len(text.encode("utf-8", "replace")) else "")
