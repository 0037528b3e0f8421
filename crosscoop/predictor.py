"""A trained network in Python: `crosscoop.load`."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from crosscoop.data.dataset import Array, Color
from crosscoop.data.files import read_image
from crosscoop.errors import CrosscoopError
from crosscoop.inference import Inference, Outputs
from crosscoop.network import create_network
from crosscoop.pictures import legend, overlay
from crosscoop.task import outputs_of


@dataclass(frozen=True)
class Prediction:
    """What a network sees in one image.

    Attributes:
        image: `(H, W, 3)` uint8 RGB.
        labels: `(H, W)` uint8 class indices of the ensemble, or of the only branch.
        probabilities: `(num_classes, H, W)` float32 of the ensemble.
        branch_labels: `(H, W)` uint8 class indices by output name: top, bottom, ensemble.
        class_names: One name per class.
        palette: One RGB colour per class.
    """

    image: Array
    labels: Array
    probabilities: NDArray[np.float32]
    branch_labels: dict[str, Array]
    class_names: list[str]
    palette: list[Color]

    @property
    def disagreement(self) -> NDArray[np.bool_]:
        """`(H, W)`, where top and bottom differ; nowhere, if there is one branch."""
        first, second, *_ = [*self.branch_labels.values(), self.labels]
        different: NDArray[np.bool_] = first != second
        return different

    def draw(self, alpha: float = 0.5) -> Image.Image:
        """The image under the classes' colours, with a legend of those that are seen."""
        return legend(
            overlay(self.image, self.labels, self.palette, alpha), self.labels, self.class_names, self.palette
        )


class Predictor:
    """Predicts images of any size, at their own size.

    Args:
        network: A `CooperativeNetwork`.
        class_names: One name per class.
        palette: One RGB colour per class.
        inference: The protocol; by default each image at once.
        device: Where to run; by default a GPU if there is one.
    """

    def __init__(
        self,
        network: nn.Module,
        class_names: list[str],
        palette: list[Color],
        inference: Inference | None = None,
        device: str | None = None,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.network = network.eval().to(self.device)
        self.class_names, self.palette = class_names, palette
        self.inference = inference or Inference()

    def __call__(self, image: str | Path | Image.Image | NDArray[Any] | Tensor) -> Prediction:
        """Predict one image.

        Args:
            image: A file, a PIL image, a `(H, W, 3)` or `(H, W)` uint8 array, or a `(3, H, W)` tensor of uint8 or of
                floats in [0, 1].

        Raises:
            CrosscoopError: The image cannot be read, or is none of these.
        """
        pixels = to_array(image)
        outputs = self.logits(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        labels = {name: logits[0].argmax(0).byte().cpu().numpy() for name, logits in outputs.items()}
        last = list(outputs)[-1]
        probabilities = outputs[last][0].float().softmax(0).cpu().numpy()
        return Prediction(pixels, labels[last], probabilities, labels, self.class_names, self.palette)

    @torch.inference_mode()
    def logits(self, image: Tensor) -> Outputs:
        """Logits `(N, num_classes, H, W)` by output name, of a uint8 RGB batch `(N, 3, H, W)`."""
        scaled = image.to(self.device).float() / 255
        return self.inference(lambda view: outputs_of(self.network(view)), scaled)


def load(checkpoint: str | Path, inference: Inference | None = None, device: str | None = None) -> Predictor:
    """Load a checkpoint that `crosscoop fit` wrote.

    Args:
        checkpoint: The file, for example `runs/demo/best.ckpt`.
        inference: The protocol; by default each image at once.
        device: Where to run; by default a GPU if there is one.

    Raises:
        CrosscoopError: There is no such file, or it is no checkpoint of ours.
    """
    content = read_checkpoint(checkpoint)
    about = content["crosscoop"]
    options = {**about["config"]["network"], "pretrained": False}  # the checkpoint brings all weights
    network = create_network(**options, num_classes=len(about["class_names"]))
    prefix = "network."
    network.load_state_dict(
        {key.removeprefix(prefix): value for key, value in content["state_dict"].items() if key.startswith(prefix)}
    )
    palette = [(color[0], color[1], color[2]) for color in about["palette"]]
    return Predictor(network, about["class_names"], palette, inference, device)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint of ours; beside Lightning's, `crosscoop` with `config`, `class_names`, `palette`.

    Raises:
        CrosscoopError: There is no such file, or it is no checkpoint of ours.
    """
    if not Path(path).is_file():
        raise CrosscoopError(f"no checkpoint {path}. Give the file that `crosscoop fit` wrote, such as best.ckpt.")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        content["crosscoop"]["config"]["network"]
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, EOFError, ValueError) as error:
        raise CrosscoopError(
            f"{path} is not a checkpoint that `crosscoop fit` wrote ({type(error).__name__}); expected its best.ckpt "
            "or last.ckpt."
        ) from error
    return content


def to_array(image: str | Path | Image.Image | NDArray[Any] | Tensor) -> Array:
    """An image as `(H, W, 3)` uint8 RGB, see `Predictor.__call__`."""
    if isinstance(image, (str, Path)):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return np.array(image.convert("RGB"))
    if isinstance(image, Tensor):
        if image.is_floating_point():
            image = (image.clamp(0, 1) * 255).round().byte()
        image = image.permute(1, 2, 0).cpu().numpy() if image.ndim == 3 else image.cpu().numpy()
    if image.ndim == 2:
        image = np.stack([image] * 3, axis=-1)
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
        raise CrosscoopError(
            f"got an image of shape {image.shape} and type {image.dtype}, expected (H, W, 3) uint8 RGB, or a tensor "
            "(3, H, W) of uint8 or of floats in [0, 1]."
        )
    return np.ascontiguousarray(image)
