"""The backbone: any timm network with a feature map at stride 4, or a plain vision transformer."""

import difflib
import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.models import load_state_dict
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from crosscoop.errors import CrosscoopError
from crosscoop.network.layers import resize
from crosscoop.network.pyramid import STRIDE, SimpleFeaturePyramid, is_plain

MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of which a network may require height and width to be multiples; more would mean computing mostly padding."""

MULTIPLE_OF: dict[tuple[Any, ...], int] = {}
"""What networks require, by name, function in timm and options: trials take as long as creating a network."""

PROBE = (97, 131)
"""Height and width of the image that a network is tried on; rounded up, odd multiples of nearly all `MULTIPLES`."""


class Backbone(nn.Module):
    """A timm network that computes the features `low` (stride 4) and `high` (the output stride) of an image.

    It normalises its input itself, because the backbones of one network may have been pretrained with different
    statistics (timm's `xception65.tf_in1k` with mean 0.5, `resnet101.*` with ImageNet's).

    Images may have any size. If the network accepts only multiples of some number, they are padded with zeros on the
    right and at the bottom, and the features of the padding are cropped.

    Args:
        name: timm name (`resnet101.tv_in1k`), or `module:name` for a network that the module registers with timm
            when it is imported.
        output_stride: Stride of `high`; timm dilates the later stages.
        depth: Number of halvings after which to stop (4 means stride 16), for networks that cannot dilate; None for
            the complete network.
        pretrained: True to download timm's weights, False for random weights, or the path of a local `.safetensors`
            or `.pth` file in timm's format.

    Attributes:
        name: Name of the architecture: timm's, without the tag of its weights.
        low_channels: Channels of `low`.
        high_channels: Channels of `high`.
        stride: Stride of `high`.
        multiple: Height and width of the network's input are padded to multiples of this number.
        normalisation: The `mean` and `std` with which the input is normalised; a list, because `SummedBackbones` has
            several.

    Raises:
        CrosscoopError: The name is unknown, the network has no feature at stride 4, cannot dilate to the output
            stride or accepts only images of certain sizes, or the weights do not fit.
    """

    mean: Tensor
    std: Tensor
    network: Any

    def __init__(
        self,
        name: str,
        output_stride: int = 16,
        depth: int | None = None,
        pretrained: bool | str = False,
    ) -> None:
        super().__init__()
        self.name = name.rpartition(":")[2].partition(".")[0]
        if is_plain(_known(name)):
            self._plain(name, output_stride, depth, pretrained)
        else:
            self._hierarchical(name, output_stride, depth, pretrained)

    def _plain(self, name: str, output_stride: int, depth: int | None, pretrained: bool | str) -> None:
        """Create a plain vision transformer with a feature pyramid."""
        if depth is not None:
            raise CrosscoopError(
                f"Backbone {name!r}: got depth {depth}, but all blocks of a plain vision transformer have the same "
                "stride. Leave depth out."
            )
        options = {"features_only": False, "num_classes": 0}
        if not _known(name).startswith("beit") or _known(name).startswith("beit3"):
            options["dynamic_img_size"] = True
        network = _create(name, pretrained is True, options)
        if isinstance(pretrained, str):
            _load_file(network, name, Path(pretrained))
        self._normalise(network.pretrained_cfg)
        self.network = SimpleFeaturePyramid(network, output_stride)
        self.low_channels, self.high_channels = self.network.channels
        self.low_index, self.stride, self.multiple, self.channels_last = 0, output_stride, STRIDE, False

    def _hierarchical(self, name: str, output_stride: int, depth: int | None, pretrained: bool | str) -> None:
        """Create a network with features at several strides."""
        options: dict[str, Any] = {}
        swin = name.rpartition(":")[2].startswith("swin")  # some of them drop incomplete patches
        if swin:
            options["strict_img_size"] = False  # otherwise it accepts only the size of its pretraining
        if depth is None or 2**depth > output_stride:
            options["output_stride"] = output_stride
        if depth is not None:
            known = _create(name, False, options).feature_info
            skipped = int(math.log2(known.reduction()[0])) - 1  # halvings before that of the first feature
            if not 2 <= depth <= skipped + len(known.out_indices):
                raise CrosscoopError(
                    f"Backbone {name!r}: got depth {depth}, expected 2 to {skipped + len(known.out_indices)} halvings."
                )
            options["out_indices"] = tuple(known.out_indices[: depth - skipped])
        self.network = _create(name, pretrained is True, options)
        strides, channels = self.network.feature_info.reduction(), self.network.feature_info.channels()
        if 4 not in strides:
            raise CrosscoopError(
                f"Backbone {name!r} has features at strides {strides}; the decoder needs one at stride 4. "
                "Choose another backbone in network.branches."
            )
        if strides[-1] != output_stride:
            raise CrosscoopError(
                f"Backbone {name!r} ends at stride {strides[-1]}, expected output stride {output_stride}. "
                f"Set depth to {int(math.log2(output_stride))} for this branch, or change network.output_stride."
            )
        self.low_index = strides.index(4)
        self.low_channels, self.high_channels, self.stride = channels[self.low_index], channels[-1], strides[-1]
        key = (name, timm.model_entrypoint(_known(name)), output_stride, depth)
        if key not in MULTIPLE_OF:
            MULTIPLE_OF[key] = _multiple(self.network, name, 4 if swin else 1)
        self.multiple = MULTIPLE_OF[key]
        self.channels_last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
        if isinstance(pretrained, str):
            _load_file(self.network, name, Path(pretrained))
        self._normalise(self.network.pretrained_cfg)

    def _normalise(self, config: dict[str, Any]) -> None:
        """Set the statistics with which images are normalised."""
        self.normalisation = [{key: [float(value) for value in config[key]] for key in ("mean", "std")}]
        for key, statistics in self.normalisation[0].items():
            self.register_buffer(key, torch.tensor(statistics).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Extract features.

        Args:
            image: `(N, 3, H, W)` RGB in [0, 1].

        Returns:
            `low` of `(N, low_channels, H/4, W/4)` and `high` of `(N, high_channels, H/stride, W/stride)`. Sizes are
            rounded as the network rounds them, or up where the input is padded.
        """
        height, width = image.shape[-2:]
        image = ((image - self.mean) / self.std).to(self.mean.dtype)  # the network's dtype, under true precision
        if self.multiple > 1:
            image = functional.pad(image, (0, -width % self.multiple, 0, -height % self.multiple))
        features = self.network(image)
        low, high = features[self.low_index], features[-1]
        if self.channels_last:
            low, high = low.permute(0, 3, 1, 2), high.permute(0, 3, 1, 2)
        if self.multiple > 4:  # otherwise the features are not too large
            low, high = _crop(low, height, width, 4), _crop(high, height, width, self.stride)
        return low, high


def _crop(feature: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Crop a feature to an image's size at a stride, rounded up.

    By indices, because a slice would compare its end with the size, which an export with dynamic shapes cannot prove.
    """
    rows, columns = (torch.arange((side - 1) // stride + 1, device=feature.device) for side in (height, width))
    return feature.index_select(2, rows).index_select(3, columns)


def _known(name: str) -> str:
    """Return the name of a network in timm's registry, to which the module in front of it is imported first."""
    module, _, timm_name = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise CrosscoopError(
                f"Backbone {name!r}: module {module!r} cannot be imported ({error}). Put its folder on PYTHONPATH."
            ) from error
    if not timm.is_model(timm_name):
        similar = difflib.get_close_matches(timm_name.partition(".")[0], timm.list_models(), n=8)
        hint = f"Similar names: {', '.join(similar)}." if similar else "`timm.list_models()` lists all names."
        raise CrosscoopError(f"network.branches: got {timm_name!r}, expected the name of a timm network. {hint}")
    return timm_name


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    """Create timm's feature network, with errors that refer to the options of this package."""
    timm_name = _known(name)
    try:
        timm.get_pretrained_cfg(timm_name)
    except RuntimeError as error:
        known = timm.list_pretrained(f"{timm_name.partition('.')[0]}.*")
        raise CrosscoopError(f"network.branches: {error} Expected one of {', '.join(known)}.") from error
    try:
        return timm.create_model(timm_name, pretrained=pretrained, **{"features_only": True, **options})
    except (TypeError, AssertionError) as error:  # what networks without dilation raise, the second without a message
        if "output_stride" not in options or (isinstance(error, TypeError) and "output_stride" not in str(error)):
            raise
        raise CrosscoopError(
            f"Backbone {timm_name!r} cannot dilate to output stride {options['output_stride']}. Give this branch a "
            f"depth at which it stops: {{backbone: {timm_name}, depth: {int(math.log2(options['output_stride']))}}}."
        ) from error
    except Exception as error:
        if not pretrained:
            raise
        raise CrosscoopError(
            f"The pretrained weights of {timm_name!r} could not be downloaded: {error}. Without internet access, set "
            "network.pretrained to a local .safetensors or .pth file, or to false."
        ) from error


def _multiple(network: Any, name: str, least: int) -> int:
    """Find the smallest number of which a network requires height and width to be multiples, by trial.

    The trials run on the meta device, which computes shapes only. They cannot reveal what depends on values, such as
    an index into a table, so a network that timm declares to be of fixed size is also run on the CPU.

    Raises:
        CrosscoopError: The network accepts only images of certain sizes.
    """
    tensors = {key: tensor.to("meta") for key, tensor in (*network.named_parameters(), *network.named_buffers())}
    config = network.pretrained_cfg
    _, *own = config.get("input_size", (3, 224, 224))

    def takes(size: Sequence[int], multiple: int = 1, device: str = "meta") -> bool:
        image = torch.zeros(1, 3, *(side + -side % multiple for side in size), device=device)
        try:
            functional_call(network, tensors if device == "meta" else {}, image)
        except Exception:  # a failed assertion, mismatched shapes, or whatever else a network raises
            return False
        return True

    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            for multiple in (each for each in MULTIPLES if each >= least):
                fixed = config.get("fixed_input_size")
                if takes(PROBE, multiple) and (not fixed or takes([side + 1 for side in own], multiple, "cpu")):
                    return multiple
            if not takes(own):
                return least  # it does not run on the meta device
    finally:
        network.train(training)
    raise CrosscoopError(
        f"Backbone {name!r} accepts only images of certain sizes, such as {own[0]} x {own[1]}; expected one that "
        "accepts any size. Choose another in network.branches, such as a ResNet, an HRNet or a ConvNeXt."
    )


def _load_file(network: nn.Module, name: str, path: Path) -> None:
    """Load a local weights file in timm's format, which must contain every tensor of the network in its shape."""
    if not path.is_file():
        raise CrosscoopError(
            f"network.pretrained: {path} does not exist; expected the weights of {name!r} as .safetensors or .pth."
        )
    try:
        given = {_flat(key): value for key, value in load_state_dict(str(path), weights_only=True).items()}
    except Exception as error:
        raise CrosscoopError(
            f"network.pretrained: {path} cannot be read as weights: {error}. Expected a .safetensors or .pth file "
            "that contains a state dict."
        ) from error
    wanted = cast(dict[str, Tensor], network.state_dict())
    counters = {key for key in wanted if key.endswith("num_batches_tracked")}
    missing = [key for key in wanted if _flat(key) not in given and key not in counters]
    wrong = [
        f"{key} {tuple(given[_flat(key)].shape)} instead of {tuple(value.shape)}"
        for key, value in wanted.items()
        if _flat(key) in given and given[_flat(key)].shape != value.shape
    ]
    if missing or wrong:
        unknown = sorted(set(given) - {_flat(key) for key in wanted})
        differences = [
            f"{len(keys)} {what}: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
            for what, keys in (("missing", missing), ("with another shape", wrong), ("not in this network", unknown))
            if keys
        ]
        raise CrosscoopError(
            f"network.pretrained: {path} does not fit backbone {name!r}: {'; '.join(differences)}. Use the file "
            "that timm published for this name."
        )
    network.load_state_dict({key: given.get(_flat(key), value) for key, value in wanted.items()})


def _flat(key: str) -> str:
    """Return a key's name that timm's plain and feature networks share (`layers.0.weight`, `layers_0.weight`)."""
    return key.replace(".", "_")


class SummedBackbones(nn.Module):
    """Backbones whose features are summed, used as one backbone.

    The sums have as many channels as the widest backbone; 1x1 convolutions project features with fewer channels.

    Args:
        backbones: The backbones, with the same output stride.

    Attributes:
        name: Their names, joined by `+`.
        low_channels: Channels of `low`.
        high_channels: Channels of `high`.
        stride: Stride of `high`.
        normalisation: Mean and standard deviation of each backbone, in order.
    """

    def __init__(self, backbones: Sequence[Backbone]) -> None:
        super().__init__()
        self.name = " + ".join(backbone.name for backbone in backbones)
        self.low_channels = max(backbone.low_channels for backbone in backbones)
        self.high_channels = max(backbone.high_channels for backbone in backbones)
        self.stride = backbones[0].stride
        self.normalisation = [each for backbone in backbones for each in backbone.normalisation]
        self.backbones = nn.ModuleList(backbones)
        self.lows = nn.ModuleList(_projection(backbone.low_channels, self.low_channels) for backbone in backbones)
        self.highs = nn.ModuleList(_projection(backbone.high_channels, self.high_channels) for backbone in backbones)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Extract features of `(N, 3, H, W)` RGB in [0, 1].

        Returns:
            `low` of `(N, low_channels, H/4, W/4)` and `high` of `(N, high_channels, H/stride, W/stride)`, in the
            sizes of the first backbone's features.
        """
        lows, highs = zip(*[backbone(image) for backbone in self.backbones], strict=True)
        return _sum(self.lows, lows), _sum(self.highs, highs)


def _projection(channels: int, wanted: int) -> nn.Module:
    return nn.Identity() if channels == wanted else nn.Conv2d(channels, wanted, 1, bias=False)


def _sum(projections: nn.ModuleList, features: Sequence[Tensor]) -> Tensor:
    first, *others = [project(feature) for project, feature in zip(projections, features, strict=True)]
    total: Tensor = sum((resize(other, first.shape[-2:]) for other in others), first)
    return total
