"""`prompts.forgotten` as a list that is kept up to date.

Whoever decides by the list refreshes it first. In between, workers look every `REFRESH_S`; that nobody acts by an older
list in the meantime is the buffers' part (`streams.buffer.generations`: `fence`).
"""

import msgspec

from streams.errors import Fatal
from streams.forgotten import ForgottenList
from streams.records import Forgotten, decode
from streams.settings import KafkaSettings
from streams.tail import Tail
from streams.topics import topic_names

REFRESH_S = 2.0
"""How often a process looks by itself."""


class ForgottenLog:
    """The list as of the last `refresh`. Close it."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._topic = topic_names(kafka).forgotten
        self._tail = Tail(kafka, self._topic, self._take)
        self.known = ForgottenList.of(kafka)

    async def refresh(self) -> ForgottenList:
        """The list with every record that was in the topic when this was called.

        Raises `Transient` (Kafka), `Fatal` (a record made with another key, or unreadable: it would not be honoured).
        """
        await self._tail.read()
        return self.known

    def _take(self, value: bytes, offset: int) -> None:
        try:
            self.known.take(decode(Forgotten, value), offset)
        except (msgspec.MsgspecError, ValueError) as error:
            raise Fatal(f"{self._topic}: offset {offset} cannot be read ({error}); another version wrote it?") from None

    async def close(self) -> None:
        """Ends the consumer."""
        await self._tail.close()
