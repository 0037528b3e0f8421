"""Part "right": the tests marked `gpu`, each outcome as an entry."""

import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.record import Clock, Record

TESTS = "tests/test_gpu.py"
OUTCOME = re.compile(rf"^({TESTS}::.+?) (PASSED|FAILED|ERROR|SKIPPED)|%\] (PASSED|FAILED|ERROR|SKIPPED) ({TESTS}::.+)")
"""A line of pytest's verbose output, of one process or of several."""


def run(record: Record, clock: Clock, quick: bool, log: Path) -> None:
    """Run the tests that have not passed yet.

    Args:
        record: Receives an entry per test.
        clock: When to stop.
        quick: Run on the CPU, without the longest tests: each strategy and operator is computed in the suite as well.
        log: Receives pytest's output.
    """
    command = [sys.executable, "-m", "pytest", TESTS, "-m", "gpu", "-v", "--tb=short", "--show-capture=no"]
    command += ["--device", "cpu" if quick else "cuda", "-p", "no:cacheprovider"]
    command += ["-k", "not logits_and_gradients or gate"] if quick else []
    if find_spec("xdist") and (os.cpu_count() or 1) >= 8:
        command += ["-n", "6"]
    for name in record.entries:
        if record.has(name):
            command += ["--deselect", name]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            process.wait(clock.left)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    for name, outcome in outcomes(log.read_text(errors="replace")).items():
        entry = {"outcome": outcome}
        record.add(name, entry if outcome in ("passed", "skipped") else {**entry, "failed": f"see {log.name}"})


def outcomes(output: str) -> dict[str, str]:
    """Return the outcome of each test by its name, from pytest's verbose output."""
    found = {}
    for line in output.splitlines():
        if match := OUTCOME.search(line):
            first, outcome, other, second = match.groups()
            found[(first or second).strip()] = (outcome or other).lower()
    return found


def table(record: Record) -> list[str]:
    """Return Markdown that counts the outcomes and names the tests that failed."""
    results = [entry["outcome"] for entry in record.entries.values()]
    counts = ", ".join(f"{results.count(word)} {word}" for word in sorted(set(results))) or "no test has ended"
    return [counts, *(f"- {name}: {entry['failed']}" for name, entry in record.entries.items() if "failed" in entry)]
