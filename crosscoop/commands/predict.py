"""`crosscoop predict`: predictions for images, a video, or a split of a data set."""

import hashlib
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from os.path import commonpath
from pathlib import Path

import cv2
import numpy as np
import yaml
from rich.progress import track

from crosscoop.checkpoints.read import find_checkpoint, read_checkpoint
from crosscoop.commands.options import run as run_function
from crosscoop.commands.options import spelled, values_of
from crosscoop.data import VOID, Sample
from crosscoop.data.check import files_of
from crosscoop.data.dataset import Array
from crosscoop.data.loaders import SegmentationLoaders
from crosscoop.data.peculiarities import of_image, summed_up
from crosscoop.data.samples import FileSample
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.cascade import describe_cascade
from crosscoop.evaluation.inference import Inference
from crosscoop.files import replacing, shorten
from crosscoop.prediction.pictures import overlay
from crosscoop.prediction.predictor import Predictor, load
from crosscoop.prediction.results import KINDS, Results, by_name, find_images

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


def predict(
    images: str | None = None,
    split: str | None = None,
    data: SegmentationLoaders | None = None,
    run: str | None = None,
    ckpt_path: str | None = None,
    output: str | None = None,
    save: str | None = None,
    branch: str | None = None,
    overwrite: bool = False,
    own_size: bool = False,
    fast: bool = False,
    device: str | None = None,
    inference: Inference = Inference(),  # noqa: B008
) -> None:
    """Predict images, a video, or a split of a data set.

      crosscoop predict --run runs/demo --images photos
      crosscoop predict --run runs/demo                # the test split of the run's data
      crosscoop predict --run runs/demo --split val --save labels,overlays
      crosscoop predict --ckpt-path best.onnx --config configs/voc/parts/data.yaml

    The prediction for photos/a/b.jpg is OUTPUT/labels/a/b.png, that for a split's sample OUTPUT/labels/NAME.png, both
    at the image's original size. They are valid input for crosscoop submit, and for crosscoop score (with
    --data.center_crop null where the configuration sets it). Existing predictions are kept: the same command resumes an
    interrupted run. Images that cannot be read are listed at the end, with exit code 1. Images are predicted one at a
    time, on one device.

    If the network was trained with data.resize, images are resized to that size, and the labels are resized back. Where
    this would distort the images, try --own-size.

    Args:
        images: An image, a folder with its subfolders, a quoted glob such as 'photos/*.jpg', a list (.txt with one
            path per line, relative to the list), or a video. Without it, a split is predicted.
        split: The split to predict; by default the data set's test_split.
        data: The data set of the split, by default the checkpoint's; from --config, or from single options, which
            override it, such as --data.dataset.root FOLDER. Images are resized to data.resize, and never cropped, even
            with data.center_crop.
        run: The run's folder; its best.ckpt is used.
        ckpt_path: Network to use instead of the run's best.ckpt: a checkpoint, a .onnx or .safetensors file from
            crosscoop export, or hf-hub:USER/NAME from crosscoop push.
        output: Folder to write to; by default predictions/NAME in the run's folder or beside the checkpoint, where NAME
            is the images' folder or the split.
        save: What to write, separated by commas, each to a folder of the same name: labels (palette PNGs of class
            indices; the default), colors (PNGs in the class colours), overlays (class colours over the image, which
            stays as it is at the class background, with a legend), outlines (only the boundaries of the classes),
            comparison (image, branches, ensemble and disagreement side by side), probabilities (.npz files with float16
            `probabilities` (C, H, W), 80 MB for 19 classes at 1024 x 2048). For a video, overlays (the default) are one
            .mp4 without a legend, with even sides as the codec requires; all others are one file per frame.
        branch: A branch to predict with alone, such as bottom: only this network runs, without connections. By default
            the ensemble of all.
        overwrite: Replace existing predictions.
        own_size: Predict each image at its original size, even if the network was trained on resized images.
        fast: Fold batch norms and, on processors with native support, compute in bfloat16: about twice as fast there,
            with about one label in 200 changed. The protocol records it.
        device: Device to use, such as cpu or cuda:1; by default a GPU if there is one.
        inference: How the logits of an image are computed.

    Raises:
        CrosscoopError: The images, data or checkpoint do not exist, the data has other classes, two images would share
            one prediction, or the output folder contains predictions of other images, another checkpoint or another
            protocol.
        SystemExit: With code 1 after images that could not be read, with 130 after Ctrl-C.
    """
    if not (run or ckpt_path):
        raise CrosscoopError("predict needs a checkpoint: give --run FOLDER (uses its best.ckpt) or --ckpt-path FILE.")
    checkpoint = Path(ckpt_path) if ckpt_path else find_checkpoint(None, run)
    what = Path(images or "").expanduser()
    is_video = what.is_file() and what.suffix.lower() in VIDEOS
    kinds = (save or ("overlays" if is_video else "labels")).split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise CrosscoopError(f"--save: got {', '.join(unknown)}, expected one or more of {','.join(KINDS)}.")
    if images and (split or data):
        raise CrosscoopError("got both --images and a split or data, expected only one of them.")

    samples: dict[str, Sample]
    predictor = load(checkpoint, inference, device, own_size, fast, branch)
    if images:
        root, found = find_images(what)
        place, origin = root.resolve().name, str(root.resolve())
        samples = {} if is_video else {n: FileSample(n, path, None, VOID) for n, path in by_name(found, root).items()}
    elif data:
        predictor.resize = None if own_size else data.resize
        place = split or data.dataset.test_split
        samples, origin = samples_of(data, place, checkpoint, predictor.class_names)
    else:
        raise CrosscoopError(
            f"predict: got nothing to predict, and unlike a checkpoint, {checkpoint} does not include its data's "
            "options; expected --images, or a split's data with --config."
        )
    protocol = predictor.describe() + f", branch {branch} alone" * bool(branch)
    beside, identity = (checkpoint.parent, sha256(checkpoint)) if checkpoint.is_file() else (Path(), str(checkpoint))
    results = Results(Path(output or Path(run or beside) / "predictions" / place), kinds, overwrite)
    try:
        results.claim({"images": origin, "checkpoint": identity, "protocol": protocol})
        if is_video:
            predict_video(predictor, what, results)
        else:
            predict_samples(predictor, samples, results)
    except KeyboardInterrupt:
        again = "the same command without --overwrite" if overwrite else "the same command"
        print(f"\nInterrupted, {results.left} left: {results}\nTo resume: {again}.", file=sys.stderr)
        raise SystemExit(130) from None
    except OSError as error:
        raise CrosscoopError(f"{results.folder}: cannot be written ({error}). Give another --output.") from error
    print(f"{results}\nProtocol: {protocol}")
    if predictor.cascade and results.written:
        print(describe_cascade(predictor.cascade.record()))
    if results.failures:
        print("\n".join(["Failed:", *results.failures]), file=sys.stderr)
        raise SystemExit(1)


def samples_of(
    data: SegmentationLoaders, split: str, checkpoint: Path, class_names: Sequence[str]
) -> tuple[dict[str, Sample], str]:
    """Return a split's samples by name, and a description of where they come from.

    Args:
        data: The data.
        split: The split.
        checkpoint: The network's file, for the message.
        class_names: The network's classes.

    Raises:
        CrosscoopError: The data set has other classes, or lacks the split.
    """
    own = data.dataset.class_names
    if list(own) != list(class_names):
        raise CrosscoopError(
            f"data.dataset: got {len(own)} classes ({shorten(own)}), expected the {len(class_names)} classes of "
            f"{checkpoint} ({shorten(class_names)}), in this order. Use the data set it was trained on, or --images."
        )
    data.prepare_data()
    samples = data.samples(split)
    files = [path for sample in samples if (path := getattr(sample, "image_path", None))]
    where = f" in {Path(commonpath(files)).resolve()}" if files else ""
    return {sample.name: sample for sample in samples}, f"{type(data.dataset).__name__} {split}{where}"


def predict_samples(predictor: Predictor, samples: Mapping[str, Sample], results: Results) -> None:
    """Predict images one by one, while threads read the next ones.

    Args:
        predictor: The network.
        samples: The images by name.
        results: Where to save.
    """
    if results.overwrite:  # first, so that after an interruption all existing files are new
        for name in samples:
            for kind in results.kinds:
                results.path(kind, name).unlink(missing_ok=True)
    todo = {name: sample for name, sample in samples.items() if results.missing(name)}
    results.total, results.skipped = len(samples), len(samples) - len(todo)
    for line in summed_up(note for sample in todo.values() for note in of_image(Path(files_of(sample)[0]))):
        print(f"Note: {line}")
    for name, image in track(read_ahead(todo), "Predicting", total=len(todo)):
        try:
            results.save(name, predictor(image.result()), results.missing(name))
        except CrosscoopError as error:
            message, where = str(error), str(getattr(todo[name], "image_path", name))
            results.failures.append(message if where in message else f"{where}: {message}")


def read_ahead(samples: Mapping[str, Sample], count: int = 4) -> Iterator[tuple[str, "Future[Array]"]]:
    """Yield names and images in order, with at most `count` images waiting in memory."""
    with ThreadPoolExecutor(2) as pool:
        waiting: deque[tuple[str, Future[Array]]] = deque()
        for name, sample in samples.items():
            waiting.append((name, pool.submit(sample.image)))
            if len(waiting) == count:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()


def predict_video(predictor: Predictor, path: Path, results: Results) -> None:
    """Predict a video frame by frame: overlays as a video, all others as one file per frame.

    Args:
        predictor: The network.
        path: The video.
        results: Where to save.

    Raises:
        CrosscoopError: The video cannot be read.
    """
    capture = cv2.VideoCapture(str(path))
    results.total = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
    film, kinds = results.path("overlays", path.stem).with_suffix(".mp4"), set(results.kinds) - {"overlays"}
    if results.overwrite:
        for old in (film, *(old for kind in kinds for old in results.path(kind, path.stem).with_suffix("").glob("*"))):
            old.unlink(missing_ok=True)
    filming = "overlays" in results.kinds and not film.exists()
    with write_film(film, capture.get(cv2.CAP_PROP_FPS) or 25) if filming else nullcontext() as append:
        number = 0
        for image in track(read_frames(capture), "Predicting", total=results.total or None):
            number += 1
            name = f"{path.stem}/{number:06d}"
            missing = kinds.intersection(results.missing(name))
            if not (append or missing):
                results.skipped += 1
                continue
            prediction = predictor(image)
            if append:
                append(overlay(image, prediction.labels, prediction.class_names, prediction.palette))
            results.save(name, prediction, missing)
        if not number:
            raise CrosscoopError(
                f"{path}: got no frame, expected a video that OpenCV can read. Restore the file, or convert it to .mp4."
            )
    if number < 0.95 * results.total:  # some containers only estimate the total
        results.failures.append(f"{path}: ends after {number} of {results.total} frames. Restore the file.")


def read_frames(capture: "cv2.VideoCapture") -> Iterator[Array]:
    """Yield the frames of a video, `(H, W, 3)` uint8 RGB."""
    while (frame := capture.read()[1]) is not None:
        yield frame[..., ::-1]


@contextmanager
def write_film(path: Path, rate: float) -> Iterator[Callable[[Array], None]]:
    """Yield a function that appends a frame `(H, W, 3)` to an .mp4, which is either complete or absent."""
    with replacing(path) as temporary:
        writer = cv2.VideoWriter()

        def append(image: Array) -> None:
            height, width = image.shape[:2]
            if not writer.isOpened():
                writer.open(str(temporary), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, height))
            writer.write(np.ascontiguousarray(image[..., ::-1]))

        try:
            yield append
        finally:
            writer.release()


def sha256(path: Path) -> str:
    """Return the SHA-256 hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: Sequence[str]) -> None:
    """Predict; a split's data is the checkpoint's, unless options configure another.

    Args:
        arguments: The command and its options.
    """
    command, *options = arguments
    options = [spelled(option) for option in options]
    run_function(predict, command, [*remembered(options), *options])


def remembered(options: Sequence[str]) -> list[str]:
    """Return the data options stored in the checkpoint, if they are needed.

    They precede the user's options, which therefore override them.

    Args:
        options: The user's options.
    """
    given = values_of(options)
    path, run = given.get("--ckpt-path"), given.get("--run")
    if {"--images", "--config", "--data", "--help"} & given.keys() or "-h" in options or not (path or run):
        return []
    if path and (path.startswith("hf-hub:") or Path(path).suffix in (".onnx", ".safetensors", ".pt2")):
        return []
    checkpoint = str(path or find_checkpoint(None, run))
    data = read_checkpoint(checkpoint)["crosscoop"]["config"]["data"]
    return ["--ckpt-path", checkpoint, "--data", yaml.safe_dump(data)]
