"""The images on which the runs differ most, as in the paper's figures 6 and 7: image, truth and every output."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from crosscoop.data.configured import open_data
from crosscoop.data.dataset import VOID, VOID_COLOR, Array, Color, SegmentationDataset
from crosscoop.data.pipeline import EvaluationSet
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.evaluator import evaluate
from crosscoop.evaluation.inference import Inference
from crosscoop.evaluation.records import none_of, percent
from crosscoop.network.outputs import branches_of, main_output
from crosscoop.prediction.predictor import Prediction, load
from crosscoop.report.runs import Run

LONGEST = 640
"""Pixels of a picture's longer side at most: 8 images of two cooperative runs take about 2 MB."""

BRANCHES: list[Color] = [
    *((214, 48, 86), (24, 100, 214), (31, 138, 76), (140, 70, 190)),
    *((0, 150, 170), (180, 90, 20), (120, 120, 20), (90, 90, 160)),
]
"""The colour of each branch, where it alone is right; a ninth shares the first one's."""
SEVERAL, NONE = (105, 105, 105), (240, 170, 20)
"""The colours of pixels on which branches differ and several of them, or none, are right."""


@dataclass(frozen=True)
class Picture:
    """A picture of the gallery.

    Attributes:
        title: What it shows.
        note: A figure to stand below.
        source: A data URI.
        size: Width and height in pixels.
    """

    title: str
    note: str
    source: str
    size: tuple[int, int]


@dataclass
class Gallery:
    """Rows of pictures.

    Attributes:
        groups: Per run that is shown its place, and under which protocol it predicted.
        rows: Per image its name, why it was chosen, itself and the truth, and for each group what its run predicts.
        legend: Class names and their colours.
        differences: What the colours of the disagreement mean.
        notices: What is missing.
    """

    groups: dict[int, str] = field(default_factory=dict)
    rows: list[tuple[str, str, list[list[Picture]]]] = field(default_factory=list)
    legend: dict[str, Color] = field(default_factory=dict)
    differences: dict[str, Color] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class View:
    """A split as a run evaluates it."""

    dataset: SegmentationDataset
    items: EvaluationSet
    inference: Inference
    checkpoint: Path
    protocol: str

    @property
    def names(self) -> list[str]:
        """The samples' names, in the split's order."""
        return [sample.name for sample in self.items.samples]


def make_gallery(runs: Sequence[Run], split: str, num_images: int) -> Gallery:
    """Predict and draw the images on which the runs differ most.

    Args:
        runs: The runs; each predicts as its last test (or validation) did.
        split: test or val, for the data set's split of that purpose.
        num_images: How many images to show.
    """
    gallery, views = Gallery(), dict[int, View]()
    for place, run in enumerate(runs if num_images else []):
        try:
            view = open_view(run, split)
            first = next(iter(views.values()), view)
            if (type(view.dataset), view.names) != (type(first.dataset), first.names):
                raise CrosscoopError("its images are others than those of the runs before.")
            views[place] = view
        except CrosscoopError as error:
            gallery.notices.append(f"{run.name} is not shown: {error}")
    if not views:
        return gallery
    reasons = choose([runs[place] for place in views if split == "test"], first.names, num_images)
    pictures: dict[str, list[list[Picture]]] = {}
    for place, view in views.items():
        try:
            predictor = load(view.checkpoint, view.inference, own_size=True)  # resized already, if at all
        except CrosscoopError as error:
            gallery.notices.append(f"{runs[place].name} is not shown: {error}")
            continue
        gallery.groups[place] = view.protocol
        measured = runs[place].metrics
        if measured and not view.protocol.endswith("{evaluation}, {inference}".format(**measured["protocol"])):
            gallery.notices.append(
                f"{runs[place].name}: the images are predicted under another protocol than its figures."
            )
        for name in track(reasons, f"Predicting with {runs[place].name}", transient=True):
            item = view.items[view.names.index(name)]
            image, mask = item["image"].permute(1, 2, 0).numpy(), item["mask"].numpy()
            prediction = predictor(image)
            gallery.differences |= meanings(branches_of(prediction.branch_labels))
            scene = [photo("image", image), painted("truth", "", mask, view.dataset.palette)]
            pictures.setdefault(name, [scene]).append(draw(prediction, mask))
    gallery.rows = [(name, reasons[name], groups) for name, groups in pictures.items()]
    gallery.legend = {**dict(zip(first.dataset.class_names, first.dataset.palette, strict=True)), "void": VOID_COLOR}
    return gallery


def open_view(run: Run, split: str) -> View:
    """A split as a run's last test (or validation) evaluated it.

    Raises:
        CrosscoopError: The run has no checkpoint, or its data cannot be opened.
    """
    config = run.evaluation("test" if split == "test" else "validate")
    checkpoint = run.checkpoint(config)
    if not checkpoint.is_file():
        raise CrosscoopError(f"there is no {checkpoint}; `crosscoop fit` writes it.")
    data, inference = open_data(config), Inference(**config.get("inference", {}))
    name = data.dataset.test_split if split == "test" else data.dataset.val_split
    words = data.protocol(name, 0)
    protocol = f"{words['dataset']} {name}, {words['evaluation']}, {inference.describe()}"
    return View(data.dataset, data.evaluation_set(name), inference, checkpoint, protocol)


def choose(runs: Sequence[Run], names: Sequence[str], count: int) -> dict[str, str]:
    """Which images to show, and why, the most interesting first.

    Several runs: those on which their mIoU differs most. One run: those on which its branches differ most, or of one
    branch those with the lowest mIoU. Without an `images.csv`: evenly spread over the split.

    Args:
        runs: The runs; those without `images.csv` have no say.
        names: The split's images.
        count: How many to choose.
    """
    runs = [run for run in runs if run.images]
    ranking: list[tuple[float, str, str]] = []
    for name in names:
        rows = [run.images.get(name, {}) for run in runs]
        ious = [{key.removeprefix("miou_"): row[key] for key in row if key.startswith("miou_")} for row in rows]
        if not rows or not all(ious):
            continue
        figures = {run.name: 100 * iou[main_output(iou)] for run, iou in zip(runs, ious, strict=True)}
        high, low = max(figures, key=lambda run: figures[run]), min(figures, key=lambda run: figures[run])
        if len(runs) > 1:
            gap = figures[high] - figures[low]
            ranking.append((gap, name, f"mIoU of {high} {gap:.1f} above {low}"))
        elif "disagreement" in rows[0]:
            share = 100 * rows[0]["disagreement"]
            ranking.append((share, name, f"the branches differ on {share:.1f} % of the pixels"))
        else:
            ranking.append((-figures[low], name, f"mIoU {figures[low]:.1f}"))
    if ranking:
        return {name: reason for _, name, reason in sorted(ranking, key=lambda entry: -entry[0])[:count]}
    spread = np.linspace(0, len(names) - 1, min(count, len(names))).astype(int)
    return {names[i]: "evenly spread over the split" for i in spread}


def draw(prediction: Prediction, mask: Array) -> list[Picture]:
    """Return every output with its mIoU in this image, and where the branches differ."""
    labels = {output: torch.from_numpy(each)[None] for output, each in prediction.branch_labels.items()}
    pictures = [
        painted(output, f"mIoU {percent(scores.figures['miou'])}", prediction.branch_labels[output], prediction.palette)
        for output, scores in evaluate(labels, torch.from_numpy(mask)[None], prediction.class_names).items()
    ]
    if len(branches_of(labels)) > 1:
        note = f"{prediction.disagreement.mean():.1%} of pixels"
        pictures.append(Picture("disagreement", note, *encode(differences(prediction, mask))))
    return pictures


def meanings(branches: Sequence[str]) -> dict[str, Color]:
    """Return the colours of `differences`, by their meaning; none for one branch."""
    if len(branches) < 2:
        return {}
    alone = {f"only {name} is right": BRANCHES[place % len(BRANCHES)] for place, name in enumerate(branches)}
    several = {"they differ, several are right": SEVERAL} if len(branches) > 2 else {}
    return {**alone, **several, f"they differ, {none_of(branches)} is right": NONE}


def differences(prediction: Prediction, mask: Array) -> Image.Image:
    """Return the image in pale grey, with the `meanings` of pixels on which branches differ in their colours.

    Pixels without truth count as those where none is right.
    """
    levels = 13
    grey = np.asarray(Image.fromarray(prediction.image).convert("L"))
    names = branches_of(prediction.branch_labels)
    right = np.stack([prediction.branch_labels[name] == mask for name in names])
    colors = list(meanings(names).values())
    number = right.sum(0)
    kinds = np.select([number == 0, number == 1], [len(colors) - 1, right.argmax(0)], len(names))
    indices = (grey.astype(np.uint16) * levels // 256).astype(np.uint8)
    greys: list[Color] = [(level, level, level) for level in range(120, 250, 130 // levels)]
    shown = np.where(prediction.disagreement, levels + kinds, indices).astype(np.uint8)
    return paletted(shown, [*greys, *colors])


def photo(title: str, image: Array) -> Picture:
    """A picture of `(H, W, 3)` RGB."""
    return Picture(title, "", *encode(Image.fromarray(image)))


def painted(title: str, note: str, labels: Array, palette: Sequence[Color]) -> Picture:
    """A picture of class indices `(H, W)`."""
    return Picture(title, note, *encode(paletted(labels, palette)))


def paletted(labels: Array, palette: Sequence[Color]) -> Image.Image:
    """Indices `(H, W)` as an image of these colours; void is cream."""
    colors = np.full((VOID + 1, 3), VOID_COLOR, np.uint8)
    colors[: len(palette)] = palette
    image = Image.fromarray(labels)
    image.putpalette(colors.tobytes())
    return image


def encode(image: Image.Image) -> tuple[str, tuple[int, int]]:
    """A data URI and a size, reduced if need be: photographs as JPEG, colours that mean something as PNG."""
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.NEAREST if image.mode == "P" else Image.Resampling.LANCZOS)
    file = BytesIO()
    if image.mode == "P":
        image.save(file, "PNG", optimize=True)
    else:
        image.save(file, "JPEG", quality=85)
    kind = "png" if image.mode == "P" else "jpeg"
    return f"data:image/{kind};base64,{b64encode(file.getvalue()).decode()}", image.size
