"""SIGTERM, SIGHUP and Ctrl-C as an exception, so that `with` blocks end what they started."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """The person or the system asked us to end. No `Exception`: nothing may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Inside, the first signal raises `Stopped` in the main thread; later ones are ignored while things end.

    One that is ignored already stays so (`nohup`, a shell's background job).
    """
    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    numbers = [number for number in watched if signal.getsignal(number) is not signal.SIG_IGN]

    def stop(number: int, _frame: FrameType | None) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
