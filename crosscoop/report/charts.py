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
        points: x, usually the epoch, and y of each measurement.
    """

    name: str
    color: int
    dash: int
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """Curves in a frame of `WIDTH` x `HEIGHT`.

    Attributes:
        title: What the values are.
        lines: At least one curve, each with at least one point.
        digits: Number of decimals of the values.
        over: What x is.
        reference: Ends of a thin line that tells where nothing differs.
    """

    title: str
    lines: list[Line]
    digits: int
    over: str = "epoch"
    reference: tuple[tuple[float, float], tuple[float, float]] | None = None

    @cached_property
    def points(self) -> list[tuple[float, float]]:
        """Every point that the frame encloses."""
        return [*(point for line in self.lines for point in line.points), *(self.reference or ())]

    @cached_property
    def steps(self) -> list[float]:
        """Round values for the ticks of the x axis."""
        xs = [x for x, _ in self.points]
        step = max(round_step(max(xs) - min(xs), 7), 1)
        return [x * step for x in range(ceil(min(xs) / step), floor(max(xs) / step) + 1)]

    @cached_property
    def values(self) -> list[float]:
        """Round values for the ticks of the y axis, which enclose all measurements."""
        ys = [y for _, y in self.points]
        step = round_step(max(ys) - min(ys), 5)
        return [
            y * step for y in range(floor(min(ys) / step), max(ceil(max(ys) / step), floor(min(ys) / step) + 1) + 1)
        ]

    def place(self, x: float, value: float) -> tuple[float, float]:
        """Return the position of a measurement in the frame."""
        xs = [each for each, _ in self.points]
        across = (x - min(xs)) / ((max(xs) - min(xs)) or 1)
        up = (value - self.values[0]) / (self.values[-1] - self.values[0])
        right, down = LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)
        return round(right, 1), round(down, 1)

    def series(self) -> list[dict[str, object]]:
        """Return position, x and value of each measurement by line, which the page's script shows at the pointer."""
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


def image_charts(runs: Sequence[Run]) -> list[Chart]:
    """Return a chart of the differences in mIoU image by image: of the runs or, for a single run, of its outputs."""
    tested = [(i, run.name, _ious(run)) for i, run in enumerate(runs) if run.images]
    compared = [(i, name, ious[main_output(ious)]) for i, name, ious in tested if ious]
    if len(tested) == 1:
        compared = [(i, output, ious) for i, (output, ious) in enumerate(tested[0][2].items())]
    lines = []
    for color, name, ious in compared[1:]:
        _, reference, base = compared[0]
        gaps = sorted((100 * (ious[image] - base[image]) for image in ious.keys() & base.keys()), reverse=True)
        if gaps:
            higher = sum(gap > 0 for gap in gaps) / len(gaps)
            points = [(100 * (i + 0.5) / len(gaps), gap) for i, gap in enumerate(gaps)]
            lines.append(Line(f"{name}: higher on {100 * higher:.0f} % of the images", color, 0, points))
    title = f"mIoU above that of {reference} (points)" if lines else ""
    return [Chart(title, lines, 1, "% of the images, sorted", ((0, 0), (100, 0)))] if lines else []


def calibration_charts(runs: Sequence[Run]) -> list[Chart]:
    """Return a reliability diagram per run: accuracy over confidence."""
    found = []
    for run in runs:
        outputs = run.calibration["outputs"] if run.calibration else {}
        lines = [
            Line(
                f"{output}: off by {100 * each['ece']:.1f} points on average",
                place,
                0 if output == main_output(outputs) else place + 1,
                [(100 * bin["confidence"], 100 * bin["accuracy"]) for bin in each["bins"]],
            )
            for place, (output, each) in enumerate(outputs.items())
        ]
        lines = [line for line in lines if line.points]
        if lines:
            found.append(Chart(f"{run.name}: accuracy (%)", lines, 1, "confidence (%)", ((0, 0), (100, 100))))
    return found


def _ious(run: Run) -> dict[str, dict[str, float]]:
    """Return the mIoU of each image by output."""
    found: dict[str, dict[str, float]] = {}
    for image, row in run.images.items():
        for key, value in row.items():
            if key.startswith("miou_"):
                found.setdefault(key.removeprefix("miou_"), {})[image] = value
    return found


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
