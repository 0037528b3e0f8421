"""Workers that take cells until none is left, and show their progress."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from types import FrameType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from crosscoop.ablation.cell import TAKEN, state, tests
from crosscoop.ablation.grid import Ablation, Cell
from crosscoop.evaluation.records import percent
from crosscoop.files import duration

STYLES = {"done": "green", "failed": "red", "running": "cyan", "interrupted": "yellow", "waiting": "dim"}
SIGNALLED = {-signal.SIGINT, -signal.SIGTERM, -signal.SIGUSR1, 130, 143, 128 + signal.SIGUSR1}
"""Exit codes of a training that was asked to stop and saved its state."""
ELSEWHERE = "running elsewhere"
STOPPED = "stopped"
LOOK = 30.0
"""Seconds between two checks of the state of other workers."""


class Workers:
    """Processes that each run one cell at a time; several machines may work on one folder.

    They share the processor cores, and are assigned the GPUs in turn.

    Args:
        ablation: The ablation.
        cells: The cells to run.
        runs: The folder of all runs.
        count: Number of processes.
    """

    def __init__(self, ablation: Ablation, cells: Sequence[Cell], runs: Path, count: int) -> None:
        self.ablation, self.cells, self.runs, self.count = ablation, cells, runs, count
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.slots: dict[str, int] = {}
        self.before: dict[str, int] = {}  # bytes of the log that earlier attempts wrote
        self.seconds: dict[str, dict[int, float]] = {}  # of trainings that are done, by row and seed
        self.states = {cell.label: _state(ablation, cell) for cell in cells}
        self.looked = time.monotonic()
        self.console = Console()

    def run(self) -> dict[str, str]:
        """Run cells until none is left; a failed cell does not stop the others.

        Returns:
            The state of each cell.

        Raises:
            KeyboardInterrupt: Ctrl-C; the running trainings have saved their state.
            SystemExit: SIGTERM, SIGHUP or SIGUSR1; likewise.
        """
        stops = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        asked = [number for number in stops if signal.getsignal(number) == signal.SIG_DFL]
        for number in asked:
            signal.signal(number, _interrupt)
        try:
            with Live(console=self.console, get_renderable=self._view, refresh_per_second=1) as live:
                live.auto_refresh = self.console.is_terminal
                while self._step():
                    time.sleep(0.2)
        except BaseException:  # Ctrl-C, or stdout was closed
            self._stop()
            raise
        finally:
            for number in asked:
                signal.signal(number, signal.SIG_DFL)
        return self.states

    def _step(self) -> bool:
        """Collect finished cells, start others in their place, and return whether there is anything to wait for."""
        for cell in self.cells:
            process = self.running.get(cell.label)
            if process is not None and process.poll() is not None:
                self._ended(cell, process.returncode)
        if not self.running or time.monotonic() - self.looked > LOOK:
            self._look()
        for cell in self.cells:
            if len(self.running) >= self.count:
                break
            if self.states[cell.label] in ("waiting", "interrupted") and cell.label not in self.running:
                now = _state(self.ablation, cell)  # others may have changed it since the last check
                if now in ("waiting", "interrupted"):
                    self._start(cell)
                else:
                    self._tell(cell, now)
        return bool(self.running)

    def _look(self) -> None:
        """Check what other workers have taken, finished or left behind when they died, and how long trainings took."""
        self.looked = time.monotonic()
        for cell in self.ablation.all_cells(self.runs):
            with suppress(OSError, ValueError, LookupError, TypeError):
                seconds = json.loads((cell.folder / "cost.json").read_text())["seconds"]
                self.seconds.setdefault(cell.name, {})[cell.seed] = float(seconds)
        for cell in self.cells:
            known = self.states[cell.label]
            if cell.label not in self.running and known in ("waiting", "interrupted", ELSEWHERE):
                now = _state(self.ablation, cell)
                if now != known:
                    self._tell(cell, now)

    def _start(self, cell: Cell) -> None:
        cell.folder.mkdir(parents=True, exist_ok=True)
        (cell.folder / "failed.txt").unlink(missing_ok=True)
        self.slots[cell.label] = min(set(range(self.count)) - {self.slots[label] for label in self.running})
        command = [sys.executable, "-m", "crosscoop.ablation.cell", str(self.runs), cell.label]
        with (cell.folder / "log.txt").open("ab") as log:
            self.before[cell.label] = log.tell()
            self.running[cell.label] = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment(self.slots[cell.label], self.count),
                start_new_session=True,  # it receives the terminal's Ctrl-C only once, from this process
            )
        self._tell(cell, "running")

    def _ended(self, cell: Cell, code: int) -> None:
        del self.running[cell.label]
        if code == 0:
            self._tell(cell, "done")
        elif code == TAKEN:
            self._tell(cell, ELSEWHERE)
        elif code in SIGNALLED:
            self._tell(cell, STOPPED)
        else:
            number = -code if code < 0 else code - 128
            words = (cell.folder / "log.txt").read_bytes()[self.before[cell.label] :].decode(errors="replace")
            reason = f"killed by signal {number} (out of memory?)" if number > 0 else last_error(words)
            (cell.folder / "failed.txt").write_text(f"exit code {code}: {reason}\n")
            self._tell(cell, "failed")

    def _tell(self, cell: Cell, news: str) -> None:
        self.states[cell.label] = news
        if not self.console.is_terminal:
            counts = Counter(self.states.values())
            print(f"{cell.label}: {news} ({counts['done']} of {len(self.cells)} done{self._left()})", flush=True)

    def _stop(self) -> None:
        for process in self.running.values():
            with suppress(ProcessLookupError):
                process.terminate()  # under nohup SIGINT is ignored
        for process in self.running.values():
            process.wait()

    def _view(self) -> Group:
        """Return a table of rows by seeds; below it, the progress and the remaining time."""
        table = Table("row", title=self.ablation.title)
        for seed in self.ablation.seeds:
            table.add_column(f"seed {seed}", justify="right")
        for name in self.ablation.rows:
            shown = {cell.seed: self._word(cell) for cell in self.cells if cell.name == name}
            if shown:
                table.add_row(name, *(shown.get(seed, Text("")) for seed in self.ablation.seeds))
        counts = Counter(self.states.values())
        return Group(table, Text(", ".join(f"{count} {word}" for word, count in counts.items()) + self._left()))

    def _left(self) -> str:
        """Estimate the remaining time from finished trainings, of the same row where there is one."""
        if not self.seconds:
            return ""
        rows = {name: fmean(seeds.values()) for name, seeds in self.seconds.items()}
        shares = {"running": 0.5, "waiting": 1.0, "interrupted": 1.0}
        left = sum(
            shares.get(self.states[cell.label], 0) * rows.get(cell.name, fmean(rows.values())) for cell in self.cells
        )
        return f", about {duration(left / self.count)} left" if left else ""

    def _word(self, cell: Cell) -> Text:
        word = self.states[cell.label]
        if word == "done":
            figures = next(iter(tests(self.ablation, cell).values())) / "metrics.json"
            return Text(percent(_miou(figures)), style=STYLES["done"])
        if word in ("running", ELSEWHERE):
            return Text(word.replace("running", _epoch(cell)), style=STYLES["running"])
        return Text(word, style=STYLES.get(word, ""))


def environment(slot: int, count: int) -> dict[str, str]:
    """Return the environment of one of several workers: its share of the cores, and its GPU (untested on GPUs).

    Args:
        slot: The worker's number.
        count: Number of workers.
    """
    if count == 1:
        return dict(os.environ)
    import torch

    variables = {"OMP_NUM_THREADS": str(max(torch.get_num_threads() // count, 1)), **os.environ}
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    gpus = gpus if gpus != [""] else [str(i) for i in range(torch.cuda.device_count())]
    return {**variables, "CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else variables


def last_error(log: str) -> str:
    """Return the error in a cell's log: crosscoop's message or, without one, the last line.

    Args:
        log: Output of the cell in this attempt.
    """
    _, ours, message = log.rpartition("crosscoop: error: ")
    message = message if ours else log.rstrip().rpartition("\n")[2]
    lines = [line.strip() for line in message.splitlines() if not line.startswith("All options: ")]
    return " ".join(filter(None, lines)) or "no output"


def _state(ablation: Ablation, cell: Cell) -> str:
    """Return a cell's state according to its folder: a running cell that was not started here runs elsewhere."""
    return state(ablation, cell).replace("running", ELSEWHERE)


def _epoch(cell: Cell) -> str:
    """Return the progress of a training, from the last row of its history."""
    with suppress(OSError, KeyError, ValueError, IndexError), (cell.folder / "history.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
        total = (cell.config.get("trainer") or {}).get("max_epochs", "?")
        return f"epoch {int(last['epoch']) + 1} of {total}"
    return "running"


def _miou(path: Path) -> float | None:
    with suppress(OSError, ValueError):
        miou: float | None = json.loads(path.read_text())["miou"]
        return miou
    return None


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
