"""The page: `page.html`, filled with the data of the runs."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, Template
from markupsafe import Markup, escape

from crosscoop.evaluation.records import ALL, NEAR_OUTLINES, branch_shares, compared_branches, describe, percent
from crosscoop.files import duration
from crosscoop.report import charts, tables
from crosscoop.report.gallery import Gallery
from crosscoop.report.runs import Run, describe_validation
from crosscoop.version import __version__


def render(runs: Sequence[Run], gallery: Gallery) -> str:
    """Return the page's HTML, in which every name is escaped."""
    columns = tables.columns(runs)
    context: dict[str, Any] = {
        "runs": runs,
        "warnings": tables.warnings(runs),
        "settings": tables.settings(runs),
        "charts": charts.charts(runs),
        "image_charts": charts.image_charts(runs),
        "calibration_charts": charts.calibration_charts(runs),
        "frame": charts,
        "validation_protocol": in_words({run.name: describe_validation(run.config) for run in runs if run.history}),
        "protocol": in_words({run.name: run.protocol for run in runs if run.metrics}),
        "calibration_protocol": in_words({run.name: run.calibration["protocol"] for run in runs if run.calibration}),
        "gallery_protocol": in_words({runs[place].name: words for place, words in gallery.groups.items()}),
        "columns": columns,
        "figure_rows": tables.figure_rows(columns),
        "class_rows": tables.class_rows(columns),
        "peak": tables.branch_peak(runs),
        "matrices": [tables.matrices(run) for run in runs],
        "gallery": gallery,
        "overall": {ALL: "all classes", NEAR_OUTLINES: f"all classes, {NEAR_OUTLINES}"},
        "branch_shares": branch_shares,
        "compared_branches": compared_branches,
        "version": __version__,
        "today": f"{datetime.now():%d %B %Y}",
    }
    return template().render(context)


@cache
def template() -> Template:
    """Load the template `page.html`."""
    environment = Environment(
        loader=PackageLoader("crosscoop", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {f.__name__: f for f in (code, describe, duration, percent, signed)}
    return environment.get_template("page.html")


def code(text: str) -> Markup:
    """Convert a text to HTML, with text between backticks as `code`."""
    return Markup(re.sub(r"`(.+?)`", r"<code>\1</code>", str(escape(text))))


def in_words(protocols: Mapping[str, str]) -> str:
    """Describe the protocols of runs by name, each protocol once."""
    if len(set(protocols.values())) == 1:
        return f"{next(iter(protocols.values()))}."
    names = {words: ", ".join(name for name in protocols if protocols[name] == words) for words in protocols.values()}
    return " ".join(f"{name}: {words}." for words, name in names.items())


def signed(difference: float) -> str:
    """Format a difference of shares in points, with its sign."""
    points = f"{100 * difference:+.2f}"
    return "±0" if float(points) == 0 else points.replace("-", "−")  # noqa: RUF001  (the minus sign)
