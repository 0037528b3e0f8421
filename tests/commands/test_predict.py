"""`crosscoop predict`: files or a split in, files out."""

import json
import shutil
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny
from PIL import Image
from tiny import crosscoop

import crosscoop as package
from crosscoop import Predictor
from crosscoop.data import samples
from crosscoop.data.images import read_image
from crosscoop.evaluation.inference import Inference
from crosscoop.prediction.results import by_name, find_images

KINDS = "labels,colors,overlays,comparison,probabilities"
SCENES = [sample.image() for split in ("train", "test") for sample in tiny.STREETS.samples(split)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run; look, but do not touch."""
    folder = tmp_path_factory.mktemp("predict") / "run"
    tiny.fit(folder)
    return folder


@pytest.fixture(scope="module")
def predictor(run):
    return package.load(run / "best.ckpt")


@pytest.fixture
def photos(tmp_path):
    """Four images, one of them in a subfolder."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name, scene in zip(["a.png", "b.JPG", "c.webp", "sub/d.e.tif"], SCENES, strict=False):
        Image.fromarray(scene).save(folder / name)
    return folder


@pytest.fixture
def video(tmp_path):
    """A video of six frames, and its frames as they are decoded."""
    path = tmp_path / "films" / "street.1.avi"
    path.parent.mkdir()
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12.5, (64, 32))
    for scene in SCENES[:6]:
        writer.write(scene[..., ::-1])
    writer.release()
    capture = cv2.VideoCapture(str(path))
    return path, [capture.read()[1][..., ::-1] for _ in range(6)]


@pytest.fixture
def go(run, tmp_path, capsys):
    """Predicts into a folder; gives the exit code, and what was printed."""

    def go(images, *options, output=tmp_path / "out", run=run):
        place = ["--output", output] if output else []
        try:
            crosscoop("predict", "--run", run, "--images", Path(images), *place, *options)
            code = 0
        except SystemExit as end:
            code = end.code
        return code, "".join(capsys.readouterr())

    return go


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def labels(path):
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.array(image)


def stop_at(monkeypatch, count):
    """Presses Ctrl-C at a prediction."""
    calls, whole = [], Predictor.__call__

    def stop(self, image):
        calls.append(image)
        if len(calls) == count:
            raise KeyboardInterrupt
        return whole(self, image)

    monkeypatch.setattr(Predictor, "__call__", stop)


def test_labels_of_a_folder(go, predictor, photos, tmp_path):
    code, said = go(photos)
    assert code == 0 and "4 written, 0 skipped (already exist), 0 failed" in said and str(tmp_path / "out") in said
    assert names(tmp_path / "out") == [*(f"labels/{name}.png" for name in ("a", "b", "c", "sub/d.e")), "predict.json"]
    for name in ("a.png", "b.JPG", "c.webp", "sub/d.e.tif"):
        prediction = predictor(photos / name)
        path = (tmp_path / "out/labels" / name).with_suffix(".png")
        assert np.array_equal(labels(path), prediction.labels)
        with Image.open(path) as image:
            assert np.array_equal(np.array(image.convert("RGB")), np.array(predictor.palette)[prediction.labels])
    origin = json.loads((tmp_path / "out/predict.json").read_text())
    assert (
        origin["images"] == str(photos) and origin["protocol"] == predictor.describe() and predictor.describe() in said
    )


def test_every_kind(go, predictor, photos, tmp_path):
    assert go(photos, f"--save {KINDS}")[0] == 0
    assert len(names(tmp_path / "out")) == 1 + 5 * 4
    prediction = predictor(photos / "a.png")

    def picture(kind):
        return np.array(Image.open(tmp_path / "out" / kind / "a.png"))

    assert np.array_equal(picture("labels"), prediction.labels)
    assert np.array_equal(picture("colors"), np.array(predictor.palette)[prediction.labels])
    assert np.array_equal(picture("overlays"), np.array(prediction.draw()))
    assert np.array_equal(picture("comparison"), np.array(prediction.compare()))
    probabilities = np.load(tmp_path / "out/probabilities/a.npz")["probabilities"]
    assert probabilities.dtype == np.float16 and probabilities.shape == (12, 32, 64)
    assert np.allclose(probabilities.astype(float).sum(0), 1, atol=5e-3)
    assert np.allclose(probabilities, prediction.probabilities, atol=1e-3)


def test_formats(go, predictor, tmp_path):
    """Every file gives what its pixels as 8-bit RGB give, upright."""
    scene, folder = SCENES[0], tmp_path / "formats"
    folder.mkdir()
    image, exif = Image.fromarray(scene), Image.Exif()
    exif[0x0112] = 6  # a camera that was turned
    image.convert("L").save(folder / "grey.png")
    image.convert("RGBA").save(folder / "transparent.png")
    image.convert("CMYK").save(folder / "print.jpg")
    image.convert("P").save(folder / "palette.gif")
    Image.fromarray(scene[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=exif)
    assert go(folder)[0] == 0
    expected = {
        name: np.array(Image.open(folder / name).convert("RGB")) for name in names(folder) if "deep" not in name
    }
    expected["deep.png"] = np.stack([scene[..., 0]] * 3, axis=-1)
    expected["turned.jpg"] = np.rot90(expected["turned.jpg"], -1)
    assert len(expected) == 6
    for name, pixels in expected.items():
        assert pixels.shape == (32, 64, 3)
        assert np.array_equal(labels((tmp_path / "out/labels" / name).with_suffix(".png")), predictor(pixels).labels)


def test_one_file(go, photos, tmp_path):
    assert go(photos / "sub/d.e.tif")[0] == 0
    assert names(tmp_path / "out/labels") == ["d.e.png"]


@pytest.mark.parametrize(
    "pattern, found", [("*", ["a", "b", "c"]), ("**/*.tif", ["sub/d.e"]), ("s*/*", ["sub/d.e"]), ("[ab].*", ["a", "b"])]
)
def test_globs(go, photos, tmp_path, monkeypatch, pattern, found):
    (photos / "notes.md").write_text("no image")
    (photos / "._b.png").write_text("what macOS leaves on other file systems")
    assert go(photos / pattern)[0] == 0
    assert names(tmp_path / "out/labels") == [f"{name}.png" for name in found]
    monkeypatch.chdir(photos)
    assert "skipped" in go(pattern)[1]
    assert names(tmp_path / "out/labels") == [f"{name}.png" for name in found]


def test_lists(go, photos, tmp_path):
    shutil.copy(photos / "a.png", tmp_path / "elsewhere.png")
    listed = photos / "list.txt"
    listed.write_text(f"a.png\n\n{photos}/sub/d.e.tif\na.png\nmissing.png\n../elsewhere.png\n")
    code, said = go(listed)
    assert code == 1 and "3 written, 0 skipped (already exist), 1 failed" in said
    assert f"{photos / 'missing.png'}: file not found" in said
    assert names(tmp_path / "out/labels") == ["elsewhere.png", "photos/a.png", "photos/sub/d.e.png"]


def test_lists_of_other_forms(photos):
    (photos / "list.txt").write_bytes("sub\\d.e.tif\r\na.png,masks/a.png\r\nmissing one.png\r\n".encode("utf-16"))
    (photos / "masks").mkdir()
    shutil.copy(photos / "a.png", photos / "masks/a.png")
    expected = [photos / name for name in ("sub/d.e.tif", "a.png", "missing one.png")]
    assert find_images(photos / "list.txt") == (photos, expected)


@pytest.mark.parametrize("pattern", ["", "**/*", "**/*.*"])
def test_links_are_followed_and_hidden_folders_left_out(photos, tmp_path, capsys, pattern):
    for name in (".ipynb_checkpoints/a-checkpoint.png", "sub/.thumbnails/d.png", "z.jfif", "z.heic"):
        (photos / name).parent.mkdir(exist_ok=True)
        Image.fromarray(SCENES[0]).save(photos / name, "JPEG")
    (photos / "sub").rename(tmp_path / "elsewhere")
    (photos / "sub").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(photos)
    root, found = find_images(photos / pattern)
    assert list(by_name(found, root)) == ["a", "b", "c", "sub/d.e", "z"]
    assert f"Note: {photos}: skipped 1 file (1 .heic)" in capsys.readouterr().err


def test_names_keep_what_is_no_suffix(tmp_path):
    files = [tmp_path / name for name in ("2007.1", "2007.2", "2007.3.png")]
    assert list(by_name(files, tmp_path)) == ["2007.1", "2007.2", "2007.3"]


def test_a_folder_with_a_name_like_a_glob_or_a_video(go, photos, tmp_path):
    photos.rename(tmp_path / "[ab]*.mp4")
    assert go(tmp_path / "[ab]*.mp4")[0] == 0
    assert len(names(tmp_path / "out/labels")) == 4


def test_results_lie_in_the_run_by_default(go, run, photos, tmp_path):
    own = Path(shutil.copytree(run, tmp_path / "own"))
    assert go(photos / "a.png", output=None, run=own)[0] == 0
    assert (own / "predictions/photos/labels/a.png").is_file()
    crosscoop("predict", "--images", photos / "b.JPG", "--ckpt_path", own / "best.ckpt")
    assert names(own / "predictions/photos/labels") == ["a.png", "b.png"]


def test_results_among_the_images_are_no_images(go, photos):
    for counts in ("4 written, 0 skipped", "0 written, 4 skipped"):
        assert counts in go(photos, output=photos)[1]
        assert counts in go(photos, "--save overlays", output=photos / "out")[1]


def test_two_images_of_one_name(go, photos, tmp_path):
    shutil.copy(photos / "a.png", photos / "a.bmp")
    code, said = go(photos)
    assert code == 2 and f"{photos / 'a.bmp'} and {photos / 'a.png'}" in said and "expected distinct names" in said
    assert not (tmp_path / "out").exists()
    assert go(photos / "*.bmp")[0] == 0


def test_a_second_run_goes_on(go, photos, tmp_path):
    assert go(photos)[0] == 0
    kept, removed = tmp_path / "out/labels/a.png", tmp_path / "out/labels/b.png"
    kept.write_bytes(b"mine")
    removed.unlink()
    code, said = go(photos)
    assert code == 0 and "1 written, 3 skipped (already exist), 0 failed" in said
    assert kept.read_bytes() == b"mine" and removed.is_file()
    assert "4 written, 0 skipped" in go(photos, "--save labels,overlays")[1]  # only overlays are missing
    assert kept.read_bytes() == b"mine" and len(names(tmp_path / "out/overlays")) == 4


def test_overwrite(go, predictor, photos, tmp_path):
    assert go(photos)[0] == 0
    (tmp_path / "out/labels/a.png").write_bytes(b"mine")
    code, said = go(photos, "--overwrite")
    assert code == 0 and "4 written, 0 skipped" in said
    assert np.array_equal(labels(tmp_path / "out/labels/a.png"), predictor(photos / "a.png").labels)


def test_interruption(go, photos, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        code, said = go(photos)
    assert code == 130 and "Interrupted, 2 left: 2 written" in said and "To resume: the same command." in said
    assert names(tmp_path / "out/labels") == ["a.png", "b.png"]
    assert "2 written, 2 skipped" in go(photos)[1]
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        code, said = go(photos, "--overwrite")
    assert code == 130 and "the same command without --overwrite" in said
    assert names(tmp_path / "out/labels") == ["a.png"]  # nothing old is left to be mistaken for new
    assert "3 written, 1 skipped" in go(photos)[1]


def test_unreadable_images_stop_nothing(go, photos, tmp_path):
    (photos / "0.png").write_text("no image")
    whole = (photos / "b.JPG").read_bytes()
    (photos / "b.JPG").write_bytes(whole[: len(whole) // 2])
    for counts in ("3 written, 0 skipped (already exist), 2 failed", "0 written, 3 skipped (already exist), 2 failed"):
        code, said = go(photos)
        assert code == 1 and counts in said
        failed = said[said.index("Failed:") :]
        assert f"{photos / '0.png'}: got 8 bytes that cannot be decoded" in failed and f"{photos / 'b.JPG'}: " in failed
    assert names(tmp_path / "out/labels") == ["a.png", "c.png", "sub/d.e.png"]


def test_an_image_too_large_stops_nothing(go, photos, monkeypatch):
    logits = Predictor.logits

    def fail(self, image):
        if np.array_equal(image[0].permute(1, 2, 0), SCENES[0]):
            raise RuntimeError("out of memory")
        return logits(self, image)

    monkeypatch.setattr(Predictor, "logits", fail)
    code, said = go(photos)
    assert code == 1 and "3 written" in said and f"{photos / 'a.png'}: got an image of 32 x 64 pixels" in said


def test_predictions_of_two_origins_do_not_mix(go, run, photos, tmp_path):
    assert go(photos)[0] == 0
    other = tmp_path / "other/photos"
    shutil.copytree(photos, other)
    tiny.fit(tmp_path / "run", "--trainer.max_epochs 1 --seed_everything 1")
    for what, where, options in (
        ("protocol", photos, {"options": "--inference.flip true"}),
        ("images", other, {}),
        ("checkpoint", photos, {"run": tmp_path / "run"}),
    ):
        inference = options.pop("options", "")
        code, said = go(where, inference, **options)
        assert code == 2 and f"got predictions that differ in {what}, expected" in said and "--overwrite" in said
        code, said = go(where, inference, "--overwrite", **options)
        assert code == 0 and "4 written" in said
        assert go(photos, "--overwrite")[0] == 0


def test_options_of_inference(go, run, photos, tmp_path):
    code, said = go(photos / "a.png", "--inference.window [16,24] --inference.overlap 0.25 --device cpu")
    assert code == 0 and "sliding window 16 x 24, overlap 0.25" in said
    expected = package.load(run / "best.ckpt", Inference((16, 24), 0.25))(photos / "a.png")
    assert np.array_equal(labels(tmp_path / "out/labels/a.png"), expected.labels)


@pytest.mark.parametrize(
    "images, options, message",
    [
        ("nowhere", "", "got nowhere, which does not exist"),
        ("photos/*.bmp", "", "got none in photos, expected image files such as .png"),
        ("photos/a.png", "--save labels,masks", "--save: got masks, expected one or more of labels,colors"),
        ("photos/a.png", "--device abacus", "device: got 'abacus', expected"),
        ("photos/a.png", "photos/b.JPG", "crosscoop predict --help"),
        ("photos/a.png", "--inference.overlap 1", "inference.overlap: got 1.0, expected"),
        ("photos/a.png", "--run nowhere", "no checkpoint nowhere/best.ckpt"),
        ("photos/a.png", "--output photos/a.png", "photos/a.png: cannot be written"),
    ],
)
def test_what_cannot_be(go, photos, monkeypatch, images, options, message):
    monkeypatch.chdir(photos.parent)
    code, said = go(images, options)
    assert code == 2 and message in said


def test_without_a_checkpoint(photos, capsys):
    with pytest.raises(SystemExit, match="2"):
        crosscoop("predict", "--images", photos)
    assert "give --run FOLDER (uses its best.ckpt) or --ckpt-path FILE" in capsys.readouterr().err


def test_images_do_not_pile_up(go, photos, monkeypatch):
    for i in range(20):
        Image.fromarray(SCENES[0]).save(photos / f"{i}.png")
    alive, most, reads, whole = [], [], [], Predictor.__call__

    def watch(self, image):
        prediction = whole(self, image)
        alive.append(weakref.ref(prediction.probabilities))
        most.append((sum(reference() is not None for reference in alive), len(reads) - len(most)))
        return prediction

    def read(path):
        reads.append(path)
        return read_image(path)

    monkeypatch.setattr(Predictor, "__call__", watch)
    monkeypatch.setattr(samples, "read_image", read)
    assert "24 written" in go(photos)[1]
    assert max(predictions for predictions, _ in most) <= 2
    assert max(waiting for _, waiting in most) <= 5


def test_video_of_overlays(go, predictor, video, tmp_path):
    path, frames = video
    code, said = go(path)
    assert code == 0 and "6 written, 0 skipped" in said
    assert names(tmp_path / "out") == ["overlays/street.1.mp4", "predict.json"]
    capture = cv2.VideoCapture(str(tmp_path / "out/overlays/street.1.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == 12.5
    for frame in frames:
        prediction = predictor(frame)
        expected = (frame + np.array(predictor.palette)[prediction.labels]) / 2
        drawn = capture.read()[1][..., ::-1]
        assert drawn.shape == (32, 64, 3) and np.abs(drawn - expected).mean() < 12  # the codec loses some
        assert np.abs(drawn - expected).mean() < np.abs(drawn - expected[..., ::-1]).mean()
    assert capture.read()[1] is None
    assert "0 written, 6 skipped" in go(path)[1]


def test_video_as_files_per_frame(go, predictor, video, tmp_path):
    path, frames = video
    assert go(path, "--save labels,probabilities")[0] == 0
    numbers = [f"{number:06d}" for number in range(1, 7)]
    assert names(tmp_path / "out/labels") == [f"street.1/{number}.png" for number in numbers]
    assert names(tmp_path / "out/probabilities") == [f"street.1/{number}.npz" for number in numbers]
    for number, frame in zip(numbers, frames, strict=True):
        assert np.array_equal(labels(tmp_path / f"out/labels/street.1/{number}.png"), predictor(frame).labels)


def test_an_interrupted_video_goes_on(go, video, tmp_path, monkeypatch):
    path, _ = video
    for options, counts in (("", "4 written, 2 skipped"), ("--overwrite", "3 written, 3 skipped")):
        with monkeypatch.context() as patch:
            stop_at(patch, 4 if options else 3)
            code, said = go(path, "--save labels", options)
        assert code == 130 and f"Interrupted, {3 if options else 4} left" in said
        assert counts in go(path, "--save labels")[1]
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert go(path, "--save labels,overlays")[0] == 130
    assert "overlays" not in "".join(names(tmp_path / "out"))  # no half of a video
    assert "6 written" in go(path, "--save labels,overlays")[1]
    assert len(names(tmp_path / "out")) == 6 + 1 + 1


def test_broken_videos(go, video, tmp_path):
    path, _ = video
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    code, said = go(path)
    assert code == 1 and f"{path}: ends after" in said and "of 6 frames" in said
    assert names(tmp_path / "out") == ["overlays/street.1.mp4", "predict.json"]
    path.write_bytes(b"no video")
    code, said = go(path, "--overwrite")
    assert code == 2 and f"{path}: got no frame, expected a video" in said
    assert names(tmp_path / "out") == ["predict.json"]


# -- a split of a data set


@pytest.fixture
def own(run, tmp_path):
    """A copy of the run, to write into."""
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.mark.parametrize("given", ["run", "checkpoint"])
@pytest.mark.parametrize("split", ["test", "val"])
def test_run_or_checkpoint_brings_the_split_along(own, predictor, given, split):
    options = ["--run", own] if given == "run" else ["--ckpt-path", own / "best.ckpt"]
    crosscoop("predict", *options, *(["--split", split] if split != "test" else []), "--save labels,overlays")
    expected = tiny.STREETS.samples(split)
    assert names(own / "predictions" / split / "labels") == sorted(f"{sample.name}.png" for sample in expected)
    assert names(own / "predictions" / split / "overlays") == sorted(f"{sample.name}.png" for sample in expected)
    for sample in expected:
        written = labels(own / "predictions" / split / "labels" / f"{sample.name}.png")
        assert np.array_equal(written, predictor(sample.image()).labels)


@pytest.mark.parametrize("branch", [None, "bottom"])
def test_labels_of_a_split_score_as_the_test(own, branch):
    crosscoop("test", "--run", own, "--model.alone true")
    crosscoop("predict", "--run", own, *([f"--branch {branch}"] if branch else []))
    tested = json.loads((own / "metrics.json").read_text())["outputs"][f"{branch}_alone" if branch else "ensemble"]
    folder = own / "predictions/test/labels"
    crosscoop("score", "--predictions", folder, "--config", own / "config.yaml", "--output", own / "scored.json")
    assert json.loads((own / "scored.json").read_text())["miou"] == tested["miou"]
    origin = json.loads((own / "predictions/test/predict.json").read_text())
    assert origin["images"] == "Streets test" and (f"branch {branch} alone" in origin["protocol"]) == bool(branch)


def test_labels_of_a_split_are_of_the_images_own_size(own, predictor, capsys):
    """Also where training or evaluation resize and crop, as servers and whole-image scores want them."""
    size = "--data.resize=[16,32]"
    crosscoop("predict", "--run", own, size, "--data.center_crop 8 --data.dataset.num_test 1")
    (sample,) = tiny.Streets(num_test=1, height=32, width=64).samples("test")
    resized = package.load(own / "best.ckpt")
    resized.resize = (16, 32)
    written = labels(own / "predictions/test/labels" / f"{sample.name}.png")
    assert np.array_equal(written, resized(sample.image()).labels)
    assert not np.array_equal(written, predictor(sample.image()).labels)
    assert "images resized to 16 x 32" in capsys.readouterr().out
    crosscoop("predict", "--run", own, size, "--own-size --overwrite --data.dataset.num_test 1")
    assert np.array_equal(
        labels(own / "predictions/test/labels" / f"{sample.name}.png"), predictor(sample.image()).labels
    )
    whole = "--data.resize null --data.center_crop null --data.dataset.num_test 1"
    place = ("--predictions", own / "predictions/test/labels", "--output", own / "scored.json")
    crosscoop("score", *place, "--config", own / "config.yaml", size, whole)


def test_a_split_resumes_and_names_what_cannot_be_read(own, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        stop_at(patch, 2)
        crosscoop("predict", "--run", own)
    crosscoop("predict", "--run", own)
    assert "2 written, 1 skipped" in capsys.readouterr().out
    folder = ("--data.dataset", "faulty.Unreadable", "--output", tmp_path / "out")
    with pytest.raises(SystemExit, match="1"):
        crosscoop("predict", "--run", own, *folder)
    assert "bad.png: file not found" in capsys.readouterr().err
    assert names(tmp_path / "out/labels") == ["test/000000.png"]


@pytest.mark.parametrize(
    "options, message",
    [
        ("--split nothing", "split: got 'nothing', expected one of train, val, test"),
        ("--branch nothing", "branch: got 'nothing', expected one of top, bottom"),
        ("--images . --split val", "got both --images and a split"),
        ("--data.dataset faulty.Renamed", "in this order"),
        ("--data.dataset.colour red", "colour"),
        ("--overwite", "did you mean --overwrite?"),
    ],
)
def test_what_cannot_be_of_a_split(run, capsys, options, message):
    with pytest.raises(SystemExit, match="2"):
        crosscoop("predict", "--run", run, options)
    assert message in capsys.readouterr().err


def test_an_exported_network_predicts_a_split_that_is_named(own, capsys):
    crosscoop("export", own / "best.ckpt", "--format safetensors")
    with pytest.raises(SystemExit, match="2"):
        crosscoop("predict", "--ckpt-path", own / "best.safetensors")
    assert "expected --images, or a split's data with --config" in capsys.readouterr().err
    crosscoop("predict", "--ckpt-path", own / "best.safetensors", "--config", own / "config.yaml")
    assert len(names(own / "predictions/test/labels")) == 3
