"""Cells as real processes: one after the other, many by Ray, from SLURM and from W&B."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from grids import BASE, GRID
from processes import Python
from tiny import assert_equal, crosscoop, load

from crosscoop.ablation import cell as cells
from crosscoop.ablation import cluster
from crosscoop.ablation.cell import failure, state, write
from crosscoop.ablation.engine import Embedded
from crosscoop.ablation.grid import Cell, read_ablation, slug
from crosscoop.ablation.view import progress
from crosscoop.errors import CrosscoopError

ONE = {"seeds": [0], "grid": {}, "cells": {"Ensemble": GRID["cells"]["Ensemble"]}, "tests": None}
"""A grid of one cell."""


def test_ablation_runs_goes_on_and_writes_its_tables(grid, forked, tmp_path, capsys):
    runs = tmp_path / "runs"
    cells = {**GRID["cells"], "Broken": {"network.strategy": "nine"}}
    path = grid(seeds=[0], grid={}, cells=cells, tests={"half size": {"inference.scales": [0.5]}})
    with pytest.raises(SystemExit) as caught:
        crosscoop("ablate", "--runs", runs, "--grid", path)
    assert caught.value.code == 2
    errors = capsys.readouterr()
    assert "1 of 3 cells failed" in errors.err and "broken/seed0: network.strategy: got 'nine'" in errors.err
    assert "missing: 1 of 'Broken'" in (runs / "table.md").read_text()
    rows = list(csv.DictReader((runs / "table.csv").open()))
    assert [(row["row"], row["output"]) for row in rows] == [
        ("ResNet", "network"),
        *(("Ensemble", output) for output in ("top", "bottom", "ensemble")),
        ("Broken", ""),  # missing
    ]
    for row in rows[:-1]:
        figures = json.loads((runs / slug(row["row"]) / "seed0/half_size/metrics.json").read_text())
        assert "0.5" in figures["protocol"]["inference"]
        assert float(row["miou"]) == figures["outputs"][row["output"]]["miou"]
        assert float(row["seconds"]) > 0
    assert (runs / "table.png").stat().st_size > 5000

    kept = {path: path.stat().st_mtime_ns for path in runs.rglob("metrics.json")}
    yaml_text = (runs / "ablation.yaml").read_text().replace("nine", "cross")
    (runs / "ablation.yaml").write_text(yaml_text)  # as it was
    crosscoop("ablate", "--runs", runs, "--retry")
    assert "missing" not in (runs / "table.md").read_text()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # finished cells were not run again

    for key, value, words in (
        ("best.ckpt", "last.ckpt", "was tested with another"),
        ("max_epochs: 2", "max_epochs: 3", "was trained with"),
        ("version: 0.1.0", "version: 0.0.9", "got runs of crosscoop 0.0.9, expected 0.1.0"),
    ):
        assert key in yaml_text
        (runs / "ablation.yaml").write_text(yaml_text.replace(key, value))  # results of another grid
        with pytest.raises(SystemExit):
            crosscoop("ablate", "--runs", runs)
        assert words in capsys.readouterr().err


def begun(grid, tmp_path, epochs):
    """An ablation of one cell, as a process, once the cell has a checkpoint; the ablation's folder and the cell."""
    path, runs = grid(**ONE), tmp_path / "runs"
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**BASE, "trainer": {**BASE["trainer"], "max_epochs": epochs}}))
    command = [sys.executable, "-m", "crosscoop", "ablate", "--grid", path, "--runs", runs]
    driver = Python(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (runs / "ensemble/seed0/last.ckpt").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    (cell,) = read_ablation(runs / "ablation.yaml").all_cells(runs)
    return driver, runs, cell


def test_cell_of_a_killed_ablation_ends_and_resumes_to_the_same_weights(grid, forked, tmp_path):
    driver, runs, cell = begun(grid, tmp_path, epochs=12)
    driver.kill()
    driver.wait()
    with FileLock(cell.folder / ".lock", timeout=60):  # the cell has ended, too
        assert state(cell) == "interrupted"
        assert "Best of 12 validations" not in (cell.folder / "log.txt").read_text()
    crosscoop("ablate", "--runs", runs)
    assert (cell.folder / "test/metrics.json").is_file()
    crosscoop("fit", "--config", cell.folder / "given.yaml", "--run", tmp_path / "whole")
    assert_equal(load(tmp_path / "whole/last.ckpt")["state_dict"], load(cell.folder / "last.ckpt")["state_dict"])


def test_stopped_ablation_keeps_its_cells(grid, tmp_path):
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup does
    driver, _, cell = begun(grid, tmp_path, epochs=4000)
    signal.signal(signal.SIGINT, handler)
    driver.send_signal(signal.SIGUSR1)
    errors = driver.read(timeout=60)
    assert driver.returncode == 128 + signal.SIGUSR1
    assert "To resume: crosscoop ablate --runs" in errors and "Traceback" not in errors
    assert state(cell) == "interrupted" and not (cell.folder / "failed.txt").exists()


@pytest.fixture
def one(grid, tmp_path):
    """A cell that has not begun."""
    (cell,) = read_ablation(grid(**ONE)).all_cells(tmp_path / "runs")
    write(cell)
    return cell


@pytest.mark.parametrize(
    ("code", "word", "reason"),
    [
        (0, "done", ""),
        (75, "taken", ""),
        (143, "stopped", ""),
        (-signal.SIGUSR1, "stopped", ""),
        (-signal.SIGKILL, "failed", "killed by signal 9 (out of memory?); see log.txt"),
        (-signal.SIGSEGV, "failed", "killed by signal 11; see log.txt"),
        (3, "failed", "exit code 3; see log.txt"),
    ],
)
def test_outcome_of_a_process(one, code, word, reason):
    assert Embedded()._outcome(one, code) == word and failure(one.folder) == reason


def test_cell_stopped_from_outside_is_no_success(grid, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Embedded, "start", lambda self, cell: setattr(self, "running", (cell, None)) or "running")
    monkeypatch.setattr(Embedded, "news", lambda self: [(self.running[0], "stopped")])
    monkeypatch.setattr(Embedded, "close", lambda self: None)
    with pytest.raises(SystemExit) as caught:
        crosscoop("ablate", "--runs", tmp_path / "runs", "--grid", grid(**ONE))
    assert caught.value.code == 2 and "state saved: ensemble/seed0. To resume: crosscoop" in capsys.readouterr().err


def test_a_second_ablation_and_a_cell_that_runs_are_refused(one, grid, forked, tmp_path, capsys, monkeypatch):
    command = ("ablate", "--runs", tmp_path / "runs", "--grid", tmp_path / "grid.yaml")
    with FileLock(tmp_path / "runs/.lock"), pytest.raises(SystemExit):
        crosscoop(*command)
    assert "is in use by another crosscoop ablate" in capsys.readouterr().err
    monkeypatch.setattr(cells, "PATIENCE", 0.1)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with FileLock(one.folder / ".lock"):
        assert cells.run(one.folder) == "taken"
    monkeypatch.setattr(Embedded, "_outcome", lambda *_: "taken")
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: Python([sys.executable, "-c", ""]))
    with FileLock(tmp_path / "runs/.lock"), pytest.raises(SystemExit):
        crosscoop(*command, "--cell 0")  # which does not need the whole folder
    assert "Another process runs these cells" in capsys.readouterr().err


HANG = """
import ctypes, sys
from pathlib import Path
from crosscoop.ablation import cell
cell._train_and_test = lambda _: ctypes.PyDLL(None).sleep(60)  # keeps the interpreter's lock
cell.run(Path(sys.argv[1]))
"""


def test_cell_that_hangs_ends_at_its_limit(grid, tmp_path):
    (cell,) = read_ablation(grid(**ONE, max_hours=1e-4)).all_cells(tmp_path / "runs")
    write(cell)
    assert Python([sys.executable, "-c", HANG, cell.folder]).wait(30) == 1
    assert state(cell) == "failed" and Embedded()._outcome(cell, 1) == "failed"
    assert failure(cell.folder).startswith("longer than max_hours allows: Timeout (0:00:00.36")
    assert "in <lambda>" in (cell.folder / "timeout.txt").read_text()


def test_cell_on_two_devices_ends_at_its_limit_of_time(grid, forked, tmp_path):
    trainer = {"trainer.devices": 2, "trainer.max_time": "00:00:00:01", "trainer.max_epochs": 4000}
    path = grid(**{**ONE, "cells": {"Ensemble": trainer}})
    crosscoop("ablate", "--runs", tmp_path / "runs", "--grid", path)
    folder = tmp_path / "runs/ensemble/seed0"
    assert "MEMBER: 2/2" in (folder / "log.txt").read_text() and (folder / "test/metrics.json").is_file()
    assert 1 < json.loads((folder / "cost.json").read_text())["seconds"] < 60


@pytest.mark.parametrize(
    ("trainer", "shown"),
    [
        ({"max_epochs": 4}, "epoch 2 of 4"),
        ({}, "epoch 2 of 50"),
        ({"max_epochs": -1, "max_steps": 70}, "step 35 of 70"),
        ({"max_epochs": 3, "max_steps": 70}, "epoch 2 of 3"),  # which ends first
        ({"max_epochs": -1}, "epoch 2"),
    ],
)
def test_progress_names_the_limit_that_ends_the_training(tmp_path, trainer, shown):
    (tmp_path / "history.csv").write_text("epoch,step\n0,17\n1,35\n")
    assert progress(Cell("a", 0, {"trainer": trainer}, tmp_path)) == shown
    assert progress(Cell("a", 0, {}, tmp_path / "nowhere")) == "running"


# -- Ray


def test_ray_lets_cells_end_as_they_do(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    names = ("good", "dies", "dies once", "late", "sleeps")

    def run(version, folder, *_):
        """Stands for a training; by value, as a nested function."""
        import os
        import signal
        import time
        from pathlib import Path

        yield "running on here"
        name, folder = Path(folder).parent.name, Path(folder)
        with (folder / "attempts").open("a") as file:
            file.write(os.environ["OMP_NUM_THREADS"])
        if name == "late":
            (folder / "timeout.txt").write_text("Timeout (0:00:01)!\n")
            os._exit(1)
        if name == "dies" or (name == "dies_once" and len((folder / "attempts").read_text()) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        while name == "sleeps" and not (folder / "stop").exists():
            time.sleep(0.1)
        yield "stopped" if name == "sleeps" else "done"

    monkeypatch.setattr(cluster, "_run", run)
    cells = [Cell(name, 0, {}, tmp_path / slug(name) / "seed0", resources={"cpus": 1}) for name in names]
    engine = cluster.RayEngine(5, None, cells)
    try:
        with pytest.raises(
            CrosscoopError, match="a/seed0 asks for 99 CPUs and 0 GPUs, expected no more than a node has"
        ):
            engine.start(Cell("a", 0, {}, tmp_path / "a/seed0", resources={"cpus": 99}))
        states = {cell.name: [engine.start(cell)] for cell in cells}
        deadline = time.monotonic() + 120
        while (len(engine.tasks) > 1 or engine.waiting) and time.monotonic() < deadline:
            for cell, word in engine.news():
                states[cell.name].append(word)
            time.sleep(0.05)
    finally:
        engine.close()
    # A worker that dies at once may take with it that it was running.
    states = {name: [word for word in words if word != "running on here"] for name, words in states.items()}
    died = "waiting again: its process died (out of memory, or a crash in native code?)"
    assert states == {
        "good": ["waiting", "done"],
        "dies": ["waiting", *[died] * (cluster.ATTEMPTS - 1), "failed"],
        "dies once": ["waiting", died, "done"],
        "late": ["waiting", "failed"],
        "sleeps": ["waiting"],
    }
    assert "max_hours" in failure(cells[3].folder)
    assert "4 times without a further checkpoint" in failure(cells[1].folder)


def test_what_ray_needs_is_told(grid, tmp_path, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    for options, words in (
        (f"--address {nobody}", f"got {nobody}, which cannot be reached"),
        ("--address nonsense", "got nonsense, which cannot be reached"),
        ("--address auto --workers 2", "expected no --workers with --address"),
        ("--workers 2", "--workers 2 needs Ray (import of ray halted"),
    ):
        if "halted" in words:
            monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(SystemExit):
            crosscoop("ablate", "--runs", tmp_path / "runs", "--grid", grid(), options)
        assert words in capsys.readouterr().err


def test_worker_refuses_another_version_and_an_unseen_folder(tmp_path):
    with pytest.raises(CrosscoopError, match=r"has crosscoop 0.1.0, expected 9, as on this machine"):
        next(cluster._run("9", str(tmp_path), ".", [], ""))
    with pytest.raises(CrosscoopError, match="expected a folder that all nodes of the cluster share"):
        next(cluster._run(cluster.__version__, str(tmp_path), ".", [], ""))


# -- SLURM and W&B

SBATCH = """#!/bin/sh
# Runs the tasks of `sbatch --array=FIRST-LAST --wrap COMMAND` one after the other.
range=${1#--array=}
for task in $(seq ${range%-*} ${range#*-}); do SLURM_ARRAY_TASK_ID=$task sh -c "$3" || exit 1; done
"""


@pytest.mark.slow
def test_slurm_array_runs_every_cell(grid, tmp_path):
    from crosscoop.commands.ablate import ablate

    (tmp_path / "sbatch").write_text(SBATCH)
    (tmp_path / "sbatch").chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    line = str(ablate.__doc__).partition("`sbatch")[2].partition("`")[0].replace("0-41", "0-1")
    grid(seeds=[0], grid={}, tests=None)
    line = "sbatch" + line.replace("GRID", str(tmp_path / "grid.yaml")).replace("RUNS", str(tmp_path / "runs"))
    subprocess.run(line, shell=True, check=True, env={**os.environ, "PATH": path})
    assert "missing" not in (tmp_path / "runs/table.md").read_text()


@pytest.mark.slow
def test_wandb_agent_runs_a_cell(grid, tmp_path, monkeypatch):
    """The agent's own code, with a command as the server sends it."""
    agents = pytest.importorskip("wandb.wandb_agent")
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    crosscoop("ablate", "--runs", tmp_path / "runs", "--grid", grid(**ONE), "--sweep", tmp_path / "sweep.yaml")
    sweep = yaml.safe_load((tmp_path / "sweep.yaml").read_text())
    agent = agents.Agent(None, None)
    agent._sweep_command = sweep["command"]
    (label,) = sweep["parameters"]["cell"]["values"]
    command = {"type": "run", "run_id": "one", "program": sweep["program"], "args": {"cell": {"value": label}}}
    assert "exception" not in agent._process_command(command)
    assert agent._run_processes["one"].wait() == 0
    assert "missing" not in (tmp_path / "runs/table.md").read_text()
