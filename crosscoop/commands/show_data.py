"""`crosscoop show-data`: pictures of the training data as the network receives it."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crosscoop.data import VOID
from crosscoop.data.balance import count_classes
from crosscoop.data.loaders import SegmentationLoaders
from crosscoop.errors import CrosscoopError
from crosscoop.prediction.pictures import save_balance, save_comparison


def show_data(
    data: SegmentationLoaders, output: str = "data-preview", num_images: int = 8, num_crops: int = 200
) -> None:
    """Draw augmented training samples with their masks, and the balance of the classes.

      crosscoop show-data --config configs/voc/cross_c1_c2.yaml
      crosscoop show-data --config run.yaml --data.transforms+='{class_path: CLAHE, init_args: {p: 1}}'

    samples.png shows the first crops of training as the network receives them: after scaling, cropping, transforms and
    CutMix, with the weak view for teachers if there is one. classes.png shows each class's share of the labelled pixels
    and the share of images that contain it, in the masks and in the crops: the effect of data.balance.

    Args:
        data: The data set, usually from --config; single options override it, such as --data.balance true.
        output: Folder for the pictures.
        num_images: Number of crops to draw.
        num_crops: Number of crops, and of masks evenly spread over the split, to count classes in.

    Raises:
        CrosscoopError: A number is below 1, or the data cannot be used.
    """
    if min(num_images, num_crops) < 1:
        raise CrosscoopError(f"--num-images, --num-crops: got {num_images} and {num_crops}, expected 1 or more.")
    data.prepare_data()
    dataset, folder = data.dataset, Path(output)
    crops = list(islice(_crops(data), max(num_images, num_crops)))
    title = f"{type(dataset).__name__} {dataset.train_split}, crops of {data.crop_size} x {data.crop_size}"
    save_comparison(folder / "samples.png", crops[:num_images], dataset.class_names, dataset.palette, title)
    samples = data.labelled_samples()
    chosen = np.linspace(0, len(samples) - 1, min(num_crops, len(samples))).astype(int)
    masks = count_classes([samples[i] for i in chosen], dataset.num_classes)
    drawn = [np.bincount(crop["mask"].ravel(), minlength=VOID + 1)[: dataset.num_classes] for crop in crops]
    counted = {f"{len(masks)} masks": masks, f"{len(drawn)} crops": np.array(drawn)}
    save_balance(folder / "classes.png", counted, dataset.class_names, title)
    print(f"Samples: {folder / 'samples.png'}\nClass balance: {folder / 'classes.png'}")


def _crops(data: SegmentationLoaders) -> Iterator[dict[str, Any]]:
    """Yield image, mask and weak view of every crop of training, epoch after epoch, as arrays."""
    loader = data.train_dataloader()
    epoch = 0
    while True:
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in loader:
            given = data.on_after_batch_transfer(batch, 0)
            for i in range(len(batch["name"])):
                pictures: dict[str, Any] = {key: _picture(given[key][i]) for key in ("image", "weak") if key in given}
                yield {**pictures, "mask": given["mask"][i].numpy().astype(np.uint8)}
        epoch += 1


def _picture(image: torch.Tensor) -> Any:
    return (image * 255).round().byte().permute(1, 2, 0).numpy()
