"""Run folders: the files that are present, and a notice for each that is missing."""

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from crosscoop.data.loaders import open_data
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.inference import Inference
from crosscoop.evaluation.records import ALL, branch_shares, compared_branches, describe
from crosscoop.files import load_yaml
from crosscoop.network.outputs import backbone_names, branches_of, main_output

Settings = dict[str, Any]
"""A configuration as `fit` or `test` wrote it."""


@dataclass
class Run:
    """The contents of a run folder.

    Attributes:
        folder: The folder.
        name: Name of the run in the report.
        config: The configuration of `fit`; empty if unknown.
        history: The finite metrics of each validation by column name.
        metrics: `metrics.json`, or None.
        confusion: `confusion.json`, or None.
        branches: `branches.json`, or None.
        calibration: `calibration.json`, or None.
        images: The finite metrics of each image by column name.
        notices: What is missing, and how to create it.
        tested: Folder of a test's files, if they are not in the run's.
    """

    folder: Path
    name: str
    config: Settings = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    metrics: dict[str, Any] | None = None
    confusion: dict[str, Any] | None = None
    branches: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    images: dict[str, dict[str, float]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    tested: Path | None = None

    @property
    def outputs(self) -> list[str]:
        """The outputs that were measured."""
        return list(self.metrics["outputs"]) if self.metrics else []

    @property
    def backbones(self) -> dict[str, str]:
        """The backbone of each branch by the branch's name; empty if unknown."""
        return backbone_names((self.config.get("network") or {}).get("branches") or [])

    @property
    def protocol(self) -> str:
        """How `metrics.json` was measured."""
        return describe(self.metrics["protocol"]) if self.metrics else "not measured yet"

    @property
    def test_protocol(self) -> str:
        """How `branches.json` and `images.csv` were measured, if a record of that test still exists."""
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
        """The metrics in the history, and the outputs that have each of them."""
        found: dict[str, list[str]] = {}
        for key in dict.fromkeys(key for row in self.history for key in row):
            if (parts := re.fullmatch("val/([^/]+)/(.+)", key)) and parts[1] != "loss":  # which is not a share
                found.setdefault(parts[1], []).append(parts[2])
        return found

    def evaluation(self, stage: str) -> Settings:
        """Return the configuration of the last `test` or `validate`; without one, that of `fit`."""
        path = self.find(f"{stage}.yaml")
        return load_yaml(path) if path.is_file() else self.config

    def find(self, file: str) -> Path:
        """Return the path of a file, in the test's folder if it is there, else in the run's."""
        there = self.tested and self.tested / file
        return there if there and there.is_file() else self.folder / file

    def checkpoint(self, evaluation: Settings) -> Path:
        """Return the checkpoint that was evaluated, even if the run folder has been moved since."""
        if not evaluation.get("ckpt_path"):
            from crosscoop.checkpoints.read import find_checkpoint  # slow to import

            return find_checkpoint(None, str(self.folder))
        evaluated = Path(evaluation["ckpt_path"])
        beside = self.folder / evaluated.name
        return beside if beside.is_file() or not evaluated.is_file() else evaluated


def read_runs(
    folders: Sequence[str | Path], named: Mapping[Path, str] = {}, tested: Mapping[Path, Path] = {}
) -> list[Run]:
    """Read runs.

    Args:
        folders: Their folders; duplicates are ignored.
        named: Names of runs by folder; by default the folder's.
        tested: Folders of tests by the run's folder, if the run's does not contain the test's files.

    Raises:
        CrosscoopError: The list is empty, or one of them is not a run folder.
    """
    paths = list(dict.fromkeys(Path(folder) for folder in folders))
    if not paths:
        raise CrosscoopError("report: got no run, expected one or more run folders, such as runs/demo.")
    names = [named.get(path, path.resolve().name) for path in paths]
    return [
        read_run(path, str(path) if names.count(name) > 1 else name, tested.get(path))
        for path, name in zip(paths, names, strict=True)
    ]


def read_run(folder: Path, name: str, tested: Path | None = None) -> Run:
    """Read a run.

    Args:
        folder: The folder that `crosscoop fit --run` wrote.
        name: Name of the run in the report.
        tested: Folder of a test's files, if they are not in the run's.

    Raises:
        CrosscoopError: It is not a run folder.
    """
    if not any((folder / piece).is_file() for piece in ("config.yaml", "metrics.json", "best.ckpt")):
        found = "a folder without any of these files" if folder.is_dir() else "a folder that does not exist"
        raise CrosscoopError(
            f"{folder}: got {found}, expected a run with config.yaml, metrics.json or best.ckpt. Pass the folder that "
            "`crosscoop fit --run FOLDER` wrote."
        )
    run, missing = Run(folder, name, tested=tested), dict[str, list[str]]()
    for file, (attribute, load, source) in PIECES.items():
        if not run.find(file).is_file():
            if file != "branches.json" or len(branches_of(run.outputs)) > 1:  # one branch has no comparison
                missing.setdefault(source, []).append(file)
            continue
        try:
            setattr(run, attribute, load(run.find(file)))
        except (CrosscoopError, OSError, ValueError, LookupError, TypeError, AttributeError, csv.Error) as error:
            run.notices.append(f"{file} cannot be read ({type(error).__name__}: {error}); recreate it with {source}.")
    run.notices += [f"Missing: {', '.join(files)}; run {source}." for source, files in missing.items()]
    if run.metrics and run.metrics["stage"] != "test":
        stage = {"fit": "the best epoch of fit", "validate": "a validation"}.get(run.metrics["stage"], "no test")
        run.notices.append(f"The metrics are from {stage}, not from a test.")
    return run


def describe_validation(config: Settings) -> str:
    """Describe how the history's metrics were measured."""
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
    shares = branch_shares(compared_branches(content[ALL]))
    _ = [row[key] for row in content.values() for key in shares]
    return content


def _load_calibration(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = _load_json(path)
    _ = [(bin["confidence"], bin["accuracy"]) for each in content["outputs"].values() for bin in each["bins"]]
    _ = content["protocol"], [each["ece"] for each in content["outputs"].values()]
    return content


def _load_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError("the file has no rows")
    return rows


def _load_history(path: Path) -> list[dict[str, float]]:
    return [_finite(row) for row in _load_rows(path)]


def _load_images(path: Path) -> dict[str, dict[str, float]]:
    return {row.pop("image"): _finite(row) for row in _load_rows(path)}


def _finite(row: dict[str, str]) -> dict[str, float]:
    """Return the cells with a finite number; a mean over no class is nan."""
    return {key: float(cell) for key, cell in row.items() if cell and isfinite(float(cell))}


PIECES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "config.yaml": ("config", load_yaml, "`crosscoop fit`"),
    "history.csv": ("history", _load_history, "`crosscoop fit`"),
    "metrics.json": ("metrics", _load_metrics, "`crosscoop test`"),
    "confusion.json": ("confusion", _load_confusion, "`crosscoop test`"),
    "images.csv": ("images", _load_images, "`crosscoop test`"),
    "branches.json": ("branches", _load_branches, "`crosscoop test`"),
    "calibration.json": ("calibration", _load_calibration, "`crosscoop test`"),
}
"""The files of a run folder: the attribute of `Run`, how to read it, and the command that writes it."""
