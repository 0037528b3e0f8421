"""The computation behind `crosscoop demo`: an image, the outputs of networks for it, and what their connections do."""

import zlib
from base64 import b64encode
from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from crosscoop.checkpoints.about import About
from crosscoop.checkpoints.read import find_checkpoint
from crosscoop.data.dataset import VOID, VOID_COLOR, Array, Sample
from crosscoop.data.images import open_image, read_image
from crosscoop.data.peculiarities import of_image
from crosscoop.data.pipeline import read
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.inference import Inference
from crosscoop.evaluation.records import percent
from crosscoop.evaluation.scores import evaluate
from crosscoop.export.onnx import OnnxNetwork
from crosscoop.export.read import read_network
from crosscoop.files import duration, shorten
from crosscoop.network.cooperative import CooperativeNetwork
from crosscoop.network.outputs import branches_of
from crosscoop.prediction.pictures import BACKGROUND, RED
from crosscoop.prediction.predictor import Prediction, Predictor

MAX_PIXELS = 2**24
"""Maximum number of pixels of an image: more than most cameras have, with activations of some gigabytes."""

LONGEST = 1600
"""Maximum length of a picture's longer side in the page; networks receive the whole image."""


@dataclass(frozen=True)
class Loaded:
    """A network whose connections can be switched off and on.

    Attributes:
        name: Its name as given: a run's folder, a file, or a repository.
        source: What was read.
        about: Its description.
        predictor: Predicts with all connections.
    """

    name: str
    source: str | Path
    about: About
    predictor: Predictor

    @property
    def points(self) -> list[str]:
        """The groups of connected exchange points, in the order of the data flow; none if they cannot be switched."""
        network = self.predictor.network
        if not isinstance(network, CooperativeNetwork):
            return []
        points = network.branches[0].points
        return list(dict.fromkeys(point.group for point in points if point.name in network.exchanges))

    def connected_at(self, groups: Collection[str]) -> Predictor:
        """Return what predicts with some of the connections, and the same weights.

        Args:
            groups: The groups of exchange points that remain connected, see `points`.
        """
        network = self.predictor.network
        if not isinstance(network, CooperativeNetwork) or set(self.points) <= set(groups):
            return self.predictor
        predictor = copy(self.predictor)
        predictor.network = network.connected_at(
            [point.name for point in network.branches[0].points if point.group in groups]
        )
        return predictor

    def title(self, output: str) -> str:
        """Return the name of an output, with its backbone if it is a branch: `top (resnet101)`."""
        backbone = self.about.backbones.get(output)
        return f"{output} ({backbone})" if backbone else output

    def describe(self) -> list[str]:
        """Describe what was loaded, and how it predicts: one entry per fact."""
        network, strategy = self.predictor.network, self.about.network.get("strategy", "cross_c1_c2")
        facts = [str(self.source)] * (str(self.source) != self.name) + [f"trained on {self.about.dataset}"]
        if len(self.about.backbones) > 1:
            connected = strategy if isinstance(strategy, str) else ", ".join(strategy.get("points", ())) or "none"
            facts.append(f"connections: {connected}")
        facts.append(self.predictor.describe())
        if isinstance(network, OnnxNetwork):
            provider = network.session.get_providers()[0].removesuffix("ExecutionProvider")
            return [*facts, f"ONNX Runtime on {provider}"]
        precision = "bfloat16" if self.predictor.bfloat16 else "float32"
        return [*facts, f"{precision} on {self.predictor.device}"]


def open_networks(
    names: Sequence[str],
    inference: Inference | None = None,
    device: str | None = None,
    own_size: bool = False,
    fast: bool = False,
) -> list[Loaded]:
    """Load networks that are to be compared.

    A cascade is ignored, so that every branch answers for every image.

    Args:
        names: Runs' folders, checkpoints, .onnx or .safetensors files, and repositories (`hf-hub:NAME`).
        inference: See `load`.
        device: See `load`.
        own_size: See `load`.
        fast: See `load`.

    Raises:
        CrosscoopError: A network cannot be read, or their classes differ.
    """
    networks: list[Loaded] = []
    for name in names:
        source = find_checkpoint(None, name) if Path(name).is_dir() else name
        network, about = read_network(source)
        if networks and about.class_names != (first := networks[0]).about.class_names:
            raise CrosscoopError(
                f"{name}: got {len(about.class_names)} classes ({shorten(about.class_names)}), expected the "
                f"{len(first.about.class_names)} classes of {first.name} ({shorten(first.about.class_names)}), in this "
                "order. Compare networks that were trained on the same classes."
            )
        size = None if own_size else about.resize
        predictor = Predictor(network, about.class_names, about.palette, inference, device, size, fast)
        predictor.cascade = None
        networks.append(Loaded(name, source, about, predictor))
    return networks


@dataclass(frozen=True)
class Scene:
    """An image to predict, and the predictions so far.

    Attributes:
        name: Its name.
        image: `(H, W, 3)` uint8 RGB.
        truth: `(H, W)` uint8 true class indices; None if they are unknown.
        notes: What a user may not expect of its file.
        predictions: The prediction and its duration in seconds, by the index of the network and its connections.
    """

    name: str
    image: Array
    truth: Array | None = None
    notes: Sequence[str] = ()
    predictions: dict[tuple[int, tuple[str, ...]], tuple[Prediction, float]] = field(default_factory=dict)

    def predict(self, networks: Sequence[Loaded], index: int, points: Sequence[str]) -> tuple[Prediction, float]:
        """Return the prediction of a network with some of its connections, and its duration in seconds."""
        key = index, tuple(points)
        if key not in self.predictions:
            predictor = networks[index].connected_at(points)
            start = perf_counter()
            prediction = predictor(self.image)
            seconds = perf_counter() - start
            # Only its labels are shown; the logits are large.
            self.predictions[key] = replace(prediction, logits=torch.empty(0)), seconds
        return self.predictions[key]


def read_scene(path: Path) -> Scene:
    """Read an image file as `crosscoop predict` does.

    Raises:
        CrosscoopError: It has too many pixels, or cannot be read; the message names the file without its folder.
    """
    try:
        with open_image(path) as opened:
            check_pixels(path.name, opened.height, opened.width)
        image = read_image(path)
    except CrosscoopError as error:
        raise CrosscoopError(str(error).replace(str(path), path.name)) from error
    return Scene(path.name, image, notes=[f"Images like this one {text}." for _, text in of_image(path, image)])


def scene_of(sample: Sample) -> Scene:
    """Return a sample of a data set with its ground truth, if it has one.

    Raises:
        CrosscoopError: Its files cannot be read or do not match, or it has too many pixels.
    """
    image, truth = read(sample, None)
    check_pixels(sample.name, *image.shape[:2])
    return Scene(sample.name, image, truth)


def check_pixels(name: str, height: int, width: int) -> None:
    """Reject an image that would take minutes and gigabytes.

    Raises:
        CrosscoopError: It has more than `MAX_PIXELS`.
    """
    if height * width > MAX_PIXELS:
        raise CrosscoopError(
            f"{name}: got {height} x {width} pixels, expected at most {MAX_PIXELS / 1e6:.0f} million. Reduce the "
            "image, or use crosscoop predict."
        )


def play(networks: Sequence[Loaded], scene: Scene, connected: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Predict an image with every network, and return what the page shows, as JSON values.

    Args:
        networks: The networks.
        scene: The image.
        connected: For each network, the groups of exchange points that are connected, in the order of `points`.

    Raises:
        CrosscoopError: The image does not fit into memory.
    """
    height, width = scene.image.shape[:2]
    size, about = shown_size(height, width), networks[0].about
    facts = [f"{height} x {width} pixels (height x width)"]
    if size != (width, height):
        facts.append(f"shown at {size[1]} x {size[0]}")
    panels = [panel("image", "")]
    if scene.truth is not None:
        panels.append(panel("ground truth", "", scene.truth, size))
    rows = [outputs(networks, index, scene, connected, size) for index in range(len(networks))]
    predictions = [scene.predict(networks, *each)[0] for each in enumerate(connected)]
    seen = [labels for prediction in predictions for labels in prediction.branch_labels.values()]
    present = {index for labels in (*seen, scene.truth) if labels is not None for index in np.unique(labels).tolist()}
    classes = [*enumerate(zip(about.class_names, about.palette, strict=True)), (VOID, ("void", VOID_COLOR))]
    return {
        "image": encoded(scene.image, size),
        "size": size,
        "classes": [
            {"index": index, "name": name, "color": color, "clear": index == VOID or name.lower() in BACKGROUND}
            for index, (name, color) in classes
            if index in present
        ],
        "mark": RED,
        "scene": row(scene.name, facts, scene.notes, panels),
        "rows": rows,
    }


def outputs(
    networks: Sequence[Loaded], index: int, scene: Scene, connected: Sequence[Sequence[str]], size: tuple[int, int]
) -> dict[str, Any]:
    """Return the row of a network: its outputs, where its branches disagree, and what differs from other settings.

    Args:
        networks: The networks.
        index: The network's index.
        scene: The image.
        connected: See `play`.
        size: Width and height of the pictures.
    """
    network = networks[index]
    prediction, seconds = scene.predict(networks, index, connected[index])
    silent = [point for point in network.points if point not in connected[index]]
    before = scene.predict(networks, index, network.points)[0] if silent else None
    panels = [
        panel(network.title(output), note_of(output, prediction, scene.truth, before), labels, size)
        for output, labels in prediction.branch_labels.items()
    ]
    if len(branches_of(prediction.branch_labels)) > 1:
        panels.append(marked("disagreement", ("they agree", "they differ"), prediction.disagreement, size))
    if before:
        where = prediction.labels != before.labels
        panels.append(marked("change of the ensemble", ("unchanged", "changed"), where, size))
    if index:
        where = prediction.labels != scene.predict(networks, 0, connected[0])[0].labels
        panels.append(marked(f"difference from {networks[0].name}", ("the same", "different"), where, size))
    facts = [*network.describe(), f"predicted in {duration(seconds)}"]
    return row(network.name, facts, switched(network, silent), panels)


def introduce(networks: Sequence[Loaded]) -> dict[str, Any]:
    """Return what the page shows before there is an image, as JSON values."""
    return {"rows": [row(network.name, network.describe()) for network in networks]}


def row(
    title: str, facts: Sequence[str], notes: Sequence[str] = (), panels: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """Return a row of the page: its title, facts, notes and pictures."""
    return {"title": title, "facts": list(facts), "notes": list(notes), "panels": list(panels)}


def switched(network: Loaded, silent: Sequence[str]) -> list[str]:
    """Describe which connections are switched off, and what that means for a network that was trained with them."""
    if not silent:
        return []
    cooperative = network.predictor.network
    assert isinstance(cooperative, CooperativeNetwork)
    off = f"Switched off: {', '.join(silent)}."
    if all(cooperative.learns_alone(branch) for branch in range(len(cooperative.branches))):
        return [off]
    return [f"{off} The branches were trained with these connections, and may predict worse without them."]


def note_of(output: str, prediction: Prediction, truth: Array | None, before: Prediction | None) -> str:
    """Describe an output: its mIoU if the truth is known, and the share of pixels that the switches change."""
    labels, notes = prediction.branch_labels[output], list[str]()
    if truth is not None and (truth != VOID).any():
        own = {output: torch.from_numpy(labels)[None]}
        scores = evaluate(own, torch.from_numpy(truth)[None], prediction.class_names)[output]
        notes.append(f"mIoU {percent(scores.figures['miou'])}")
    if before:
        notes.append(f"{(labels != before.branch_labels[output]).mean():.1%} changed")
    return ", ".join(notes)


def panel(title: str, note: str, labels: Array | None = None, size: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """Return a picture of the page: the image, below the colours of class indices `(H, W)` if there are any."""
    return {"title": title, "note": note, "labels": None if labels is None else packed(labels, size)}


def marked(title: str, meanings: tuple[str, str], where: NDArray[np.bool_], size: tuple[int, int]) -> dict[str, Any]:
    """Return a picture of the page that marks the pixels `where` `(H, W)`; `meanings` of the others and of these."""
    shown = panel(title, f"{where.mean():.1%} of pixels", where.astype(np.uint8), size)
    return {**shown, "meanings": meanings}


def shown_size(height: int, width: int) -> tuple[int, int]:
    """Return width and height of a picture in the page."""
    factor = min(1, LONGEST / max(height, width))
    return max(round(width * factor), 1), max(round(height * factor), 1)


def packed(labels: Array, size: tuple[int, int]) -> str:
    """Return labels `(H, W)` at the page's size, compressed with zlib, in base64."""
    resized = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    return b64encode(zlib.compress(resized.tobytes(), 1)).decode()


def encoded(image: Array, size: tuple[int, int]) -> str:
    """Return an image `(H, W, 3)` at the page's size as the data URI of a JPEG."""
    file = BytesIO()
    Image.fromarray(image).resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"
