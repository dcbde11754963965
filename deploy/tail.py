"""The newest records of topics, and then what comes: for those who watch, not for those who count."""

from collections.abc import Iterable

from deploy.kafka import Follower, Message, translated
from streams.settings import KafkaSettings


class Tail(Follower):
    """Begins `last` records before the end of each partition. Used by one thread at a time. Raises `Transient`."""

    def __init__(self, kafka: KafkaSettings, topics: Iterable[str], last: int) -> None:
        super().__init__(kafka, topics)
        self._last = last
        if self._all:
            with translated(kafka):
                begins, ends = self._consumer.beginning_offsets(self._all), self._consumer.end_offsets(self._all)
                for tp in self._all:
                    self._consumer.seek(tp, max(begins[tp], ends[tp] - last))

    def come(self, limit: int) -> tuple[list[Message], int]:
        """What has come, about `limit` records at most; and how many records were passed over, because more came."""
        found: list[Message] = []
        while len(found) < limit:
            batch = self.poll(0.2)
            if not batch:
                return found, 0
            found += batch
        return found, self._pass_over()

    def _pass_over(self) -> int:
        """Goes on `last` records before the end of each partition that is further behind than that."""
        skipped = 0
        with translated(self._kafka):
            for tp, end in self._consumer.end_offsets(self._all).items():
                position = self._consumer.position(tp)
                if end - self._last > position:
                    skipped += end - self._last - position
                    self._consumer.seek(tp, end - self._last)
        return skipped
