"""Geometry of the curves, which `page.html` draws as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, floor, log10

from crosscoop.evaluation.records import in_words
from crosscoop.network.outputs import main_output
from crosscoop.report.runs import Run

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 10, 28


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        name: Its name in the legend.
        color: Index of the run or, for a single run, of the output.
        dash: 0 for the main output, whose line is solid; 1 and up for the others.
        points: Epoch and value of each measurement.
    """

    name: str
    color: int
    dash: int
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """Curves over epochs in a frame of `WIDTH` x `HEIGHT`.

    Attributes:
        title: What the values are.
        lines: At least one curve, each with at least one point.
        digits: Number of decimals of the values.
    """

    title: str
    lines: list[Line]
    digits: int

    @cached_property
    def epochs(self) -> list[float]:
        """Round values for the ticks of the x axis."""
        xs = [x for line in self.lines for x, _ in line.points]
        step = max(round_step(max(xs) - min(xs), 7), 1)
        return [x * step for x in range(ceil(min(xs) / step), floor(max(xs) / step) + 1)]

    @cached_property
    def values(self) -> list[float]:
        """Round values for the ticks of the y axis, which enclose all measurements."""
        ys = [y for line in self.lines for _, y in line.points]
        step = round_step(max(ys) - min(ys), 5)
        return [
            y * step for y in range(floor(min(ys) / step), max(ceil(max(ys) / step), floor(min(ys) / step) + 1) + 1)
        ]

    def place(self, epoch: float, value: float) -> tuple[float, float]:
        """Return the position of a measurement in the frame."""
        xs = [x for line in self.lines for x, _ in line.points]
        across = (epoch - min(xs)) / ((max(xs) - min(xs)) or 1)
        up = (value - self.values[0]) / (self.values[-1] - self.values[0])
        x, y = LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    def series(self) -> list[dict[str, object]]:
        """Return x, y, epoch and value of each measurement by line, which the page's script shows at the pointer."""
        return [
            {
                "name": line.name,
                "points": [[*self.place(x, y), x, f"{y:.{self.digits}f}"] for x, y in line.points],
            }
            for line in self.lines
        ]


def round_step(span: float, count: int) -> float:
    """Return 1, 2 or 5 times a power of ten that divides a span into roughly `count` parts or fewer."""
    rough = (span or 1) / count
    power = 10.0 ** floor(log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)


def charts(runs: Sequence[Run]) -> list[Chart]:
    """Return the charts with data: the losses of every run, and each validation metric of every output."""
    candidates = [
        (title, [Line(run.name, i, 0, _points(run, key)) for i, run in enumerate(runs)], 3)
        for title, key in (("Training loss", "train/loss"), ("Validation loss", "val/loss"))
    ]
    for figure in dict.fromkeys(["miou", *(figure for run in runs for figure in run.followed)]):
        if figure != "pixel_accuracy":  # it is uninformative where one class dominates
            lines = [line for i, run in enumerate(runs) for line in _lines(run, i, figure, len(runs) > 1)]
            candidates.append((f"Validation {in_words(figure)} (%)", lines, 2))
    drawn = [Chart(title, [line for line in lines if line.points], digits) for title, lines, digits in candidates]
    return [chart for chart in drawn if chart.lines]


def _lines(run: Run, place: int, figure: str, several: bool) -> list[Line]:
    """Return the curves of a metric of a run, the main output's first."""
    outputs = run.followed.get(figure, [])
    lines = []
    for dash, output in enumerate(sorted(outputs, key=lambda name: name != main_output(outputs))):
        name, color = (f"{run.name}: {output}", place) if several else (output, dash)
        lines.append(Line(name, color, dash, _points(run, f"val/{figure}/{output}", 100)))
    return lines


def _points(run: Run, key: str, factor: float = 1) -> list[tuple[float, float]]:
    return [(row["epoch"], factor * row[key]) for row in run.history if {"epoch", key} <= row.keys()]
