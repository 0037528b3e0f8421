"""Start-up time of the command line."""

import resource
import subprocess
import sys
from collections.abc import Callable

from benchmarks.measure import Row, Setting, row

IMPORTS = "import torch, pytorch_lightning, timm, torchmetrics"


def run(setting: Setting) -> list[Row]:
    """Measure CPU seconds of a process, against only importing the libraries."""
    commands = {"crosscoop --help": ["--help"], "crosscoop fit --print_config": ["fit", "--print_config"]}
    commands["crosscoop fit --help"] = ["fit", "--help"]
    bare = process("-c", IMPORTS)
    ours = {name: process("-m", "crosscoop", *options) for name, options in commands.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ours}
    imports: dict[str, list[float]] = {name: [] for name in ours}
    bare()
    for _ in range(setting.pick(1, 2)):
        for name, command in ours.items():
            seconds[name].append(command())
            imports[name].append(bare())
    return [row(name, seconds[name], f'python -c "{IMPORTS}"', imports[name], at_most=1.15) for name in ours]


def process(*arguments: str) -> Callable[[], float]:
    """Return a function that runs Python and returns its CPU seconds, including child processes."""

    def work() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return work
