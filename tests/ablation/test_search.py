"""The search for settings: its trials, their pruning and resuming, and the best of them."""

import csv
from collections.abc import Iterator

import pytest
import yaml
from grids import BASE, GRID
from tiny import crosscoop

pytest.importorskip("optuna")

from crosscoop.ablation.cell import write
from crosscoop.ablation.engine import drive
from crosscoop.ablation.grid import read_ablation, with_best
from crosscoop.ablation.search import Trials
from crosscoop.ablation.view import View
from crosscoop.errors import CrosscoopError
from crosscoop.files import write_json

EPOCHS = 5
SEARCH = {"trials": 12, "space": {"model.optimizer.init_args.lr": {"low": "1e-4", "high": 1, "log": True}}}


class Pretended:
    """An engine whose trainings reach a val/miou of their learning rate, an epoch per look."""

    def __init__(self, room: int, starts: int = 99) -> None:
        self.places, self.starts = room, starts
        self.epochs: dict = {}
        self.stopped: list[str] = []
        self.started: list = []

    def room(self) -> int:
        return self.places

    def start(self, cell) -> str:
        if len(self.started) == self.starts:
            raise KeyboardInterrupt
        write(cell)
        self.started.append(cell)
        self.epochs[cell.label] = (cell, 0)
        return "running"

    def news(self) -> Iterator:
        for label, (cell, epoch) in list(self.epochs.items()):
            rate = cell.config["model"]["optimizer"]["init_args"]["lr"]
            rows = [(i, i, 2, rate * (1 if i == 2 else 0.5)) for i in range(epoch + 1)]  # the third epoch is the best
            with (cell.folder / "history.csv").open("w") as file:
                csv.writer(file).writerows([("epoch", "step", "val/miou/top", "val/miou/ensemble"), *rows])
            self.epochs[label] = (cell, epoch + 1)
            ended = label in self.stopped or epoch + 1 == EPOCHS
            if ended:
                del self.epochs[label]
                write_json(cell.folder / "cost.json", {"seconds": 1})
                yield cell, "stopped" if label in self.stopped else "done"

    def stop(self, cell) -> None:
        self.stopped.append(cell.label)

    def close(self) -> None:
        pass


@pytest.fixture
def searched(grid, tmp_path, monkeypatch):
    """Searches with an engine; the trials, and the view."""
    monkeypatch.setattr("time.sleep", lambda _: None)

    def search(engine, **changes):
        path = grid(cells={}, grid={}, seeds=[3, 4], baseline=None, search={**SEARCH, **changes})
        ablation, runs = read_ablation(path), tmp_path / "runs"
        runs.mkdir(exist_ok=True)
        trials, view = Trials(ablation, runs, None), View("", [])
        try:
            drive(engine, trials, view)
        except KeyboardInterrupt:
            return trials, view
        trials.write()
        return trials, view

    return search


def test_search_prunes_resumes_and_finds_the_best(searched, tmp_path):
    first = Pretended(3, starts=7)
    searched(first)  # stopped with three trials running
    assert len(first.epochs) <= 3 and not (tmp_path / "runs/best.yaml").exists()
    left = set(first.epochs)
    second = Pretended(3)
    trials, view = searched(second)
    assert left <= {cell.label for cell in second.started}  # and with the same options:
    before = {cell.label: cell.config for cell in first.started}
    assert all(before[cell.label] == cell.config for cell in second.started if cell.label in before)
    assert len({cell.label for cell in first.started + second.started}) == len(trials.study.trials) == 12
    rates = [cell.config["model"]["optimizer"]["init_args"]["lr"] for cell in first.started + second.started]
    assert len(set(rates)) == 12 and all(1e-4 <= rate <= 1 for rate in rates)
    assert second.stopped and all(view.states[label] == "pruned" for label in second.stopped)
    best = yaml.safe_load((tmp_path / "runs/best.yaml").read_text())
    assert best["model"]["optimizer"]["init_args"]["lr"] == max(rates) == trials.study.best_value
    assert best["seed_everything"] == 3 and best["network"] == BASE["network"]
    table = (tmp_path / "runs/search.md").read_text()
    assert table.count("| pruned |") == len(second.stopped) and "by val/miou, that is, on val" in table
    ablation = with_best(read_ablation(tmp_path / "grid.yaml"), tmp_path / "runs")
    cells = ablation.all_cells(tmp_path / "runs")
    assert [cell.label for cell in cells] == [f"trial_{trials.study.best_trial.number}/seed{seed}" for seed in (3, 4)]
    searched(third := Pretended(1))
    assert third.started == []  # all trials are done


def test_last_checkpoint_is_chosen_by_the_last_epoch(searched, grid, monkeypatch):
    monkeypatch.setitem(GRID, "checkpoint", "last.ckpt")
    trials, _ = searched(engine := Pretended(1), trials=2, prune=False)
    rates = [cell.config["model"]["optimizer"]["init_args"]["lr"] for cell in engine.started]
    assert [trial.value for trial in trials.study.trials] == [rate / 2 for rate in rates]


def test_trial_without_the_monitored_value_fails(searched, tmp_path):
    with pytest.raises(CrosscoopError, match="none of 1 trials has finished"):
        searched(Pretended(1), trials=1, monitor="val/dice")
    failed = (tmp_path / "runs/trial_0/seed3/failed.txt").read_text()
    assert "search.monitor: got 'val/dice', which" in failed


def test_edited_search_does_not_continue_old_trials(searched, tmp_path):
    searched(Pretended(1), trials=1)
    (tmp_path / "runs/trial_0/seed3/last.ckpt").touch()
    space = {"model.optimizer.init_args.lr": {"low": 2, "high": 3}}
    with pytest.raises(CrosscoopError, match="trial_0/seed3 was trained with another configuration"):
        searched(Pretended(1), trials=1, space=space)


def test_search_trains_and_its_best_setting_joins_the_tables(grid, forked, tmp_path, capsys):
    search = {"trials": 2, "space": {"network.fusion": ["add", "average"]}}
    path = grid(cells={}, grid={}, baseline=None, tests=None, search=search)
    crosscoop("ablate", "--grid", path, "--runs", tmp_path / "runs")
    assert "Best setting:" in capsys.readouterr().out
    table = (tmp_path / "runs/table.md").read_text()
    assert "is the best of 2 settings by val/miou, that is, on val" in table and "missing" not in table
    assert len(list((tmp_path / "runs").glob("trial_*/seed1"))) == 1  # of the best alone
    crosscoop("fit", "--config", tmp_path / "runs/best.yaml", "--run", tmp_path / "again")
    crosscoop("ablate", "--runs", tmp_path / "runs", "--dry-run")
    assert "a search: 2 settings of network.fusion" in capsys.readouterr().out


def test_storage_that_cannot_be_used_is_told(grid, tmp_path, capsys):
    path = grid(search=SEARCH, cells={}, grid={}, baseline=None)
    for url in ("nonsense", "sqlite:////nowhere/search.db"):
        with pytest.raises(SystemExit):
            crosscoop("ablate", "--grid", path, "--runs", tmp_path / "runs", "--storage", url)
        assert f"--storage: got {url}, which cannot be used" in capsys.readouterr().err
