"""The live view of an ablation: a table on a terminal, otherwise a line per event."""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from crosscoop.ablation.cell import state
from crosscoop.ablation.grid import Cell
from crosscoop.files import duration

STYLES = {"done": "green", "failed": "red", "running": "cyan", "interrupted": "yellow", "waiting": "dim"}
SHARES = {"running": 0.5, "waiting": 1.0, "interrupted": 1.0}
"""How much of a training is left on average, by state."""


class View(Live):
    """A table of rows by seeds; below it, the progress and the remaining time.

    Args:
        title: Its title.
        cells: The cells of the ablation.
    """

    def __init__(self, title: str, cells: Sequence[Cell]) -> None:
        self.title = title
        self.cells = {cell.label: cell for cell in cells}
        self.states = {label: state(cell) for label, cell in self.cells.items()}
        super().__init__(console=Console(), get_renderable=self._table, refresh_per_second=1)
        self.auto_refresh = self.console.is_terminal

    def tell(self, cell: Cell, news: str) -> None:
        """Record the state of a cell, which may be a new one."""
        self.cells[cell.label], self.states[cell.label] = cell, news
        if not self.console.is_terminal:
            done = sum(state == "done" for state in self.states.values())
            print(f"{cell.label}: {news} ({done} of {len(self.cells)} done{self._left()})", flush=True)

    def _table(self) -> Group:
        table, seeds = Table("row", title=self.title), sorted({cell.seed for cell in self.cells.values()})
        for seed in seeds:
            table.add_column(f"seed {seed}", justify="right")
        rows: dict[str, dict[int, Text]] = {}
        for label, cell in self.cells.items():
            word = self.states[label]
            first, _, more = word.partition(" ")  # running on node7
            text = figure(cell) if word == "done" else f"{progress(cell)} {more}" if first == "running" else word
            rows.setdefault(cell.name, {})[cell.seed] = Text(text.strip(), style=STYLES.get(first, ""))
        for name, shown in rows.items():
            table.add_row(name, *(shown.get(seed, "") for seed in seeds))
        counts = Counter(state.partition(" ")[0] for state in self.states.values())
        return Group(table, Text(", ".join(f"{count} {word}" for word, count in counts.items()) + self._left()))

    def _left(self) -> str:
        """Estimate the remaining time from finished trainings, of the same row where there is one."""
        seconds: dict[str, list[float]] = {}
        for cell in self.cells.values():
            with suppress(OSError, ValueError, LookupError, TypeError):
                taken = json.loads((cell.folder / "cost.json").read_text())["seconds"]
                seconds.setdefault(cell.name, []).append(taken)
        if not seconds:
            return ""
        rows = {name: fmean(values) for name, values in seconds.items()}
        shares = {label: SHARES.get(state.partition(" ")[0], 0) for label, state in self.states.items()}
        left = sum(share * rows.get(self.cells[label].name, fmean(rows.values())) for label, share in shares.items())
        count = sum(state.startswith("running") for state in self.states.values())
        return f", about {duration(left / max(count, 1))} left" if left else ""


def progress(cell: Cell) -> str:
    """Return the progress of a training, from the last row of its history and the limit that it reaches first."""
    with suppress(OSError, LookupError, ValueError):
        last, trainer = history(cell.folder)[-1], cell.config.get("trainer") or {}
        done = {"epoch": int(last["epoch"]) + 1, "step": int(last["step"])}
        limits = {"epoch": trainer.get("max_epochs") or 50, "step": trainer.get("max_steps") or 0}  # 50 in fit
        ways = [(done[what] / limit, f"{what} {done[what]} of {limit}") for what, limit in limits.items() if limit > 0]
        return max(ways, default=(0.0, f"epoch {done['epoch']}"))[1]
    return "running"


def history(folder: Path) -> list[Mapping[str, str]]:
    """Return the rows of a run's history, one per validation."""
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def figure(cell: Cell) -> str:
    """Return the mIoU of a finished cell, in the first test, in %."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        folder = next(iter(cell.test_folders.values()), cell.folder)
        return f"{100 * json.loads((folder / 'metrics.json').read_text())['miou']:.2f}"
    return "-"
