"""The champion's pointer and its history, and where a rollback leads. Pure."""

from collections.abc import Sequence
from typing import Literal

import msgspec

Kind = Literal["promote", "rollback"]


class Change(msgspec.Struct, kw_only=True):
    """One move of the pointer."""

    version: str | None
    """Null is the base model."""
    kind: Kind
    reason: str
    by: str
    at: int
    """Epoch milliseconds."""


class Champion(msgspec.Struct, kw_only=True):
    """`champion.json`."""

    version: str | None = None
    history: list[Change] = []


def champions(history: Sequence[Change]) -> list[str | None]:
    """The champions that led to the current one, which is the last; the first is the base model.

    A rollback takes all from the end that came after the version it led to: two rollbacks go two champions back, not
    to and fro. One to a version that never was champion takes the place of the one it replaced.
    """
    stack: list[str | None] = [None]
    for change in history:
        if change.kind == "promote":
            stack.append(change.version)
            continue
        earlier = [place for place, version in enumerate(stack[:-1]) if version == change.version]
        if earlier:
            del stack[earlier[-1] + 1 :]
        else:
            stack[-1] = change.version
    return stack
