"""Images of predictions beside the ground truth, as in the paper's figures 6 and 7."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from crosscoop.data.dataset import VOID, VOID_COLOR, Array, Color

RED: Color = (230, 0, 40)

BACKGROUND = ("background", "unlabelled", "unlabeled", "void")
"""Names of classes that an overlay leaves out."""

NAMED = 40
"""Maximum number of classes that an image labels individually."""


def colored(labels: Array, palette: Sequence[Color]) -> Array:
    """Convert class indices `(H, W)` to RGB `(H, W, 3)`; void is cream, as in VOC."""
    colors = np.full((VOID + 1, 3), VOID_COLOR, np.uint8)
    colors[: len(palette)] = palette
    return colors[labels]


def overlay(
    image: Array, labels: Array, class_names: Sequence[str], palette: Sequence[Color], alpha: float = 0.5
) -> Array:
    """Blend the image `(H, W, 3)` with the colours of its labels `(H, W)`, whose weight is `alpha`.

    Void and classes named in `BACKGROUND` show the image as it is.
    """
    weights = np.full(VOID + 1, alpha)
    weights[[VOID, *(i for i, name in enumerate(class_names) if name.lower() in BACKGROUND)]] = 0
    weight = weights[labels][..., None]
    mixed: Array = (image * (1 - weight) + colored(labels, palette) * weight).round().astype(np.uint8)
    return mixed


def outlined(image: Array, labels: Array, palette: Sequence[Color]) -> Array:
    """Draw the boundaries of labels `(H, W)` on the image `(H, W, 3)`, on each side in the colour of its class."""
    import cv2  # slow to import

    kernel = np.ones((2 * max(1, max(labels.shape) // 500) + 1,) * 2, np.uint8)
    edge = cv2.dilate(labels, kernel) != cv2.erode(labels, kernel)
    return np.where(edge[..., None], colored(labels, palette), image)


def highlight(image: Array, where: NDArray[np.bool_]) -> Array:
    """Draw the image `(H, W, 3)` in pale grey, with the pixels `where` `(H, W)` in red."""
    pale = 255 - 0.4 * (255 - image.mean(2, keepdims=True))
    return np.where(where[..., None], RED, pale.round()).astype(np.uint8)


def legend(picture: Array, labels: Array, class_names: Sequence[str], palette: Sequence[Color]) -> Image.Image:
    """Add a legend of the classes in `labels` below the picture `(H, W, 3)`."""
    size = font_size(picture)
    font = ImageFont.load_default(size)
    line, gap = int(size * 1.6), int(size * 0.4)
    entries = [(int(index), class_names[index]) for index in np.unique(labels[labels < len(class_names)])]
    widths = [line + int(font.getlength(name)) + 2 * gap for _, name in entries]
    total = max([picture.shape[1], *(gap + width for width in widths)])  # a thumbnail can be narrower than a name
    places: list[tuple[int, int]] = []
    x = y = gap
    for width in widths:
        if x > gap and x + width > total:
            x, y = gap, y + line
        places.append((x, picture.shape[0] + y))
        x += width
    canvas = Image.new("RGB", (total, picture.shape[0] + y + line), "white")
    canvas.paste(Image.fromarray(picture))
    draw = ImageDraw.Draw(canvas)
    for (index, name), (left, top) in zip(entries, places, strict=True):
        draw.rectangle((left, top, left + size, top + size), fill=palette[index], outline="gray")
        draw.text((left + line - gap // 2, top), name, fill="black", font=font)
    return canvas


def side_by_side(panels: Mapping[str, Array], longest: int = 1024) -> Array:
    """Place equally sized pictures `(H, W, 3)` in a row below their titles, with sides of at most `longest` pixels."""
    pictures = [Image.fromarray(panel) for panel in panels.values()]
    for picture in pictures:
        picture.thumbnail((longest, longest))
    width, height = pictures[0].size
    size = font_size(np.asarray(pictures[0]))
    font = ImageFont.load_default(size)
    column = max([width, *(int(font.getlength(title)) + 1 for title in panels)])
    gap, top = size // 2, size * 2
    canvas = Image.new("RGB", ((column + gap) * len(pictures) - gap, top + height), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (title, picture) in enumerate(zip(panels, pictures, strict=True)):
        draw.text((i * (column + gap), size // 3), title, fill="black", font=font)
        canvas.paste(picture, (i * (column + gap), top))
    return np.asarray(canvas)


def font_size(picture: Array) -> int:
    """Return a font size in pixels that suits the size of a picture."""
    return int(max(12, picture.shape[0] // 32))


def save_comparison(
    path: Path,
    rows: Sequence[Mapping[str, Array]],
    class_names: Sequence[str],
    palette: Sequence[Color],
    title: str,
) -> None:
    """Draw one row per sample and one column per picture, above a legend of the classes' colours.

    With more than `NAMED` classes, the legend contains only the first `NAMED` of those in the pictures.

    Args:
        path: The PNG to write.
        rows: For each sample, RGB images `(H, W, 3)` or class indices `(H, W)` by column title.
        class_names: One name per class.
        palette: One colour per class.
        title: The title above the image.
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
    entries = [*zip(class_names, palette, strict=True), ("void", VOID_COLOR)]
    if len(class_names) > NAMED:
        labels = [picture.ravel() for row in rows for picture in row.values() if picture.ndim == 2]
        entries = [entries[min(index, len(class_names))] for index in np.unique(np.concatenate(labels))[:NAMED]]
    patches = [
        Patch(facecolor=(color[0] / 255, color[1] / 255, color[2] / 255), edgecolor="gray", label=name)
        for name, color in entries
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 2 * columns), fontsize=8)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def save_confusion(path: Path, counts: NDArray[np.int64], class_names: Sequence[str], title: str) -> None:
    """Draw a confusion matrix in % of each true class; with more than `NAMED` classes, colours without numbers.

    Args:
        path: The PNG to write.
        counts: Pixels `(num_classes, num_classes + 1)` by true and predicted class, see `metrics.ConfusionMatrix`; the
            last column is drawn only if it is not empty.
        class_names: One name per class.
        title: The title above the image.
    """
    from matplotlib.figure import Figure

    columns = [*class_names, "none of them"] if counts[:, -1].any() else list(class_names)
    shares = 100 * counts[:, : len(columns)] / np.maximum(counts.sum(1, keepdims=True), 1)
    named = len(class_names) <= NAMED
    width = 0.42 * min(len(columns), NAMED) + 3
    figure = Figure(figsize=(width, 0.42 * min(len(class_names), NAMED) + 2.2), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    what = "" if named else " (class index)"
    axis.set(xlabel=f"predicted{what}", ylabel=f"true{what}")
    axis.tick_params(length=0, labelsize=8)
    if named:
        axis.set_xticks(range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor", parse_math=False)
        axis.set_yticks(range(len(class_names)), class_names, parse_math=False)
    for row, column in np.argwhere(shares >= 0.5) if named else []:  # smaller shares would be rounded to 0
        share = shares[row, column]
        color = "white" if share > 55 else "black"
        text = axis.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=7, color=color)
        text.set_in_layout(False)  # the text is within the axes; measuring each would slow the layout
    figure.colorbar(image, label="% of the true class", fraction=0.04)
    figure.suptitle(fill(title, int(13 * width)), fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def save_balance(path: Path, counted: Mapping[str, NDArray[np.int64]], class_names: Sequence[str], title: str) -> None:
    """Draw each class's share of the labelled pixels, and of the images that contain it, for several sets of masks.

    Args:
        path: The PNG to write.
        counted: Pixels `(images, num_classes)` by image and class, by the name of the set.
        class_names: One name per class.
        title: The title above the image.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.24 * len(class_names) + 1.6), layout="constrained")
    places, height = np.arange(len(class_names)), 0.8 / len(counted)
    for axis, what in zip(figure.subplots(1, 2, sharey=True), ("labelled pixels", "images"), strict=True):
        for i, (name, pixels) in enumerate(counted.items()):
            shares = pixels.sum(0) / max(pixels.sum(), 1) if what == "labelled pixels" else (pixels > 0).mean(0)
            axis.barh(places + i * height, 100 * shares, height, label=name)
        axis.set_xlabel(f"% of the {what}")
        axis.set_yticks(places + 0.4 - height / 2, class_names, parse_math=False, fontsize=8)
        axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=8)
    axis.invert_yaxis()
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
