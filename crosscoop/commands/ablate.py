"""`crosscoop ablate`."""

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
    """Train and test every cell of a grid, and write its table.

    The same command resumes after any interruption: finished cells stay, interrupted ones resume from their last
    checkpoint. Started on several machines with one shared folder, each takes cells that no other has; no two ever run
    the same one (the folder's file system must know file locks). As a SLURM array:
    `sbatch --array=0-41 --wrap 'crosscoop ablate --grid GRID --runs RUNS --cell $SLURM_ARRAY_TASK_ID'` (the numbers are
    those of GRID as it is when a task starts: leave it as it is until all have).

    Args:
        runs: Folder of the runs: a folder per row, in it one per seed, and the tables.
        grid: The ablation's YAML; once RUNS exists it may be left out.
        workers: Cells that run at once on this machine.
        cell: Run this cell alone, by its name as --dry-run lists it (cross/seed0), or by its number.
        dry_run: List the cells with their parameters, multiply-adds and estimated time, and run none of them.
        retry: Run the failed cells again.
        tables: Only write the tables again, from what the run folders hold.
        sweep: Write a W&B sweep to this YAML file, in which each agent takes cells of this grid, and run none.

    Raises:
        CrosscoopError: The grid cannot be read, the folder's runs are of another configuration, or a cell failed or
            was stopped.
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
            f"Stopped from outside, with their state saved: {', '.join(stopped)}. To go on: "
            f"crosscoop ablate --runs {folder}"
        )
    if failed := [each.label for each in chosen if state(ablation, each) == "failed"]:
        reasons = "\n".join(f"  {label}: {(folder / label / 'failed.txt').read_text().strip()}" for label in failed)
        raise CrosscoopError(
            f"{len(failed)} of {len(chosen)} cells failed:\n{reasons}\nTheir whole words: log.txt in their folders. To "
            f"run them again: crosscoop ablate --runs {folder} --retry"
        )


def _open(folder: Path, grid: Path | None) -> Ablation:
    kept = folder / "ablation.yaml"
    if grid is None and not kept.is_file():
        raise CrosscoopError(f"--grid: got none, and {folder} holds no ablation; expected the YAML of an ablation.")
    return read_ablation(grid or kept)


def _check_given(ablation: Ablation, cells: list[Cell]) -> None:
    """A folder's runs are of one ablation: nobody mixes them by a later edit of the YAML."""
    for cell in cells:
        given = cell.folder / "given.yaml"
        trained = given.is_file() and any((cell.folder / name).is_file() for name in ("last.ckpt", "cost.json"))
        if trained and load_yaml(given) != cell.config:
            raise CrosscoopError(
                f"{cell.folder} was trained with another configuration ({given}) than the grid gives it now. Give "
                "another folder with --runs, another name to the row, or remove that folder."
            )
        for name, folder in tests(ablation, cell).items():
            given = folder / "given.yaml"
            tested = given.is_file() and (folder / "metrics.json").is_file()
            if tested and load_yaml(given) != given_test(ablation, name):
                raise CrosscoopError(
                    f"{folder} was tested with another checkpoint or other options ({given}) than the grid gives now. "
                    "Give the test another name, or remove that folder to test again."
                )


def _work(ablation: Ablation, cells: list[Cell], folder: Path, workers: int, retry: bool) -> list[str]:
    """Run the cells; those that something outside of us stopped."""
    if retry:
        for cell in cells:
            (cell.folder / "failed.txt").unlink(missing_ok=True)
    try:
        states = Workers(ablation, cells, folder, workers).run()
    except (KeyboardInterrupt, SystemExit) as stop:
        print(f"\nTo go on: crosscoop ablate --runs {folder}", file=sys.stderr)
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
        f"MACs of one {crops} crop. Time: one crop's pass, measured here, times crops; without evaluation and data, "
        f"unknown where the data is not here. All that is not done: {duration(left / workers)} with {workers} "
        f"worker{'s' * (workers > 1)}."
    )
    Console().print(table)
    if wrong:
        raise CrosscoopError("\n".join(f"Row {name!r} cannot run: {error}" for name, error in wrong.items()))


def _write_sweep(path: Path, folder: Path, ablation: Ablation, cells: list[Cell]) -> None:
    """A sweep whose only parameter is the cell: resuming, locks and tables stay as everywhere."""
    folder.mkdir(parents=True, exist_ok=True)
    ablation.save(folder / "ablation.yaml")
    content = {
        "name": ablation.title,
        "method": "grid",
        "parameters": {"cell": {"values": [cell.label for cell in cells]}},
        "command": ["${env}", "crosscoop", "ablate", "--runs", str(folder.resolve()), "${args}"],
    }
    write_yaml(path, content)
    print(f"Sweep: {path}. Start it with: wandb sweep {path}, then on each machine the wandb agent that it names.")
