"""What a file with a network says about it: all that is needed to use it, and to judge it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from crosscoop.data.dataset import Color
from crosscoop.errors import CrosscoopError
from crosscoop.network.cooperative import CooperativeNetwork
from crosscoop.network.outputs import output_names


@dataclass(frozen=True)
class About:
    """The description that an exported network carries.

    Attributes:
        version: Of the crosscoop that wrote it.
        network: The arguments of `create_network`, without `pretrained`.
        normalisation: Mean and standard deviation that each branch applies itself, by its name.
        outputs: The outputs' names, in order.
        class_names: One name per class.
        palette: One RGB colour per class.
        resize: Height and width that the images had in training; None for their own.
        dataset: The name of the data set that it was trained on.
        figures: Its figures as in `metrics.json`, with their protocol; None where they are not known.
        upsampled: Whether the logits have the image's size, instead of a quarter of it.
        input: What the network takes.
    """

    version: str
    network: dict[str, Any]
    normalisation: dict[str, dict[str, list[float]]]
    outputs: list[str]
    class_names: list[str]
    palette: list[Color]
    resize: list[int] | None
    dataset: str
    figures: dict[str, Any] | None
    upsampled: bool = True
    input: str = "image (N, 3, H, W): RGB in [0, 1], float32, any size; normalised inside the network"

    def to_strings(self) -> dict[str, str]:
        """Each field as JSON."""
        return {key: json.dumps(value) for key, value in asdict(self).items()}

    @classmethod
    def from_strings(cls, path: str | Path, strings: Mapping[str, str]) -> "About":
        """Read the fields of a file.

        Raises:
            CrosscoopError: Some are missing.
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
        """Make it of its fields as JSON gives them."""
        return cls(**{**values, "palette": [(color[0], color[1], color[2]) for color in values["palette"]]})


def about_checkpoint(path: str | Path, content: Mapping[str, Any], network: CooperativeNetwork) -> About:
    """The description of a checkpoint's network.

    Args:
        path: Where the checkpoint lies.
        content: What `read_checkpoint` gives.
        network: The network that it holds.
    """
    from crosscoop.version import __version__

    own = content["crosscoop"]
    options = {key: value for key, value in own["config"]["network"].items() if key != "pretrained"}
    names = output_names(len(network.branches))
    configs: list[Any] = [branch.backbone.network.pretrained_cfg for branch in network.branches]  # type: ignore[union-attr]
    return About(
        version=__version__,
        network={**options, "num_classes": len(own["class_names"])},
        normalisation={
            name: {key: list(config[key]) for key in ("mean", "std")}
            for name, config in zip(names, configs, strict=False)
        },
        outputs=names,
        class_names=own["class_names"],
        palette=[(color[0], color[1], color[2]) for color in own["palette"]],
        resize=own["config"]["data"]["resize"],
        dataset=own["config"]["data"]["dataset"]["class_path"].rpartition(".")[2],
        figures=_figures(Path(path), content),
    )


def _figures(path: Path, content: Mapping[str, Any]) -> dict[str, Any] | None:
    """The figures of a run's best checkpoint: of its last test or validation, else those that made it the best."""
    record = path.with_name("metrics.json")
    if path.name == "best.ckpt" and record.is_file():
        figures: dict[str, Any] = json.loads(record.read_text("utf-8"))
        return figures
    best: dict[str, Any] = content.get("callbacks", {}).get("RunFolder", {}).get("best", {})
    return best if best and best.get("epoch") == content.get("epoch") else None
