"""One cell: train it, test it, and write its records to its folder. `python -m crosscoop.ablation.cell RUNS CELL`."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from crosscoop.ablation.grid import Ablation, Cell, read_ablation, slug
from crosscoop.files import write_json, write_yaml

TAKEN = 75
"""Exit code of a cell that another worker holds (EX_TEMPFAIL of sysexits.h)."""


TIMER = {"class_path": "pytorch_lightning.callbacks.Timer", "init_args": {"interval": "epoch"}}
"""Lightning's timer, which a resumed training continues; the default of its `interval` cannot be written to YAML."""

QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")


def state(ablation: Ablation, cell: Cell) -> str:
    """Return a cell's state from its folder: done, failed, running (somewhere), interrupted or waiting."""
    if all((folder / "metrics.json").is_file() for folder in tests(ablation, cell).values()):
        return "done"
    if (cell.folder / ".lock").is_file() and _is_held(cell.folder / ".lock"):
        return "running"
    if (cell.folder / "failed.txt").is_file():
        return "failed"
    return "interrupted" if (cell.folder / "last.ckpt").is_file() else "waiting"


def tests(ablation: Ablation, cell: Cell) -> dict[str, Path]:
    """Return the folder of each test of a cell."""
    return {name: cell.folder / slug(name) for name in ablation.tests}


def given_test(ablation: Ablation, name: str) -> dict[str, Any]:
    """Return the arguments of a test, which are stored beside its results."""
    return {"checkpoint": ablation.checkpoint, "options": ablation.tests[name]}


def run(ablation: Ablation, cell: Cell) -> None:
    """Train and test a cell, or resume it.

    Args:
        ablation: The ablation.
        cell: The cell; its `given.yaml` is the configuration for `crosscoop fit`.

    Raises:
        Timeout: Another worker is running it, here or on another machine.
        SystemExit: The training or a test failed, or was stopped.
    """
    cell.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(cell.folder / ".lock", timeout=1):  # longer than another worker's check, `_is_held`, takes
        given = cell.folder / "given.yaml"
        write_yaml(given, cell.config)
        cost = cell.folder / "cost.json"
        if not cost.is_file():
            timed = (cell.config.get("trainer") or {}).get("max_time")  # Lightning then adds its own timer
            timer = [] if timed else [f"--trainer.callbacks+={json.dumps(TIMER)}"]
            _crosscoop("fit", "--config", given, "--run", cell.folder, "--resume", *timer)
            from crosscoop.ablation.cost import measure  # with torch, whose memory a training may need

            write_json(cost, {**asdict(measure(cell)), "seconds": _seconds(cell.folder / "last.ckpt")})
        for name, folder in tests(ablation, cell).items():
            if not (folder / "metrics.json").is_file():
                options = [
                    f"--{option}={value if isinstance(value, str) else json.dumps(value)}"
                    for option, value in ablation.tests[name].items()
                ]
                folder.mkdir(exist_ok=True)
                write_yaml(folder / "given.yaml", given_test(ablation, name))
                _crosscoop("test", "--ckpt_path", cell.folder / ablation.checkpoint, "--run", folder, *options)


def _crosscoop(command: str, *options: object) -> None:
    """Run a command in a process of its own: Lightning starts the ranks of further GPUs with its process's arguments.

    Signals that request a stop are forwarded.
    """
    process = subprocess.Popen([sys.executable, "-m", "crosscoop", command, *map(str, options), *QUIET])

    def pass_on(number: int, frame: FrameType | None) -> None:
        if process.poll() is not None:  # between two commands
            raise SystemExit(128 + number)
        process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, pass_on)
    if code := process.wait():
        raise SystemExit(code if code > 0 else 128 - code)


def _is_held(path: Path) -> bool:
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def _seconds(checkpoint: Path) -> float:
    """Return the training time in seconds without interruptions, as recorded by Lightning's Timer."""
    import torch

    timer = torch.load(checkpoint, weights_only=True, map_location="cpu")["callbacks"]["Timer"]
    return float(timer["time_elapsed"]["train"])


if __name__ == "__main__":
    runs = Path(sys.argv[1])
    ablation = read_ablation(runs / "ablation.yaml")
    try:
        run(ablation, ablation.cell(runs, sys.argv[2]))
    except Timeout:
        sys.exit(TAKEN)
