"""`crosscoop report`: one run, or a comparison of several, as one HTML page."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from crosscoop.errors import CrosscoopError
from crosscoop.files import note, replacing, shorten
from crosscoop.report.gallery import make_gallery
from crosscoop.report.page import render
from crosscoop.report.runs import read_runs

if TYPE_CHECKING:
    from crosscoop.ablation.grid import Cell


def report(
    runs: Sequence[str],
    output: str = "report.html",
    num_images: int = 8,
    split: Literal["test", "val"] = "test",
    data__dataset__root: str | None = None,
) -> None:
    """Summarise one run, or compare several, in one self-contained HTML page that works offline.

    It shows settings, curves, metrics per class with their differences from the first run, how the branches differ,
    confusion matrices, and the images on which the runs (or the branches of a single run) differ most. Run
    `crosscoop test` first: it measures what the page shows.

    Args:
        runs: Folders of the runs; the first is the reference for the others. The folder of an ablation stands for the
            run of each of its rows with the first seed, and their first test.
        output: The HTML file to write.
        num_images: Number of images to show; 0 for none, which requires neither checkpoints nor data.
        split: The split of these images: test (those on which the runs differ most) or val (spread evenly).
        data__dataset__root: The folder of the runs' data, if it has been moved since.

    Raises:
        CrosscoopError: A folder is not a run, or the number of images is negative.
    """
    if num_images < 0:
        raise CrosscoopError(f"--num-images: got {num_images}, expected 0 or more.")
    folders, named, tested = list[Path](), dict[Path, str](), dict[Path, Path]()
    for folder in map(Path, runs):
        cells = cells_of(folder)
        folders += [cell.folder for cell, _ in cells] or [folder]
        named |= {cell.folder: cell.name for cell, _ in cells}
        tested |= {cell.folder: test for cell, test in cells}
    read = read_runs(folders, named, tested)
    page = render(read, make_gallery(read, split, num_images, data__dataset__root))
    with replacing(Path(output)) as path:
        path.write_text(page, "utf-8")
    print(f"Report: {output} ({len(page) / 1e6:.1f} MB)")


def cells_of(folder: Path) -> list[tuple["Cell", Path]]:
    """Return the trained cells of an ablation with its first seed, and the folder of the first test of each.

    Args:
        folder: The folder of an ablation; of any other folder, there are no cells.

    Raises:
        CrosscoopError: No cell has been trained.
    """
    if not (folder / "ablation.yaml").is_file():
        return []
    from crosscoop.ablation.grid import read_ablation, with_best  # slow to import

    ablation = with_best(read_ablation(folder / "ablation.yaml"), folder)
    cells = [cell for cell in ablation.all_cells(folder) if cell.seed == ablation.seeds[0]]
    trained = [cell for cell in cells if (cell.folder / "config.yaml").is_file()]
    if not trained:
        raise CrosscoopError(f"{folder}: got an ablation without a trained cell. Run crosscoop ablate --runs {folder}.")
    if missing := [cell.name for cell in cells if cell not in trained]:
        note(f"{folder}: not trained yet: {shorten(missing)}.")
    return [(cell, next(iter(cell.test_folders.values()))) for cell in trained]
