"""`crosscoop predict --images`: what a network sees in any images, or in a video."""

import hashlib
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from crosscoop.checkpoints.read import find_checkpoint
from crosscoop.commands.options import run as run_function
from crosscoop.data.dataset import Array
from crosscoop.data.images import read_image
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.inference import Inference
from crosscoop.files import replacing
from crosscoop.prediction.pictures import overlay
from crosscoop.prediction.predictor import Predictor, load
from crosscoop.prediction.results import KINDS, Results, by_name, find_images

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


def predict(
    images: str,
    run: str | None = None,
    ckpt_path: str | None = None,
    output: str | None = None,
    save: str | None = None,
    overwrite: bool = False,
    own_size: bool = False,
    fast: bool = False,
    device: str | None = None,
    inference: Inference = Inference(),  # noqa: B008
) -> None:
    """Predict any images, or a video.

    The prediction of photos/a/b.jpg is OUTPUT/labels/a/b.png, of the same size. What exists is kept: the same command
    goes on where it was stopped. An image that cannot be read is named at the end, with exit code 1.

    A network that was trained with data.resize sees the images in that size, too, and its labels are brought back to
    theirs. Where it would distort them, try --own_size.

    Without --images, crosscoop predict --run RUN writes the labels of the test split of the run's data to
    RUN/predictions, and takes the options of crosscoop test: see crosscoop test --help.

    Args:
        images: An image, a folder with its subfolders, a glob in quotes such as 'photos/*.jpg', a list (.txt with a
            path per line, relative to the list), or a video.
        run: The run's folder, whose best.ckpt predicts.
        ckpt_path: A checkpoint, instead of the run's best.ckpt.
        output: Where to write; by default images/NAME in the run's folder, where NAME is the images' folder.
        save: What to write, separated by commas, each into a folder of its name: labels (palette PNGs of the class
            indices; the default), colors (PNGs of the classes' colours), overlays (the colours over the image, with a
            legend), comparison (image, branches, ensemble and disagreement side by side), probabilities (.npz files
            with float16 `probabilities` (C, H, W), 80 MB for 19 classes at 1024 x 2048). Of a video, overlays (its
            default) are one .mp4 without legend, its sides even as the codec demands; all else is a file per frame.
        overwrite: Whether to replace what exists.
        own_size: Whether the network sees each image in its own size, even if it was trained on resized ones.
        fast: Whether to compute in bfloat16, with folded batch norms: about twice as fast on processors made for it;
            about one label in 200 changes.
        device: Where to run, such as cpu or cuda:1; by default a GPU if there is one.
        inference: How the logits of an image come about.

    Raises:
        CrosscoopError: There are no such images or no such checkpoint, two images would share one prediction, or the
            output holds predictions of other images, another checkpoint or another protocol.
        SystemExit: With code 1 after images that could not be read, with 130 after Ctrl-C.
    """
    if not (run or ckpt_path):
        raise CrosscoopError("predict needs a checkpoint: give --run FOLDER (takes its best.ckpt) or --ckpt_path FILE.")
    checkpoint = Path(ckpt_path) if ckpt_path else find_checkpoint(None, run)
    what = Path(images).expanduser()
    is_video = what.is_file() and what.suffix.lower() in VIDEOS
    kinds = (save or ("overlays" if is_video else "labels")).split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise CrosscoopError(f"save: got {', '.join(unknown)}, expected one or more of {','.join(KINDS)}.")

    root, found = find_images(what)
    place = root.resolve()
    results = Results(Path(output or Path(run or checkpoint.parent) / "images" / place.name), kinds, overwrite)
    files = {} if is_video else by_name(found, root)
    predictor = load(checkpoint, inference, device, own_size, fast)
    try:
        results.claim({"images": str(place), "checkpoint": sha256(checkpoint), "protocol": predictor.describe()})
        if is_video:
            predict_video(predictor, what, results)
        else:
            predict_images(predictor, files, results)
    except KeyboardInterrupt:
        again = "the same command without --overwrite" if overwrite else "the same command"
        print(f"\nInterrupted, {results.left} left: {results}\nTo go on: {again}.", file=sys.stderr)
        raise SystemExit(130) from None
    except OSError as error:
        raise CrosscoopError(f"{results.folder}: cannot be written ({error}). Give another --output.") from error
    print(f"{results}\nProtocol: {predictor.describe()}")
    if results.failures:
        print("\n".join(["Failed:", *results.failures]), file=sys.stderr)
        raise SystemExit(1)


def predict_images(predictor: Predictor, files: Mapping[str, Path], results: Results) -> None:
    """Predict images one by one, while threads read the next.

    Args:
        predictor: The network.
        files: The images by name.
        results: Where to save.
    """
    if results.overwrite:  # now, so that after an interruption all that exists is new
        for name in files:
            for kind in results.kinds:
                results.path(kind, name).unlink(missing_ok=True)
    todo = {name: path for name, path in files.items() if results.missing(name)}
    results.total, results.skipped = len(files), len(files) - len(todo)
    for name, image in track(read_ahead(todo), "Predicting", total=len(todo)):
        try:
            results.save(name, predictor(image.result()), results.missing(name))
        except CrosscoopError as error:
            message = str(error)
            results.failures.append(message if str(todo[name]) in message else f"{todo[name]}: {message}")


def read_ahead(files: Mapping[str, Path], count: int = 4) -> Iterator[tuple[str, "Future[Array]"]]:
    """Images in order, by name, of which at most `count` wait in memory."""
    with ThreadPoolExecutor(2) as pool:
        waiting: deque[tuple[str, Future[Array]]] = deque()
        for name, path in files.items():
            waiting.append((name, pool.submit(read_image, path)))
            if len(waiting) == count:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()


def predict_video(predictor: Predictor, path: Path, results: Results) -> None:
    """Predict a video frame by frame: overlays into a video, all else into files per frame.

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
                append(overlay(image, prediction.labels, prediction.palette))
            results.save(name, prediction, missing)
        if not number:
            raise CrosscoopError(
                f"{path}: got no frame, expected a video that OpenCV can read. Restore the file, or convert it to .mp4."
            )
    if number < 0.95 * results.total:  # some containers only estimate the total
        results.failures.append(f"{path}: ends after {number} of {results.total} frames. Restore the file.")


def read_frames(capture: "cv2.VideoCapture") -> Iterator[Array]:
    """The frames of a video: `(H, W, 3)` uint8 RGB."""
    while (frame := capture.read()[1]) is not None:
        yield frame[..., ::-1]


@contextmanager
def write_film(path: Path, rate: float) -> Iterator[Callable[[Array], None]]:
    """What appends a frame `(H, W, 3)` to an .mp4 that appears whole or not at all."""
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
    """What tells a file's content from any other."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: Sequence[str]) -> None:
    """Predict what --images names; without it, the test split of a run's data, by Lightning.

    Args:
        arguments: The command and its options.
    """
    command, *options = arguments
    if {option.partition("=")[0] for option in options} & {"--images", "--help", "-h"}:
        run_function(predict, command, options)
        return
    from crosscoop.commands.training import main as predict_split

    predict_split(arguments)
