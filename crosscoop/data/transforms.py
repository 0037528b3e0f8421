"""albumentations' transforms from a configuration: seeded per sample, and checked on a probe before training."""

import importlib
import inspect
import os
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from typing import Any

import numpy as np

from crosscoop.data.dataset import VOID, Array
from crosscoop.errors import CrosscoopError
from crosscoop.files import shorten

PROBES = 8
"""Number of draws in which a transform is tried before training."""


class Transforms:
    """Transforms of image and mask, applied in order.

    Regions that a transform fills become void in the mask; albumentations would fill them with class 0.

    Args:
        entries: Each a name of albumentations, `{class_path: NAME, init_args: {...}}`, where `transforms` of OneOf and
            the like are such entries again, or an object.
        size: Height and width of the crops.
        whole: Whether the transforms receive whole images, of which they make the crops.

    Raises:
        CrosscoopError: A transform does not exist, or does not accept its arguments.
    """

    def __init__(self, entries: Sequence[Any], size: int, whole: bool = False) -> None:
        self.size, self.whole = size, whole
        made = [deepcopy(make(entry)) for entry in entries]
        for each in (leaf for transform in made for leaf in _within(transform)):
            if getattr(each, "fill_mask", None) is not None:
                each.fill_mask = VOID
        self.names = [type(each).__name__ for each in made]
        self.steps = [albumentations().Compose([each]) for each in made]

    def __call__(self, image: Array, mask: Array, seed: Sequence[int]) -> tuple[Array, Array]:
        """Transform a sample.

        Args:
            image: `(H, W, 3)`.
            mask: `(H, W)`.
            seed: Integers that alone determine the draw, independently of worker and rank.

        Raises:
            CrosscoopError: A transform fails, or returns something other than an image and a mask of this kind.
        """
        seeds = np.random.default_rng((*seed, 3)).integers(2**32, size=len(self.steps))
        for name, step, number in zip(self.names, self.steps, seeds, strict=True):
            step.set_random_seed(int(number))
            image, mask = self._apply(name, step, image, mask)
        if mask.shape != (self.size, self.size):  # `whole`: others are checked one by one
            raise CrosscoopError(
                f"data.transforms: got crops of {mask.shape[0]} x {mask.shape[1]} pixels from {', '.join(self.names)}, "
                f"expected {self.size} x {self.size} (data.crop_size). End with RandomCrop or RandomResizedCrop of "
                "this size, or set data.crop to true."
            )
        return image, mask

    def check(self) -> None:
        """Try each transform, as if its probability were 1, on a generated sample.

        Raises:
            CrosscoopError: A transform fails, changes the size or the mask's values, or is not determined by the seed.
        """
        shape = (2 * self.size, 3 * self.size) if self.whole else (self.size, self.size)
        random = np.random.default_rng(0)
        sides = [-(-side // 8) for side in shape]
        image = random.integers(0, 256, (*sides, 3), np.uint8).repeat(8, 0).repeat(8, 1)[: shape[0], : shape[1]]
        mask = random.choice([100, 200, VOID], sides).astype(np.uint8).repeat(8, 0).repeat(8, 1)[: shape[0], : shape[1]]
        certain = Transforms([_certain(step.transforms[0]) for step in self.steps], self.size, self.whole)
        for seed in range(PROBES):
            first, second = (certain(image, mask, (seed,)) for _ in range(2))
            if not all(np.array_equal(*pair) for pair in zip(first, second, strict=True)):
                raise CrosscoopError(
                    f"data.transforms: got two results for one seed from {', '.join(self.names)}, expected one. Draw "
                    "random numbers only from a transform's own generators (self.random_generator, self.py_random)."
                )

    def _apply(self, name: str, step: Any, image: Array, mask: Array) -> tuple[Array, Array]:
        try:
            result = step(image=np.ascontiguousarray(image), mask=np.ascontiguousarray(mask))
        except Exception as error:  # a transform may raise anything
            raise CrosscoopError(
                f"data.transforms: {name} fails on an image of {mask.shape[0]} x {mask.shape[1]} pixels "
                f"({type(error).__name__}: {' '.join(str(error).split())}). It receives an image and a mask, and "
                "nothing else; correct its arguments, or leave it out."
            ) from error
        changed, labels = np.asarray(result["image"]), np.asarray(result["mask"])
        if changed.dtype != np.uint8 or changed.ndim != 3 or changed.shape[2] != 3:
            raise CrosscoopError(
                f"data.transforms: got an image of shape {changed.shape} and type {changed.dtype} from {name}, "
                "expected (H, W, 3) uint8. Leave it out: each branch normalises its input itself."
            )
        size = changed.shape[:2]
        if labels.shape != size or not (self.whole or size == mask.shape):
            raise CrosscoopError(
                f"data.transforms: {name} changes the size, from {mask.shape[0]} x {mask.shape[1]} to an image of "
                f"{size[0]} x {size[1]} and a mask of {' x '.join(map(str, labels.shape))} pixels. Leave it out, or "
                "set data.crop to false and let the transforms make the crops."
            )
        new = (
            set(np.flatnonzero(_occur(labels) & ~_occur(mask)).tolist()) - {VOID}
            if _is_mask(labels)
            else {labels.dtype}
        )
        if new:
            raise CrosscoopError(
                f"data.transforms: {name} writes {shorten(sorted(new, key=str))} into the mask, which it did not "
                f"contain; expected only the mask's own labels, or void ({VOID}). Set its mask_interpolation to 0 "
                "(nearest), or leave it out."
            )
        return changed, labels.astype(np.uint8)


def make(entry: Any) -> Any:
    """Return the transform that an entry of a configuration describes.

    Args:
        entry: See `Transforms`.

    Raises:
        CrosscoopError: It does not exist, or does not accept its arguments.
    """
    if isinstance(entry, str):
        entry = {"class_path": entry}
    if not isinstance(entry, Mapping):
        return entry
    if "class_path" not in entry or set(entry) - {"class_path", "init_args"}:
        raise CrosscoopError(
            f"data.transforms: got {dict(entry)}, expected class_path and, optionally, init_args, such as "
            "{class_path: CLAHE, init_args: {p: 0.2}}."
        )
    kind, given = _find(str(entry["class_path"])), dict(entry.get("init_args") or {})
    parameters = inspect.signature(kind).parameters
    unknown = [name for name in given if name not in parameters]
    if unknown and not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        raise CrosscoopError(
            f"data.transforms: got {shorten(unknown)} for {kind.__name__}, expected some of {', '.join(parameters)}."
        )
    try:
        return kind(**{name: [make(each) for each in value] if name == "transforms" else value
                       for name, value in given.items()})  # fmt: skip
    except (TypeError, ValueError) as error:
        raise CrosscoopError(
            f"data.transforms: {kind.__name__} does not accept {given} ({' '.join(str(error).split())}). Correct its "
            "init_args."
        ) from error


def _find(name: str) -> type[Any]:
    library = albumentations()
    base = library.BasicTransform | library.BaseCompose
    known = {key: each for key, each in vars(library).items() if isinstance(each, type) and issubclass(each, base)}
    try:
        found = known.get(name) or pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        near = get_close_matches(name.rpartition(".")[2].lower(), {key.lower(): key for key in known}, 3)
        similar = [key for key in known if key.lower() in near]
        raise CrosscoopError(
            f"data.transforms: {name!r} is not a transform of albumentations {library.__version__}"
            f"{f', unlike {shorten(similar)}' if similar else ''}, and cannot be imported ({error}). Expected a name "
            "such as CLAHE, or the class path of your own."
        ) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise CrosscoopError(f"data.transforms: {name!r} is {found!r}, expected a subclass of BasicTransform.")
    return found


def _certain(transform: Any) -> Any:
    """Return a copy of a transform in which every probability is 1."""
    copy = deepcopy(transform)
    for each in _within(copy):
        each.p = 1.0
    return copy


def _within(transform: Any) -> Iterator[Any]:
    """Yield a transform and all that it consists of."""
    yield transform
    for each in getattr(transform, "transforms", ()):
        yield from _within(each)


def _is_mask(labels: Array) -> bool:
    return bool(np.issubdtype(labels.dtype, np.integer) and labels.min() >= 0 and labels.max() <= VOID)


def _occur(labels: Array) -> Any:
    """Return for each of 256 values whether it occurs."""
    return np.bincount(labels.ravel(), minlength=VOID + 1) > 0


def albumentations() -> Any:
    """Return the module; it is no longer maintained, and therefore used only in this room."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise it checks for a newer version online
    return importlib.import_module("albumentations")  # slow
