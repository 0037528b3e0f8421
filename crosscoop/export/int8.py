"""Static int8 quantisation by ONNX Runtime, and a comparison of the result with the float network."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from crosscoop.checkpoints.read import read_checkpoint
from crosscoop.data.loaders import open_data
from crosscoop.data.pipeline import EvaluationSet, Item
from crosscoop.data.samples import FileSample
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.evaluator import Evaluator
from crosscoop.evaluation.inference import upsampled_labels
from crosscoop.evaluation.records import percent
from crosscoop.export.onnx import OnnxNetwork

CALIBRATION_IMAGES = 32

EQUAL = 0.9
"""Minimum share of labels that quantisation must preserve; a lower one means a mistake, not rounding."""


@dataclass
class Images:
    """Images for calibration and images for the comparison of float and int8.

    Attributes:
        calibration: At most `CALIBRATION_IMAGES` images.
        comparison: The images on which float and int8 are compared.
        protocol: Which images those are, and how they are preprocessed.
    """

    calibration: Sequence[Item]
    comparison: Sequence[Item]
    protocol: str


def images_in(paths: Sequence[Path], origin: str, resize: Sequence[int] | None) -> Images:
    """Use image files for calibration and comparison; without masks, mIoU is not measured.

    Args:
        paths: The files.
        origin: Their name in the protocol.
        resize: Height and width to resize them to; None keeps their size.
    """
    chosen = spread(EvaluationSet([FileSample(str(path), path, None, 255) for path in paths], resize, None))
    return Images(chosen, chosen, f"{origin}, images without labels")


def images_of(checkpoint: Path, root: str | None = None) -> Images:
    """Use a run's training images for calibration and its test split for comparison.

    Args:
        checkpoint: The run's checkpoint, which contains the configuration of its data.
        root: The data's folder, if it has been moved since.

    Raises:
        CrosscoopError: The file is not a checkpoint, or its data cannot be opened.
    """
    if checkpoint.suffix != ".ckpt":
        raise CrosscoopError(f"calibration: got none for {checkpoint}, expected a folder of images.")
    data = open_data(read_checkpoint(checkpoint)["crosscoop"]["config"], root)
    split = data.dataset.test_split
    data.look_up(data.dataset.train_split, split)
    train, test = data.evaluation_set(data.dataset.train_split), data.evaluation_set(split)
    about = data.protocol(split, len(test))
    return Images(spread(train), test, f"{about['dataset']} {split}, {len(test)} images, {about['evaluation']}")  # type: ignore[arg-type]


def spread(images: EvaluationSet) -> Sequence[Item]:
    """Return at most `CALIBRATION_IMAGES` images, evenly spaced over a set."""
    chosen = np.linspace(0, len(images) - 1, min(CALIBRATION_IMAGES, len(images))).astype(int)
    return EvaluationSet(  # type: ignore[return-value]
        [images.samples[index] for index in chosen],
        images.resize,
        images.center_crop,
        images.num_classes,
        images.resize_masks,
    )


def scaled(item: Item) -> Tensor:
    """Return an item's image as network input: `(1, 3, H, W)` RGB in [0, 1]."""
    return item["image"][None].float() / 255


def quantize(source: Path, path: Path, images: Sequence[Item], metadata: dict[str, str]) -> None:
    """Write an .onnx file with int8 weights and feature maps, quantised per channel in QDQ format.

    The first convolution of each branch stays in float; docs/export.md shows the gain.

    Args:
        source: The float network.
        path: The file to write.
        images: The images from which the value ranges are estimated.
        metadata: The metadata of the new file.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.inputs: Iterator[dict[str, Any]] = (
                {"image": scaled(images[index]).numpy()} for index in range(len(images))
            )

        def get_next(self) -> dict[str, Any] | None:
            return next(self.inputs, None)

    with TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            path,
            Reader(),
            nodes_to_exclude=until_first_convolutions(onnx.load(prepared)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)


def until_first_convolutions(model: Any) -> list[str]:
    """Return the names of the first convolutions and of all nodes between the image and them.

    Args:
        model: An ONNX model whose nodes are in order of computation.
    """
    image, names = {model.graph.input[0].name}, []
    for node in model.graph.node:
        if image.intersection(node.input):
            names.append(node.name)
            image.update(node.output if node.op_type not in ("Conv", "Shape") else [])
    return names


@dataclass
class Measured:
    """Measurements of one network.

    Attributes:
        network: The network.
        evaluator: Measures its outputs.
        seconds: The time for each image.
        equal: For each image and output, the share of labels that equal those of the first network.
    """

    network: OnnxNetwork
    evaluator: Evaluator
    seconds: list[float] = field(default_factory=list)
    equal: list[float] = field(default_factory=list)


def compare(paths: Sequence[Path], items: Sequence[Item], class_names: Sequence[str]) -> list[Measured]:
    """Run networks alternately on the same images.

    Args:
        paths: .onnx files with the same outputs; the first is the reference.
        items: The images and masks.
        class_names: One name per class.
    """
    networks = [OnnxNetwork(path) for path in paths]
    measured = [Measured(network, Evaluator(class_names, network.outputs)) for network in networks]
    for index in range(len(items)):
        item = items[index]
        expected: dict[str, Tensor] = {}
        for one in measured:
            started = perf_counter()
            outputs = one.network(scaled(item))
            one.seconds.append(perf_counter() - started)
            labels = {name: upsampled_labels(logits, item["mask"].shape) for name, logits in outputs.items()}
            one.evaluator.update(labels, item["mask"][None].long())
            expected = expected or labels
            one.equal += [float((labels[name] == expected[name]).float().mean()) for name in labels]
    return measured


def to_table(named: dict[str, Measured], sizes: Sequence[int], protocol: str) -> Table:
    """Return a table of size, time, agreement and mIoU of every network.

    Args:
        named: The measurements, by the network's name.
        sizes: Size of each file in bytes.
        protocol: The images and their preprocessing.
    """
    outputs = next(iter(named.values())).network.outputs
    headings = ["MiB", "ms per image", "equal labels (%)", *(f"mIoU {name} (%)" for name in outputs)]
    table = Table("", *headings, caption=f"{protocol}; ONNX Runtime, {torch.get_num_threads()} threads")
    for (name, one), size in zip(named.items(), sizes, strict=True):
        scores = one.evaluator.compute().values()
        table.add_row(
            name,
            f"{size / 2**20:.1f}",
            f"{1000 * median(one.seconds):.1f}",
            percent(float(np.mean(one.equal))),
            *(percent(score.miou if score.true.sum() else None) for score in scores),
        )
    return table
