"""`crosscoop report`: one run, or several compared, as one HTML page."""

from argparse import ArgumentError
from collections.abc import Sequence
from inspect import getdoc
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser

from crosscoop.commands.options import Help
from crosscoop.errors import CrosscoopError
from crosscoop.files import expanded, replacing
from crosscoop.report.gallery import make_gallery
from crosscoop.report.page import render
from crosscoop.report.runs import read_runs


def main(arguments: Sequence[str]) -> None:
    """`crosscoop report`, whose runs are given without the name of an option.

    Args:
        arguments: The command and its options.
    """
    parser = ArgumentParser(
        prog="crosscoop report",
        description=(getdoc(report) or "").partition("\n\nArgs:")[0],
        formatter_class=Help,
        exit_on_error=False,
        print_config=None,
    )
    parser.add_argument("runs", nargs="+", type=str, metavar="RUN", help="Folder of a run; the first is the reference.")
    parser.add_function_arguments(report, as_group=False, skip={"runs"})
    try:
        given = parser.parse_args(arguments[1:])
    except ArgumentError as error:
        raise CrosscoopError(f"{error}\nAll options: crosscoop report --help") from error
    report(**expanded(given.as_dict()))


def report(
    runs: Sequence[str], output: str = "report.html", num_images: int = 8, split: Literal["test", "val"] = "test"
) -> None:
    """Writes one HTML page about one or more runs, to look at and to send on: it needs no other file and no network.

    It shows settings, curves, figures per class with the differences from the first run, what top and bottom do
    differently, confusion matrices, and the images on which the runs (or, of a single run, its branches) differ most.
    Run `crosscoop test` before: it measures what is shown here.

    Args:
        runs: Folders of the runs; the others are compared with the first.
        output: The HTML file to write.
        num_images: How many images to show; 0 for none, which needs neither checkpoints nor data.
        split: The split of these images: test (those on which the runs differ most) or val (spread evenly).

    Raises:
        CrosscoopError: A folder is no run, or the number of images is negative.
    """
    if num_images < 0:
        raise CrosscoopError(f"report: got num_images {num_images}, expected 0 or more.")
    read = read_runs(runs)
    page = render(read, make_gallery(read, split, num_images))
    with replacing(Path(output)) as path:
        path.write_text(page, "utf-8")
    print(f"Report: {output} ({len(page) / 1e6:.1f} MB)")
