"""The grid: the cells of an ablation, and the configuration of each."""

import copy
import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from crosscoop.errors import CrosscoopError
from crosscoop.files import include_yaml, load_yaml, write_yaml

Config = dict[str, Any]
Options = Annotated[Config, BeforeValidator(lambda options: {} if options is None else options)]
Names = Annotated[list[str], BeforeValidator(lambda names: [names] if isinstance(names, str) else names)]


@dataclass(frozen=True)
class Cell:
    """One training of the grid, and its tests.

    Attributes:
        name: The row of the table.
        seed: The seed.
        config: The configuration for `crosscoop fit`.
        folder: The run's folder.
    """

    name: str
    seed: int
    config: Config
    folder: Path

    @property
    def label(self) -> str:
        """The cell's name in messages, and for `--cell`: `cross_c1_c2/seed0`."""
        return f"{self.folder.parent.name}/{self.folder.name}"


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(strict=True))
class Ablation:
    """An ablation as its YAML describes it.

    Attributes:
        base: The configuration of fit that all cells share; in the YAML, the path of a file, or the options themselves.
        title: Title of the tables.
        seeds: The seeds; each row is trained with each of them.
        cells: Options by row, as `{row: {network.strategy: cross}}`; dots separate the groups.
        grid: Values by option; every combination is a further row.
        baseline: The rows that all others are compared with: one name or a list, of which plots show the first.
        tests: Options of `crosscoop test` by the name of a test; the tables show the first.
        checkpoint: Which checkpoint is tested: best.ckpt, or last.ckpt for a fixed number of steps.
        layout: summary (a line per row with all metrics); outputs (a line per output: the paper's tables 1 and 3) and
            connections (C1 and C2 ticked: the paper's table 5) are written in addition to it.
    """

    base: Config
    title: str = "Ablation"
    seeds: list[int] = field(default_factory=lambda: [0])
    cells: dict[str, Options] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    baseline: Names = field(default_factory=list)
    tests: dict[str, Options] = field(default_factory=lambda: {"test": {}})
    checkpoint: Literal["best.ckpt", "last.ckpt"] = "best.ckpt"
    layout: Literal["summary", "outputs", "connections"] = "summary"

    @property
    def rows(self) -> dict[str, Config]:
        """Options by row: the named cells, then the grid's combinations."""
        return {**self.cells, **dict(self.combinations)}

    @property
    def combinations(self) -> list[tuple[str, Config]]:
        """Name and options of each of the grid's combinations."""
        if not self.grid:
            return []
        options = [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]
        return [(", ".join(map(_word, each.values())), each) for each in options]

    @property
    def digest(self) -> str:
        """A digest of all configurations of this ablation, ten characters."""
        text = json.dumps([self.base, self.rows, self.tests, self.checkpoint], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def all_cells(self, runs: Path) -> list[Cell]:
        """Return every cell, one seed after the other, so that a first table is complete early.

        Args:
            runs: The folder of all runs.
        """
        return [
            Cell(name, seed, self.config(name, seed), runs / slug(name) / f"seed{seed}")
            for seed in self.seeds
            for name in self.rows
        ]

    def cell(self, runs: Path, name: str) -> Cell:
        """Return a cell by its label, or by its number.

        Args:
            runs: The folder of all runs.
            name: cross_c1_c2/seed0, or 3.

        Raises:
            CrosscoopError: The cell does not exist.
        """
        cells = self.all_cells(runs)
        for i, cell in enumerate(cells):
            if name in (cell.label, str(i)):
                return cell
        labels = ", ".join(cell.label for cell in cells)
        raise CrosscoopError(f"--cell: got {name!r}, expected 0 to {len(cells) - 1}, or one of {labels}.")

    def config(self, name: str, seed: int) -> Config:
        """Return the configuration of a cell: the base with the row's options.

        Raises:
            CrosscoopError: An option's parent is not a group.
        """
        config = {**copy.deepcopy(self.base), "seed_everything": seed}
        for option, value in self.rows[name].items():
            *groups, key = option.split(".")
            group = config
            for step in groups:
                if group.get(step) is None:
                    group[step] = {}
                group = group[step]
                if not isinstance(group, dict):
                    raise CrosscoopError(
                        f"Row {name!r}: got {option}, but {step} is {group!r} in the base, expected a group of options."
                    )
            group[key] = copy.deepcopy(value)
        return config

    def save(self, path: Path) -> None:
        """Write the ablation as YAML, including its base."""
        write_yaml(path, asdict(self))


def read_ablation(path: Path) -> Ablation:
    """Read an ablation's YAML.

    Args:
        path: The file; the base that it names is relative to it.

    Raises:
        CrosscoopError: It cannot be read, or an entry is invalid.
    """
    content = {key: value for key, value in load_yaml(path).items() if value is not None}
    if unknown := set(content) - set(Ablation.__dataclass_fields__):
        raise CrosscoopError(
            f"{path}: got {', '.join(sorted(map(str, unknown)))}, expected {', '.join(Ablation.__dataclass_fields__)}."
        )
    if not isinstance(content.get("base"), (str, dict)):
        raise CrosscoopError(f"{path}: got no base, expected the path of a configuration of fit.")
    if isinstance(content["base"], str):
        base = path.parent / content["base"]
        content["base"] = include_yaml(load_yaml(base), base.parent)
    try:
        ablation = Ablation(**content)
    except ValidationError as wrong:
        raise CrosscoopError("\n".join(f"{path}: {_explained(each)}" for each in wrong.errors())) from None
    _check(ablation, path)
    return ablation


def _explained(wrong: ErrorDetails) -> str:
    where = ".".join(map(str, wrong["loc"]))
    return f"{where}: got {wrong['input']!r}, expected {wrong['msg'].removeprefix('Input should be ')}."


def _check(ablation: Ablation, path: Path) -> None:
    rows = [*ablation.cells, *(name for name, _ in ablation.combinations)]
    if not (rows and ablation.seeds and ablation.tests):
        raise CrosscoopError(f"{path}: got no cells, expected cells or a grid, seeds and tests.")
    for key, names in (("cells", rows), ("tests", list(ablation.tests))):
        folders = [slug(name) for name in names]
        if twice := [name for name, folder in zip(names, folders, strict=True) if folders.count(folder) > 1]:
            raise CrosscoopError(
                f"{path}: {' and '.join(map(repr, twice))} would share one folder; give them other names in {key}."
            )
    if len(set(ablation.seeds)) < len(ablation.seeds):
        raise CrosscoopError(f"{path}: got seeds {list(ablation.seeds)}, expected each once.")
    for i, name in enumerate(ablation.baseline):
        if name not in rows or name in ablation.baseline[:i]:
            raise CrosscoopError(f"{path}: got baseline {name!r}, expected one of {', '.join(rows)}, each once.")
    for name, options in ablation.rows.items():
        if "seed_everything" in options:
            raise CrosscoopError(f"{path}: got seed_everything in row {name!r}, expected the seeds in seeds.")
        ablation.config(name, ablation.seeds[0])


def slug(name: str) -> str:
    """Return the folder name for the name of a row or a test."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "cell"


def _word(value: Any) -> str:
    return "+".join(map(_word, value)) if isinstance(value, list) else str(value)
