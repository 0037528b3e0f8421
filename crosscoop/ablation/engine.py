"""The engine that runs cells, and what it runs: the embedded one starts one after the other on this machine."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from crosscoop.ablation.cell import CODES, ask_to_stop, failure, state, write
from crosscoop.ablation.grid import Cell
from crosscoop.ablation.view import View

STOPS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Engine(Protocol):
    """What runs cells."""

    def room(self) -> int:
        """Return how many cells it should be given at once."""

    def start(self, cell: Cell) -> str:
        """Start a cell, or queue it, and return its state."""

    def news(self) -> Iterator[tuple[Cell, str]]:
        """Yield cells whose state has changed; the final ones are done, failed, stopped and taken."""

    def stop(self, cell: Cell) -> None:
        """Ask a cell to save its state and end."""

    def close(self) -> None:
        """Stop every cell, and wait until all have ended."""


class Queue(Protocol):
    """Where cells come from."""

    def take(self) -> Cell | None:
        """Return the next cell; None if there is none now."""

    def unwanted(self, cell: Cell) -> bool:
        """Return whether a running cell should stop."""

    def ended(self, cell: Cell, word: str) -> str:
        """Take note that a cell has ended, and return its state."""


class Remaining:
    """The cells of a grid that are neither done nor failed.

    Args:
        cells: The cells.
    """

    def __init__(self, cells: Iterable[Cell]) -> None:
        self.cells = [cell for cell in cells if state(cell) in ("waiting", "interrupted")]

    def take(self) -> Cell | None:
        """Return the next cell; None if none is left."""
        return self.cells.pop(0) if self.cells else None

    def unwanted(self, cell: Cell) -> bool:
        """Return False: every cell of a grid is trained to its end."""
        return False

    def ended(self, cell: Cell, word: str) -> str:
        """Return the outcome unchanged."""
        return word


def drive(engine: Engine, queue: Queue, view: View) -> None:
    """Run cells until none is left; a failed cell does not stop the others.

    Args:
        engine: What runs them.
        queue: Where they come from.
        view: Where their states are shown.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM, SIGHUP or SIGUSR1.
    """
    running: dict[str, Cell] = {}
    with signals_raised(), view:
        while True:
            while len(running) < engine.room() and (cell := queue.take()):
                running[cell.label] = cell
                view.tell(cell, engine.start(cell))
            if not running:
                return
            for cell, word in engine.news():
                if word in CODES:
                    del running[cell.label]
                    word = queue.ended(cell, word)
                view.tell(cell, word)
            for cell in running.values():
                if queue.unwanted(cell):
                    engine.stop(cell)
            time.sleep(0.2)


class Embedded:
    """An engine without any requirement: one cell at a time, in a process of its own."""

    def __init__(self) -> None:
        self.running: tuple[Cell, subprocess.Popen[bytes]] | None = None

    def room(self) -> int:
        """Return 1."""
        return 1

    def start(self, cell: Cell) -> str:
        """Start the cell, whose output goes to `log.txt`."""
        write(cell)
        command = [sys.executable, "-m", "crosscoop.ablation.cell", str(cell.folder)]
        with (cell.folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )  # a session of its own: it receives the terminal's Ctrl-C only once, from this process
        self.running = cell, process
        return "running"

    def news(self) -> Iterator[tuple[Cell, str]]:
        """Yield the cell if it has ended."""
        if self.running and (code := self.running[1].poll()) is not None:
            cell, self.running = self.running[0], None
            yield cell, self._outcome(cell, code)

    def stop(self, cell: Cell) -> None:
        """Ask the cell to save its state and end."""
        ask_to_stop(cell)

    def close(self) -> None:
        """Stop the cell, and wait until it has ended."""
        if self.running:
            self.stop(self.running[0])
            self.running[1].wait()

    def _outcome(self, cell: Cell, code: int) -> str:
        words = {known: word for word, known in CODES.items()} | dict.fromkeys((-number for number in STOPS), "stopped")
        if failure(cell.folder):
            return "failed"
        if words.get(code, "failed") != "failed":
            return words[code]
        reason = f"killed by signal {-code}" + " (out of memory?)" * (code == -signal.SIGKILL)
        reason = reason if code < 0 else f"exit code {code}"
        (cell.folder / "failed.txt").write_text(f"{reason}; see log.txt\n")
        return "failed"


@contextmanager
def signals_raised() -> Iterator[None]:
    """Raise SystemExit on signals that ask this process to stop, unless they are ignored, as SIGHUP under nohup."""
    previous = {number: signal.getsignal(number) for number in STOPS if signal.getsignal(number) != signal.SIG_IGN}
    for number in previous:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
