"""The search for the setting with the best validation, by Optuna; its trials run like the cells of a grid."""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from crosscoop.ablation.cell import check_given
from crosscoop.ablation.grid import Ablation, Cell, Config, Search
from crosscoop.ablation.tables import comma_separated, latex, markdown
from crosscoop.ablation.view import history
from crosscoop.errors import CrosscoopError
from crosscoop.files import replacing, write_json
from crosscoop.network.outputs import main_output


class Trials:
    """The trials of a search: chosen one after the other, stopped if unpromising, and resumed if a driver has died.

    Args:
        ablation: The ablation; it has a search.
        runs: The folder of all runs.
        storage: URL of Optuna's database; None for SQLite in that folder.

    Raises:
        CrosscoopError: Optuna is not installed, or the database cannot be used.
    """

    def __init__(self, ablation: Ablation, runs: Path, storage: str | None) -> None:
        try:
            import optuna
        except ImportError as error:
            raise CrosscoopError(f"search needs Optuna ({error}): pip install 'crosscoop[search]'.") from error
        assert ablation.search
        self.optuna, self.ablation, self.runs, self.search = optuna, ablation, runs, ablation.search
        self.monitor = self.search.get("monitor", "val/miou")
        self.sign = 1 if self.search.get("mode", "max") == "max" else -1
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        url = storage or f"sqlite:///{runs / 'search.db'}"
        prune = self.search.get("prune", True)
        pruner = optuna.pruners.MedianPruner() if prune else optuna.pruners.NopPruner()
        try:
            self.study = optuna.create_study(
                storage=url,
                study_name=f"{ablation.title} {_digest(ablation, self.search)}",
                direction="maximize" if self.sign > 0 else "minimize",
                pruner=pruner,
                load_if_exists=True,
            )
            begun = self.study.get_trials(deepcopy=False)
        except Exception as error:  # of the database's driver
            reason = str(error).partition("\n")[0]
            raise CrosscoopError(
                f"--storage: got {url}, which cannot be used ({reason}); expected the URL of a database, such as "
                "sqlite:///search.db or postgresql://user@host/name, with its driver installed."
            ) from error
        # Seeded by its trials too: a resumed search would otherwise draw its first settings again.
        self.study.sampler = optuna.samplers.TPESampler(seed=ablation.seeds[0] + len(begun), constant_liar=True)
        running = optuna.trial.TrialState.RUNNING
        self.resumed = [each for each in begun if each.state == running]
        self.left = self.search["trials"] - len(begun)
        self.trials: dict[str, Any] = {}
        self.reported: dict[str, int] = {}  # number of validations
        self.pruned: set[str] = set()

    def take(self) -> Cell | None:
        """Return the next trial as a cell: one that a driver left behind, or a new one.

        Raises:
            CrosscoopError: Its folder contains a trial of another search.
        """
        reported = 0
        if self.resumed:
            begun = self.resumed.pop(0)
            trial, reported = self._trial(begun), len(begun.intermediate_values)
        elif self.left > 0:
            self.left, trial = self.left - 1, self.study.ask()
        else:
            return None
        cell = self.ablation.trial(self.runs, trial.number, self._options(trial))
        check_given(cell)
        self.trials[cell.label], self.reported[cell.label] = trial, reported
        return cell

    def unwanted(self, cell: Cell) -> bool:
        """Report the trial's validations to Optuna, and return whether it should stop."""
        trial, reported = self.trials[cell.label], self.reported[cell.label]
        for epoch, value in enumerate(self._values(cell)[reported:], reported):
            self.reported[cell.label] = epoch + 1
            trial.report(value, epoch)
            if trial.should_prune():
                self.pruned.add(cell.label)
        return cell.label in self.pruned

    def ended(self, cell: Cell, word: str) -> str:
        """Tell Optuna how the trial ended; one that was stopped from outside is resumed next time."""
        states, trial = self.optuna.trial.TrialState, self.trials[cell.label]
        if word == "done":
            values = self._values(cell)
            if not values:
                (cell.folder / "failed.txt").write_text(
                    f"search.monitor: got {self.monitor!r}, which {cell.folder / 'history.csv'} does not contain\n"
                )
                word = "failed"
            else:
                last = self.ablation.checkpoint == "last.ckpt"
                self.study.tell(trial, values[-1] if last else self.sign * max(self.sign * value for value in values))
        if word == "failed":
            self.study.tell(trial, state=states.FAIL)
        if word == "stopped" and cell.label in self.pruned:
            self.study.tell(trial, state=states.PRUNED)
            return "pruned"
        return word

    def write(self) -> None:
        """Write the trials as tables, and the best as `best.yaml`, which `fit --config` takes.

        Raises:
            CrosscoopError: No trial has finished.
        """
        trials, title = self.study.get_trials(deepcopy=False), f"{self.ablation.title}: search"
        done = [trial for trial in trials if trial.state == self.optuna.trial.TrialState.COMPLETE]
        if not done:
            raise CrosscoopError(
                f"search: none of {len(trials)} trials has finished; see failed.txt in {self.runs}/trial_*/."
            )
        best = self.study.best_trial
        options = self._options(self._trial(best))
        note = (
            f"'trial {best.number}' is the best of {len(trials)} settings by {self.monitor}, that is, on val: chosen "
            "without the test"
        )
        write_json(self.runs / "search.json", {"row": f"trial {best.number}", "options": options, "note": note})
        table = [["", *self.search["space"], self.monitor, "state"]]
        for trial in trials:
            chosen = (str(trial.params.get(option, "")) for option in self.search["space"])
            value = "-" if trial.value is None else f"{trial.value:.4f}"
            table.append([f"trial {trial.number}", *chosen, value, trial.state.name.lower()])
        config = self.ablation.trial(self.runs, best.number, options).config
        for name, text in {
            "search.md": markdown(table, title, f"{note}."),
            "search.tex": latex(table, title, f"{note}."),
            "search.csv": comma_separated(table),
            "best.yaml": f"# {note}: {best.value:.4f}\n{yaml.safe_dump(config, sort_keys=False)}",
        }.items():
            with replacing(self.runs / name) as temporary:
                temporary.write_text(text, "utf-8")

    def _trial(self, frozen: Any) -> Any:
        return self.optuna.trial.Trial(self.study, frozen._trial_id)

    def _options(self, trial: Any) -> Config:
        """Return a trial's options, which are drawn now unless they were before."""
        options: Config = {}
        for option, values in self.search["space"].items():
            if isinstance(values, list):  # as text: values may be lists or mappings, which databases cannot hold
                texts = {str(value): value for value in values}
                options[option] = texts[trial.suggest_categorical(option, list(texts))]
            else:
                whole = isinstance(values["low"], int) and isinstance(values["high"], int)
                suggest = trial.suggest_int if whole else trial.suggest_float
                options[option] = suggest(option, values["low"], values["high"], log=values.get("log", False))
        return options

    def _values(self, cell: Cell) -> list[float]:
        """Return the monitored value of each validation so far; of the main output unless monitor names another."""
        try:
            rows = history(cell.folder)
            prefix = f"{self.monitor}/"
            outputs = [column.removeprefix(prefix) for column in rows[0] if column.startswith(prefix)]
            column = self.monitor if self.monitor in rows[0] else prefix + main_output(outputs)
            return [float(row[column]) for row in rows]
        except (OSError, LookupError, ValueError):
            return []


def _digest(ablation: Ablation, search: Search) -> str:
    """Return a digest of what is searched, so that other searches may share the database."""
    text = json.dumps([ablation.base, search["space"], search.get("monitor")], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
