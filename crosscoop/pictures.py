"""Pictures of predictions beside the truth, as in the paper's figures 6 and 7."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from crosscoop.data.dataset import VOID, Array, Color

VOID_COLOR: Color = (224, 224, 192)


def colored(labels: Array, palette: Sequence[Color]) -> Array:
    """Class indices `(H, W)` as RGB `(H, W, 3)`; void is VOC's cream."""
    colors = np.full((VOID + 1, 3), VOID_COLOR, np.uint8)
    colors[: len(palette)] = palette
    return colors[labels]


def overlay(image: Array, labels: Array, palette: Sequence[Color], alpha: float = 0.5) -> Array:
    """The image `(H, W, 3)` under the colours of its labels `(H, W)`, mixed with weight `alpha`."""
    mixed = image * (1 - alpha) + colored(labels, palette) * alpha
    return mixed.round().astype(np.uint8)


def legend(picture: Array, labels: Array, class_names: Sequence[str], palette: Sequence[Color]) -> Image.Image:
    """The picture `(H, W, 3)` above a legend of the classes that `labels` hold."""
    size = max(12, picture.shape[0] // 32)
    font = ImageFont.load_default(size)
    line, gap = int(size * 1.6), int(size * 0.4)
    places: list[tuple[int, int, int]] = []
    x = y = gap
    for index in np.unique(labels[labels < len(class_names)]):
        width = line + int(font.getlength(class_names[index])) + 2 * gap
        if x > gap and x + width > picture.shape[1]:
            x, y = gap, y + line
        places.append((int(index), x, y))
        x += width
    canvas = Image.new("RGB", (picture.shape[1], picture.shape[0] + y + line), "white")
    canvas.paste(Image.fromarray(picture))
    draw = ImageDraw.Draw(canvas)
    for index, x, y in places:
        top = picture.shape[0] + y
        draw.rectangle((x, top, x + size, top + size), fill=palette[index], outline="gray")
        draw.text((x + line - gap // 2, top), class_names[index], fill="black", font=font)
    return canvas


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


def save_confusion(path: Path, counts: NDArray[np.int64], class_names: Sequence[str], title: str) -> None:
    """Draw a confusion matrix, every row in per cent of its true class.

    Args:
        path: The PNG to write.
        counts: Pixels `(num_classes, num_classes + 1)` by true and predicted class, see `metrics.ConfusionMatrix`; the
            last column is drawn only if something is in it.
        class_names: One name per class.
        title: Stands above.
    """
    from matplotlib.figure import Figure

    columns = [*class_names, "none of them"] if counts[:, -1].any() else list(class_names)
    shares = 100 * counts[:, : len(columns)] / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(0.42 * len(columns) + 3, 0.42 * len(class_names) + 2.2), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axis.set_xticks(range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor", parse_math=False)
    axis.set_yticks(range(len(class_names)), class_names, parse_math=False)
    axis.set(xlabel="predicted", ylabel="true")
    axis.tick_params(length=0, labelsize=8)
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.5:  # else it would read 0
            color = "white" if share > 55 else "black"
            axis.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(image, label="per cent of the true class", fraction=0.04)
    figure.suptitle(title, fontsize=9, wrap=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
