"""Start-up time of the command line."""

import resource
import subprocess
import sys
from collections.abc import Callable

from benchmarks.measure import Row, Setting, row

ALL = "import torch, pytorch_lightning, timm, torchmetrics"
TORCH = "import torch"
COMMANDS = {
    "--help": ALL,
    "fit --print_config": ALL,
    "fit --help": ALL,
    "submit --help": TORCH,
    "check-data --help": TORCH,
    "report --help": TORCH,
    "score --help": "import torch, torchmetrics",
}
"""What each command is compared with: importing what it uses, and nothing else."""


def run(setting: Setting) -> list[Row]:
    """Measure CPU seconds of a process, against only importing the libraries."""
    rows = []
    for command, imports in COMMANDS.items():
        ours, theirs = process("-m", "crosscoop", *command.split()), process("-c", imports)
        theirs()
        pairs = [(ours(), theirs()) for _ in range(setting.pick(1, 3))]
        seconds, bare = map(list, zip(*pairs, strict=True))
        rows.append(row(f"crosscoop {command}", seconds, f'python -c "{imports}"', bare, at_most=1.15))
    return rows


def process(*arguments: str) -> Callable[[], float]:
    """Return a function that runs Python and returns its CPU seconds, including child processes."""

    def work() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return work
