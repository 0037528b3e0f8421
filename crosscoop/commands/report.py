"""`crosscoop report`: one run, or several compared, as one HTML page."""

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
    """Write one HTML page about one or more runs, to look at and to send on: it needs no other file and no network.

    It shows settings, curves, figures per class with the differences from the first run, what the branches do
    differently, confusion matrices, and the images on which the runs (or, of a single run, its branches) differ most.
    Run `crosscoop test` before: it measures what is shown here.

    Args:
        runs: Folders of the runs; the first is the reference of the others.
        output: The HTML file to write.
        num_images: How many images to show; 0 for none, which needs neither checkpoints nor data.
        split: The split of these images: test (those on which the runs differ most) or val (spread evenly).

    Raises:
        CrosscoopError: A folder is no run, or the number of images is negative.
    """
    if num_images < 0:
        raise CrosscoopError(f"--num-images: got {num_images}, expected 0 or more.")
    read = read_runs(runs)
    page = render(read, make_gallery(read, split, num_images))
    with replacing(Path(output)) as path:
        path.write_text(page, "utf-8")
    print(f"Report: {output} ({len(page) / 1e6:.1f} MB)")
