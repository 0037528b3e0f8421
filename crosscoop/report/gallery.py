"""The gallery: image, ground truth and outputs where the runs differ most, as in the paper's figures 6 and 7."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from crosscoop.data.dataset import VOID, VOID_COLOR, Array, Color, SegmentationDataset
from crosscoop.data.loaders import open_data
from crosscoop.data.pipeline import EvaluationSet
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.inference import Inference
from crosscoop.evaluation.records import none_of, percent
from crosscoop.evaluation.scores import evaluate
from crosscoop.files import note
from crosscoop.network.outputs import branches_of, main_output
from crosscoop.report.runs import Run

if TYPE_CHECKING:
    from crosscoop.prediction.predictor import Prediction

LONGEST = 640
"""Maximum length of a picture's longer side in pixels: 8 images of two cooperative runs then take about 2 MB."""

BRANCHES: list[Color] = [
    *((214, 48, 86), (24, 100, 214), (31, 138, 76), (140, 70, 190)),
    *((0, 150, 170), (180, 90, 20), (120, 120, 20), (90, 90, 160)),
]
"""Colours of the branches, used where only that branch is right; repeated from the ninth branch on."""
SEVERAL, NONE = (105, 105, 105), (240, 170, 20)
"""Colours of pixels on which the branches differ and several of them, or none, are right."""


@dataclass(frozen=True)
class Picture:
    """A picture of the gallery.

    Attributes:
        title: What it shows.
        note: A value to show below.
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
        groups: Protocol of the predictions by the index of each run shown.
        rows: For each image, its name, the reason for choosing it, and its pictures: first image and ground truth, then
            the predictions of each run.
        legend: Colours by class name.
        differences: Colours of the disagreement by meaning.
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


def make_gallery(runs: Sequence[Run], split: str, num_images: int, root: str | None = None) -> Gallery:
    """Predict and draw the images on which the runs differ most.

    Args:
        runs: The runs; each predicts with the configuration of its last test (or validation).
        split: test or val: the data set's split for that purpose.
        num_images: Number of images to show.
        root: The data's folder, if it has been moved since.
    """
    gallery, views = Gallery(), dict[int, View]()
    if not num_images:
        return gallery
    from crosscoop.prediction.predictor import load  # slow to import

    for place, run in enumerate(runs):
        try:
            view = open_view(run, split, root)
            first = next(iter(views.values()), view)
            if (type(view.dataset), view.names) != (type(first.dataset), first.names):
                raise CrosscoopError("its images differ from those of the previous runs.")
            views[place] = view
        except CrosscoopError as error:
            gallery.notices.append(f"{run.name} is not shown: {error}")
            note(gallery.notices[-1])  # before the other runs' images are predicted
    if not views:
        return gallery
    reasons = choose([runs[place] for place in views if split == "test"], first.names, num_images)
    pictures: dict[str, list[list[Picture]]] = {}
    for place, view in views.items():
        try:
            predictor = load(view.checkpoint, view.inference, own_size=True)
            predictor.resize = None if view.items.resize_masks else view.items.resize  # else the data has resized them
        except CrosscoopError as error:
            gallery.notices.append(f"{runs[place].name} is not shown: {error}")
            continue
        gallery.groups[place] = view.protocol
        measured = runs[place].metrics
        if measured and not view.protocol.endswith("{evaluation}, {inference}".format(**measured["protocol"])):
            gallery.notices.append(
                f"{runs[place].name}: the images are predicted under another protocol than its metrics."
            )
        for name in track(reasons, f"Predicting with {runs[place].name}", transient=True):
            index = view.names.index(name)
            item = view.items[index]
            mask = item["mask"].numpy()
            image = view.items.samples[index].image() if predictor.resize else item["image"].permute(1, 2, 0).numpy()
            prediction = predictor(image)
            gallery.differences |= meanings(branches_of(prediction.branch_labels))
            scene = [photo("image", image), painted("ground truth", "", mask, view.dataset.palette)]
            pictures.setdefault(name, [scene]).append(draw(prediction, mask))
    gallery.rows = [(name, reasons[name], groups) for name, groups in pictures.items()]
    gallery.legend = {**dict(zip(first.dataset.class_names, first.dataset.palette, strict=True)), "void": VOID_COLOR}
    return gallery


def open_view(run: Run, split: str, root: str | None = None) -> View:
    """Open a split with the configuration of a run's last test (or validation).

    Args:
        run: The run.
        split: test or val.
        root: The data's folder, if it has been moved since.

    Raises:
        CrosscoopError: The run has no checkpoint, or its data cannot be opened.
    """
    config = run.evaluation("test" if split == "test" else "validate")
    checkpoint = run.checkpoint(config)
    if not checkpoint.is_file():
        raise CrosscoopError(f"{checkpoint} does not exist; `crosscoop fit` writes it.")
    data, inference = open_data(config, root), Inference(**config.get("inference", {}))
    name = data.dataset.test_split if split == "test" else data.dataset.val_split
    data.look_up(name)
    words = data.protocol(name, 0)
    protocol = f"{words['dataset']} {name}, {words['evaluation']}, {inference.describe()}"
    return View(data.dataset, data.evaluation_set(name), inference, checkpoint, protocol)


def choose(runs: Sequence[Run], names: Sequence[str], count: int) -> dict[str, str]:
    """Choose the images to show, and return the reason for each, the most interesting first.

    For several runs these are the images with the largest difference in mIoU. For one run they are those on which its
    branches disagree most or, with one branch, those with the lowest mIoU. Without `images.csv` they are evenly spaced
    over the split.

    Args:
        runs: The runs; those without `images.csv` are ignored.
        names: Names of the split's images.
        count: Number of images to choose.
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
            ranking.append((gap, name, f"mIoU of {high} is {gap:.1f} points above that of {low}"))
        elif "disagreement" in rows[0]:
            share = 100 * rows[0]["disagreement"]
            ranking.append((share, name, f"the branches disagree on {share:.1f} % of the pixels"))
        else:
            ranking.append((-figures[low], name, f"mIoU {figures[low]:.1f}"))
    if ranking:
        return {name: reason for _, name, reason in sorted(ranking, key=lambda entry: -entry[0])[:count]}
    spread = np.linspace(0, len(names) - 1, min(count, len(names))).astype(int)
    return {names[i]: "evenly spaced over the split" for i in spread}


def draw(prediction: "Prediction", mask: Array) -> list[Picture]:
    """Return a picture of every output with its mIoU in this image, and one of the branches' disagreement."""
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
    """Return the colours of `differences` by meaning; empty for a single branch."""
    if len(branches) < 2:
        return {}
    alone = {f"only {name} is right": BRANCHES[place % len(BRANCHES)] for place, name in enumerate(branches)}
    several = {"they disagree, several are right": SEVERAL} if len(branches) > 2 else {}
    return {**alone, **several, f"they disagree, {none_of(branches)} is right": NONE}


def differences(prediction: "Prediction", mask: Array) -> Image.Image:
    """Draw the image in pale grey, with pixels on which the branches disagree in the colours of `meanings`.

    On unlabelled pixels, every branch counts as wrong.
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
    """Return a picture of `(H, W, 3)` RGB."""
    return Picture(title, "", *encode(Image.fromarray(image)))


def painted(title: str, note: str, labels: Array, palette: Sequence[Color]) -> Picture:
    """Return a picture of class indices `(H, W)`."""
    return Picture(title, note, *encode(paletted(labels, palette)))


def paletted(labels: Array, palette: Sequence[Color]) -> Image.Image:
    """Convert class indices `(H, W)` to an image with a palette; void is cream."""
    colors = np.full((VOID + 1, 3), VOID_COLOR, np.uint8)
    colors[: len(palette)] = palette
    image = Image.fromarray(labels)
    image.putpalette(colors.tobytes())
    return image


def encode(image: Image.Image) -> tuple[str, tuple[int, int]]:
    """Return a data URI and the size, reduced to `LONGEST`: photographs as JPEG, images with a palette as PNG."""
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.NEAREST if image.mode == "P" else Image.Resampling.LANCZOS)
    file = BytesIO()
    if image.mode == "P":
        image.save(file, "PNG", optimize=True)
    else:
        image.save(file, "JPEG", quality=85)
    kind = "png" if image.mode == "P" else "jpeg"
    return f"data:image/{kind};base64,{b64encode(file.getvalue()).decode()}", image.size
