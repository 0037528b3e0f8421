"""The engine on Ray: many cells at once, on this machine or on a cluster whose nodes share the runs' folder."""

import logging
import math
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from crosscoop.ablation.cell import CODES, ask_to_stop, failure, run, write
from crosscoop.ablation.grid import Cell
from crosscoop.errors import CrosscoopError
from crosscoop.version import __version__

ATTEMPTS = 4
"""Attempts in a row that may die before a further checkpoint, test or node loss; then the cell has failed."""
WAITING = 4
"""Cells of a cluster that wait for a place."""
STORE = 100 * 2**20
"""Bytes of Ray's object store: cells exchange their data through the shared folder."""


class RayEngine:
    """An engine that leaves to Ray where and when a cell runs, and resumes cells whose process or node has died.

    Args:
        workers: Number of cells at once in a Ray of its own on this machine; None joins a cluster.
        address: The cluster's address: auto, or HOST:PORT.
        cells: Cells that will run; each must fit on a node.

    Raises:
        CrosscoopError: Ray is not installed, the cluster cannot be reached, or no node has what a cell asks for.
    """

    def __init__(self, workers: int | None, address: str | None, cells: Sequence[Cell]) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            option = "--address" if address else f"--workers {workers}"
            raise CrosscoopError(f"{option} needs Ray ({error}): pip install 'crosscoop[ray]'.") from error
        self.ray: Any = ray
        self.workers = workers
        self.tasks: dict[Any, Cell] = {}
        self.attempts: dict[str, tuple[float, int]] = {}  # time of the last progress, and attempts since
        self.waiting: set[str] = set()
        self.stopping: set[str] = set()
        if address:
            _check_address(address)
            options: dict[str, Any] = {"address": address}
        else:
            cpus = max(os.cpu_count() or 1, workers or 1)
            options = {"address": "local", "num_cpus": cpus, "object_store_memory": STORE, "include_dashboard": False}
        try:
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises bare ones, too
            if address:
                problem = f"--address: got {address}, but Ray cannot join it ({error})"
                remedy = (
                    "auto or HOST:PORT, on a machine where `ray start` has joined the cluster, and with "
                    "RAY_AUTH_MODE=token if it enabled token authentication"
                )
            else:
                problem = f"--workers: Ray cannot start on this machine ({error})"
                remedy = "a Ray that starts. Try again, or run one cell at a time, without Ray"
            raise CrosscoopError(f"{problem}; expected {remedy}.") from error
        # A fresh interpreter, which dies with the training; a dead one is followed by an attempt of our own.
        self.remote = self.ray.remote(max_calls=1, max_retries=0)(_run)
        for cell in cells:
            self._check(cell)

    def room(self) -> int:
        """Return a number that keeps some cells waiting, from which Ray's autoscaler sees that more nodes have work."""
        return self.workers or len(self.tasks) + WAITING - len(self.waiting)

    def start(self, cell: Cell) -> str:
        """Queue a cell, which waits if its node has died and no other suffices."""
        if cell.label not in self.attempts:
            self._check(cell)
        write(cell)
        needs = self.needs(cell)
        task = self.remote.options(
            name=cell.label, num_cpus=needs["CPU"], num_gpus=needs["GPU"], num_returns="streaming"
        ).remote(__version__, str(cell.folder.resolve()), str(Path.cwd()), sys.path, os.environ.get("PYTHONPATH", ""))
        self.tasks[task] = cell
        self.waiting.add(cell.label)
        self.attempts.setdefault(cell.label, (_progress(cell.folder), 0))
        return "waiting"

    def news(self) -> Iterator[tuple[Cell, str]]:
        """Yield cells that have begun or ended.

        Raises:
            CrosscoopError: A node cannot run cells.
        """
        if not self.tasks:
            return
        ready, _ = self.ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=0)
        for task in ready:
            cell = self.tasks[task]
            word = self._word(task, cell)
            self.waiting.discard(cell.label)
            again = word.startswith("waiting")
            if word in CODES or again:
                del self.tasks[task]
            if again:
                self.start(cell)
            yield cell, word

    def stop(self, cell: Cell) -> None:
        """Ask a cell to save its state and end; one that waits is taken out of the queue."""
        if cell.label not in self.stopping:
            self.stopping.add(cell.label)
            ask_to_stop(cell)  # Ray's own interrupt may get lost in an import
            for task in [task for task, each in self.tasks.items() if each.label == cell.label]:
                if cell.label in self.waiting:
                    self.ray.cancel(task, force=False)

    def close(self) -> None:
        """Stop all cells, and wait until they have saved their state."""
        for cell in list(self.tasks.values()):
            self.stop(cell)
        while self.tasks:
            for _ in self.news():
                pass
            time.sleep(0.1)
        self.ray.shutdown()

    def needs(self, cell: Cell) -> dict[str, float]:
        """Return the CPUs and GPUs of a cell: what it asks for, otherwise its share of this machine.

        In a cluster, its share is a CPU, and a GPU for each of its devices where there are GPUs.
        """
        trainer = cell.config.get("trainer") or {}
        most = max((node.get("GPU", 0) for node in self._nodes()), default=0)
        devices = trainer.get("devices")
        cpus, gpus = 1.0, float(devices) if isinstance(devices, int) and devices > 1 else 1.0
        if self.workers:
            cpus = max((os.cpu_count() or 1) // self.workers, 1)
            gpus = gpus if gpus > 1 else 1 / math.ceil(self.workers / (most or 1))
        if trainer.get("accelerator") == "cpu" or not most:
            gpus = 0.0
        return {"CPU": cell.resources.get("cpus", cpus), "GPU": cell.resources.get("gpus", gpus)}

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def _check(self, cell: Cell) -> None:
        nodes, needs = self._nodes(), self.needs(cell)
        if not any(all(node.get(kind, 0) >= need for kind, need in needs.items()) for node in nodes):
            have = "; ".join(sorted({f"{node.get('CPU', 0):g} and {node.get('GPU', 0):g}" for node in nodes}))
            raise CrosscoopError(
                f"resources: {cell.label} asks for {needs['CPU']:g} CPUs and {needs['GPU']:g} GPUs, expected no more "
                f"than a node has ({have}). Ask for less in the grid, or add a node."
            )

    def _word(self, task: Any, cell: Cell) -> str:
        """Return what a task reports, or what its end means."""
        errors = self.ray.exceptions
        try:
            word = str(self.ray.get(next(task)))
            return self._died(cell, "stopped from outside") if word == "stopped" else word
        except errors.TaskCancelledError:
            return "stopped"
        except errors.RayTaskError as error:
            if isinstance(error.cause, CrosscoopError):
                raise error.cause from None
            return self._failed(cell, f"{type(error.cause).__name__}: {error.cause}")
        except errors.OutOfMemoryError:
            return self._died(cell, "out of memory")
        except errors.NodeDiedError:
            return self._died(cell, "its node died", own=False)
        except (errors.RayError, StopIteration):
            return self._died(cell, "its process died (out of memory, or a crash in native code?)")

    def _died(self, cell: Cell, reason: str, own: bool = True) -> str:
        """Return what follows from the end of a cell's process, of which the cell is the cause unless its node is."""
        if cell.label in self.stopping:
            return "stopped"
        if failure(cell.folder):
            return "failed"
        before, attempts = self.attempts[cell.label]
        now = _progress(cell.folder)
        self.attempts[cell.label] = now, attempts * (now == before) + own
        if self.attempts[cell.label][1] < ATTEMPTS:
            return f"waiting again: {reason}"
        return self._failed(cell, f"{reason}, {ATTEMPTS} times without a further checkpoint; see log.txt")

    def _failed(self, cell: Cell, reason: str) -> str:
        (cell.folder / "failed.txt").write_text(f"{reason}\n")
        return "failed"


def _run(version: str, folder: str, working_folder: str, path: list[str], python_path: str) -> Iterator[str]:
    """Run a cell in a worker of Ray, with its output in the cell's `log.txt`; yield that it runs, and its outcome."""
    node = socket.gethostname()
    if version != __version__:
        raise CrosscoopError(f"Node {node} has crosscoop {__version__}, expected {version}, as on this machine.")
    if not (Path(folder) / "cell.yaml").is_file():
        raise CrosscoopError(
            f"Node {node} has no {folder}, expected a folder that all nodes of the cluster share under the same path. "
            "Give such a folder with --runs."
        )
    yield f"running on {node}"
    os.chdir(working_folder)
    sys.path[:0] = [entry for entry in path if entry not in sys.path]
    os.environ["PYTHONPATH"] = python_path
    with (Path(folder) / "log.txt").open("ab") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    yield run(Path(folder))


def _check_address(address: str) -> None:
    """Reject an address where nothing listens, for which Ray would wait for minutes."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise CrosscoopError(
            f"--address: got {address}, which cannot be reached ({error}); expected auto, or the HOST:PORT that "
            "`ray start --head` printed."
        ) from error


def _progress(folder: Path) -> float:
    """Return when a cell last wrote a checkpoint or a test's result."""
    files = [folder / "last.ckpt", folder / "cost.json", *folder.glob("*/metrics.json")]
    return max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)
