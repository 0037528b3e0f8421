"""The page: all that is known of the runs, put into `page.html`."""

import re
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from inspect import getdoc
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, Template
from jsonargparse import ArgumentParser
from markupsafe import Markup, escape

from crosscoop import __version__
from crosscoop.command import Help
from crosscoop.data.files import replacing
from crosscoop.errors import CrosscoopError
from crosscoop.report import charts, tables
from crosscoop.report.gallery import DIFFERENCES, Gallery, make_gallery
from crosscoop.report.runs import Run, describe_validation, read_runs
from crosscoop.results import describe, percent


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
    report(**given.as_dict())


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


def render(runs: Sequence[Run], gallery: Gallery) -> str:
    """The page's HTML, in which every name is escaped."""
    columns = tables.columns(runs)
    context: dict[str, Any] = {
        "runs": runs,
        "warnings": tables.warnings(runs),
        "settings": tables.settings(runs),
        "charts": charts.charts(runs),
        "frame": charts,
        "validation_protocol": in_words({run.name: describe_validation(run.config) for run in runs if run.history}),
        "protocol": in_words({run.name: run.protocol for run in runs if run.metrics}),
        "gallery_protocol": in_words({runs[place].name: words for place, words in gallery.groups.items()}),
        "columns": columns,
        "figure_rows": tables.figure_rows(columns),
        "class_rows": tables.class_rows(columns),
        "peak": tables.branch_peak(runs),
        "matrices": [tables.matrices(run) for run in runs],
        "gallery": gallery,
        "differences": DIFFERENCES,
        "version": __version__,
        "today": f"{datetime.now():%d %B %Y}",
    }
    return template().render(context)


@cache
def template() -> Template:
    """`page.html`, ready to be filled in."""
    environment = Environment(
        loader=PackageLoader("crosscoop", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {f.__name__: f for f in (code, describe, duration, percent, signed)}
    return environment.get_template("page.html")


def code(text: str) -> Markup:
    """A text as HTML, with `code` where backticks say so."""
    return Markup(re.sub(r"`(.+?)`", r"<code>\1</code>", str(escape(text))))


def in_words(protocols: Mapping[str, str]) -> str:
    """The protocols of runs by their names; each is said once."""
    if len(set(protocols.values())) == 1:
        return f"{next(iter(protocols.values()))}."
    names = {words: ", ".join(name for name in protocols if protocols[name] == words) for words in protocols.values()}
    return " ".join(f"{name}: {words}." for words, name in names.items())


def duration(seconds: float) -> str:
    """A time in the largest unit of which it has one."""
    unit, name = next(((u, n) for u, n in ((3600, "h"), (60, "min")) if seconds >= u), (1, "s"))
    return f"{seconds / unit:.3g} {name}"


def signed(difference: float) -> str:
    """A difference of shares in points, with its sign."""
    points = f"{100 * difference:+.2f}"
    return "±0" if float(points) == 0 else points.replace("-", "−")  # noqa: RUF001  (the minus sign)
