"""Errors named by what the caller must do (DESIGN: delivery).

Nothing else may leave a handler: an unexpected exception is a defect and is treated as `InvalidRecord` with the
reason ``unexpected`` so that the record ends in the dead letters instead of stopping the stream.
"""


class HaypileError(Exception):
    """Base of all errors that haypile raises on purpose. Its text is meant for the person at the terminal."""


class InvalidRecord(HaypileError):
    """The record itself is at fault: write a dead letter with `reason` (a short code) and go on."""

    def __init__(self, reason: str, error: str) -> None:
        super().__init__(f"{reason}: {error}")
        self.reason = reason
        self.error = error


class Transient(HaypileError):
    """A dependency is at fault (down, busy, slow): keep the record, wait with backoff, try again."""


class Fatal(HaypileError):
    """Going on would do harm or cannot succeed: stop the process with this message (exit code 1)."""


class SettingsError(HaypileError):
    """The settings or the command line are wrong: say so in one line (exit code 2)."""
