"""Part "study": a grid of trainings on CamVid, as far as the time goes; results are added to those of earlier calls."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.record import Clock
from crosscoop.ablation.cell import state
from crosscoop.ablation.grid import read_ablation
from crosscoop.files import include_yaml, load_yaml, write_json, write_yaml

GRID = Path("configs/ablation/gpu_camvid.yaml")
STOP = 40.0
"""Seconds that saving the running cells, and the tables, may take."""
TINY = {
    "network": {"branches": ["test_resnet", "test_byobnet"], "pretrained": False, "channels": 16},
    "data": {
        "dataset": {"class_path": "Streets", "init_args": {"num_train": 4, "num_val": 2, "num_test": 2, "height": 32,
                                                           "width": 64}},
        "batch_size": 2, "crop_size": 32, "num_workers": 0,
    },
    "trainer": {"accelerator": "cpu", "precision": "32-true", "max_steps": 2},
}  # fmt: skip
"""What a rehearsal trains instead."""


def run(grid: Path, files: Path, runs: Path, output: Path, clock: Clock, quick: bool) -> None:
    """Run the grid's cells until the time is up.

    Args:
        grid: The ablation's YAML.
        files: Folder with `data/` and `weights/`, to which the grid's paths are relative.
        runs: Folder of the runs with their checkpoints; too large to be taken home.
        output: Folder for `study.json`, `study.md` and `study.tgz`, which holds the finished cells without checkpoints.
        clock: When to stop.
        quick: Train tiny networks on the CPU.
    """
    archive = output / "study.tgz"
    runs.mkdir(parents=True, exist_ok=True)
    if archive.exists():
        with tarfile.open(archive) as tar:
            tar.extractall(runs, filter="data")
    local = runs / "grid.yaml"
    write_yaml(local, adapted(grid, files, quick))
    workers = 1 if quick else max(min((os.cpu_count() or 1) // 3, 5), 1)
    command = [sys.executable, "-m", "crosscoop", "ablate", "--runs", str(runs), "--grid", str(local)]
    paths = [str(files / "weights"), os.environ.get("PYTHONPATH", "")]  # modules that register backbones
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    # A command per cell, as from SLURM: --workers would need Ray, which is too large to be taken along.
    waiting = [cell.label for cell in read_ablation(local).all_cells(runs) if state(cell) in ("waiting", "interrupted")]
    running: list[subprocess.Popen[bytes]] = []
    known = -1
    while (waiting or running) and clock.left > (0 if quick else STOP):
        running = [process for process in running if process.poll() is None]
        while waiting and len(running) < workers:
            arguments = [*command, "--cell", waiting.pop(0)]
            running.append(
                subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
            )
        time.sleep(1)
        known = keep(local, runs, output, known)
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(STOP)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    if keep(local, runs, output, -1):
        subprocess.run([*command, "--tables"], check=False, stdout=subprocess.DEVNULL)
        if (runs / "table.md").exists():
            shutil.copy(runs / "table.md", output / "study.md")


def adapted(grid: Path, files: Path, quick: bool) -> dict[str, Any]:
    """Return the grid with its base included, and with the paths of its files; or with tiny networks and data."""
    content = load_yaml(grid)
    base = grid.parent / str(content["base"])
    content["base"] = include_yaml(load_yaml(base), base.parent)
    if quick:
        content["seeds"] = content["seeds"][:1]
        for group, options in TINY.items():
            content["base"][group] |= options
        return content
    dataset, network = content["base"]["data"]["dataset"], content["base"]["network"]
    dataset["init_args"]["root"] = str(files / dataset["init_args"]["root"])
    network["pretrained"] = [str(files / path) for path in network["pretrained"]]
    return content


def keep(grid: Path, runs: Path, output: Path, known: int) -> int:
    """Write the finished cells' metrics and small files, if their number has changed.

    Returns:
        Their number.
    """
    ablation = read_ablation(grid)
    done = [cell for cell in ablation.all_cells(runs) if state(cell) == "done"]
    if len(done) == known:
        return known
    output.mkdir(parents=True, exist_ok=True)
    results, buffer = {}, io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for cell in done:
            results[cell.label] = {
                path.parent.name: json.loads(path.read_text()) for path in cell.folder.rglob("metrics.json")
            }
            for path in sorted(cell.folder.rglob("*")):
                if path.suffix in (".json", ".yaml", ".csv"):
                    tar.add(path, str(path.relative_to(runs)))
    temporary = output / ".study.tgz"
    temporary.write_bytes(buffer.getvalue())
    temporary.replace(output / "study.tgz")
    write_json(output / "study.json", results)
    return len(done)
