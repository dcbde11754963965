"""API keys: made here, stored as digests, compared in constant time."""

import hashlib
import hmac
import secrets
from collections.abc import Mapping

KEY_BYTES = 32
"""256 random bits: nobody guesses one, so that its plain SHA-256 may be stored (a password would need a slow hash)."""


def new_key() -> str:
    """A random key, as text for a header."""
    return secrets.token_urlsafe(KEY_BYTES)


def digest(key: str) -> str:
    """SHA-256 of a key, in hex: what the settings hold."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def owner(api_keys: Mapping[str, str], key: str) -> str | None:
    """Name of the client whose key this is, or None. Takes the same time for every key: all are compared."""
    given = digest(key).encode()
    found = None
    for name, known in api_keys.items():
        if hmac.compare_digest(given, known.encode()):
            found = name
    return found
