"""Creation of a network from the names of its parts, similar to `timm.create_model`."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

from crosscoop.errors import CrosscoopError
from crosscoop.network.backbone import Backbone, SummedBackbones
from crosscoop.network.branch import Branch
from crosscoop.network.cooperative import Cascade, CooperativeNetwork
from crosscoop.network.deeplabv3plus import DeepLabV3Plus
from crosscoop.network.ensemble import get_ensemble
from crosscoop.network.freeze import Freeze
from crosscoop.network.fusion import FusionFactory, get_fusion
from crosscoop.network.lookup import find
from crosscoop.network.mmseg import MmsegDeepLabV3Plus
from crosscoop.network.outputs import branch_names
from crosscoop.network.smp import SmpDeepLabV3Plus
from crosscoop.network.strategy import Strategy, get_strategy

HEADS: dict[str, type[Branch]] = {
    "deeplabv3plus": DeepLabV3Plus,
    "deeplabv3plus_smp": SmpDeepLabV3Plus,
    "deeplabv3plus_mmseg": MmsegDeepLabV3Plus,
}
"""The branches that the package provides."""


def create_network(
    branches: Sequence[str | dict[str, Any]] = ("xception65.tf_in1k", "resnet101.tv_in1k"),
    num_classes: int = 21,
    strategy: str | dict[str, Any] | Strategy = "cross_c1_c2",
    fusion: str | dict[str, Any] | FusionFactory = "add",
    output_stride: int = 16,
    pretrained: bool | str | Sequence[bool | str | list[bool | str]] = False,
    channels: int = 256,
    separable: bool = False,
    atrous_rates: Sequence[int] = (6, 12, 18),
    ensemble: str = "sum",
    cascade: dict[str, Any] | None = None,
    freeze: Sequence[str] = (),
    freeze_epochs: int | None = None,
) -> CooperativeNetwork:
    """Create a cooperative network from the names of its parts.

    Args:
        branches: The timm name of each branch's backbone, top first; `module:name` for one that the module registers
            with timm. `{backbone: NAME, depth: 4}` stops after 4 halvings, for backbones that cannot dilate;
            `{backbone: [NAME, NAME]}` sums the features of several backbones in front of one ASPP and decoder;
            `{backbone: NAME, class_path: my_file.MyBranch, init_args: {...}}` is your own `crosscoop.Branch`;
            `class_path: deeplabv3plus_smp` or `deeplabv3plus_mmseg` takes the weights of those libraries.
        num_classes: Channels of the logits.
        strategy: none, one_way, cross, cross_c1, cross_c2 or cross_c1_c2; or the import path of your own
            `crosscoop.Strategy`, or its fields: `{points: [aspp, decoder], direction: both}`.
        fusion: add, average, concat, gate, cross_stitch, channel_exchange or rectify; or the class path of your own
            `crosscoop.Fusion`, with arguments as `{class_path: my_file.MyFusion, init_args: {...}}`.
        output_stride: Stride of the backbones' output, 8 or 16; the atrous rates of ASPP follow it.
        pretrained: true to download timm's ImageNet weights, false for random ones, the path of a local
            `.safetensors` or `.pth` file, or a list with one of these per branch (a nested list for a branch with
            several backbones).
        channels: Channels of ASPP and decoder.
        separable: Use depthwise-separable instead of dense 3x3 convolutions in ASPP and decoder.
        atrous_rates: Rates of ASPP's three 3x3 convolutions at output stride 16, doubled at 8; reduce them for crops
            much smaller than 513, where a rate of 12 or 18 reaches only padding.
        ensemble: How the branches' logits become one prediction: sum (the paper's), mean_probability, weighted or
            most_confident, which `crosscoop join` fits on the validation split; or the class path of your own
            `crosscoop.Ensemble`.
        cascade: `{branch: top, confidence: 0.9}` lets a branch answer alone for images, or windows, in which the mean
            over the pixels of its highest probability is at least that; `crosscoop join` finds the confidence. It
            applies to evaluation and prediction, not to the training steps or to export.
        freeze: Parts that do not train, batch norm included: backbones, the name of a branch (top), or the path of a
            part (`top.backbone`, `bottom.aspp`, exchanges).
        freeze_epochs: Number of epochs after which they train as well; null keeps them frozen throughout.

    Raises:
        CrosscoopError: A name is unknown, the strategy does not fit the branches, a backbone does not support the
            output stride, or a weights file does not fit.
    """
    options = dict(locals())
    if not branches or isinstance(branches, str):
        raise CrosscoopError(f"network.branches: got {branches!r}, expected a list with one backbone per branch.")
    if output_stride not in (8, 16):
        raise CrosscoopError(f"network.output_stride: got {output_stride}, expected 8 or 16.")
    if isinstance(pretrained, (bool, str)):
        pretrained = [pretrained] * len(branches)
    if len(pretrained) != len(branches):
        raise CrosscoopError(
            f"network.pretrained: got {len(pretrained)} entries for {len(branches)} branches; expected one for all, or "
            "one per branch."
        )
    connections, operator = get_strategy(strategy), get_fusion(fusion)
    if len(atrous_rates) != 3 or any(rate < 1 for rate in atrous_rates):
        raise CrosscoopError(f"network.atrous_rates: got {list(atrous_rates)}, expected three rates of at least 1.")
    heads = {"channels": channels, "separable": separable, "atrous_rates": atrous_rates}
    networks = []
    for branch, weights in zip(branches, pretrained, strict=True):
        fields: dict[str, Any] = {"backbone": branch} if isinstance(branch, str) else branch
        if "backbone" not in fields or set(fields) - {"backbone", "depth", "class_path", "init_args"}:
            raise CrosscoopError(
                f"network.branches: got a branch with the fields {sorted(fields)}, expected backbone and, optionally, "
                "depth, class_path and init_args."
            )
        networks.append(_branch(fields, _backbone(fields, output_stride, weights), num_classes, heads))
    combined = get_ensemble(ensemble)(len(networks), num_classes)
    network = CooperativeNetwork(networks, connections, operator, combined, get_cascade(cascade, len(networks)))
    network.options, network.freeze = options, Freeze(freeze, freeze_epochs)
    network.freeze.modules(network)
    return network


def get_cascade(fields: dict[str, Any] | None, num_branches: int) -> Cascade | None:
    """Return the cascade that a configuration describes.

    Args:
        fields: The branch's name and the confidence.
        num_branches: The number of branches.

    Raises:
        CrosscoopError: The fields are others, the branch is unknown or the only one, or the confidence is no number.
    """
    if fields is None:
        return None
    names = branch_names(num_branches)
    if set(fields) != {"branch", "confidence"} or fields["branch"] not in names or num_branches < 2:
        raise CrosscoopError(
            f"network.cascade: got {fields}, expected the fields branch, one of several ({', '.join(names)}), and "
            "confidence, from 0 to 1."
        )
    return Cascade(names.index(fields["branch"]), float(fields["confidence"]))


def _branch(
    fields: dict[str, Any], backbone: Backbone | SummedBackbones, num_classes: int, heads: dict[str, Any]
) -> Branch:
    """Create a branch: DeepLabV3+ with the options that all heads share, or a user-defined one with its arguments."""
    name, arguments = fields.get("class_path", "deeplabv3plus"), fields.get("init_args") or {}
    branch = find(name, HEADS, "network.branches")
    if not (isinstance(branch, type) and issubclass(branch, Branch)):
        raise CrosscoopError(f"network.branches: {name!r} is {branch!r}, expected a subclass of crosscoop.Branch.")
    try:
        return branch(backbone, num_classes, **({**heads, **arguments} if branch is DeepLabV3Plus else arguments))
    except TypeError as error:
        raise CrosscoopError(
            f"network.branches: got init_args {arguments} ({error}), expected arguments of {name}{signature(branch)}, "
            "except backbone and num_classes, which are set automatically."
        ) from error


def _backbone(
    fields: dict[str, Any], output_stride: int, pretrained: bool | str | list[bool | str]
) -> Backbone | SummedBackbones:
    several = isinstance(fields["backbone"], list)
    names = fields["backbone"] if several else [fields["backbone"]]
    weights = (
        pretrained
        if isinstance(pretrained, list)
        else [pretrained] * (1 if isinstance(pretrained, str) else len(names))
    )
    if len(weights) != len(names) or not names:
        raise CrosscoopError(
            f"network.pretrained: got {pretrained!r} for a branch with backbones {names}, expected an entry for each."
        )
    backbones = [
        Backbone(name, output_stride, fields.get("depth"), file) for name, file in zip(names, weights, strict=True)
    ]
    return SummedBackbones(backbones) if several else backbones[0]
