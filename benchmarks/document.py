"""Generation of docs/benchmarks.md and its plot from the results."""

import json
import re
from pathlib import Path
from textwrap import fill
from typing import Any

from benchmarks.measure import Row

SECTIONS = {
    "metric": (
        "Mean IoU from coarse logits",
        "The default processing of an image's logits in `validate` and `test`: labels by "
        "`crosscoop.evaluation.inference.upsampled_labels`, counts by `crosscoop.evaluation.metrics.ConfusionMatrix`.",
    ),
    "evaluation": (
        "Whole evaluation",
        "From PNG files to the metrics of top, bottom and ensemble. Both sides read files with our `EvaluationSet`; "
        "the networks have the same backbones and random weights.",
    ),
    "pipelines": (
        "Training pipelines",
        "The work of one worker: read, random scale 0.5 to 2, crop, flip, batch, from the real images of the data sets "
        "where the command names their folders (VOC: JPEG; Cityscapes: PNG), else from generated files of their sizes. "
        "`with pyspng` is the extra `png`; `prepared` is `--data.prepared`, after `crosscoop prepare-data`. Ours "
        "passes bytes to the device, the others normalised floats; the notes state what remains to be done there, "
        "and how long decoders alone take (`OpenCV at an eighth`: little more than entropy decoding is left).",
    ),
    "training": (
        "Training steps",
        "Forward, losses, backward and SGD on random images. smp has its second separable convolution at stride 16, "
        "ours at stride 4, as in the DeepLabV3+ paper: with equally many parameters, a light pair's branches need 6.19 "
        "G multiply-adds for this forward pass, smp's two networks 5.15 G.",
    ),
    "inference": (
        "Inference",
        "From a uint8 image to the coarse logits of top, bottom and ensemble (`fast`: `crosscoop predict --fast`: "
        "folded batch norms, channels-last layout, bfloat16 where it is native; `bf16`: bfloat16 alone), "
        "against smp's logits at full resolution; smp's images "
        "are padded to multiples of 16, as it requires. The pair is `cross_c1_c2` with `add` and random weights, whose "
        "saturated outputs are sensitive to bfloat16: the differences are a loose upper bound. For a light pair "
        "trained on CamVid, on nine test images, `fast` left 99.5 % of the labels unchanged; probabilities changed "
        "by 0.0009 on average and by at most 0.25.",
    ),
    "start": ("Start", "CPU time of a process."),
    "processes": (
        "Two processes",
        "A step of a light pair at 256 x 256, batch 2 per process, in wall-clock time; DDP over gloo. "
        "The slower of the two processes counts; 'times as fast' is the efficiency of weak scaling.",
    ),
    "growth": (
        "Scaling, shares, and the machine's limit",
        "A training step (forward, losses, backward) of the light pair with dense heads: 128 x 128, 21 classes, batch "
        "2, two branches (connected by `cross_c1_c2`; other numbers of branches are not connected), one of these "
        "varied at a time. Memory is that of the maps and weights that the forward pass keeps for the backward pass. "
        "Convolution: 3 x 3, 256 channels, 64 x 64, batch 2, measured alternately with the step.",
    ),
}
"""Title and text of each comparison by its module's name, in order."""


def write(results: Path, folder: Path) -> None:
    """Write `benchmarks.md` and `benchmarks.svg` into a folder."""
    introduction, tried = (Path(__file__).parent / "text.md").read_text().split("\n<!-- results -->\n\n")
    measured, lines = json.loads(results.read_text()), [introduction]
    for name, (title, text) in SECTIONS.items():
        found = [result for key, result in measured.items() if re.fullmatch(rf"{name}(_limited)?(_\d+_threads)?", key)]
        lines += [f"## {title}", "", fill(text, 120, break_on_hyphens=False), ""] if found else []
        for result in found:
            machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
            lines += [*section(result["rows"]), f"`{result['command']}`, {result['date']};", f"{machine}.", ""]
            if grown := [row for row in result["rows"] if "growth" in row]:
                plot(grown, folder / "benchmarks.svg")
    lines.append(tried)
    (folder / "benchmarks.md").write_text("\n".join(lines))


def section(rows: list[Row]) -> list[str]:
    """Return the tables and notes of a section."""
    lines = []
    compared = [row for row in rows if row["against"]]
    if compared:
        lines = ["| ours | against | ours | theirs | ratio (quartiles) | target |", "|---|---|---|---|---|---|"]
        lines += [*map(line, compared), ""]
    shares = [row for row in rows if not row["against"] and "growth" not in row]
    if shares:
        lines += ["| part | share of a forward pass in training |", "|---|---|"]
        lines += [
            f"| {row['what'].removeprefix('share of ').removesuffix(' in a forward')} | {row['ours'][1]:.1f} % |"
            for row in shares
        ]
        lines.append("")
    grown = [row for row in rows if "growth" in row]
    if grown:
        lines += [
            "![Time of a step, and memory kept for its backward pass](benchmarks.svg)",
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
    """Format a row as a line of a table."""
    low, high = row["quartiles"]
    spread = f" ({low:.2f} to {high:.2f})" if row["repeats"] > 1 else ""
    ratio = f"{row['ratio']:.2f}{spread} {'times as fast' if row['faster'] else 'ours : theirs'}"
    target = ""
    if row["target"] is not None:
        target = f"at {'least' if row['faster'] else 'most'} {row['target']:g}: {'yes' if row['reached'] else '**no**'}"
    ours, theirs = (amount(row[side], row) for side in ("ours", "theirs"))
    return f"| {row['what']} | {row['against']} | {ours} | {theirs} | {ratio} | {target} |"


def amount(quartiles: list[float], row: Row) -> str:
    """Format a median with its unit: items per second, seconds, milliseconds, or the row's unit."""
    median = quartiles[1]
    if row["items"]:
        return f"{number(row['items'] / median)} / s"
    if row["unit"] == "s":
        return f"{number(median)} s" if median >= 1 else f"{number(1000 * median)} ms"
    return f"{number(median)} {row['unit']}"


def number(value: float) -> str:
    """Format a number with three significant digits."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def plot(rows: list[Row], path: Path) -> None:
    """Plot time and memory against size, classes, batch size and branches."""
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
