"""What `haypile up` shows: a live table on a terminal, plain lines elsewhere."""

import sys
import time

from rich.console import Console
from rich.live import Live
from rich.table import Table

from deploy.local.signals import Stopped, stop_on_signals
from deploy.local.stack import Part, Stack

REFRESH_S = 1.0


def show_stack() -> int:
    """Runs the stack until a signal (exit code 0), or until a part ends by itself (`Fatal` leaves)."""
    live = sys.stdout.isatty()
    try:
        with stop_on_signals():
            _run_live() if live else _run_plain()
    except Stopped as stopped:
        print(f"{stopped}: all parts have ended")
    return 0


def _run_plain() -> None:
    with Stack(on_change=lambda part: print(_line(part), flush=True)) as stack:
        print("the stack is up; SIGTERM or Ctrl-C ends it", flush=True)
        _watch(stack)


def _run_live() -> None:
    console = Console(highlight=False)
    view: _View
    stack = Stack(on_change=lambda part: view.refresh())
    with Live(console=console, auto_refresh=False, transient=False) as screen:
        view = _View(stack, screen)
        with stack:
            _watch(stack, view)


class _View:
    def __init__(self, stack: Stack, screen: Live) -> None:
        self._stack = stack
        self._screen = screen

    def refresh(self) -> None:
        """Draws the table as of now."""
        self._screen.update(table(self._stack), refresh=True)


def _watch(stack: Stack, view: _View | None = None) -> None:
    while True:
        stack.check()
        if view is not None:
            view.refresh()
        time.sleep(REFRESH_S)


def table(stack: Stack) -> Table:
    """State, pid, memory, uptime and address of each part."""
    found = Table("part", "state", "pid", "memory", "uptime", "address", box=None, pad_edge=False)
    colours = {"ready": "green", "external": "green", "starting": "yellow", "stopping": "yellow", "failed": "red"}
    for part in stack.parts.values():
        child = part.child
        running = child is not None and child.returncode is None
        found.add_row(
            part.name,
            f"[{colours.get(part.state, 'dim')}]{part.state}[/]",
            str(child.pid or "") if child and running else "",
            f"{child.memory_bytes() / 2**20:,.0f} MiB" if child and running else "",
            f"{time.monotonic() - child.started:,.0f} s" if child and running else "",
            part.address,
        )
    return found


def _line(part: Part) -> str:
    after = f" after {part.ready_after_s:.1f} s" if part.state == "ready" and part.ready_after_s is not None else ""
    pid = f" (pid {part.child.pid})" if part.state == "ready" and part.child is not None else ""
    return f"{part.name:8s} {part.state}{after}{pid}  {part.address}"
