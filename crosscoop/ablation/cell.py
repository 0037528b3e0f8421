"""One cell: train it and test it in one interpreter. `python -m crosscoop.ablation.cell FOLDER`."""

import faulthandler
import gc
import json
import os
import runpy
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from crosscoop.ablation.grid import Cell
from crosscoop.errors import CrosscoopError
from crosscoop.files import load_yaml, write_json, write_yaml

CODES = {"done": 0, "failed": 1, "stopped": 128 + signal.SIGTERM, "taken": 75}
"""Exit codes by outcome; 75 is EX_TEMPFAIL of sysexits.h."""
STOPPED = [128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
"""Exit codes of a training that was asked to stop and saved its state."""
PATIENCE = 60.0
"""Seconds to wait for another process that runs the cell, which may be saving its state."""
TIMER = {"class_path": "pytorch_lightning.callbacks.Timer", "init_args": {"interval": "epoch"}}
"""Lightning's timer, which a resumed training continues; the default of its `interval` cannot be written to YAML."""
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")


def state(cell: Cell) -> str:
    """Return a cell's state from its folder: done, failed, interrupted or waiting."""
    records = [cell.folder / "cost.json", *(folder / "metrics.json" for folder in cell.test_folders.values())]
    if all(record.is_file() for record in records):
        return "done"
    if failure(cell.folder):
        return "failed"
    return "interrupted" if (cell.folder / "last.ckpt").is_file() else "waiting"


def failure(folder: Path) -> str:
    """Return why a cell failed; empty if it did not."""
    if (folder / "failed.txt").is_file():
        return (folder / "failed.txt").read_text().strip()
    late = folder / "timeout.txt"  # written by faulthandler, which needs no interpreter that responds
    if late.is_file() and (first := late.read_text().partition("\n")[0]):
        return f"longer than max_hours allows: {first} What it was doing: {late}"
    return ""


def forget_failure(folder: Path) -> None:
    """Let a failed cell run again."""
    for name in ("failed.txt", "timeout.txt"):
        (folder / name).unlink(missing_ok=True)


def given_test(cell: Cell, name: str) -> dict[str, Any]:
    """Return the arguments of a test, which are stored beside its results."""
    return {"checkpoint": cell.checkpoint, "options": cell.tests[name]}


def check_given(cell: Cell) -> None:
    """Reject a folder whose run has another configuration, for example after an edit of the grid.

    Raises:
        CrosscoopError: The cell was trained or tested with other options.
    """
    given = cell.folder / "given.yaml"
    trained = given.is_file() and any((cell.folder / name).is_file() for name in ("last.ckpt", "cost.json"))
    if trained and load_yaml(given) != cell.config:
        raise CrosscoopError(
            f"{cell.folder} was trained with another configuration ({given}) than the grid now specifies. Give "
            "another folder with --runs, rename the row, or remove that folder."
        )
    for name, folder in cell.test_folders.items():
        given = folder / "given.yaml"
        tested = given.is_file() and (folder / "metrics.json").is_file()
        if tested and load_yaml(given) != given_test(cell, name):
            raise CrosscoopError(
                f"{folder} was tested with another checkpoint or other options ({given}) than the grid now specifies. "
                "Rename the test, or remove that folder to test again."
            )


def write(cell: Cell) -> None:
    """Write a cell to its folder, to be run: `given.yaml` is its configuration for `crosscoop fit`."""
    (cell.folder / "stop").unlink(missing_ok=True)
    content = asdict(cell)
    write_yaml(cell.folder / "given.yaml", content.pop("config"))
    write_yaml(cell.folder / "cell.yaml", {**content, "folder": str(cell.folder)})


def ask_to_stop(cell: Cell) -> None:
    """Ask a cell to save its state and end, wherever it runs; one that is not running must not be asked."""
    (cell.folder / "stop").touch()


def run(folder: Path) -> str:
    """Train and test a cell, or resume it. The reason of a failure is written to `failed.txt`.

    Args:
        folder: The cell's folder, as `write` left it.

    Returns:
        done, failed, stopped (asked to end, with its state saved), or taken (another process is running it).
    """
    cell = Cell(**{**load_yaml(folder / "cell.yaml"), "folder": folder, "config": load_yaml(folder / "given.yaml")})
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # outside a training, which has handlers of its own
    try:
        with _stoppable(folder), FileLock(folder / ".lock", timeout=PATIENCE), _time_limit(cell):
            _train_and_test(cell)
        return "done"
    except Timeout:
        return "taken"
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code in STOPPED):
            return "stopped"
        if not isinstance(error, SystemExit):  # after which the command line has printed its cause
            traceback.print_exc()
        cause = (error.__context__ or error) if isinstance(error, SystemExit) else error
        kind = "" if isinstance(cause, CrosscoopError) else f"{type(cause).__name__}: "
        message = str(cause).rpartition("CrosscoopError: ")[2]  # of a data loader's worker
        (folder / "failed.txt").write_text(f"{kind}{' '.join(message.split())}\n")
        return "failed"


def _train_and_test(cell: Cell) -> None:
    cost = cell.folder / "cost.json"
    if not cost.is_file():
        timed = (cell.config.get("trainer") or {}).get("max_time")  # Lightning then adds its own timer
        timer = [] if timed else [f"--trainer.callbacks+={json.dumps(TIMER)}"]
        _crosscoop("fit", "--config", cell.folder / "given.yaml", "--run", cell.folder, "--resume", *timer)
        from crosscoop.ablation.cost import measure

        write_json(cost, {**asdict(measure(cell)), "seconds": _seconds(cell.folder / "last.ckpt")})
    for name, folder in cell.test_folders.items():
        if not (folder / "metrics.json").is_file():
            options = [
                f"--{option}={value if isinstance(value, str) else json.dumps(value)}"
                for option, value in cell.tests[name].items()
            ]
            write_yaml(folder / "given.yaml", given_test(cell, name))
            _crosscoop("test", "--ckpt_path", cell.folder / cell.checkpoint, "--run", folder, *options)


def _crosscoop(command: str, *options: object) -> None:
    """Run a command as `python -m crosscoop` does, so that Lightning starts the ranks of further devices likewise."""
    environment, arguments = dict(os.environ), sys.argv
    sys.argv = ["crosscoop", command, *map(str, options), *QUIET]
    try:
        runpy.run_module("crosscoop", run_name="__main__", alter_sys=True)
    finally:
        sys.argv = arguments
        _tidy(environment)


def _tidy(environment: dict[str, str]) -> None:
    """Leave nothing to the next command: ranks, their variables, a run of W&B, and memory."""
    os.environ.clear()
    os.environ.update(environment)
    if wandb := sys.modules.get("wandb"):
        wandb.finish()
    if torch := sys.modules.get("torch"):
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        gc.collect()
        torch.cuda.empty_cache()


@contextmanager
def _stoppable(folder: Path) -> Iterator[None]:
    """Turn a request to stop, or the death of the process that started this one, into SIGTERM."""
    over, parent = threading.Event(), os.getppid()

    def watch() -> None:
        while not over.wait(1):
            # A training needs one signal: a second one ends it at once. Elsewhere, an import may swallow the exception.
            training = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
            if not getattr(training, "received", False) and ((folder / "stop").exists() or os.getppid() != parent):
                os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
        (folder / "stop").unlink(missing_ok=True)


@contextmanager
def _time_limit(cell: Cell) -> Iterator[None]:
    """End the process after `max_hours`, even if it hangs outside Python, and leave its stack traces."""
    forget_failure(cell.folder)
    if not cell.max_hours:
        yield
        return
    path = cell.folder / "timeout.txt"
    with path.open("w") as file:
        faulthandler.dump_traceback_later(3600 * cell.max_hours, exit=True, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            path.unlink()


def _seconds(checkpoint: Path) -> float:
    """Return the training time in seconds without interruptions, as recorded by Lightning's Timer."""
    import torch

    timer = torch.load(checkpoint, weights_only=True, map_location="cpu")["callbacks"]["Timer"]
    return float(timer["time_elapsed"]["train"])


if __name__ == "__main__":
    sys.exit(CODES[run(Path(sys.argv[1]))])
