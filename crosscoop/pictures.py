"""Pictures of predictions beside the truth, as in the paper's figures 6 and 7."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from crosscoop.data.dataset import VOID, Array, Color

VOID_COLOR: Color = (224, 224, 192)


def colored(labels: Array, palette: Sequence[Color]) -> Array:
    """Class indices `(H, W)` as RGB `(H, W, 3)`; void is VOC's cream."""
    colors = np.full((VOID + 1, 3), VOID_COLOR, np.uint8)
    colors[: len(palette)] = palette
    return colors[labels]


def save_comparison(
    path: Path,
    rows: Sequence[Mapping[str, Array]],
    class_names: Sequence[str],
    palette: Sequence[Color],
    title: str,
) -> None:
    """Draw one row per sample and one column per picture, with the classes' colours explained below.

    Args:
        path: The PNG to write.
        rows: Per sample, by column title, an RGB image `(H, W, 3)` or class indices `(H, W)`.
        class_names: One name per class.
        palette: One colour per class.
        title: Stands above.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    height, width = next(iter(rows[0].values())).shape[:2]
    columns = len(rows[0])
    figure = Figure(figsize=(2.6 * columns, 2.6 * len(rows) * height / width + 1.0), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, line in zip(rows, axes, strict=True):
        for (name, picture), axis in zip(row.items(), line, strict=True):
            axis.imshow(picture if picture.ndim == 3 else colored(picture, palette), interpolation="nearest")
            axis.set_title(name, fontsize=9)
            axis.axis("off")
    patches = [
        Patch(facecolor=(color[0] / 255, color[1] / 255, color[2] / 255), edgecolor="gray", label=name)
        for name, color in zip([*class_names, "void"], [*palette, VOID_COLOR], strict=True)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 11), fontsize=8)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
