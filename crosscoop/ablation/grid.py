"""The grid: the cells of an ablation, and the configuration of each."""

import copy
import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails
from typing_extensions import TypedDict

from crosscoop.errors import CrosscoopError
from crosscoop.files import include_yaml, load_yaml, write_yaml
from crosscoop.version import __version__

Config = dict[str, Any]
Resources = dict[str, float]
RESOURCES = ("cpus", "gpus")
Options = Annotated[Config, BeforeValidator(lambda options: {} if options is None else options)]
Names = Annotated[list[str], BeforeValidator(lambda names: [names] if isinstance(names, str) else names)]


class Range(TypedDict):
    """The numbers from low to high; integers if both are, and even on a logarithmic scale with log."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=False)  # type: ignore[misc]  # YAML reads 1e-4 as text
    low: int | float
    high: int | float
    log: NotRequired[bool]


class Search(TypedDict):
    """A search for the setting with the best validation.

    Its keys are trials (their number), space (values or a range by option), monitor (a column of history.csv,
    val/miou by default), mode (max or min), and prune (whether to stop trials that are worse than the median).
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    trials: Annotated[int, Field(gt=0)]
    space: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)] | Range], Field(min_length=1)]
    monitor: NotRequired[str]
    mode: NotRequired[Literal["max", "min"]]
    prune: NotRequired[bool]


@dataclass(frozen=True)
class Cell:
    """One training of the grid, and its tests.

    Attributes:
        name: The row of the table.
        seed: The seed.
        config: The configuration for `crosscoop fit`.
        folder: The run's folder.
        tests: Options of `crosscoop test` by the name of a test.
        checkpoint: The checkpoint that is tested.
        max_hours: The longest an attempt may take; None for no limit.
        resources: What Ray reserves for it.
    """

    name: str
    seed: int
    config: Config
    folder: Path
    tests: dict[str, Config] = field(default_factory=dict)
    checkpoint: str = "best.ckpt"
    max_hours: float | None = None
    resources: Resources = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The cell's name in messages, and for `--cell`: `cross_c1_c2/seed0`."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def test_folders(self) -> dict[str, Path]:
        """The folder of each test."""
        return {name: self.folder / slug(name) for name in self.tests}


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
        resources: CPUs and GPUs that Ray reserves for each cell; a row may differ (`resources.gpus: 2`).
        max_hours: A cell whose attempt takes longer is ended, and has failed.
        search: A search for the best setting, whose row joins the others.
        note: A sentence of the caption.
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
    resources: Resources = field(default_factory=dict)
    max_hours: Annotated[float, Field(gt=0)] | None = None
    search: Search | None = None
    note: str = ""

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
        rows = {name: _split(options)[0] for name, options in self.rows.items()}
        text = json.dumps([self.base, rows, self.tests, self.checkpoint], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def trial(self, runs: Path, number: int, options: Config) -> Cell:
        """Return a trial of the search as a cell: trained with the first seed, and not tested.

        Args:
            runs: The folder of all runs.
            number: The trial's number.
            options: Its options.
        """
        name = f"trial {number}"
        return replace(self, cells={name: options}, grid={}, tests={}).make_cell(runs, name, self.seeds[0])

    def all_cells(self, runs: Path) -> list[Cell]:
        """Return every cell, one seed after the other, so that a first table is complete early.

        Args:
            runs: The folder of all runs.
        """
        return [self.make_cell(runs, name, seed) for seed in self.seeds for name in self.rows]

    def make_cell(self, runs: Path, name: str, seed: int) -> Cell:
        """Return the cell of a row and a seed.

        Args:
            runs: The folder of all runs.
            name: The row's name.
            seed: The seed.
        """
        resources = {**self.resources, **_split(self.rows[name])[1]}
        folder, config = runs / slug(name) / f"seed{seed}", self.config(name, seed)
        return Cell(name, seed, config, folder, self.tests, self.checkpoint, self.max_hours, resources)

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
        for option, value in _split(self.rows[name])[0].items():
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
        """Write the ablation as YAML, including its base and the version that wrote it."""
        write_yaml(path, {"version": __version__, **asdict(self)})


def read_ablation(path: Path) -> Ablation:
    """Read an ablation's YAML.

    Args:
        path: The file; the base that it names is relative to it.

    Raises:
        CrosscoopError: It cannot be read, or an entry is invalid.
    """
    content = {key: value for key, value in load_yaml(path).items() if value is not None and key != "version"}
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


def with_best(ablation: Ablation, runs: Path) -> Ablation:
    """Return the ablation with the row of the best setting, once the search has found it.

    Args:
        ablation: The ablation.
        runs: The folder of all runs.
    """
    path = runs / "search.json"
    if not (ablation.search and path.is_file()):
        return ablation
    best = json.loads(path.read_text("utf-8"))
    return replace(ablation, cells={**ablation.cells, best["row"]: best["options"]}, note=best["note"])


def _explained(wrong: ErrorDetails) -> str:
    where = ".".join(map(str, wrong["loc"]))
    return f"{where}: got {wrong['input']!r}, expected {wrong['msg'].removeprefix('Input should be ')}."


def _check(ablation: Ablation, path: Path) -> None:
    rows = [*ablation.cells, *(name for name, _ in ablation.combinations)]
    if not ((rows or ablation.search) and ablation.seeds and ablation.tests):
        raise CrosscoopError(f"{path}: got no cells, expected cells, a grid or a search, seeds and tests.")
    for key, names in (("cells", rows), ("tests", list(ablation.tests))):
        folders = [slug(name) for name in names]
        if twice := [name for name, folder in zip(names, folders, strict=True) if folders.count(folder) > 1]:
            raise CrosscoopError(
                f"{path}: {' and '.join(map(repr, twice))} would share one folder; give them other names in {key}."
            )
    if len(set(ablation.seeds)) < len(ablation.seeds):
        raise CrosscoopError(f"{path}: got seeds {list(ablation.seeds)}, expected each once.")
    if ablation.search:
        _check_search(ablation.search, rows, path)
        ablation.trial(path.parent, 0, dict.fromkeys(ablation.search["space"]))
    for i, name in enumerate(ablation.baseline):
        if name not in rows or name in ablation.baseline[:i]:
            raise CrosscoopError(f"{path}: got baseline {name!r}, expected one of {', '.join(rows)}, each once.")
    for name, options in ablation.rows.items():
        if "seed_everything" in options:
            raise CrosscoopError(f"{path}: got seed_everything in row {name!r}, expected the seeds in seeds.")
        ablation.config(name, ablation.seeds[0])
        resources = _split(options)[1]
        for key, value in {**ablation.resources, **resources}.items():
            whole = isinstance(value, int) or (isinstance(value, float) and (value < 1 or value.is_integer()))
            if key not in RESOURCES or not whole or value < (key == "cpus") / 100 or value is True:
                expected = "cpus or gpus, as a whole number or a share below 1"
                raise CrosscoopError(f"{path}: got resources.{key}: {value!r} in row {name!r}, expected {expected}.")


def _check_search(search: Search, rows: list[str], path: Path) -> None:
    if taken := [name for name in rows if slug(name).startswith("trial_")]:
        raise CrosscoopError(f"{path}: got row {taken[0]!r}, expected another name: trials of the search are named so.")
    for option, values in search["space"].items():
        if isinstance(values, list):
            if len(set(map(str, values))) < len(values):
                raise CrosscoopError(f"{path}: search.space.{option}: got {values}, expected each value once.")
        elif not (values["low"] < values["high"] and (values["low"] > 0 or not values.get("log"))):
            raise CrosscoopError(
                f"{path}: search.space.{option}: got {values}, expected low < high, and low > 0 on a logarithmic scale."
            )


def _is_resource(option: str) -> bool:
    return option.startswith("resources.")


def _split(options: Config) -> tuple[Config, Config]:
    """Return a row's options of fit, and its resources."""
    resources = {key.removeprefix("resources."): value for key, value in options.items() if _is_resource(key)}
    return {key: value for key, value in options.items() if not _is_resource(key)}, resources


def slug(name: str) -> str:
    """Return the folder name for the name of a row or a test."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "cell"


def _word(value: Any) -> str:
    return "+".join(map(_word, value)) if isinstance(value, list) else str(value)
