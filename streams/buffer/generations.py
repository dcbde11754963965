"""Two generations of the buffers: one is read and served, the next is being filled with another judge's ratings.

When the judge changes, `begin` opens a next generation, for the main and the held-out buffer at once. From then on

* records of the active judge go to the active generation, records of the next judge to the next one;
* every member of the active generation is on a list (`todo`) until a record of it by the next judge has been offered to
  the next generation, whatever became of it there. Who joins the active one meanwhile is put on the list, too;
* readers (trigger, answer, console) see the active generation only; answers that are attached go to both;
* `switch` makes the next generation the active one in one step, and refuses while the list is not empty.

A judge that was replaced is *retired*: its records go nowhere, and it begins nothing unless a person asks for it. Both
generations keep the offsets they have applied; the next one starts with those of the active one and is always offered
first, so it is never behind.

Whoever acts names the epoch in which it decided; every change of the generations ends an epoch.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

import msgspec

from streams.buffer.base import Buffer, BufferName
from streams.errors import HaypileError
from streams.records import Member

Role = Literal["active", "next"]
Begun = Literal["begun", "same", "running", "retired", "empty"]
"""What `begin` did: opened a generation; nothing, because the buffers are this judge's already, because it is under
way, because the judge was replaced before, because no judge has rated anything yet."""


class GenerationMoved(HaypileError):
    """The generations are not what the caller took them for: nothing was changed; look again."""


class GenerationState(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about the generations at one moment."""

    epoch: int = 0
    active: int = 1
    """Number of the generation that is read."""
    judge: str | None = None
    """Whose ratings the active generation holds; None until the first record."""
    next: int | None = None
    """Number of the generation that is being filled, if any."""
    next_judge: str | None = None
    started_ms: int | None = None
    """When the rescoring began (epoch milliseconds)."""
    total: int = 0
    """Members to rescore when it began."""
    left: int = 0
    """Members that are still to be rescored."""
    last: int = 1
    """Highest number ever given; numbers are not used again."""
    retired: frozenset[str] = frozenset()
    """Judges that were replaced."""

    def number(self, role: Role) -> int | None:
        """Number of the generation in a role."""
        return self.active if role == "active" else self.next


class Generations(Protocol):
    """The main and the held-out buffer in their generations. Methods raise `Transient` and `Fatal` as buffers do."""

    @property
    def main(self) -> Buffer:
        """The active one."""
        ...

    @property
    def held_out(self) -> Buffer:
        """The active one."""
        ...

    @property
    def next_main(self) -> Buffer:
        """The next one. Its methods raise `GenerationMoved` while there is none."""
        ...

    @property
    def next_held_out(self) -> Buffer:
        """The next one."""
        ...

    async def known(self) -> GenerationState:
        """The state as last read; enough for `offer`, which notices when it is old."""
        ...

    async def read(self) -> GenerationState:
        """The state now."""
        ...

    async def begin(self, judge: str, forced: bool = False) -> Begun:
        """Open a next generation for `judge`; a rescoring for yet another judge is given up for it.

        `forced`: a person wants it; also for a retired judge, and for the one whose ratings the buffers hold.
        """
        ...

    async def cancel(self) -> bool:
        """Give the next generation up; its judge is retired. False: there was none."""
        ...

    async def switch(self) -> bool:
        """Make the next generation the active one. False: there is none, or members are still to be rescored."""
        ...

    async def todo(self, name: BufferName) -> list[bytes]:
        """Members that are still to be rescored, hardest first, by keys for `waiting` and `skip`."""
        ...

    async def waiting(self, name: BufferName, keys: Sequence[bytes]) -> list[Member]:
        """Those of the keys that are members of the active generation. Raises `GenerationMoved` after a switch."""
        ...

    async def skip(self, name: BufferName, ids: Iterable[str]) -> None:
        """Take members off the list that the next judge cannot rate: they end with the active generation."""
        ...

    async def fence(self) -> None:
        """End the epoch and nothing else: who decided in an earlier one must look again before it offers anything.

        For rules that come from elsewhere (`streams.forgotten`): make them known, then `fence`; what is offered after
        it was decided by them.
        """
        ...

    async def sweep(self) -> int:
        """Free the keys of generations that are over; how many generations there were."""
        ...
