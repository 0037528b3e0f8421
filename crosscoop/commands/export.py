"""`crosscoop export`: a checkpoint as a file for other programs."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Literal

from rich.console import Console

from crosscoop.checkpoints.about import About
from crosscoop.checkpoints.read import find_checkpoint
from crosscoop.errors import CrosscoopError
from crosscoop.export.formats import FORMATS
from crosscoop.export.int8 import EQUAL, Images, compare, images_in, images_of, quantize, to_table
from crosscoop.export.parity import parity
from crosscoop.export.read import read_network
from crosscoop.files import replacing
from crosscoop.network.cooperative import CooperativeNetwork, by_name
from crosscoop.prediction.results import find_images


def export(
    ckpt_path: str | None = None,
    run: str | None = None,
    format: Literal["onnx", "torch_export", "safetensors"] = "onnx",
    output: str | None = None,
    branch: str | None = None,
    outputs: list[str] | None = None,
    coarse: bool = False,
    int8: bool = False,
    calibration: str | None = None,
    data__dataset__root: str | None = None,
) -> None:
    """Export a checkpoint: crosscoop export best.ckpt --format onnx.

    The exported network maps images (N, 3, H, W) of any batch and image size, RGB in [0, 1] as float32, to logits
    (N, num_classes, H, W) by output name. The normalisation of each branch is included. The metadata contains class
    names, colours, normalisation, and the metrics with their protocol, as JSON. Batch norm is folded into convolutions
    in onnx and torch_export; safetensors contains the original weights.

    The exported network is read back and compared with the checkpoint. If they differ, no file is written, and the
    exit code is 1.

    Args:
        ckpt_path: The checkpoint; may be given as the first argument, without the option's name.
        run: The run's folder, whose best.ckpt is exported, instead of a checkpoint.
        format: onnx (.onnx, requires the extra of that name), torch_export (.pt2; images of at least 17 x 17), or
            safetensors.
        output: The file to write; by default beside the checkpoint.
        branch: A branch to export alone, such as bottom: one network, without connections.
        outputs: Names of the outputs to keep, by default all: top, bottom and ensemble; [ensemble] is the fastest.
        coarse: Leave the logits at a quarter of the image's height and width, as the network computes them; crosscoop
            predict is faster with these.
        int8: Quantise the onnx file, to best.int8.onnx, and print size, time and mIoU of float and int8. Calibrated on
            32 training images of the run's data, and compared on its test split.
        calibration: Images for calibration and comparison, instead of the run's data: a folder or a glob.
        data__dataset__root: The folder of the run's data, if it has been moved since.

    Raises:
        CrosscoopError: The checkpoint or an output does not exist, or a package is missing.
        SystemExit: With code 1 if the exported network differs.
    """
    checkpoint, chosen = find_checkpoint(ckpt_path, run), FORMATS[format]
    suffix = "".join(f".{part}" for part in (branch, "int8" if int8 else None) if part) + chosen.suffix
    path = Path(output) if output else checkpoint.with_suffix(suffix)
    if (int8 or calibration) and format != "onnx":
        raise CrosscoopError(f"int8, calibration: got {format}, expected --format onnx.")
    if calibration and not int8:
        raise CrosscoopError("calibration: got images, expected --int8 as well.")
    if path.suffix != chosen.suffix or path.is_dir() or path.resolve() == checkpoint.resolve():
        raise CrosscoopError(f"output: got {path}, expected another file, *{chosen.suffix} for {format}.")
    network, about = read_network(checkpoint, branch)
    if not isinstance(network, CooperativeNetwork):
        raise CrosscoopError(f"ckpt_path: got {checkpoint}, expected a checkpoint or a .safetensors file.")
    about = replace(with_outputs(about, outputs), upsampled=not coarse)
    if format == "safetensors" and (outputs or coarse):
        raise CrosscoopError("outputs, coarse: got a choice, expected none: safetensors contains the complete network.")
    network.eval()
    images = calibration_images(checkpoint, calibration, about.resize, data__dataset__root) if int8 else None
    try:
        with replacing(path) as temporary:
            chosen.write(temporary, network, about)
            exported = chosen.read(temporary)[0].eval()
            agreed, lines = parity(by_name(network, about.upsampled), by_name(exported))
            print("\n".join(lines))
            if agreed and images:
                agreed = to_int8(temporary, about, images)
            if not agreed:
                print(f"The exported network differs from {checkpoint}: nothing was written.")
                raise SystemExit(1)
    except OSError as error:
        raise CrosscoopError(f"{path}: cannot be written ({error}). Give another --output.") from error
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB, {', '.join(about.outputs)}")


def calibration_images(
    checkpoint: Path, calibration: str | None, resize: Sequence[int] | None, root: str | None = None
) -> Images:
    """Return the images for calibration and comparison: those of the option, or those of the run's data."""
    if calibration is None:
        return images_of(checkpoint, root)
    paths = sorted(find_images(Path(calibration))[1])
    if not paths:
        raise CrosscoopError(f"calibration: got no image in {calibration}, expected some, such as 32.")
    return images_in(paths, calibration, resize)


def to_int8(path: Path, about: About, images: Images) -> bool:
    """Quantise a file in place, and print how it compares with the original.

    Args:
        path: The float .onnx file.
        about: Its description; the checkpoint's metrics are left out, as they are not those of int8.
        images: The images for calibration and comparison.

    Returns:
        Whether the labels are nearly the same.
    """
    with TemporaryDirectory() as folder:
        quantized = Path(folder) / "int8.onnx"
        quantize(path, quantized, images.calibration, replace(about, figures=None).to_strings())
        measured = compare([path, quantized], images.comparison, about.class_names)
        sizes = [file.stat().st_size for file in (path, quantized)]
        named = dict(zip(("float", "int8"), measured, strict=True))
        Console().print(to_table(named, sizes, images.protocol))
        shutil.copyfile(quantized, path)
    return mean(measured[1].equal) >= EQUAL


def with_outputs(about: About, outputs: list[str] | None) -> About:
    """Return a description with only some outputs, in their original order.

    Raises:
        CrosscoopError: Some do not exist.
    """
    if outputs is None:
        return about
    if not outputs or set(outputs) - set(about.outputs):
        raise CrosscoopError(f"outputs: got {outputs}, expected some of {', '.join(about.outputs)}.")
    return replace(about, outputs=[name for name in about.outputs if name in outputs])
