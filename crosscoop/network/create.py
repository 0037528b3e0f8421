"""A network from names, in the manner of `timm.create_model`."""

from collections.abc import Sequence
from typing import Any

from crosscoop.errors import CrosscoopError
from crosscoop.network.backbone import Backbone
from crosscoop.network.branch import DeepLabV3Plus
from crosscoop.network.cooperative import CooperativeNetwork
from crosscoop.network.fusion import FusionFactory, get_fusion
from crosscoop.network.strategy import Strategy, get_strategy


def create_network(
    branches: Sequence[str | dict[str, Any]] = ("xception65.tf_in1k", "resnet101.tv_in1k"),
    num_classes: int = 21,
    strategy: str | dict[str, Any] | Strategy = "cross_c1_c2",
    fusion: str | dict[str, Any] | FusionFactory = "add",
    output_stride: int = 16,
    pretrained: bool | str | Sequence[bool | str] = False,
    channels: int = 256,
    separable: bool = False,
) -> CooperativeNetwork:
    """Create a cooperative network from the names of its parts.

    Args:
        branches: The backbone of each branch, top first, by timm name; `module:name` for one that the module registers
            with timm. `{backbone: NAME, depth: 4}` stops a backbone that cannot dilate after 4 halvings.
        num_classes: Channels of the logits.
        strategy: none, one_way, cross, cross_c1, cross_c2 or cross_c1_c2; or the import path of your own
            `crosscoop.Strategy`, or its fields: `{points: [aspp, decoder], direction: both}`.
        fusion: add, average or concat; or the class path of your own `crosscoop.Fusion`, with arguments as
            `{class_path: my_file.MyFusion, init_args: {...}}`.
        output_stride: Stride of the backbones' output, 8 or 16; the atrous rates of ASPP follow it.
        pretrained: true for timm's download of ImageNet weights, false for random ones, the path of a local
            `.safetensors` or `.pth` file, or a list with one of these for each branch.
        channels: Channels of ASPP and decoder.
        separable: Depthwise-separable instead of dense 3x3 convolutions in ASPP and decoder.

    Raises:
        CrosscoopError: A name is unknown, the strategy does not fit the number of branches, a backbone cannot give the
            output stride, or a weights file does not fit.
    """
    if not branches or isinstance(branches, str):
        raise CrosscoopError(f"network.branches: got {branches!r}, expected a list with one backbone per branch.")
    if output_stride not in (8, 16):
        raise CrosscoopError(f"network.output_stride: got {output_stride}, expected 8 or 16.")
    if isinstance(pretrained, (bool, str)):
        pretrained = [pretrained] * len(branches)
    if len(pretrained) != len(branches):
        raise CrosscoopError(
            f"network.pretrained: got {len(pretrained)} entries for {len(branches)} branches; expected one for all, or "
            "one for each."
        )
    connections, operator = get_strategy(strategy), get_fusion(fusion)
    networks = []
    for branch, weights in zip(branches, pretrained, strict=True):
        fields: dict[str, Any] = {"backbone": branch} if isinstance(branch, str) else branch
        if "backbone" not in fields or set(fields) - {"backbone", "depth"}:
            raise CrosscoopError(
                f"network.branches: got fields {sorted(fields)} of a branch, expected backbone and, if need be, depth."
            )
        backbone = Backbone(fields["backbone"], output_stride, fields.get("depth"), weights)
        networks.append(DeepLabV3Plus(backbone, num_classes, channels, separable))
    return CooperativeNetwork(networks, connections, operator)
