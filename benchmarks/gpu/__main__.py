"""Run on a GPU what can only be known there; see docs/gpu.md.

Three parts, each resumable and bounded in time: "right" runs the tests marked `gpu`, "fast" measures, "study" trains a
grid on CamVid. What the results already hold is not run again.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.gpu import fast, pack, right, study
from benchmarks.gpu.record import Clock, Record
from benchmarks.measure import Setting

MINUTES = {"right": 3.0, "fast": 4.0, "study": 60.0}
"""What each part may take, if the whole call has as much."""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--part", choices=tuple(MINUTES), help="run one part; default: all")
    parser.add_argument("--quick", action="store_true", help="rehearse on the CPU, with tiny networks and sizes")
    parser.add_argument("--minutes", type=float, default=10.0, help="time for all parts together; default: 10")
    parser.add_argument("--output", type=Path, help="folder of the results; default: runs/gpu or runs/gpu-rehearsal")
    parser.add_argument("--files", type=Path, default=Path("pack"), help="what --pack wrote; default: pack")
    parser.add_argument(
        "--grid", type=Path, default=study.GRID, help="the ablation of part study; default: %(default)s"
    )
    parser.add_argument(
        "--pack", type=Path, metavar="FOLDER", help="only collect wheels, data and weights, see docs/gpu.md"
    )
    parser.add_argument("--source", type=Path, default=Path(), help="with --pack: folder with data/ and weights/")
    parser.add_argument(
        "--installed", type=Path, default=pack.INSTALLED, help="with --pack: list of what the machine has"
    )
    parser.add_argument(
        "--items", nargs="+", default=pack.ITEMS, choices=pack.ITEMS, help="with --pack: what to collect"
    )
    parser.add_argument("--entry", help=argparse.SUPPRESS)
    parser.add_argument("--warm", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.pack:
        return pack.pack(given.pack, given.source, given.grid, given.installed, given.items)
    if not given.quick and not torch.cuda.is_available():
        raise SystemExit("python -m benchmarks.gpu: torch finds no GPU here; --quick rehearses on the CPU.")
    output = given.output or Path("runs/gpu-rehearsal" if given.quick else "runs/gpu")
    scratch = Path("runs/gpu-scratch" if not given.quick else "runs/gpu-rehearsal-scratch")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((scratch / "compiled").resolve()))
    setting = Setting(given.quick, "cpu" if given.quick else "cuda")
    if given.quick:
        torch.set_num_threads(1)
    if given.warm:  # only fills the cache of compiled kernels
        for name in fast.COMPILED:
            fast.ENTRIES[name](setting)
        return None
    if given.entry:
        return fast.measure(Record(output / "fast.json", given.quick), setting, given.entry)
    clock = Clock(given.minutes)
    parts = [given.part] if given.part else list(MINUTES)
    command = [sys.executable, "-m", "benchmarks.gpu", *["--quick"] * given.quick, "--output", str(output)]
    records = {part: Record(output / f"{part}.json", given.quick) for part in ("right", "fast")}
    warm = None
    if {"right", "fast"} <= set(parts) and not given.quick and not all(map(records["fast"].has, fast.COMPILED)):
        warm = subprocess.Popen([*command, "--warm"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for part in parts:
        own = Clock(clock.left / 60 if given.part else min(MINUTES[part], clock.left / 60))
        print(f"{part}: at most {own.left:.0f} s", flush=True)
        if part == "right":
            right.run(records[part], own, given.quick, output / "right.log")
            print(*right.table(records[part]), sep="\n", flush=True)
        elif part == "fast":
            if warm:
                wait(warm, 60)

            def apart(name: str, seconds: float) -> None:
                wait(subprocess.Popen([*command, "--entry", name]), seconds)

            fast.run(records[part], own, setting, apart)
            print(*fast.goals(records[part]), "", *fast.table(records[part]), sep="\n", flush=True)
        else:
            study.run(given.grid, given.files, scratch / "study", output, own, given.quick)
    return None


def wait(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    """Wait for a process, and kill it when the time is up."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
