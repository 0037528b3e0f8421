"""Trained networks in Python: `crosscoop.load`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn

from crosscoop.data.augment import resized
from crosscoop.data.dataset import Array, Color
from crosscoop.data.images import read_image, to_rgb
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.inference import Inference, Outputs, upsampled_labels
from crosscoop.export.read import read_network
from crosscoop.network.cooperative import CooperativeNetwork, by_name
from crosscoop.network.fold import fold_batch_norm
from crosscoop.network.layers import resize
from crosscoop.network.outputs import CASCADE, branches_of, main_output
from crosscoop.network.precision import native_bfloat16
from crosscoop.prediction.pictures import colored, highlight, legend, outlined, overlay, side_by_side

if TYPE_CHECKING:
    from crosscoop.evaluation.cascade import CountedCascade


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        image: `(H, W, 3)` uint8 RGB.
        labels: `(H, W)` uint8 class indices of the ensemble, of the cascade, or of the only branch.
        logits: `(num_classes, h, w)` of the same output, at the network's resolution.
        branch_labels: `(H, W)` uint8 class indices by output name: top, bottom, ensemble; or cascade.
        class_names: One name per class.
        palette: One RGB colour per class.
    """

    image: Array
    labels: Array
    logits: Tensor
    branch_labels: dict[str, Array]
    class_names: list[str]
    palette: list[Color]

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """Probabilities `(num_classes, H, W)`; computed on demand, as they are large."""
        logits = resize(self.logits[None].float(), self.image.shape[:2])
        return logits[0].softmax(0).cpu().numpy()

    @property
    def disagreement(self) -> NDArray[np.bool_]:
        """The pixels `(H, W)` on which the branches differ; none for a single branch or a cascade."""
        different = np.zeros(self.labels.shape, bool)
        for first, second in pairwise(self.branch_labels[name] for name in branches_of(self.branch_labels)):
            different |= first != second
        return different

    def draw(self, alpha: float = 0.5) -> Image.Image:
        """Blend the image with the colours of its classes, weighted by `alpha`, above a legend of them.

        The background stays as it is, see `pictures.overlay`.
        """
        picture = overlay(self.image, self.labels, self.class_names, self.palette, alpha)
        return legend(picture, self.labels, self.class_names, self.palette)

    def outline(self) -> Image.Image:
        """Draw the boundaries of the classes in their colours on the image, above a legend of them."""
        return legend(outlined(self.image, self.labels, self.palette), self.labels, self.class_names, self.palette)

    def compare(self) -> Image.Image:
        """Place the image, each output and the pixels on which the branches differ side by side."""
        panels = {name: colored(labels, self.palette) for name, labels in self.branch_labels.items()}
        if len(self.branch_labels) > 1:
            where = self.disagreement
            panels[f"disagreement: {where.mean():.1%}"] = highlight(self.image, where)
        seen = np.concatenate(list(self.branch_labels.values()))
        return legend(side_by_side({"image": self.image} | panels), seen, self.class_names, self.palette)


class Predictor:
    """A network that predicts images of any size; labels and probabilities have the size of the image.

    Args:
        network: A `CooperativeNetwork`, or any module that maps `(N, 3, H, W)` RGB in [0, 1] to logits by output name,
            as an exported network does, or to a list with the logits of each branch.
        class_names: One name per class.
        palette: One RGB colour per class.
        inference: The inference protocol; by default the whole image at once.
        device: The device to run on; by default a GPU if available.
        resize: Height and width to which each image is resized for the network; None keeps the image's size.
        fast: Fold batch norms, use the channels-last layout and, on processors with instructions for it, compute in
            bfloat16, which changes about one label in 200, see docs/benchmarks.md.

    Raises:
        CrosscoopError: The device is not available, or `fast` is requested for an exported network.
    """

    def __init__(
        self,
        network: nn.Module,
        class_names: list[str],
        palette: list[Color],
        inference: Inference | None = None,
        device: str | None = None,
        resize: Sequence[int] | None = None,
        fast: bool = False,
    ) -> None:
        if fast:
            if not isinstance(network, CooperativeNetwork):
                raise CrosscoopError(
                    f"fast: got a {type(network).__name__}, expected the network of a checkpoint. Omit fast for "
                    "an exported network."
                )
            network = fold_batch_norm(network).to(memory_format=torch.channels_last)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self.device = torch.device(device)
            self.network = network.eval().to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise CrosscoopError(
                f"device: got {device!r}, expected an available device such as cpu or cuda ({error})."
            ) from error
        self.bfloat16 = fast and native_bfloat16(self.device)
        self.class_names, self.palette = class_names, palette
        self.inference, self.resize, self.fast = inference or Inference(), resize, fast
        self.cascade = cascade_of(network)

    def __call__(self, image: str | Path | Image.Image | NDArray[Any] | Tensor) -> Prediction:
        """Predict one image.

        Args:
            image: A file, a PIL image, a `(H, W, 3)` or `(H, W)` uint8 array, or a `(3, H, W)` tensor of uint8 or of
                floats in [0, 1].

        Raises:
            CrosscoopError: The image cannot be read, has another form, or does not fit into memory.
        """
        pixels = to_array(image)
        seen = resized(pixels, None, self.resize)[0] if self.resize else pixels
        try:
            outputs = self.logits(torch.from_numpy(seen).permute(2, 0, 1)[None])
            labels = {name: upsampled_labels(logits, pixels.shape[:2]) for name, logits in outputs.items()}
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            raise CrosscoopError(
                f"got an image of {pixels.shape[0]} x {pixels.shape[1]} pixels, expected one that fits into the memory "
                f"of {self.device}. Use a sliding window, such as Inference(window=(768, 768))."
            ) from error
        seen_by = {name: output[0].cpu().numpy() for name, output in labels.items()}
        chosen = main_output(outputs)
        return Prediction(pixels, seen_by[chosen], outputs[chosen][0], seen_by, self.class_names, self.palette)

    def describe(self) -> str:
        """Describe how images are predicted."""
        size = f"resized to {self.resize[0]} x {self.resize[1]}" if self.resize else "at their own size"
        fast = f", fast ({'bfloat16' if self.bfloat16 else 'float32'})" if self.fast else ""
        return f"images {size}, {self.inference.describe()}{fast}"

    @torch.inference_mode()
    def logits(self, image: Tensor) -> Outputs:
        """Return logits by output name of a uint8 RGB batch `(N, 3, H, W)`, in its size or the network's lower one."""
        scaled = image.to(self.device).float() / 255
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            if cascade := self.cascade:
                return self.inference(lambda view: {CASCADE: cascade(view)}, scaled)
            return self.inference(by_name(self.network, upsample=False), scaled)


def load(
    checkpoint: str | Path,
    inference: Inference | None = None,
    device: str | None = None,
    own_size: bool = False,
    fast: bool = False,
    branch: str | None = None,
) -> Predictor:
    """Load a network that `crosscoop fit`, `crosscoop export` or `crosscoop push` wrote.

    Args:
        checkpoint: A checkpoint such as `runs/demo/best.ckpt`, an exported `.onnx` or `.safetensors` file, or a
            repository on the Hugging Face Hub, `hf-hub:user/name` (or `hf-hub:FOLDER`).
        inference: The inference protocol; by default the whole image at once.
        device: The device to run on; by default a GPU if available.
        own_size: Keep the size of each image, even if the network was trained on resized images (`data.resize`).
        fast: Fold batch norms, use the channels-last layout, and bfloat16 on processors with instructions for it.
        branch: A branch, such as bottom, to predict with alone: only this network is kept, without connections.

    Raises:
        CrosscoopError: The file or branch does not exist, crosscoop did not write the file, or its weights do not fit
            its network.
    """
    network, about = read_network(checkpoint, branch)
    size = None if own_size else about.resize
    return Predictor(network, about.class_names, about.palette, inference, device, size, fast)


def cascade_of(network: nn.Module) -> "CountedCascade | None":
    """Return a network's cascade, if it has one."""
    if not isinstance(network, CooperativeNetwork) or network.cascade is None:
        return None
    from crosscoop.evaluation.cascade import CountedCascade  # slow to import

    return CountedCascade(network)


def to_array(image: str | Path | Image.Image | NDArray[Any] | Tensor) -> Array:
    """Return a copy of an image as `(H, W, 3)` uint8 RGB, see `Predictor.__call__`."""
    if isinstance(image, (str, Path)):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return to_rgb(ImageOps.exif_transpose(image), "the image")
    if isinstance(image, Tensor):
        if image.is_floating_point():
            image = (image.clamp(0, 1) * 255).round().byte()
        image = (image.movedim(0, -1) if image.ndim == 3 else image).cpu().numpy()
    if image.ndim == 2:
        image = np.stack([image] * 3, axis=-1)
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
        raise CrosscoopError(
            f"got an image of shape {image.shape} and type {image.dtype}, expected (H, W, 3) uint8 RGB, or a tensor "
            "(3, H, W) of uint8 or of floats in [0, 1]."
        )
    return np.array(image, order="C")
