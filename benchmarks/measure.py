"""Measurement: A and B alternately in one process, medians and quartiles; peak memory in a separate process."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Work = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """The settings of all comparisons.

    Attributes:
        quick: Use sizes so small that every comparison ends within seconds; its measurements are meaningless.
        device: `cpu` or `cuda`.
        voc: A folder of PASCAL VOC 2012, or None for generated files of the same size.
        cityscapes: A folder of Cityscapes, or None for generated files of the same size.
        limits: Environment variables that hide instructions of this processor, `ONEDNN_MAX_CPU_ISA=AVX2`.
    """

    quick: bool = False
    device: str = "cpu"
    voc: str | None = None
    cityscapes: str | None = None
    limits: tuple[str, ...] = ()

    def pick(self, quick: Any, full: Any) -> Any:
        """Return the value for a quick or for a full run."""
        return quick if self.quick else full


def in_turn(works: list[Work], repeats: int, device: str = "cpu", warm_up: int = 1) -> list[list[float]]:
    """Measure the seconds of each work alternately, A B A B ..., after a warm-up.

    On one CPU thread this is the CPU time of the process, which other processes disturb less than wall-clock time; on
    an idle machine both are equal. On several threads, and on CUDA (synchronised), it is wall-clock time.
    """
    seconds: list[list[float]] = [[] for _ in works]
    for repeat in range(warm_up + repeats):
        for work, times in zip(works, seconds, strict=True):
            begin = now(device)
            work()
            if repeat >= warm_up:
                times.append(now(device) - begin)
    return seconds


def now(device: str) -> float:
    """Return a time in seconds, see `in_turn`."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def compare(
    what: str,
    ours: Work,
    against: str,
    theirs: Work,
    setting: Setting,
    *,
    at_most: float | None = None,
    times: float | None = None,
    repeats: int = 7,
    items: int | None = None,
) -> Row:
    """Measure a row of the document.

    Args:
        what: What is measured of ours.
        ours: Runs it once.
        against: What it is compared with.
        theirs: Runs that once.
        setting: The setting.
        at_most: Target for the ratio ours : theirs, as a maximum.
        times: Target for how many times as fast ours is, as a minimum.
        repeats: Number of repetitions.
        items: Number of items per run; the row then shows items per second.
    """
    a, b = in_turn([ours, theirs], setting.pick(2, repeats), setting.device)
    return row(what, a, against, b, at_most=at_most, times=times, items=items)


def row(
    what: str,
    ours: list[float],
    against: str,
    theirs: list[float],
    *,
    at_most: float | None = None,
    times: float | None = None,
    items: int | None = None,
    unit: str = "s",
) -> Row:
    """Return a row of the document from paired measurements, see `compare`."""
    faster = times is not None
    ratios = [b / a if faster else a / b for a, b in zip(ours, theirs, strict=True)]
    low, ratio, high = quartiles(ratios)
    target = times if faster else at_most
    return {
        "what": what,
        "against": against,
        "ours": quartiles(ours),
        "theirs": quartiles(theirs),
        "unit": unit,
        "items": items,
        "ratio": ratio,
        "quartiles": [low, high],
        "faster": faster,
        "target": target,
        "reached": None if target is None else bool(ratio >= target if faster else ratio <= target),
        "repeats": len(ours),
    }


def quartiles(numbers: list[float]) -> list[float]:
    """Return lower quartile, median and upper quartile."""
    if len(numbers) < 2:
        return [numbers[0]] * 3
    return statistics.quantiles(numbers, n=4, method="inclusive")


def peak_memory(function: str, *arguments: Any) -> dict[str, float]:
    """Measure peak memory in MiB of a function in a separate process.

    Args:
        function: `module:name` of a function that prepares the measurement and returns the function to measure.
        arguments: Its arguments, as JSON values.

    Returns:
        `peak` of the whole process, and `added` by the measured function.
    """
    command = [sys.executable, "-m", "benchmarks.measure", function, json.dumps(arguments)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    figures: dict[str, float] = json.loads(output.splitlines()[-1])
    return figures


def _main() -> None:
    import pkgutil
    import resource

    import torch

    torch.set_num_threads(1)
    work = pkgutil.resolve_name(sys.argv[1])(*json.loads(sys.argv[2]))
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        peak = torch.cuda.max_memory_allocated()
    else:
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        work()
        status = Path("/proc/self/status").read_text()  # ru_maxrss would start at the parent's peak
        peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    print(json.dumps({"peak": peak / 2**20, "added": (peak - before) / 2**20}))


if __name__ == "__main__":
    _main()
