"""Random images, masks, options and command lines: right results or our errors, and nothing else.

A few cases each by default; with `FUZZ=1000` in the environment, so many of each, and others in every run."""

import importlib
import inspect
import os
import re
import shlex
import shutil
import sys
import traceback
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from faulty import write
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from tiny import DATA, NETWORK, QUIET, STREETS, count, crosscoop

from crosscoop import Predictor, create_network
from crosscoop.cli import COMMANDS, main
from crosscoop.commands.options import make_parser, spelled
from crosscoop.commands.predict import predict
from crosscoop.data.augment import Augmentation
from crosscoop.data.dataset import VOID, colormap
from crosscoop.data.images import read_image, read_mask, write_mask
from crosscoop.data.pipeline import EvaluationSet, TrainingSet
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.boundary import BoundaryIoU
from crosscoop.evaluation.scores import Scores, count_pairs

CASES = int(os.environ.get("FUZZ", "0"))
"""How many cases of each kind; 0 for a few, the same in every run."""


def fuzz(few: int):
    """So many cases by default."""
    return settings(
        max_examples=CASES or few, derandomize=not CASES, deadline=None, database=None,
        phases=[Phase.generate, Phase.shrink] if CASES else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
seeds = st.integers(0, 2**32 - 1)


def noise(seed, shape, values=256, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, values, shape, dtype)


# -- images and masks

MODES = {"L": "png", "LA": "png", "P": "png", "RGB": "png", "RGBA": "png", "1": "png", "I;16": "png", "CMYK": "jpg",
         "YCbCr": "jpg", "F": "tif", "I": "tif", "LAB": "tif"}  # fmt: skip


def picture(mode, size, seed):
    if mode == "I;16":
        return Image.fromarray(noise(seed, size, 2**16, np.uint16))
    if mode in ("F", "I"):
        return Image.fromarray(noise(seed, size, 2**17, np.int32).astype(np.float32 if mode == "F" else np.int32))
    if mode == "P":
        image = Image.fromarray(noise(seed, size))
        image.putpalette(noise(seed, 768).tobytes())
        return image
    if mode == "LAB":
        return Image.frombytes("LAB", size[::-1], noise(seed, (*size, 3)).tobytes())
    return Image.fromarray(noise(seed, (*size, 3))).convert(mode)


@fuzz(60)
@given(st.sampled_from(sorted(MODES)), sizes, st.integers(0, 9), seeds)
def test_images_of_any_mode_size_and_orientation(mode, size, orientation, seed):
    image, exif = picture(mode, size, seed), Image.Exif()
    exif[0x0112] = orientation
    path = Path(f"image.{MODES[mode]}")
    try:
        image.save(path, exif=exif)
    except OSError:  # PIL cannot write it
        return
    try:
        found = read_image(path)
    except CrosscoopError as error:
        assert mode in ("F", "I", "LAB") and str(path) in str(error)
        return
    upright = ImageOps.exif_transpose(Image.open(path))
    assert found.shape == (*upright.size[::-1], 3) and found.dtype == np.uint8
    if mode == "I;16":
        np.testing.assert_array_equal(found[..., 0], np.asarray(upright) >> 8)
    elif mode != "I":
        np.testing.assert_array_equal(found, np.asarray(upright.convert("RGB")))


@fuzz(60)
@given(st.sampled_from(sorted(MODES)), sizes, st.integers(1, 254), st.integers(1, 256), seeds)
def test_masks_of_any_mode_and_values(mode, size, num_classes, values, seed):
    labels = noise(seed, size, values)
    image = Image.fromarray(labels) if mode in ("L", "P") else picture(mode, size, seed)
    if mode == "P":
        image.putpalette(noise(seed, 768).tobytes())
    path = Path(f"mask.{MODES[mode]}")
    image.save(path)
    pixels = np.atleast_3d(np.asarray(image)).astype(int)
    opaque = not mode.endswith("A") or (pixels[..., -1] == 255).all()
    colors = pixels[..., :-1] if mode.endswith("A") else pixels
    grey = mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16") and (colors == colors[..., :1]).all()
    values = colors[..., 0]
    right = opaque and grey and (((values >= 0) & (values < num_classes)) | (values == VOID)).all()
    try:
        np.testing.assert_array_equal(read_mask(path, num_classes), values)
    except CrosscoopError as error:
        assert not right and str(path) in str(error)
    else:
        assert right


@fuzz(100)
@given(
    st.sampled_from(["png", "jpg", "gif", "bmp", "tif", "webp", "ppm"]), sizes, seeds,
    st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from(["cut", "flip", "drop", "insert"]), st.binary(min_size=1)),
        min_size=1, max_size=4,
    ),
)  # fmt: skip
def test_damaged_files_are_read_or_refused(suffix, size, seed, wounds):
    buffer = BytesIO()
    Image.fromarray(noise(seed, size)).save(buffer, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
    content = buffer.getvalue()
    for where, what, junk in wounds:
        at = int(where * len(content))
        end = at if what == "insert" else at + len(junk)
        content = (
            content[:at] + (junk if what in ("flip", "insert") else b"") + (b"" if what == "cut" else content[end:])
        )
    path = Path(f"damaged.{suffix}")
    path.write_bytes(content)
    for read, dimensions in ((read_image, 3), (lambda path: read_mask(path, 7), 2)):
        try:
            array = read(path)
        except CrosscoopError as error:
            assert str(path) in str(error)
        else:
            assert array.dtype == np.uint8 and array.ndim == dimensions


@fuzz(30)
@given(sizes, st.integers(1, 254), seeds)
def test_masks_are_read_as_they_were_written(size, num_classes, seed):
    mask = noise(seed, size, num_classes)
    mask[noise(seed + 1, size) < 50] = VOID
    write_mask(Path("written.png"), mask, colormap(num_classes))
    np.testing.assert_array_equal(read_mask(Path("written.png"), num_classes), mask)


# -- from samples to batches


class Drawn:
    """A sample of noise, whose mask may be of another size."""

    name = "drawn"

    def __init__(self, size, mask_size, values, seed):
        self.arrays = noise(seed, (*size, 3)), noise(seed, mask_size, values)

    def image(self):
        return self.arrays[0]

    def mask(self):
        return self.arrays[1]


@fuzz(60)
@given(
    sizes, st.one_of(st.none(), sizes), st.integers(1, 9), st.integers(1, 50), st.floats(0.01, 3), st.floats(1, 2),
    st.one_of(st.none(), sizes), st.one_of(st.none(), st.integers(1, 50)), st.booleans(), st.booleans(), seeds,
)  # fmt: skip
def test_samples_of_any_size_become_crops(
    size, mask_size, values, crop_size, low, factor, resize, center_crop, flip, photometric, seed
):
    sample, num_classes = Drawn(size, mask_size or size, values, seed), 7
    augmentation = Augmentation(crop_size, (low, low * factor), flip, photometric)
    training = TrainingSet([sample], augmentation, resize, seed, num_classes)
    evaluation = EvaluationSet([sample], resize, center_crop, num_classes, resize_masks=center_crop is not None)
    square = (center_crop,) * 2 if center_crop else None
    expected = {"training": [(crop_size,) * 2] * 2, "evaluation": [square or resize or size, square or size]}
    for name, draw in (("training", lambda: training[0, 3]), ("evaluation", lambda: evaluation[0])):
        try:
            item = draw()
        except CrosscoopError as error:
            assert sample.name in str(error)
            assert (mask_size or size) != size or sample.arrays[1].max() >= num_classes
            continue
        assert (mask_size or size) == size
        assert [item["image"].shape[1:], item["mask"].shape] == expected[name]
        assert set(item["mask"].unique().tolist()) <= {*sample.arrays[1].ravel().tolist(), VOID}
        assert item["mask"].unique().tolist()[-1] in (*range(num_classes), VOID)


# -- figures


@fuzz(60)
@given(
    sizes, st.integers(1, 30), seeds,
    st.sampled_from([torch.uint8, torch.int16, torch.int32, torch.int64]),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
)  # fmt: skip
def test_figures_are_those_of_a_count_by_hand(size, num_classes, seed, dtype, strange):
    generator, limits = np.random.default_rng(seed), torch.iinfo(dtype)
    pool = [value for value in (*range(num_classes), VOID, *strange) if limits.min <= value <= limits.max]
    mask, labels = (np.array(pool)[generator.integers(0, len(pool), size)] for _ in range(2))
    tensors = [torch.tensor(each).to(dtype) for each in (labels, mask)]
    counts = count_pairs(*tensors, num_classes)
    classes = (mask >= 0) & (mask < num_classes)
    inside = classes & (labels >= 0) & (labels < num_classes)
    np.testing.assert_array_equal(counts[:, :-1], count(labels[inside], mask[inside], num_classes)
                                  if inside.any() else np.zeros((num_classes, num_classes)))  # fmt: skip
    assert int(counts[:, -1].sum()) == int((classes & ~inside).sum())
    scores = Scores(counts, [str(index) for index in range(num_classes)])
    ious = []
    for index in range(num_classes):
        union = classes & ((mask == index) | (labels == index))
        ious += [(union & (mask == labels)).sum() / union.sum()] if union.any() else []
    assert scores.miou == pytest.approx(np.mean(ious) if ious else np.nan, nan_ok=True)
    boundary = BoundaryIoU(num_classes)
    boundary.update(tensors[0][None], tensors[1][None])
    intersection, union = boundary.counts
    assert (intersection >= 0).all() and (intersection <= union).all() and union.sum() <= 2 * classes.sum()


# -- the network


@pytest.fixture(scope="module")
def predictor():
    network = create_network(["test_resnet", "test_byobnet"], 5, channels=16, separable=True)
    return Predictor(network, list("abcde"), colormap(5), device="cpu")


@fuzz(15)
@given(st.sampled_from(["L", "LA", "P", "RGB", "RGBA", "1", "CMYK", "I;16"]), sizes, seeds)
def test_predictions_are_of_the_size_of_any_image(predictor, mode, size, seed):
    prediction = predictor(picture(mode, size, seed))
    assert prediction.labels.shape == size and prediction.labels.max() < 5
    assert np.isfinite(prediction.probabilities).all()
    np.testing.assert_allclose(prediction.probabilities.sum(0), 1, rtol=1e-4)


# -- options and command lines

VALUES = shlex.split("""
    -1 0 1 2 3 0.5 -0.5 1.5 1e-9 .nan .inf '' x null true [] [1] '[2, 3]' '[0.5, 1]' '[-1, 2]' {} '{a: 1}' none ünï
    ../.. a.b os.path '[[1, 2], [3]]' [null] !!x { "'" max val/miou %d '{class_path: x}' '{class_path: torch.nn.ReLU}'
    collections.OrderedDict
""")

UNUSED = ("devices", "num_nodes", "strategy", "accelerator", "fast_dev_run", "profiler", "max_time", "plugins")
"""Options of the trainer that start processes, or need hardware."""


def run(words):
    """A command's exit code, in a process of its own: what a run leaves behind must not reach the next one."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            main(words)
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 98
        except BaseException:
            Path("traceback.txt").write_text(traceback.format_exc())
        finally:
            sys.stdout.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code != 99, f"{shlex.join(words)}\n{Path('traceback.txt').read_text()}"
    return code


@cache
def options_of_fit():
    """Every option of `fit`, by its name on the command line."""
    buffer = Path("options.yaml")
    with buffer.open("w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", file)
        run(["fit", *NETWORK, *DATA, *QUIET, "--print_config"])
    names = []

    def walk(content, prefix):
        for key, value in content.items():
            names.append(f"{prefix}{key}")
            if isinstance(value, dict):
                walk(value.get("init_args", value), f"{prefix}{key}.")

    walk(yaml.safe_load(buffer.read_text()), "")
    return [name for name in names if name.removeprefix("trainer.").partition(".")[0] not in UNUSED and name != "run"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with data and a trained run."""
    folder = tmp_path_factory.mktemp("fuzz")
    write(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(["fit", *NETWORK, *DATA, *QUIET, "--trainer.max_epochs", "1", "--run", "trained"]) == 0
        yield folder


@pytest.fixture(autouse=True)
def _there(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("WANDB_MODE", "offline")


@fuzz(6)
@given(st.data())
def test_any_value_of_any_option_of_fit(data):
    names = options_of_fit()
    assert len(names) > 80
    chosen = data.draw(st.lists(st.tuples(st.sampled_from(names), st.sampled_from(VALUES)), min_size=1, max_size=2))
    shutil.rmtree("fuzzed", ignore_errors=True)
    words = [*NETWORK, *DATA, *QUIET, "--trainer.max_epochs", "1", "--run", "fuzzed"]
    assert run(["fit", *words, *(f"--{name}={value}" for name, value in chosen)]) in (0, 2)


KEYS = ["data", "network", "model", "trainer", "dataset", "class_path", "init_args", "root", "branches", "x"]
CONTENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=5) | st.sampled_from(VALUES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=8,
)


@fuzz(4)
@given(
    CONTENTS,
    st.sampled_from(
        ["fit", "score --predictions .", "check-data --workers 0", "submit --predictions . --output x.zip"]
    ),
)
def test_any_yaml(content, command):
    Path("fuzz.yaml").write_text(yaml.safe_dump(content))
    words = shlex.split(command)
    if command == "fit":
        words += [*NETWORK, *DATA, *QUIET, "--trainer.max_epochs=0", "--run", "fuzzed"]
        shutil.rmtree("fuzzed", ignore_errors=True)
    assert run([words[0], "--config", "fuzz.yaml", *words[1:]]) in (0, 1, 2)


FLAGS = shlex.split("""
    --run --ckpt-path --branch --config --images --output --save --predictions --split --label-ids --data --metrics
    --show --workers --overwrite --own-size --device --resume --data.dataset --num-images --data.dataset.root
    --inference.window --root --inference.scales --inference.flip --sbd --competition --network.strategy
    --data.center_crop --help -h -- -x --runs
""")
WORDS = [
    *VALUES,
    *shlex.split("""
    trained trained/best.ckpt trained/config.yaml data data/data.yaml data/images data/masks/val nowhere CamVid Folder
    PascalVOC data/images/val/val0.jpg out out.zip val test cpu
"""),
]
BASES = {
    "validate": "--run trained", "test": "--run trained", "predict": "--run trained --images data/images",
    "score": "--predictions data/masks/val --config data/data.yaml",
    "check-data": "--config data/data.yaml --workers 0",
    "submit": "--predictions data/masks/val --config data/data.yaml --output out.zip", "report": "trained",
}  # fmt: skip
"""Options that most commands can run with."""


@fuzz(12)
@given(
    st.sampled_from([name for name in COMMANDS if name not in ("fit", "push", "demo")]),
    st.booleans(),
    st.lists(st.tuples(st.sampled_from(FLAGS), st.none() | st.sampled_from(WORDS)), max_size=4),
)
def test_any_command_line(command, complete, options):
    words = [word for flag, value in options for word in ([flag] if value is None else [flag, value])]
    base = shlex.split(BASES.get(command, "")) if complete else []
    assert run([command, *base, *words]) in (0, 1, 2)


def test_the_drawn_options_exist():
    assert STREETS.num_classes == 12
    assert {"data.batch_size", "network.strategy", "trainer.precision", "checkpoint.monitor"} <= set(options_of_fit())


# -- commands and options: one style, one line for each mistake

OWN = [name for name, (_, summary) in COMMANDS.items() if name not in ("fit", "validate", "test")]


def function_of(command):
    module, _, name = COMMANDS[command][0].partition(":")
    return predict if name == "main" else getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("command", OWN)
def test_commands_and_their_options_are_in_kebab_case_and_flags_are_flags(command):
    assert re.fullmatch("[a-z-]+", command)
    function = function_of(command)
    assert function.__module__ == f"crosscoop.commands.{command.replace('-', '_')}"
    actions = {option: action for action in make_parser(function, command)._actions for option in action.option_strings}
    assert [option for option in actions if "_" in option.partition(".")[0]] == []
    for name, parameter in inspect.signature(function).parameters.items():
        if isinstance(parameter.default, bool):
            assert parameter.default is False and actions[f"--{name.replace('_', '-')}"].nargs == 0
    assert [option for option, action in actions.items() if not action.help and "." not in option] == []


def test_options_may_be_spelled_either_way():
    words = ["--dry_run", "--own-size", "--data.crop-size=3", "--ckpt_path=a_b-c.ckpt", "a_b", "-x", "--a-b.c-d"]
    assert [spelled(word) for word in words] == (
        ["--dry-run", "--own-size", "--data.crop_size=3", "--ckpt-path=a_b-c.ckpt", "a_b", "-x", "--a_b.c_d"]
    )
    assert (
        spelled("--ckpt-path", "_") == "--ckpt_path" and spelled("--last.every-n-steps", "_") == "--last.every_n_steps"
    )


@pytest.mark.parametrize(
    "command, options, message",
    [
        ("prepare_data", "", "Did you mean prepare-data?"),
        ("ablate", "--runs x --dry-rum", "unrecognized arguments: --dry-rum (did you mean --dry-run?)"),
        ("ablate", "--runs x --dry-run true", "unrecognized arguments: true"),
        ("ablate", "--runs x --workers two", "workers"),
        ("ablate", "", "required: runs"),
        ("report", "", "required: runs"),
        ("report", "x --num-images -1", "--num-images: got -1"),
        ("fit", "--trainer.max_epocs 3", "--trainer.max_epocs 3 (did you mean --trainer.max_epochs?)"),
        ("test", "--ckpt-path nowhere.ckpt", "no checkpoint nowhere.ckpt"),
    ],
)
def test_a_mistake_is_one_line(capsys, command, options, message):
    with pytest.raises(SystemExit, match="2"):
        crosscoop(command, options)
    said = capsys.readouterr().err
    assert message in said and said.startswith("crosscoop: error: ") and "Traceback" not in said
    assert len(said.splitlines()) == 1 or (command == "ablate" and "--workers" in options)
