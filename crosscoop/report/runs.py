"""Runs as their folders tell of them: every piece that is there, and a word on every piece that is not."""

import csv
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from crosscoop.checkpoints.read import find_checkpoint
from crosscoop.data.configured import open_data
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.inference import Inference
from crosscoop.evaluation.records import branch_shares, compared_branches, describe
from crosscoop.files import load_yaml
from crosscoop.network.outputs import branches_of, main_output

Settings = dict[str, Any]
"""A configuration as `fit` or `test` wrote it."""


@dataclass
class Run:
    """A run's folder, read.

    Attributes:
        folder: The folder.
        name: What the report calls the run.
        config: The configuration of `fit`; empty if unknown.
        history: Per validation its figures by column name, without those that are no finite number.
        metrics: `metrics.json`, or None.
        confusion: `confusion.json`, or None.
        branches: `branches.json`, or None.
        images: Per image its figures by column name; None stands for none.
        notices: What is missing, and how to get it.
    """

    folder: Path
    name: str
    config: Settings = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    metrics: dict[str, Any] | None = None
    confusion: dict[str, Any] | None = None
    branches: dict[str, Any] | None = None
    images: dict[str, dict[str, float]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    @property
    def outputs(self) -> list[str]:
        """The outputs that were measured."""
        return list(self.metrics["outputs"]) if self.metrics else []

    @property
    def protocol(self) -> str:
        """How `metrics.json` was measured."""
        return describe(self.metrics["protocol"]) if self.metrics else "not measured yet"

    @property
    def test_protocol(self) -> str:
        """How `branches.json` and `images.csv` were measured, as far as a test's records still tell."""
        for record in (self.metrics, self.confusion):
            if record and record["stage"] == "test":
                return describe(record["protocol"])
        return "an earlier test, whose protocol is no longer known"

    @property
    def best(self) -> dict[str, float]:
        """The history's row with the highest mIoU of the main output; empty without a history."""
        outputs = self.followed.get("miou")
        return max(self.history, key=lambda row: row.get(f"val/miou/{main_output(outputs)}", 0)) if outputs else {}

    @property
    def followed(self) -> dict[str, list[str]]:
        """The figures of the history, and the outputs that have each."""
        found: dict[str, list[str]] = {}
        for key in dict.fromkeys(key for row in self.history for key in row):
            if parts := re.fullmatch("val/([^/]+)/(.+)", key):
                found.setdefault(parts[1], []).append(parts[2])
        return found

    def evaluation(self, stage: str) -> Settings:
        """The configuration of the last `test` or `validate`; of `fit`, where there was none."""
        path = self.folder / f"{stage}.yaml"
        return load_yaml(path) if path.is_file() else self.config

    def checkpoint(self, evaluation: Settings) -> Path:
        """The checkpoint that was evaluated, which lies in the folder even if that was moved."""
        if not evaluation.get("ckpt_path"):
            return find_checkpoint(None, str(self.folder))
        evaluated = Path(evaluation["ckpt_path"])
        beside = self.folder / evaluated.name
        return beside if beside.is_file() or not evaluated.is_file() else evaluated


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read runs.

    Args:
        folders: Their folders; one that is given twice counts once.

    Raises:
        CrosscoopError: There are none, or one is no run's folder.
    """
    paths = list(dict.fromkeys(Path(folder) for folder in folders))
    if not paths:
        raise CrosscoopError("report: got no run, expected the folders of one or more, such as runs/demo.")
    names = [path.resolve().name for path in paths]
    return [
        read_run(path, str(path) if names.count(name) > 1 else name) for path, name in zip(paths, names, strict=True)
    ]


def read_run(folder: Path, name: str) -> Run:
    """Read a run.

    Args:
        folder: The folder that `crosscoop fit --run` wrote.
        name: What to call it.

    Raises:
        CrosscoopError: It is no run's folder.
    """
    if not any((folder / piece).is_file() for piece in ("config.yaml", "metrics.json", "best.ckpt")):
        found = "a folder without any of them" if folder.is_dir() else "no such folder"
        raise CrosscoopError(
            f"{folder}: got {found}, expected a run with config.yaml, metrics.json or best.ckpt; give the folder that "
            "`crosscoop fit --run FOLDER` wrote."
        )
    run, missing = Run(folder, name), dict[str, list[str]]()
    for file, (attribute, load, source) in PIECES.items():
        if not (folder / file).is_file():
            if file != "branches.json" or len(branches_of(run.outputs)) > 1:  # one branch cannot differ from itself
                missing.setdefault(source, []).append(file)
            continue
        try:
            setattr(run, attribute, load(folder / file))
        except (CrosscoopError, OSError, ValueError, LookupError, TypeError, AttributeError, csv.Error) as error:
            run.notices.append(f"{file} cannot be read ({type(error).__name__}: {error}); {source} writes it anew.")
    run.notices += [f"Missing: {', '.join(files)}; run {source}." for source, files in missing.items()]
    if run.metrics and run.metrics["stage"] != "test":
        stage = {"fit": "the best epoch of fit", "validate": "a validation"}.get(run.metrics["stage"], "no test")
        run.notices.append(f"The figures come from {stage}, not from a test.")
    return run


def describe_validation(config: Settings) -> str:
    """How the history's figures were measured."""
    try:
        data = open_data(config)
        words = data.protocol(data.dataset.val_split, 0)
        inference = Inference(**config["inference"]).describe()
    except (CrosscoopError, KeyError, TypeError):
        return "protocol unknown"
    return f"{words['dataset']} {words['split']}, {words['evaluation']}, {inference}"


def _load_json(path: Path) -> Any:
    return json.loads(path.read_text())


def _load_metrics(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = _load_json(path)
    _ = (
        describe(content["protocol"]),
        content["stage"],
        [o["iou_per_class"].items() for o in content["outputs"].values()],
    )
    return content


def _load_confusion(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = _load_json(path)
    _ = describe(content["protocol"]), content["stage"]
    if {len(counts) for counts in content["outputs"].values()} != {len(content["class_names"])}:
        raise ValueError("the matrices do not fit the classes")
    return content


def _load_branches(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = _load_json(path)
    shares = branch_shares(compared_branches(content["all"]))
    _ = [row[key] for row in content.values() for key in shares]
    return content


def _load_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError("it has no rows")
    return rows


def _load_history(path: Path) -> list[dict[str, float]]:
    return [_finite(row) for row in _load_rows(path)]


def _load_images(path: Path) -> dict[str, dict[str, float]]:
    return {row.pop("image"): _finite(row) for row in _load_rows(path)}


def _finite(row: dict[str, str]) -> dict[str, float]:
    """The cells that hold a finite number; nan is a mean over no class."""
    return {key: float(cell) for key, cell in row.items() if cell and isfinite(float(cell))}


PIECES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "config.yaml": ("config", load_yaml, "`crosscoop fit`"),
    "history.csv": ("history", _load_history, "`crosscoop fit`"),
    "metrics.json": ("metrics", _load_metrics, "`crosscoop test`"),
    "confusion.json": ("confusion", _load_confusion, "`crosscoop test`"),
    "images.csv": ("images", _load_images, "`crosscoop test`"),
    "branches.json": ("branches", _load_branches, "`crosscoop test`"),
}
"""What a run's folder holds: the attribute of `Run`, how it is read, and which command leaves it there."""
