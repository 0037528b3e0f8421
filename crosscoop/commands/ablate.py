"""`crosscoop ablate`: a grid of runs, trained, tested and tabulated."""

import sys
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from crosscoop.ablation.cell import given_test, state, tests
from crosscoop.ablation.grid import Ablation, Cell, read_ablation
from crosscoop.ablation.summary import summarise
from crosscoop.ablation.tables import write_tables
from crosscoop.ablation.workers import ELSEWHERE, STOPPED, STYLES, Workers
from crosscoop.errors import CrosscoopError
from crosscoop.files import duration, load_yaml, write_yaml


def ablate(
    runs: str,
    grid: str | None = None,
    workers: int = 1,
    cell: str | None = None,
    dry_run: bool = False,
    retry: bool = False,
    tables: bool = False,
    sweep: str | None = None,
) -> None:
    """Train and test every cell of a grid, and write its tables.

    The same command resumes after any interruption: finished cells are kept, interrupted ones resume from their last
    checkpoint. Started on several machines with one shared folder, each machine takes cells that no other has taken;
    no cell runs twice (the folder's file system must support file locks). As a SLURM array:
    `sbatch --array=0-41 --wrap 'crosscoop ablate --grid GRID --runs RUNS --cell $SLURM_ARRAY_TASK_ID'` (each task reads
    the cell numbers from GRID when it starts: do not edit GRID until all tasks have started).

    Args:
        runs: Folder of the runs: one folder per row, with one folder per seed in it, and the tables.
        grid: The ablation's YAML; may be omitted once RUNS exists.
        workers: Number of cells that run in parallel on this machine.
        cell: Run only this cell, by its name as listed by --dry-run (cross/seed0), or by its number.
        dry_run: List the cells with their parameters, multiply-adds and estimated time, without running them.
        retry: Run the failed cells again.
        tables: Only write the tables again, from the run folders.
        sweep: Only write a W&B sweep to this YAML file; its agents run the cells of the grid.

    Raises:
        CrosscoopError: The grid cannot be read, the folder's runs have another configuration, or a cell failed or was
            stopped.
    """
    folder = Path(runs)
    if workers < 1:
        raise CrosscoopError(f"--workers: got {workers}, expected at least 1.")
    if folder.exists() and not folder.is_dir():
        raise CrosscoopError(f"--runs: got the file {folder}, expected a folder.")
    ablation = _open(folder, Path(grid) if grid else None)
    cells = ablation.all_cells(folder)
    _check_given(ablation, cells)
    if dry_run:
        return _list(ablation, cells, workers)
    if sweep:
        return _write_sweep(Path(sweep), folder, ablation, cells)
    chosen = cells if cell is None else [ablation.cell(folder, cell)]
    stopped: list[str] = []
    if not tables:
        folder.mkdir(parents=True, exist_ok=True)
        ablation.save(folder / "ablation.yaml")
        stopped = _work(ablation, chosen, folder, workers, retry)
    for i, test in enumerate(ablation.tests):
        files = write_tables(summarise(ablation, folder, test), folder)
        if i == 0:
            print(files[0].read_text("utf-8"))
        print(f"Tables: {', '.join(map(str, files))}")
    if stopped:
        raise CrosscoopError(
            f"Stopped from outside, with their state saved: {', '.join(stopped)}. To resume: "
            f"crosscoop ablate --runs {folder}"
        )
    if failed := [each.label for each in chosen if state(ablation, each) == "failed"]:
        reasons = "\n".join(f"  {label}: {(folder / label / 'failed.txt').read_text().strip()}" for label in failed)
        raise CrosscoopError(
            f"{len(failed)} of {len(chosen)} cells failed:\n{reasons}\nFull logs: log.txt in their folders. To run "
            f"them again: crosscoop ablate --runs {folder} --retry"
        )


def _open(folder: Path, grid: Path | None) -> Ablation:
    kept = folder / "ablation.yaml"
    if grid is None and not kept.is_file():
        raise CrosscoopError(
            f"--grid: got none, and {folder} does not contain an ablation; expected the YAML of an ablation."
        )
    return read_ablation(grid or kept)


def _check_given(ablation: Ablation, cells: list[Cell]) -> None:
    """Reject a grid whose configurations differ from those of its existing runs, for example after an edit."""
    for cell in cells:
        given = cell.folder / "given.yaml"
        trained = given.is_file() and any((cell.folder / name).is_file() for name in ("last.ckpt", "cost.json"))
        if trained and load_yaml(given) != cell.config:
            raise CrosscoopError(
                f"{cell.folder} was trained with another configuration ({given}) than the grid now specifies. Give "
                "another folder with --runs, rename the row, or remove that folder."
            )
        for name, folder in tests(ablation, cell).items():
            given = folder / "given.yaml"
            tested = given.is_file() and (folder / "metrics.json").is_file()
            if tested and load_yaml(given) != given_test(ablation, name):
                raise CrosscoopError(
                    f"{folder} was tested with another checkpoint or other options ({given}) than the grid now "
                    "specifies. Rename the test, or remove that folder to test again."
                )


def _work(ablation: Ablation, cells: list[Cell], folder: Path, workers: int, retry: bool) -> list[str]:
    """Run the cells, and return the labels of those that were stopped from outside."""
    if retry:
        for cell in cells:
            (cell.folder / "failed.txt").unlink(missing_ok=True)
    try:
        states = Workers(ablation, cells, folder, workers).run()
    except (KeyboardInterrupt, SystemExit) as stop:
        print(f"\nTo resume: crosscoop ablate --runs {folder}", file=sys.stderr)
        raise SystemExit(stop.code if isinstance(stop, SystemExit) else 130) from None
    print()
    if elsewhere := [label for label, word in states.items() if word == ELSEWHERE]:
        print(f"Still running elsewhere: {', '.join(elsewhere)}.")
    return [label for label, word in states.items() if word == STOPPED]


def _list(ablation: Ablation, cells: list[Cell], workers: int) -> None:
    from crosscoop.ablation.cost import estimate_seconds, measure

    table = Table("", title=ablation.title)
    table.add_column("cell", no_wrap=True)
    table.add_column("state")
    for heading in ("parameters", "MACs", "estimated training"):
        table.add_column(heading, justify="right")
    first = {cell.name: cell for cell in reversed(cells)}
    costs, seconds, wrong = {}, {}, {}
    for name, each in track(first.items(), "Measuring", transient=True):
        try:
            costs[name], seconds[name] = measure(each), estimate_seconds(each)
        except CrosscoopError as error:
            wrong[name] = str(error)
    left = 0.0
    for i, cell in enumerate(cells):
        word, cost, time = state(ablation, cell), costs.get(cell.name), seconds.get(cell.name)
        left += 0 if word == "done" else time or 0
        counts = ("-", "-") if cost is None else (f"{cost.parameters / 1e6:.2f} M", f"{cost.macs / 1e9:.2f} G")
        table.add_row(str(i), cell.label, f"[{STYLES[word]}]{word}", *counts, "-" if time is None else duration(time))
    crops = " or ".join(sorted({f"{cost.crop_size} x {cost.crop_size}" for cost in costs.values()}))
    table.caption = (
        f"MACs of one {crops} crop. Time: measured here for one crop, times the number of crops; without evaluation "
        f"and data loading, and unknown if the data is missing. Total left: {duration(left / workers)} with {workers} "
        f"worker{'s' * (workers > 1)}."
    )
    Console().print(table)
    if wrong:
        raise CrosscoopError("\n".join(f"Row {name!r} cannot run: {error}" for name, error in wrong.items()))


def _write_sweep(path: Path, folder: Path, ablation: Ablation, cells: list[Cell]) -> None:
    """Write a sweep whose only parameter is the cell; resuming, locks and tables work as without it."""
    folder.mkdir(parents=True, exist_ok=True)
    ablation.save(folder / "ablation.yaml")
    content = {
        "name": ablation.title,
        "method": "grid",
        "parameters": {"cell": {"values": [cell.label for cell in cells]}},
        "command": ["${env}", "crosscoop", "ablate", "--runs", str(folder.resolve()), "${args}"],
    }
    write_yaml(path, content)
    print(f"Sweep: {path}. Start it with: wandb sweep {path}, then run the wandb agent that it names on each machine.")
