"""Plain vision transformers, and the feature pyramid on their last map (Li et al., ECCV 2022).

https://arxiv.org/abs/2203.16527, section 3
"""

from typing import Any

import timm
import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

from crosscoop.network.layers import resize

PLAIN = tuple(f"timm.models.{module}" for module in ("vision_transformer", "deit", "eva", "beit"))
"""timm's modules with plain vision transformers: one map at the stride of the patches, computed by all blocks."""

STRIDE = 16
"""Stride of the map. Images for other patches are resized, for example by 14/16."""


def is_plain(name: str) -> bool:
    """Return whether a timm network is a plain vision transformer.

    Args:
        name: Its name in timm's registry.
    """
    return timm.model_entrypoint(name).__module__ in PLAIN


class SimpleFeaturePyramid(nn.Module):
    """A plain vision transformer with features at stride 4 and at the output stride, from its last map.

    Args:
        network: timm's network, complete, without a classifier.
        output_stride: 8 or 16.

    Attributes:
        channels: Channels of the features.
    """

    def __init__(self, network: Any, output_stride: int) -> None:
        super().__init__()
        network.prune_intermediate_layers(1, prune_norm=False, prune_head=True)
        self.patch, *_ = network.patch_embed.patch_size
        self.network = network
        self.positions = None
        if getattr(network.blocks[0].attn, "relative_position_bias_table", None) is not None:  # BEiT
            self.positions = nn.ModuleList(RelativePositions(block.attn) for block in network.blocks)
            network.patch_embed.strict_img_size = False
        width = network.num_features
        self.channels = [width // 4, width if output_stride == STRIDE else width // 2]
        self.low = nn.Sequential(
            nn.ConvTranspose2d(width, width // 2, 2, 2),
            LayerNorm2d(width // 2),
            nn.GELU(),
            nn.ConvTranspose2d(width // 2, width // 4, 2, 2),
        )
        self.high = nn.Identity() if output_stride == STRIDE else nn.ConvTranspose2d(width, width // 2, 2, 2)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Extract features.

        Args:
            image: `(N, 3, H, W)`, normalised; height and width are multiples of 16.

        Returns:
            The feature at stride 4 and that at the output stride.
        """
        rows, columns = (side // STRIDE for side in image.shape[-2:])
        if self.patch != STRIDE:
            image = resize(image, (rows * self.patch, columns * self.patch))
        if self.positions is None:
            (feature,) = self.network.forward_intermediates(image, indices=1, norm=True, intermediates_only=True)
        else:
            tokens = self.network.patch_embed(image)
            tokens = torch.cat([self.network.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
            for block, positions in zip(self.network.blocks, self.positions, strict=True):
                tokens = block(tokens, shared_rel_pos_bias=positions(rows, columns))
            feature = self.network.norm(tokens)[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))
        return [self.low(feature), self.high(feature)]


class RelativePositions(nn.Module):
    """The relative position bias of one of BEiT's blocks, for maps of any size: the table is resized.

    Args:
        attention: The block's attention, from which the table is taken away.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.window = tuple(attention.window_size)
        self.table = nn.Parameter(attention.relative_position_bias_table.detach())
        attention.relative_position_bias_table = attention.relative_position_index = None

    def forward(self, rows: int, columns: int) -> Tensor:
        """Return the bias of each attention head between all tokens, `(1, heads, 1 + tokens, 1 + tokens)`.

        Args:
            rows: Height of the map.
            columns: Its width.
        """
        height, width = (2 * side - 1 for side in self.window)
        grid = self.table[:-3].T.reshape(1, -1, height, width)
        (grid,) = functional.interpolate(grid, (2 * rows - 1, 2 * columns - 1), mode="bicubic", align_corners=False)
        down, right = (torch.arange(side, device=grid.device) for side in (rows, columns))
        bias = grid[:, down[:, None] - down + rows - 1][..., right[:, None] - right + columns - 1]
        bias = bias.transpose(2, 3).flatten(3).flatten(1, 2)  # heads, from, to
        from_class, to_class, between = self.table[-3:]
        bias = torch.cat([to_class[:, None, None].expand(-1, bias.shape[1], 1), bias], dim=2)
        first = from_class[:, None, None].expand(-1, 1, bias.shape[2] - 1)
        return torch.cat([torch.cat([between[:, None, None], first], dim=2), bias], dim=1)[None]
