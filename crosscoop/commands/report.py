"""`crosscoop report`: one run, or a comparison of several, as one HTML page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from crosscoop.errors import CrosscoopError
from crosscoop.files import replacing
from crosscoop.report.gallery import make_gallery
from crosscoop.report.page import render
from crosscoop.report.runs import read_runs


def report(
    runs: Sequence[str], output: str = "report.html", num_images: int = 8, split: Literal["test", "val"] = "test"
) -> None:
    """Summarise one run, or compare several, in one self-contained HTML page that works offline.

    It shows settings, curves, metrics per class with their differences from the first run, how the branches differ,
    confusion matrices, and the images on which the runs (or the branches of a single run) differ most. Run
    `crosscoop test` first: it measures what the page shows.

    Args:
        runs: Folders of the runs; the first is the reference for the others.
        output: The HTML file to write.
        num_images: Number of images to show; 0 for none, which requires neither checkpoints nor data.
        split: The split of these images: test (those on which the runs differ most) or val (spread evenly).

    Raises:
        CrosscoopError: A folder is not a run, or the number of images is negative.
    """
    if num_images < 0:
        raise CrosscoopError(f"--num-images: got {num_images}, expected 0 or more.")
    read = read_runs(runs)
    page = render(read, make_gallery(read, split, num_images))
    with replacing(Path(output)) as path:
        path.write_text(page, "utf-8")
    print(f"Report: {output} ({len(page) / 1e6:.1f} MB)")
