"""`crosscoop ablate`: a grid of runs or a search, trained, tested and tabulated."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import track
from rich.table import Table

from crosscoop.ablation.cell import check_given, failure, forget_failure, state
from crosscoop.ablation.engine import Embedded, Engine, Remaining, drive
from crosscoop.ablation.grid import Ablation, Cell, read_ablation, with_best
from crosscoop.ablation.view import STYLES, View
from crosscoop.errors import CrosscoopError
from crosscoop.files import duration, load_yaml, write_yaml
from crosscoop.version import __version__


def ablate(
    runs: str,
    grid: str | None = None,
    workers: int = 1,
    address: str | None = None,
    cell: str | None = None,
    dry_run: bool = False,
    retry: bool = False,
    tables: bool = False,
    sweep: str | None = None,
    storage: str | None = None,
) -> None:
    """Train and test every cell of a grid, search for the best setting, and write the tables.

    The same command resumes after any interruption: finished cells are kept, interrupted ones resume from their last
    checkpoint. Without further options, one cell runs after the other on this machine. With --workers or --address, Ray
    runs many at once (pip install 'crosscoop[ray]'). As a SLURM array, without Ray:
    `sbatch --array=0-41 --wrap 'crosscoop ablate --grid GRID --runs RUNS --cell $SLURM_ARRAY_TASK_ID'` (each task reads
    the cell numbers from GRID when it starts: do not edit GRID until all tasks have started).

    Args:
        runs: Folder of the runs: one folder per row, with one folder per seed in it, and the tables.
        grid: The ablation's YAML; may be omitted once RUNS exists.
        workers: Number of cells that run at once on this machine; more than one by Ray.
        address: The Ray cluster that runs the cells: auto, or HOST:PORT.
        cell: Run only this cell, by its name as listed by --dry-run (cross/seed0), or by its number.
        dry_run: List the cells with their parameters, multiply-adds and estimated time, without running them.
        retry: Run the failed cells again.
        tables: Only write the tables again, from the run folders.
        sweep: Only write a W&B sweep to this YAML file; its agents run the cells of the grid.
        storage: URL of the search's Optuna database; by default sqlite:///RUNS/search.db.

    Raises:
        CrosscoopError: The grid cannot be read, the folder's runs have another configuration, or a cell failed or was
            stopped.
    """
    folder = Path(runs)
    if workers < 1 or (workers > 1 and address):
        expected = "no --workers with --address" if address else "at least 1"
        raise CrosscoopError(f"--workers: got {workers}, expected {expected}.")
    if folder.exists() and not folder.is_dir():
        raise CrosscoopError(f"--runs: got the file {folder}, expected a folder.")
    plain = _open(folder, Path(grid) if grid else None, tables)
    ablation = with_best(plain, folder)
    cells = ablation.all_cells(folder)
    for each in cells:
        check_given(each)
    if dry_run:
        return _list(ablation, cells, workers)
    if sweep:
        return _write_sweep(Path(sweep), folder, plain, cells)
    chosen = cells if cell is None else [ablation.cell(folder, cell)]
    states: dict[str, str] = {}
    if not tables:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, cell):
            plain.save(folder / "ablation.yaml")
            view = View(ablation.title, chosen)
            try:
                with closing(_engine(workers, address, chosen)) as engine:
                    _work(engine, view, chosen, retry)
                    if ablation.search and cell is None:
                        ablation, chosen = _search(engine, view, plain, folder, storage, retry)
            except (KeyboardInterrupt, SystemExit) as stop:
                print(f"\nTo resume: crosscoop ablate --runs {folder}", file=sys.stderr)
                raise SystemExit(stop.code if isinstance(stop, SystemExit) else 130) from None
            states = view.states
            print()
    _tabulate(ablation, folder)
    _report(folder, states, chosen)


def _open(folder: Path, grid: Path | None, tables: bool) -> Ablation:
    """Return the ablation of a grid or of a folder."""
    kept = folder / "ablation.yaml"
    if kept.is_file() and not tables:
        version = load_yaml(kept).get("version")
        if version != __version__:
            raise CrosscoopError(
                f"{kept}: got runs of crosscoop {version or 'before 0.1.0'}, expected {__version__}. Resume them with "
                "that version, or give another folder with --runs; --tables reads them as they are."
            )
    if grid is None and not kept.is_file():
        raise CrosscoopError(
            f"--grid: got none, and {folder} does not contain an ablation; expected the YAML of an ablation."
        )
    return read_ablation(grid or kept)


@contextmanager
def _alone(folder: Path, cell: str | None) -> Iterator[None]:
    """Refuse a second command on the whole grid; those of single cells, which have locks of their own, may be many."""
    if cell is not None:
        yield
        return
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise CrosscoopError(
            f"--runs: {folder} is in use by another crosscoop ablate, expected one at a time. Wait until it has ended, "
            "or stop it first. Many cells at once: --workers, --address or --cell."
        ) from None


def _engine(workers: int, address: str | None, cells: Sequence[Cell]) -> Engine:
    if workers == 1 and address is None:
        return Embedded()
    from crosscoop.ablation.cluster import RayEngine

    return RayEngine(None if address else workers, address, cells)


def _work(engine: Engine, view: View, cells: Sequence[Cell], retry: bool) -> None:
    if retry:
        for cell in cells:
            forget_failure(cell.folder)
    if cells:  # else there is only a search
        drive(engine, Remaining(cells), view)


def _search(
    engine: Engine, view: View, ablation: Ablation, folder: Path, storage: str | None, retry: bool
) -> tuple[Ablation, list[Cell]]:
    """Run the search, then the best setting with every seed; return the ablation with its row."""
    from crosscoop.ablation.search import Trials

    trials = Trials(ablation, folder, storage)
    drive(engine, trials, view)
    if "stopped" in view.states.values():
        return ablation, ablation.all_cells(folder)
    trials.write()
    print(f"Best setting: {folder / 'best.yaml'}, for crosscoop fit --config. Trials: {folder / 'search.md'}")
    ablation = with_best(ablation, folder)
    cells = ablation.all_cells(folder)
    _work(engine, view, cells, retry)
    return ablation, cells


def _tabulate(ablation: Ablation, folder: Path) -> None:
    from crosscoop.ablation.summary import summarise
    from crosscoop.ablation.tables import write_tables

    for i, test in enumerate(ablation.tests):
        files = write_tables(summarise(ablation, folder, test), folder)
        if i == 0:
            print(files[0].read_text("utf-8"))
        print(f"Tables: {', '.join(map(str, files))}")


def _report(folder: Path, states: dict[str, str], chosen: Sequence[Cell]) -> None:
    """Raise an error that names the cells that are not done."""
    for word, reason in (
        ("stopped", "Stopped from outside, with their state saved"),
        ("taken", "Another process runs these cells (a SLURM task, a W&B agent, or one on a lost node)"),
    ):
        if labels := [label for label, state in states.items() if state == word]:
            raise CrosscoopError(f"{reason}: {', '.join(labels)}. To resume: crosscoop ablate --runs {folder}")
    if failed := [each.label for each in chosen if state(each) == "failed"]:
        reasons = "\n".join(f"  {label}: {failure(folder / label)}" for label in failed)
        raise CrosscoopError(
            f"{len(failed)} of {len(chosen)} cells failed:\n{reasons}\nFull logs: log.txt in their folders. To run "
            f"them again: crosscoop ablate --runs {folder} --retry"
        )


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
        word, cost, time = state(cell), costs.get(cell.name), seconds.get(cell.name)
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
    if ablation.search:
        print(f"Then a search: {ablation.search['trials']} settings of {', '.join(ablation.search['space'])}.")
    if wrong:
        raise CrosscoopError("\n".join(f"Row {name!r} cannot run: {error}" for name, error in wrong.items()))


def _write_sweep(path: Path, folder: Path, ablation: Ablation, cells: list[Cell]) -> None:
    """Write a sweep whose only parameter is the cell; resuming, locks and tables work as without it."""
    folder.mkdir(parents=True, exist_ok=True)
    ablation.save(folder / "ablation.yaml")
    content = {
        "name": ablation.title,
        "program": "crosscoop",
        "method": "grid",
        "parameters": {"cell": {"values": [cell.label for cell in cells]}},
        "command": ["${env}", "${program}", "ablate", "--runs", str(folder.resolve()), "${args}"],
    }
    write_yaml(path, content)
    print(f"Sweep: {path}. Start it with: wandb sweep {path}, then run the wandb agent that it names on each machine.")
