"""Files from strangers run no code and stay in their folder; no secret is written; a checkpoint says what differs."""

import os
import pickle
import shutil
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
import torch
import yaml
from faulty import CLASSES, fit_options, image_of, mask_of, refusal, write
from tiny import crosscoop, fit, load

import crosscoop as package
from crosscoop.data.datasets.voc import download_to
from crosscoop.data.images import read_image, read_mask
from crosscoop.errors import CrosscoopError


class Payload:
    """What runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run; look, but do not touch."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    fit(folder)
    return folder


@pytest.fixture
def marker(tmp_path):
    """The file that a payload leaves; there is none after the test."""
    yield tmp_path / "it ran".replace(" ", "_")
    assert not (tmp_path / "it_ran").exists()


def whole_checkpoint(path, trained, marker):
    """A checkpoint in which all is right, but for one thing more."""
    torch.save({**load(trained / "best.ckpt"), "callbacks": {"EMAWeightAveraging": Payload(marker)}}, path)


def plain_pickle(path, trained, marker):
    path.write_bytes(pickle.dumps({"state_dict": {}, "crosscoop": Payload(marker)}))


def old_format(path, trained, marker):
    torch.save({"state_dict": Payload(marker)}, path, _use_new_zipfile_serialization=False)


FORMS = [whole_checkpoint, plain_pickle, old_format]


@pytest.mark.parametrize("form", FORMS)
def test_the_payload_would_run(tmp_path, trained, form):
    """Otherwise the tests below prove nothing."""
    form(tmp_path / "evil.ckpt", trained, tmp_path / "proof")
    if form is plain_pickle:
        pickle.loads((tmp_path / "evil.ckpt").read_bytes())
    else:
        torch.load(tmp_path / "evil.ckpt", weights_only=False)
    assert (tmp_path / "proof").exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "options",
    [
        "test --ckpt_path {evil}",
        "validate --run {run}",
        "predict --ckpt-path {evil}",
        "predict --run {run} --images {images}",
        "fit --ckpt_path {evil}",
        "fit --run {run} --resume",
        "fit --config {yaml} --run {tmp}/other",
    ],
)
def test_a_malicious_checkpoint_runs_nothing(tmp_path, trained, marker, capsys, options, form):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    for name in ("best.ckpt", "last.ckpt", "evil.ckpt"):
        form(run / name, trained, marker)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (tmp_path / "evil.yaml").write_text(yaml.safe_dump({**config, "ckpt_path": str(run / "evil.ckpt")}))
    places = {
        "run": run,
        "evil": run / "evil.ckpt",
        "yaml": tmp_path / "evil.yaml",
        "tmp": tmp_path,
        "images": tmp_path,
    }
    (tmp_path / "image.png").write_bytes(b"")
    command, *words = options.format(**places).split()
    if command == "fit" and "--ckpt_path" in words:
        words = ["--config", str(run / "config.yaml"), *words, "--run", str(tmp_path / "new")]
    message = refusal(capsys, command, *words)
    assert "is not a checkpoint that `crosscoop fit` wrote" in message or "got only incomplete checkpoints" in message


def test_a_malicious_checkpoint_runs_nothing_in_python(tmp_path, trained, marker):
    for form in FORMS:
        form(tmp_path / "evil.ckpt", trained, marker)
        with pytest.raises(CrosscoopError, match="not a checkpoint"):
            package.load(tmp_path / "evil.ckpt")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", ["pth", "bin", "safetensors"])
def test_malicious_weights_run_nothing(tmp_path, trained, marker, form, suffix):
    form(tmp_path / f"evil.{suffix}", trained, marker)
    with pytest.raises(CrosscoopError, match=r"network\.pretrained: .*cannot be read as weights"):
        package.create_network(["test_resnet"], 3, "none", pretrained=str(tmp_path / f"evil.{suffix}"))


def test_a_checkpoint_cannot_be_fetched_from_elsewhere(tmp_path, trained, capsys):
    """Lightning would download it and load it with `weights_only=False`."""
    config = yaml.safe_load((trained / "config.yaml").read_text())
    (tmp_path / "evil.yaml").write_text(yaml.safe_dump({**config, "ckpt_path": "http://127.0.0.1:9/evil.ckpt"}))
    message = refusal(capsys, "fit", "--config", tmp_path / "evil.yaml", "--run", tmp_path / "run")
    assert "no checkpoint http" in message


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "builtins.exec"])
def test_a_checkpoint_cannot_name_a_function_to_call(tmp_path, trained, marker, capsys, name):
    content = load(trained / "best.ckpt")
    content["crosscoop"]["config"]["network"]["fusion"] = {
        "class_path": name,
        "init_args": {"command": f"touch {marker}", "args": ["touch", str(marker)]},
    }
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(CrosscoopError, match=r"expected a subclass of crosscoop\.Fusion"):
        package.load(tmp_path / "evil.ckpt")
    assert "expected a subclass of crosscoop.Fusion" in refusal(capsys, "test", "--ckpt_path", tmp_path / "evil.ckpt")


@pytest.mark.parametrize("place", ["data", "dataset"])
def test_a_checkpoint_cannot_name_a_function_as_its_data(tmp_path, trained, marker, capsys, place):
    content = load(trained / "best.ckpt")
    evil = {"class_path": "os.system", "init_args": {"command": f"touch {marker}"}}
    content["crosscoop"]["config"]["data"] = evil if place == "data" else {"dataset": evil}
    torch.save(content, tmp_path / "evil.ckpt")
    assert "os.system" in refusal(capsys, "predict", "--ckpt-path", tmp_path / "evil.ckpt")


@pytest.mark.parametrize("command", ["fit", "score --predictions {tmp}", "check-data", "report {tmp}"])
def test_malicious_yaml_runs_nothing(tmp_path, marker, capsys, command):
    config = tmp_path / "config.yaml"
    config.write_text(f"data: !!python/object/apply:os.system ['touch {marker}']\n")
    words = command.format(tmp=tmp_path).split()
    if words[0] == "report":
        crosscoop(*words, "--output", tmp_path / "report.html")
        assert "config.yaml" in (tmp_path / "report.html").read_text()
    else:
        assert refusal(capsys, *words, "--config", config)


@pytest.mark.parametrize(
    "content", [b"", b"hello", pickle.dumps([Payload(Path("/nowhere"))]), b"\x89PNG\r\n\x1a\n" + bytes(50)]
)
def test_files_that_are_no_images_are_refused(tmp_path, content):
    (tmp_path / "image.png").write_bytes(content)
    for read in (read_image, lambda path: read_mask(path, 3)):
        with pytest.raises(CrosscoopError, match="cannot be decoded"):
            read(tmp_path / "image.png")


# -- archives


@pytest.mark.parametrize("kind", ["../escaped", "/{tmp}/escaped", "link"])
def test_a_downloaded_archive_cannot_leave_its_folder(tmp_path, kind):
    """What torchvision unpacks; it does so without looking."""
    archive = tmp_path / "evil.tar"
    with tarfile.open(archive, "w") as tar:
        if kind == "link":
            link = tarfile.TarInfo("inside")
            link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
            tar.addfile(link)
        info = tarfile.TarInfo("inside/escaped" if kind == "link" else kind.format(tmp=tmp_path))
        info.size = 4
        tar.addfile(info, BytesIO(b"evil"))

    def unpack(folder: Path) -> Path:
        from torchvision.datasets.utils import extract_archive

        extract_archive(str(archive), str(folder / "data"))
        return folder / "data"

    if kind.startswith("/"):  # its slash is taken off
        download_to(tmp_path / "target", unpack)
    else:
        with pytest.raises(CrosscoopError, match="the download failed"):
            download_to(tmp_path / "target", unpack)
    assert [path for path in tmp_path.rglob("escaped*") if not path.is_relative_to(tmp_path / "target")] == []


# -- the report


def test_the_report_escapes_the_names_of_files_and_classes(tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    config = write(tmp_path)
    for path in (image_of(tmp_path, "val", 0), mask_of(tmp_path, "val", 0)):
        path.rename(path.with_stem(evil))
    text = config.read_text().replace(f"- {CLASSES[0]}\n", "- <script>alert(2)</script>\n")
    assert "<script>" in text
    config.write_text(text)
    crosscoop("fit", fit_options(config), "--run", tmp_path / "run")
    crosscoop("test", "--run", tmp_path / "run")
    crosscoop("report", tmp_path / "run", "--output", tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "<img src=x" not in html and "<script>alert" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html and "&lt;script&gt;alert(2)" in html


# -- secrets


SECRETS = [
    *("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    *("GITHUB_TOKEN", "NEPTUNE_API_TOKEN", "COMET_API_KEY", "OPENAI_API_KEY", "MY_DATABASE_PASSWORD"),
]


def test_no_secret_of_the_environment_is_written(tmp_path, monkeypatch, capfd):
    pytest.importorskip("wandb")
    values = {name: f"{index:04d}feedc0de".ljust(40, "a") for index, name in enumerate(SECRETS)}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    options = "--trainer.logger WandbLogger --trainer.logger.offline true --trainer.logger.project p"
    fit(run, options, "--trainer.log_every_n_steps 1")
    crosscoop("test", "--run", run)
    crosscoop("report", run, "--output", run / "report.html")
    import wandb

    wandb.finish()
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"config.yaml", "best.ckpt", "report.html", "test.yaml"} <= {path.name for path in written}
    assert any(path.suffix == ".wandb" for path in written) and any(path.suffix == ".log" for path in written)
    printed = "".join(capfd.readouterr()).encode()
    for name, value in values.items():
        assert value.encode() not in printed, name
        assert [str(path) for path, content in written.items() if value.encode() in content] == [], name


# -- checkpoints that differ


@pytest.mark.parametrize(
    ("command", "options", "parts"),
    [
        ("test", "--network.channels 32", ["do not fit the network", "network.channels", "--network.channels 16"]),
        ("test", "--network.branches=[test_resnet] --network.strategy none",
         ["network.branches", "--network.strategy cross_c1_c2"]),
        ("test", "--network.fusion concat", ["got concat, trained with add: --network.fusion add"]),
        ("validate", "--data.dataset faulty.Small", ["12 classes (sky", "2 classes", "--data.dataset crosscoop.data"]),
        ("predict", "--data.dataset faulty.Renamed", ["12 classes", "in this order"]),
        ("fit", "--resume --trainer.max_epochs 2 --network.strategy none", ["--network.strategy cross_c1_c2"]),
        ("fit", "--resume --trainer.max_epochs 2 --network.fusion gate", ["do not fit the network", "fusion add"]),
        ("fit", "--resume --trainer.max_epochs 2 --model.optimizer.lr 1", ["model.optimizer", "train again"]),
        ("fit", "--resume --trainer.max_epochs 2 --model.optimizer AdamW", ["model.optimizer", "SGD"]),
    ],
)  # fmt: skip
def test_what_differs_from_a_checkpoint_is_said_with_the_remedy(tmp_path, trained, capsys, command, options, parts):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    message = refusal(capsys, command, "--run", run, options)
    assert str(run) in message
    assert [part for part in parts if part not in message] == []


def test_the_version_that_wrote_a_checkpoint_is_said_where_it_does_not_fit(tmp_path, trained, capsys):
    content = load(trained / "best.ckpt")
    assert content["crosscoop"]["version"] == package.__version__
    content["crosscoop"]["version"] = "0.0.7"
    content["state_dict"].pop(next(iter(content["state_dict"])))
    torch.save(content, tmp_path / "old.ckpt")
    message = refusal(capsys, "test", "--ckpt_path", tmp_path / "old.ckpt")
    assert "by crosscoop 0.0.7; this is " + package.__version__ in message
    with pytest.raises(CrosscoopError, match=r"by crosscoop 0\.0\.7"):
        package.load(tmp_path / "old.ckpt")


def test_an_evaluation_under_other_options_is_pointed_out(tmp_path, trained, capsys):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    crosscoop("test", "--run", run, "--network.fusion average")
    assert "network.fusion: got average, trained with add: --network.fusion add" in capsys.readouterr().err
    crosscoop("test", "--run", run)
    assert "trained with" not in capsys.readouterr().err
