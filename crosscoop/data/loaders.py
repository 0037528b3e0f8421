"""The data: a data set, and how it is read in batches."""

import atexit
import multiprocessing
import signal
import warnings
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch.utils.data import DataLoader, Sampler, default_collate

from crosscoop.data.augment import Augmentation, cutmix
from crosscoop.data.balance import ClassBalance, count_classes
from crosscoop.data.check import check_classes, check_headers
from crosscoop.data.dataset import Sample, SegmentationDataset, check_palette
from crosscoop.data.datasets.streets import Streets
from crosscoop.data.pipeline import EvaluationSet, Item, TrainingSet
from crosscoop.data.prepared import prepared_samples
from crosscoop.data.samplers import EvaluationSampler, MixedSampler, TrainingLoader, TrainingSampler
from crosscoop.data.samples import MissingFilesError
from crosscoop.data.transforms import Transforms
from crosscoop.data.unlabelled import ImageSample, divide
from crosscoop.errors import CrosscoopError

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


class SegmentationLoaders:
    """Batches of a data set: augmented crops to train on, whole images to evaluate on.

    Args:
        dataset: The data set: Streets (generated, no download), PascalVOC, Cityscapes, CamVid, Folder, or the class
            path of your own.
        batch_size: Crops per training batch and process; the paper's 6 means 3 on each of two GPUs.
        eval_batch_size: Images per evaluation batch and process; images of different sizes need 1.
        num_workers: Worker processes that load data, per training process; 0 loads in the main process.
        crop_size: Side of the training crops, in pixels.
        scale: Smallest and largest factor of the random scale in training.
        flip: Mirror images at random in training.
        photometric: Jitter colours in training.
        transforms: albumentations' transforms of the crops in training, in order: names, or
            `{class_path: CLAHE, init_args: {p: 0.2}}`; or the class path of your own. Teachers receive them as well.
        crop: Scale, crop and flip before `transforms`; false leaves all three to them (`RandomResizedCrop`).
        balance: Draw every class equally often: a class, then a labelled image that contains it, then a crop around a
            random pixel of it. Decodes all training masks before training.
        unlabelled: Images to train on without masks, for objectives such as CrossPseudoSupervision: a share of the
            training split whose masks are not used, such as 0.875, drawn by the seed; or a list file that names
            images of the training split or other image files, one per line; or a folder of images. An epoch is then
            one pass over the labelled or the unlabelled images, whichever takes more steps.
        unlabelled_ratio: Unlabelled crops per labelled crop in a batch; `batch_size` counts both. 0 trains on the
            labelled images alone, as a baseline.
        strong: Distort the colours of unlabelled images strongly (jitter, grey, blur); teachers receive the undistorted
            images.
        cutmix: Probability with which a crop receives a box of another one in its batch: an unlabelled crop if there
            are unlabelled images, otherwise any. Teachers receive the original crops.
        resize: Height and width to which every image is resized first, in training and evaluation; null keeps its size.
            Evaluation resizes the labels back, and compares them with the masks at their own size.
        resize_masks: Resize the masks that are evaluated as well: faster, but not comparable with results of others.
        center_crop: Side of the central square to evaluate on, as the paper did; null evaluates whole images.
        skip_bad_samples: Replace a training sample whose files cannot be used by another one, and list it in
            `skipped.csv`. Evaluation never skips samples.
        check: Check the header of every file before training, and decode as many training masks as needed to find
            every class, see `check_headers` and `check_classes`.
        prepared: Folder of decoded samples from `crosscoop prepare-data`, of which a crop reads only the part that it
            needs. Splits that are missing there are read from the original files.
        seed: Seed of order and augmentation; set by seed_everything on the command line.

    Raises:
        CrosscoopError: An option is out of range, or the data set lacks class names or colours.

    Attributes:
        trainer: Lightning's trainer, of a `SegmentationData` in use; otherwise None.
    """

    trainer: "Trainer | None" = None

    def __init__(
        self,
        dataset: SegmentationDataset = Streets(),  # noqa: B008
        batch_size: int = 6,
        eval_batch_size: int = 1,
        num_workers: int = 2,
        crop_size: int = 513,
        scale: tuple[float, float] = (0.5, 2.0),
        flip: bool = True,
        photometric: bool = False,
        transforms: Sequence[str | dict[str, Any]] = (),
        crop: bool = True,
        balance: bool = False,
        unlabelled: float | str | None = None,
        unlabelled_ratio: float = 1.0,
        strong: bool = False,
        cutmix: float = 0.0,
        resize: tuple[int, int] | None = None,
        resize_masks: bool = False,
        center_crop: int | None = None,
        skip_bad_samples: bool = False,
        check: bool = True,
        prepared: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for option, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("crop_size", crop_size, 1),
            ("center_crop", 1 if center_crop is None else center_crop, 1),
            ("resize", 1 if resize is None else min(resize), 1),
        ):
            if value < least:
                raise CrosscoopError(f"data.{option}: got {value}, expected at least {least}.")
        if not 0 < scale[0] <= scale[1]:
            raise CrosscoopError(f"data.scale: got {list(scale)}, expected [smallest, largest], both above 0.")
        if not 0 <= unlabelled_ratio < float("inf"):
            raise CrosscoopError(f"data.unlabelled_ratio: got {unlabelled_ratio}, expected 0 or more.")
        if not 0 <= cutmix <= 1:
            raise CrosscoopError(f"data.cutmix: got {cutmix}, expected a probability from 0 to 1.")
        if unlabelled is not None and batch_size < 2:
            raise CrosscoopError(
                f"data.batch_size: got {batch_size}, expected at least 2, one labelled crop and one unlabelled."
            )
        if strong and unlabelled is None:
            raise CrosscoopError(
                "data.strong: got true without data.unlabelled; it distorts unlabelled images. Set data.unlabelled, or "
                "data.photometric for labelled images."
            )
        self.unlabelled, self.unlabelled_ratio, self.strong, self.cutmix = unlabelled, unlabelled_ratio, strong, cutmix
        check_palette(dataset)
        self.dataset = dataset
        if not (crop or transforms):
            raise CrosscoopError(
                "data.crop: got false without data.transforms, expected transforms that make crops of data.crop_size."
            )
        self.transforms, self.crop, self.balance = transforms, crop, balance
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.crop_size, self.scale, self.flip, self.photometric = crop_size, scale, flip, photometric
        self.skip_bad_samples, self.check = skip_bad_samples, check
        self.resize, self.resize_masks, self.center_crop = resize, resize_masks, center_crop
        self.prepared, self.seed = prepared, seed

    def protocol(self, split: str, num_images: int) -> dict[str, Any]:
        """Return how metrics are measured on a number of images of a split, to accompany every result."""
        region = f"centre crop {self.center_crop}" if self.center_crop else "whole images"
        size = "at their own size"
        if self.resize:
            masks = "with their masks" if self.resize_masks else "but masks at their own size"
            size = f"resized to {self.resize[0]} x {self.resize[1]}, {masks}"
        return {
            "dataset": type(self.dataset).__name__,
            "split": split,
            "num_images": num_images,
            "official_num_images": self.dataset.official_sizes.get(split),
            "evaluation": f"{region} {size}",
        }

    def prepare_data(self) -> None:
        """Prepare the data on disk and, before training, check all files; once per machine."""
        self.dataset.prepare()
        if self.trainer and self.trainer.state.fn == "fit":
            self._transforms()
            if self.check:
                self._check()

    def look_up(self, *splits: str) -> None:
        """Look for the files of splits, before anything that takes long.

        Raises:
            CrosscoopError: The data set's folder does not exist, or files of a split are missing.
        """
        self.dataset.prepare()
        root = getattr(self.dataset, "root", None)
        if isinstance(root, str) and not Path(root).expanduser().is_dir():
            raise CrosscoopError(
                f"data.dataset.root: got {root}, which is not a folder, expected the one with the data of "
                f"{type(self.dataset).__name__}. Correct it with --data.dataset.root FOLDER."
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # repeated when the data is used
            for split in splits:
                self.samples(split, self.skip_bad_samples and split == self.dataset.train_split)

    def train_dataloader(self) -> DataLoader[Item]:
        """Return a loader of augmented crops of the training split, and of unlabelled images."""
        labelled, unlabelled = self._training_samples()
        augmentation = Augmentation(
            self.crop_size, self.scale, self.flip, self.photometric, self.strong, self.cutmix, self._transforms()
        )
        classes = self.dataset.num_classes
        balance = ClassBalance(count_classes(labelled, classes)) if self.balance else None
        training_set = TrainingSet(
            [*labelled, *unlabelled], augmentation, self.resize, self.seed, classes, self.skip_bad_samples,
            len(labelled), balance,
        )  # fmt: skip
        sampler: TrainingSampler | MixedSampler = TrainingSampler(training_set, *self._world(), self.seed)
        if unlabelled:
            share = round(self.batch_size / (1 + self.unlabelled_ratio))
            share = min(max(share, 1), self.batch_size - 1)
            sampler = MixedSampler(len(labelled), len(unlabelled), self.batch_size, share, *self._world(), self.seed)
        full = len(sampler) >= self.batch_size
        return self._loader(training_set, self.batch_size, sampler, drop_last=full)

    def val_dataloader(self) -> DataLoader[Item]:
        """Return a loader of the validation split."""
        return self._evaluation_loader(self.dataset.val_split)

    def test_dataloader(self) -> DataLoader[Item]:
        """Return a loader of the test split."""
        return self._evaluation_loader(self.dataset.test_split)

    def labelled_samples(self) -> Sequence[Sample]:
        """Return the samples of the training split whose masks are used."""
        return self._training_samples()[0]

    def evaluation_set(self, split: str) -> EvaluationSet:
        """Return a split's samples as they are evaluated."""
        return EvaluationSet(
            self.samples(split), self.resize, self.center_crop, self.dataset.num_classes, self.resize_masks
        )

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Convert images to RGB in [0, 1] and masks to int64 on the device, because bytes are faster to transfer."""
        views: dict[str, Any] = {key: batch[key].float() / 255 for key in ("image", "weak") if key in batch}
        batch = {**batch, **views, "mask": batch["mask"].long()}
        if "box" in batch:
            mixed = {key: cutmix(batch[key], batch["box"]) for key in ("image", "mask")}
            batch = {"weak": batch["image"], **batch, **mixed}
        return batch

    def _transforms(self) -> Transforms | None:
        if not self.transforms:
            return None
        transforms = Transforms(self.transforms, self.crop_size, whole=not self.crop)
        transforms.check()
        return transforms

    def _training_samples(self) -> tuple[Sequence[Sample], Sequence[Sample]]:
        samples = self.samples(self.dataset.train_split, self.skip_bad_samples)
        root = getattr(self.dataset, "root", None)
        labelled, unlabelled = divide(samples, self.unlabelled, self.seed, root and Path(root).expanduser())
        return labelled, unlabelled if self.unlabelled_ratio else []

    def samples(self, split: str, skip_missing: bool = False) -> Sequence[Sample]:
        """Return the samples of a split, decoded ones if `prepared` has them.

        Args:
            split: The split.
            skip_missing: Whether missing files are left to those who read the samples.

        Raises:
            CrosscoopError: The split is unknown or empty, or its files are missing.
        """
        samples: Sequence[Sample]
        try:
            samples = self.dataset.samples(split)
        except MissingFilesError as error:
            if not skip_missing:
                raise
            samples = error.samples
        official = self.dataset.official_sizes.get(split, len(samples))
        if not samples:
            raise CrosscoopError(
                f"data.dataset: split {split!r} of {type(self.dataset).__name__} is empty, expected at least one "
                "sample. Correct the split."
            )
        if len(samples) != official:
            warnings.warn(
                f"Split {split!r} of {type(self.dataset).__name__} has {len(samples)} images, the official one "
                f"{official}: results on it are not comparable with published ones.",
                stacklevel=2,
            )
        return samples if self.prepared is None else prepared_samples(Path(self.prepared), split, samples)

    def _check(self) -> None:
        """Raise an error for faults that a quick check finds, except in training samples that are skipped anyway.

        Raises:
            CrosscoopError: There are faults.
        """
        train, val = self.dataset.train_split, self.dataset.val_split
        splits = {train: self.samples(train, self.skip_bad_samples), val: self.samples(val)}
        labelled, unlabelled = self._training_samples()
        if further := [sample for sample in unlabelled if isinstance(sample, ImageSample)]:
            splits["data.unlabelled"] = further
        faults = check_headers(splits)
        if not faults or self.skip_bad_samples:
            unseen, warning = check_classes(train, labelled, self.dataset.class_names)
            faults += unseen
            if warning:
                warnings.warn(warning, stacklevel=2)
        if self.skip_bad_samples:
            faults = [fault for fault in faults if fault.splits != [train] or not fault.files]
        if faults:
            raise CrosscoopError(
                f"data.dataset: got {len(faults)} faults, expected none:\n"
                + "\n".join(f"- {fault.message}" for fault in faults[:3])
                + ("\n- ..." if len(faults) > 3 else "")
                + "\ncrosscoop check-data lists all of them; data.skip_bad_samples skips training samples that cannot "
                "be used; data.check: false disables this check."
            )

    def _world(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _evaluation_loader(self, split: str) -> DataLoader[Item]:
        evaluation_set = self.evaluation_set(split)
        world_size, rank = self._world()
        if len(evaluation_set) < world_size:
            raise CrosscoopError(
                f"Split {split!r} has {len(evaluation_set)} images for {world_size} processes; expected at least one "
                "per process. Reduce trainer.devices or trainer.num_nodes."
            )
        sampler = EvaluationSampler(evaluation_set, world_size, rank)
        return self._loader(evaluation_set, self.eval_batch_size, sampler, drop_last=False)

    def _loader(
        self, dataset: TrainingSet | EvaluationSet, batch_size: int, sampler: Sampler[Any], drop_last: bool
    ) -> DataLoader[Item]:
        loader = TrainingLoader if isinstance(dataset, TrainingSet) else DataLoader
        return loader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            drop_last=drop_last,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=undisturbed,
        )


def undisturbed(worker: int) -> None:
    """Ignore signals to the process group in a worker; the main process ends its workers itself."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def end_workers() -> None:
    """Kill workers that remain after an error: multiprocessing would send SIGTERM, which they ignore, and wait."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def collate(items: Sequence[Item]) -> Any:
    """Stack items of equal size into a batch.

    Raises:
        CrosscoopError: Their sizes differ.
    """
    for key in ("image", "mask"):
        sizes = {tuple(item[key].shape[-2:]) for item in items}
        if len(sizes) > 1:
            raise CrosscoopError(
                f"A batch contains {key}s of different sizes: {sorted(sizes)}; expected one size. Set "
                "data.eval_batch_size to 1, or set data.center_crop, or data.resize with data.resize_masks."
            )
    skipped = [fault for item in items for fault in item.get("skipped", [])]
    batch = default_collate([{key: value for key, value in item.items() if key != "skipped"} for item in items])
    return {**batch, "skipped": skipped} if skipped else batch


def open_data(config: dict[str, Any], root: str | None = None) -> SegmentationLoaders:
    """Return the data that a configuration describes.

    Args:
        config: The configuration of a command.
        root: A folder that replaces the data set's.

    Raises:
        CrosscoopError: The configuration does not describe any data, or the data cannot be opened.
    """
    parser = ArgumentParser(exit_on_error=False)  # it modifies the object that it parses
    parser.add_class_arguments(SegmentationLoaders, "data")
    try:
        options = deepcopy(config["data"])
        if root is not None:
            options["dataset"].setdefault("init_args", {})["root"] = root
        data: SegmentationLoaders = parser.instantiate(parser.parse_object({"data": options})).data
    except (ArgumentError, KeyError, TypeError) as error:
        raise CrosscoopError(f"The configuration does not describe usable data ({error}).") from error
    return data
