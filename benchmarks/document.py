"""docs/benchmarks.md and its plot, from the results."""

import json
from pathlib import Path
from typing import Any

from benchmarks.measure import Row

SECTIONS = {
    "metric": (
        "Mean IoU from coarse logits",
        "What `validate` and `test` do by default with the logits of an image: labels by `crosscoop.evaluation.labels."
        "upsampled_labels`, counts by `crosscoop.evaluation.metrics.ConfusionMatrix`.",
    ),
    "evaluation": (
        "Whole evaluation",
        "From PNG files to the figures of top, bottom and ensemble; both sides read files by our `EvaluationSet`, the "
        "networks have the same backbones and random weights.",
    ),
    "pipelines": (
        "Training pipelines",
        "What one worker does: read, random scale 0.5 to 2, crop, flip, batch. `prepared` is `--data.prepared`, after "
        "`crosscoop prepare-data`. Ours hands bytes to the device, the others finished floats; the notes say what that "
        "leaves to the device.",
    ),
    "training": (
        "Training steps",
        "Forward, losses, backward and SGD on random images. smp has its second separable convolution at stride 16, "
        "ours at stride 4, as in the DeepLabV3+ paper: with as many parameters, a light pair's branches need 6.19 G "
        "multiply-adds for this forward, smp's two networks 5.15 G.",
    ),
    "inference": (
        "Inference",
        "From a uint8 image to the coarse logits of top, bottom and ensemble (`fast`: `crosscoop predict --fast`: "
        "folded batch norms, channels-last layout, bfloat16), against smp's logits at full size; smp's images are "
        "padded to multiples of 16, as it demands. `cross_c1_c2` with `add` and random weights, whose saturated "
        "outputs bfloat16 throws about: their differences are an upper bound that says little. Of a light pair "
        "trained on CamVid, on nine test images, `fast` left 99.5 % of the labels as they were; probabilities changed"
        " by 0.0009 on average and by 0.25 at most.",
    ),
    "start": ("Start", "CPU time of a process."),
    "processes": (
        "Two processes",
        "A step of a light pair at 256 x 256, batch 2 per process, by the clock; DDP over gloo. "
        "Of two processes the slower counts; times as fast is the efficiency of weak scaling.",
    ),
    "growth": (
        "Growth, shares, and the machine's limit",
        "A training step (forward, losses, backward) of the light pair with dense heads: 128 x 128, 21 classes, batch "
        "2, two branches (connected by `cross_c1_c2`; other numbers are not), one of these changed at a time. "
        "Memory is that of the maps and weights that the forward keeps for the backward. Convolution: 3 x 3, 256 "
        "channels, 64 x 64, batch 2, measured in turn with the step.",
    ),
}
"""The comparisons in order: title and text, by the name of their module."""


def write(results: Path, folder: Path) -> None:
    """Write `benchmarks.md` and `benchmarks.svg` into a folder."""
    lines = [(Path(__file__).parent / "introduction.md").read_text()]
    for name, (title, text) in SECTIONS.items():
        found = [
            json.loads(path.read_text())
            for path in (results / f"{name}.json", *sorted(results.glob(f"{name}_*_threads.json")))
            if path.is_file()
        ]
        lines += [f"## {title}", "", text, ""] if found else []
        for result in found:
            lines += [*section(result["rows"]), f"`{result['command']}`, {result['date']}; "]
            lines += [", ".join(f"{key} {value}" for key, value in result["machine"].items()) + ".", ""]
            if grown := [row for row in result["rows"] if "growth" in row]:
                plot(grown, folder / "benchmarks.svg")
    lines.append((Path(__file__).parent / "tried.md").read_text())
    (folder / "benchmarks.md").write_text("\n".join(lines))


def section(rows: list[Row]) -> list[str]:
    """A section's tables and notes."""
    lines = []
    compared = [row for row in rows if row["against"]]
    if compared:
        lines = ["| ours | against | ours | theirs | ratio (quartiles) | to reach |", "|---|---|---|---|---|---|"]
        lines += [*map(line, compared), ""]
    shares = [row for row in rows if not row["against"] and "growth" not in row]
    if shares:
        lines += ["| part | share of a forward in training |", "|---|---|"]
        lines += [
            f"| {row['what'].removeprefix('share of ').removesuffix(' in a forward')} | {row['ours'][1]:.1f} % |"
            for row in shares
        ]
        lines.append("")
    grown = [row for row in rows if "growth" in row]
    if grown:
        lines += [
            "![Time of a step, and memory that it keeps for its backward](benchmarks.svg)",
            "",
            "| | seconds | MiB kept |",
            "|---|---|---|",
        ]
        lines += [f"| {row['what']} | {row['ours'][1]:.2f} | {row['memory']:.0f} |" for row in grown] + [""]
    for row in rows:
        if row.get("note"):
            lines += [f"- {row['note']}"]
    return [*lines, ""]


def line(row: Row) -> str:
    """A row as a line of a table."""
    low, high = row["quartiles"]
    spread = f" ({low:.2f} to {high:.2f})" if row["repeats"] > 1 else ""
    ratio = f"{row['ratio']:.2f}{spread} {'times as fast' if row['faster'] else 'ours : theirs'}"
    target = ""
    if row["target"] is not None:
        target = f"at {'least' if row['faster'] else 'most'} {row['target']:g}: {'yes' if row['reached'] else '**no**'}"
    ours, theirs = (amount(row[side], row) for side in ("ours", "theirs"))
    return f"| {row['what']} | {row['against']} | {ours} | {theirs} | {ratio} | {target} |"


def amount(quartiles: list[float], row: Row) -> str:
    """A median with its unit: items per second, milliseconds, or what the row says."""
    median = quartiles[1]
    if row["items"]:
        return f"{number(row['items'] / median)} / s"
    if row["unit"] == "s":
        return f"{number(median)} s" if median >= 1 else f"{number(1000 * median)} ms"
    return f"{number(median)} {row['unit']}"


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def plot(rows: list[Row], path: Path) -> None:
    """Time and memory over size, classes, batch and branches."""
    from matplotlib.figure import Figure

    points: dict[str, list[Any]] = {}
    for row in rows:
        points.setdefault(row["growth"][0], []).append((row["growth"][1], row["ours"][1], row["memory"]))
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    for axes, (key, values) in zip(figure.subplots(1, len(points)), points.items(), strict=True):
        numbers, seconds, memory = zip(*values, strict=True)
        axes.plot(numbers, seconds, "o-", color="tab:blue")
        axes.set(xlabel={"size": "side of the image"}.get(key, key), ylim=(0, None))
        axes.set_ylabel("seconds", color="tab:blue")
        other = axes.twinx()
        other.plot(numbers, memory, "s--", color="tab:orange")
        other.set_ylabel("MiB", color="tab:orange")
        other.set_ylim(0, None)
    figure.savefig(path, metadata={"Date": None})
