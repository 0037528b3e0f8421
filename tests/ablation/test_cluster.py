"""A simulated cluster of three nodes: nodes come and go, workers and the driver die, cells fail in every way.

Minutes each, as every worker of Ray imports torch; the trainings of those named pretended count instead.
"""

import csv
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from grids import BASE, GRID
from processes import FOLDERS
from tiny import assert_equal, crosscoop, load

from crosscoop.ablation.cell import failure, state, write
from crosscoop.ablation.cluster import ATTEMPTS
from crosscoop.ablation.grid import Cell, read_ablation

pytestmark = pytest.mark.slow
EPOCHS = 12
TWELVE = {
    "seeds": [0, 1],
    "cells": {},
    "grid": {"network.strategy": ["none", "cross_c1", "cross_c2"], "network.fusion": ["add", "average"]},
    "baseline": None,
    "tests": None,
}


PRETENDED = """
import json
import sys
import time

from crosscoop.ablation import cell, cluster
from crosscoop.cli import main

RUN = cluster._run

def train(one):
    path = one.folder / "last.ckpt"
    epoch, value = json.loads(path.read_text()) if path.exists() else (0, len(one.name) + one.seed)
    while epoch < {epochs}:
        time.sleep(0.5)
        epoch, value = epoch + 1, value * 31 % 9973
        path.with_suffix(".new").write_text(json.dumps([epoch, value]))
        path.with_suffix(".new").replace(path)
        print("epoch", epoch, flush=True)
    print("Best of {epochs} validations", flush=True)
    how = dict(dataset="Streets", split="test", num_images=3, official_num_images=None, evaluation="", inference="")
    figures = dict(miou=value / 9973, iou_per_class=dict(Road=0.5), protocol=how, outputs=dict(network=dict(miou=0.5)))
    cell.write_json(one.folder / "test/metrics.json", figures)
    cell.write_json(one.folder / "cost.json", dict(parameters=1, macs=1, seconds=value))

def run(*arguments):  # by value, as it is the script's
    from crosscoop.ablation import cell

    cell._train_and_test = train
    yield from RUN(*arguments)

if sys.argv[1] == "serial":
    cell._train_and_test = train
    for folder in sys.argv[2:]:
        assert cell.run(cell.Path(folder)) == "done"
else:
    cluster._run = run
    main(sys.argv[1:])
""".replace("{epochs}", str(EPOCHS))
"""Runs cells whose trainings count: each epoch depends on the one before, and takes half a second."""


@pytest.fixture
def cluster(monkeypatch):
    """Three nodes of one CPU each, whose workers find the tests' modules."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*FOLDERS, os.environ.get("PYTHONPATH", "")]))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8})
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=10**8)
    yield cluster
    cluster.shutdown()


@pytest.fixture(params=["pretended", "real"])
def twelve(request, grid, tmp_path):
    """The grid of twelve cells, their folders, and those of the same cells, trained one after the other."""
    path = grid(**TWELVE)
    base = {**BASE, "trainer": {**BASE["trainer"], "max_epochs": EPOCHS}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    if request.param == "pretended":
        (tmp_path / "pretended.py").write_text(PRETENDED)
    ablation = read_ablation(path)
    return path, ablation.all_cells(tmp_path / "runs"), ablation.all_cells(tmp_path / "serial")


def start(cluster, path: Path) -> subprocess.Popen:
    """The driver, as a process."""
    pretended = path.parent / "pretended.py"
    command = [sys.executable, *([pretended] if pretended.exists() else ["-m", "crosscoop"]), "ablate", "--grid", path]
    with (path.parent / "driver.txt").open("ab") as output:
        options = ["--runs", path.parent / "runs", "--address", cluster.address]
        return subprocess.Popen([*command, *options], stdout=output, stderr=output)


def wait(driver: subprocess.Popen, condition, seconds: float = 1800) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and driver.poll() is None
        time.sleep(0.2)


def done(cells: list[Cell]) -> int:
    return sum(state(cell) == "done" for cell in cells)


def assert_as_serial(cells: list[Cell], serial: list[Cell], path: Path) -> None:
    """Each cell was trained once to its end, and has the weights and tables of a serial run."""
    pretended = path.parent / "pretended.py"
    if pretended.exists():
        for cell in serial:
            write(cell)
        subprocess.run([sys.executable, pretended, "serial", *(cell.folder for cell in serial)], check=True)
    crosscoop("ablate", "--grid", path, "--runs", path.parent / "serial")
    for cell, other in zip(cells, serial, strict=True):
        assert (cell.folder / "log.txt").read_text().count(f"Best of {EPOCHS} validations") == 1
        first, second = cell.folder / "last.ckpt", other.folder / "last.ckpt"
        if pretended.exists():
            assert first.read_text() == second.read_text()
        else:
            assert_equal(load(first)["state_dict"], load(second)["state_dict"])
        assert (cell.folder / "test/metrics.json").read_text() == (other.folder / "test/metrics.json").read_text()
    first, second = (
        [{**row, "seconds": ""} for row in csv.DictReader((path.parent / runs / "table.csv").open())]
        for runs in ("runs", "serial")
    )
    assert first == second


def workers(cluster, cells: list[Cell]) -> dict[int, Cell]:
    """The processes of this cluster that run cells."""
    raylets = {process.process.pid for node in cluster.list_all_nodes() for process in node.all_processes["raylet"]}
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_text().strip("\0 ")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent in raylets:
            found |= {int(folder.name): cell for cell in cells if title == f"ray::{cell.label}"}
    return found


def test_nodes_leave_and_join_and_the_driver_dies(cluster, twelve):
    path, cells, serial = twelve
    driver = start(cluster, path)
    wait(driver, lambda: done(cells) >= 2 and len(workers(cluster, cells)) == 3)
    cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
    wait(driver, lambda: done(cells) >= 4)
    cluster.add_node(num_cpus=1, object_store_memory=10**8)
    wait(driver, lambda: done(cells) >= 7)
    driver.kill()
    driver.wait()
    driver = start(cluster, path)
    assert driver.wait(1800) == 0, (path.parent / "driver.txt").read_text()
    assert_as_serial(cells, serial, path)


def test_workers_are_killed_at_random(cluster, twelve):
    path, cells, serial = twelve
    chance, driver, killed = random.Random(0), start(cluster, path), dict.fromkeys((cell.label for cell in cells), 0)
    progress, kills = {}, 0
    while kills < 20:
        assert driver.poll() is None, (path.parent / "driver.txt").read_text()
        time.sleep(chance.uniform(0, 4))
        running = workers(cluster, cells)
        if not running:
            continue
        process, cell = chance.choice(sorted(running.items(), key=lambda each: each[0]))
        last = cell.folder / "last.ckpt"
        now = last.stat().st_mtime if last.exists() else 0.0
        if now > progress.get(cell.label, 0.0):
            killed[cell.label] = 0
        progress[cell.label] = now
        if killed[cell.label] + 2 > ATTEMPTS:
            continue  # that many without a checkpoint are a failure
        killed[cell.label] += 1
        kills += 1
        os.kill(process, 9)
    assert driver.wait(1800) == 0, (path.parent / "driver.txt").read_text()
    assert_as_serial(cells, serial, path)


HANGING = """
import time
import pytorch_lightning as pl

class Hang(pl.Callback):
    def on_train_start(self, trainer, pl_module):
        time.sleep(3600)

class Eat(pl.Callback):
    def on_train_start(self, trainer, pl_module):
        eaten = []
        while True:
            eaten.append(b"x" * 2**26)
            time.sleep(0.02)
"""


@pytest.mark.parametrize(
    ("cells", "reasons"),
    [
        (
            {
                "Good": GRID["cells"]["Ensemble"],
                "Broken": {"network.strategy": "nine"},
                "Hangs": {"trainer.callbacks": [{"class_path": "faulty_cells.Hang"}]},
            },
            ["^$", "got 'nine', expected one of none", "longer than max_hours allows: Timeout"],
        ),
        # alone: Ray may also end the cells beside it
        ({"Hungry": {"trainer.callbacks": [{"class_path": "faulty_cells.Eat"}]}}, ["^out of memory, 4 times"]),
    ],
    ids=["reasons", "memory"],
)
def test_cells_fail_as_what_they_are(cells, reasons, grid, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    if "Hungry" in cells:
        memory = dict(line.split()[:2] for line in Path("/proc/meminfo").read_text().splitlines())
        total, left = int(memory["MemTotal:"]), int(memory["MemAvailable:"])
        monkeypatch.setenv("RAY_memory_usage_threshold", str((total - left + 4 * 2**20) / total))  # 4 GiB more
    (tmp_path / "faulty_cells.py").write_text(HANGING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    path = grid(seeds=[0], cells=cells, grid={}, baseline=None, tests=None, max_hours=120 / 3600)
    command = [sys.executable, "-m", "crosscoop", "ablate", "--grid", path, "--runs", tmp_path / "runs"]
    ended = subprocess.run([*command, "--workers", "3"], capture_output=True, text=True)
    failures = [failure(cell.folder) for cell in read_ablation(path).all_cells(tmp_path / "runs")]
    assert all(re.search(*pair) for pair in zip(reasons, failures, strict=True)), failures
    assert ended.returncode == 2 and f"{sum(map(bool, failures))} of {len(cells)} cells failed" in ended.stderr
