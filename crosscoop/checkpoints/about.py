"""The description stored with a network: everything needed to use it and to assess it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from crosscoop.data.dataset import Color
from crosscoop.errors import CrosscoopError
from crosscoop.network.cooperative import CooperativeNetwork
from crosscoop.network.outputs import backbone_names, output_names

START = ("pretrained", "weights")
"""Options of a network that only say with which weights its training started."""


@dataclass(frozen=True)
class About:
    """Description stored with an exported network.

    Attributes:
        version: Version of crosscoop that wrote it.
        network: The arguments of `create_network`, without those of `START`.
        normalisation: Mean and standard deviation that each branch applies to its input, by branch name: one entry per
            backbone.
        outputs: Names of the outputs, in order.
        class_names: One name per class.
        palette: One RGB colour per class.
        resize: Height and width of the images in training; None if they were not resized.
        dataset: Name of the data set that it was trained on.
        figures: Its metrics as in `metrics.json`, with their protocol; None if unknown.
        upsampled: Whether the logits have the image's size, instead of a quarter of it.
        input: Format of the network's input.
    """

    version: str
    network: dict[str, Any]
    normalisation: dict[str, list[dict[str, list[float]]]]
    outputs: list[str]
    class_names: list[str]
    palette: list[Color]
    resize: list[int] | None
    dataset: str
    figures: dict[str, Any] | None
    upsampled: bool = True
    input: str = "image (N, 3, H, W): RGB in [0, 1], float32, any size; normalised inside the network"

    @property
    def backbones(self) -> dict[str, str]:
        """The backbone of each branch by the branch's name; `a + b` if it sums several."""
        return backbone_names(self.network["branches"])

    def to_strings(self) -> dict[str, str]:
        """Return each field as JSON."""
        return {key: json.dumps(value) for key, value in asdict(self).items()}

    @classmethod
    def from_strings(cls, path: str | Path, strings: Mapping[str, str]) -> "About":
        """Create a description from a file's metadata.

        Raises:
            CrosscoopError: Some fields are missing.
        """
        try:
            values = {field.name: json.loads(strings[field.name]) for field in fields(cls)}
        except (KeyError, ValueError) as error:
            raise CrosscoopError(
                f"{path}: got no description of its classes and colours ({error}), expected a file that `crosscoop "
                "export` wrote."
            ) from error
        return cls.from_values(values)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "About":
        """Create a description from its fields as decoded from JSON."""
        return cls(**{**values, "palette": [(color[0], color[1], color[2]) for color in values["palette"]]})


def about_checkpoint(path: str | Path, content: Mapping[str, Any], network: CooperativeNetwork) -> About:
    """Return the description of a checkpoint's network.

    Args:
        path: Path of the checkpoint.
        content: Its contents, from `read_checkpoint`.
        network: The network in it.
    """
    from crosscoop.version import __version__

    own = content["crosscoop"]
    names = output_names(len(network.branches))
    return About(
        version=__version__,
        network={**without_start(own["config"]["network"]), "num_classes": len(own["class_names"])},
        normalisation={
            name: branch.backbone.normalisation for name, branch in zip(names, network.branches, strict=False)
        },
        outputs=names,
        class_names=own["class_names"],
        palette=[(color[0], color[1], color[2]) for color in own["palette"]],
        resize=own["config"]["data"]["resize"],
        dataset=own["config"]["data"]["dataset"]["class_path"].rpartition(".")[2],
        figures=_figures(Path(path), content),
    )


def without_start(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a network that a checkpoint contains the weights of."""
    return {key: value for key, value in options.items() if key not in START}


def about_alone(about: About, network: CooperativeNetwork, branch: int) -> About:
    """Return the description of one branch alone.

    Args:
        about: The description of the network.
        network: The network.
        branch: The branch's index.
    """
    names = output_names(len(network.branches))
    (output,) = output_names(1)
    figures = about.figures
    if figures:  # with connections they are those of another computation
        own = None if network.exchanges else figures["outputs"].get(names[branch])
        figures = own and {**figures, **own, "outputs": {output: own}}
    return replace(
        about,
        network={
            **about.network,
            "branches": [about.network["branches"][branch]],
            "strategy": "none",
            "ensemble": "sum",
            "cascade": None,
        },
        normalisation={output: about.normalisation[names[branch]]},
        outputs=[output],
        figures=figures,
    )


def _figures(path: Path, content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the metrics of a run's best checkpoint: of its last evaluation, else those that made it the best."""
    record = path.with_name("metrics.json")
    if path.name == "best.ckpt" and record.is_file():
        figures: dict[str, Any] = json.loads(record.read_text("utf-8"))
        return figures
    best: dict[str, Any] = content.get("callbacks", {}).get("RunFolder", {}).get("best", {})
    return best if best and best.get("epoch") == content.get("epoch") else None
