"""Members of the buffer a page at a time, all or those that fit a search."""

from dataclasses import dataclass

from streams.buffer.base import Buffer
from streams.buffer.minhash import conversation_text
from streams.records import Member


@dataclass(frozen=True)
class Page:
    """A page of members, hardest first."""

    rows: list[tuple[int, Member]]
    """With the place of each in the ranking (1 is the hardest)."""
    found: int
    """How many members fit."""


async def browse(buffer: Buffer, offset: int, n: int, text: str = "", category: str | None = None) -> Page:
    """Members `offset` to `offset + n` of those that have `text` (any case) in their conversation or are of that id.

    Without a search it reads one page, with one the whole buffer. Raises `Transient`.
    """
    wanted = text.strip().casefold()
    if not wanted and category is None:
        size = (await buffer.stats()).size
        members = await buffer.top(n, offset)
        return Page(list(enumerate(members, start=offset + 1)), size)
    rows: list[tuple[int, Member]] = []
    found = place = 0
    async for chunk in buffer.iterate():
        for member in chunk:
            place += 1
            if not _fits(member, wanted, category):
                continue
            if offset <= found < offset + n:
                rows.append((place, member))
            found += 1
    return Page(rows, found)


def _fits(member: Member, wanted: str, category: str | None) -> bool:
    prompt = member.prompt
    if category is not None and prompt.category != category:
        return False
    return not wanted or prompt.id.casefold() == wanted or wanted in conversation_text(prompt.messages).casefold()
