"""`crosscoop demo`: what it computes for an image, without Gradio; and a walk through the page in a real browser."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import zlib
from base64 import b64decode
from dataclasses import asdict, replace
from io import BytesIO

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import nn

from crosscoop.checkpoints.about import About
from crosscoop.commands.demo import PORTS, demo, free_port, samples_of
from crosscoop.data.dataset import VOID
from crosscoop.errors import CrosscoopError
from crosscoop.export.formats import write_safetensors
from crosscoop.export.hub import HubModel
from crosscoop.network.cooperative import by_name
from crosscoop.prediction import play as module
from crosscoop.prediction.pictures import RED
from crosscoop.prediction.play import Loaded, Scene, introduce, open_networks, play, read_scene, scene_of
from crosscoop.prediction.predictor import Predictor

PAIR, ALL = ["test_resnet", "test_byobnet"], ["connection1", "aspp", "connection2", "decoder"]


class Exported(nn.Module):
    """A network that can only run as a whole, as an exported one."""

    def __init__(self, network):
        super().__init__()
        self.outputs = by_name(network)

    def forward(self, image):
        return self.outputs(image)


@pytest.fixture
def load(make_pair):
    """Makes a network to play with, as if it were loaded."""

    def make(name="runs/pair", strategy="cross_c1_c2", branches=PAIR, wrap=lambda network: network):
        network = make_pair(strategy, branches=branches, num_classes=12)
        about = About(
            "0", {"branches": branches, "strategy": strategy}, {}, [], list(tiny.STREETS.class_names),
            list(tiny.STREETS.palette), None, "Streets", None,
        )  # fmt: skip
        predictor = Predictor(wrap(network), about.class_names, about.palette, device="cpu")
        return Loaded(name, f"{name}/best.ckpt", about, predictor)

    return make


@pytest.fixture
def scene():
    return scene_of(tiny.STREETS.samples("test")[0])


def unpacked(panel, size):
    """The labels of a picture, as the page decodes them."""
    return np.frombuffer(zlib.decompress(b64decode(panel["labels"])), np.uint8).reshape(size[1], size[0])


def panels(row):
    return {panel["title"]: panel for panel in row["panels"]}


def test_a_network_keeps_its_weights_and_some_of_its_connections(make_pair):
    network, image = make_pair(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        whole, none, some = (list(network.connected_at(names)(image)) for names in (network.exchanges, [], ["aspp1"]))
        assert all(map(torch.equal, whole, network(image)))
        assert all(map(torch.equal, none, [branch(image) for branch in network.branches]))
    assert not any(torch.equal(one, other) for one in some for other in (*whole, *none))
    assert list(network.connected_at(["aspp1"]).exchanges) == ["aspp1"] and "decoder1" in network.exchanges
    assert [*network.connected_at([]).branches] == [*network.branches]


def test_every_output_is_shown_with_its_backbone(load, scene):
    network = load()
    shown = play([network], scene, [ALL])
    prediction = network.predictor(scene.image)
    (row,), size = shown["rows"], shown["size"]
    own = panels(row)
    assert list(own) == ["top (test_resnet)", "bottom (test_byobnet)", "ensemble", "disagreement"]
    for title, panel in list(own.items())[:3]:
        assert np.array_equal(unpacked(panel, size), prediction.branch_labels[title.partition(" ")[0]])
    assert np.array_equal(unpacked(own["disagreement"], size), prediction.disagreement)
    assert own["disagreement"]["note"] == f"{prediction.disagreement.mean():.1%} of pixels"
    assert row["title"] == "runs/pair" and "float32 on cpu" in row["facts"] and row["notes"] == []
    assert row["facts"][-1].startswith("predicted in ") and "connections: cross_c1_c2" in row["facts"]
    assert json.loads(json.dumps(shown))["mark"] == list(RED)
    image = Image.open(BytesIO(b64decode(shown["image"].partition(",")[2])))
    assert image.size == size == (64, 32) and shown["scene"]["facts"] == ["32 x 64 pixels (height x width)"]


def test_any_number_of_branches(load, scene):
    three = [*PAIR, {"backbone": PAIR}]
    (row,) = play([load(branches=three, strategy="one_way")], scene, [["aspp", "decoder"]])["rows"]
    backbones = ["branch0 (test_resnet)", "branch1 (test_byobnet)", "branch2 (test_resnet + test_byobnet)"]
    assert list(panels(row)) == [*backbones, "ensemble", "disagreement"]
    (row,) = play([load(branches=PAIR[:1], strategy="none")], scene, [[]])["rows"]
    assert list(panels(row)) == ["network (test_resnet)"]


def test_switches_show_what_changes(load, scene):
    network = load()
    before, without = network.predictor(scene.image), network.connected_at([])(scene.image)
    (row,), size = (shown := play([network], scene, [[]]))["rows"], shown["size"]
    own, changed = panels(row), before.labels != without.labels
    assert 0 < changed.mean() < 1
    assert np.array_equal(unpacked(own["ensemble"], size), without.labels)
    assert np.array_equal(unpacked(own["change of the ensemble"], size), changed)
    assert own["ensemble"]["note"].endswith(f"{changed.mean():.1%} changed")
    assert row["notes"] == [
        "Switched off: connection1, aspp, connection2, decoder. The branches were trained with these connections, and "
        "may predict worse without them."
    ]
    (row,) = play([network], scene, [["aspp"]])["rows"]
    assert row["notes"][0].startswith("Switched off: connection1, connection2, decoder. The branches were")
    assert np.array_equal(unpacked(panels(row)["ensemble"], size), network.connected_at(["aspp"])(scene.image).labels)
    (row,) = play([load(strategy={"points": ["aspp"], "dropout": 0.5})], scene, [[]])["rows"]
    assert row["notes"] == ["Switched off: aspp."]


def test_each_setting_is_predicted_once(load, scene, monkeypatch):
    network, calls = load(), []
    monkeypatch.setattr(
        Predictor, "__call__", lambda self, image, call=Predictor.__call__: calls.append(1) or call(self, image)
    )
    for connected, count in ([ALL], 1), ([[]], 2), ([ALL], 2), ([["aspp"]], 3), ([[]], 3):
        play([network], scene, connected)
        assert len(calls) == count


def test_networks_are_compared_with_the_first(load, scene):
    networks = [load("a"), load("b", wrap=Exported)]
    assert [network.points for network in networks] == [ALL, []]
    shown = play(networks, scene, [[], []])
    first, second = shown["rows"]
    assert "difference from a" not in panels(first)
    expected = networks[0].connected_at([])(scene.image).labels != networks[1].predictor(scene.image).labels
    assert expected.any() and np.array_equal(unpacked(panels(second)["difference from a"], shown["size"]), expected)
    assert [row["title"] for row in introduce(networks)["rows"]] == ["a", "b"]


def test_ground_truth_is_shown_and_measured(load, scene):
    network = load()
    truth = scene.truth.copy()
    truth[:2] = VOID
    shown = play([network], scene := replace(scene, truth=truth), [ALL])
    assert np.array_equal(unpacked(panels(shown["scene"])["ground truth"], shown["size"]), truth)
    counts = tiny.count(network.predictor(scene.image).labels, truth, 12)
    assert panels(shown["rows"][0])["ensemble"]["note"] == f"mIoU {100 * tiny.miou(counts):.2f}"
    assert {each["index"]: each["name"] for each in shown["classes"]}[VOID] == "void"
    plain = play([network], Scene("photo.jpg", scene.image), [ALL])
    assert list(panels(plain["scene"])) == ["image"] and panels(plain["rows"][0])["ensemble"]["note"] == ""
    unlabelled = play([network], replace(scene, truth=np.full_like(truth, VOID)), [ALL])
    assert panels(unlabelled["rows"][0])["ensemble"]["note"] == ""


def test_large_images_are_predicted_whole_and_shown_small(load, scene, monkeypatch):
    monkeypatch.setattr(module, "LONGEST", 16)
    network = load()
    shown = play([network], scene, [ALL])
    labels = network.predictor(scene.image).labels
    assert shown["size"] == (16, 8) and shown["scene"]["facts"][1] == "shown at 8 x 16"
    assert np.array_equal(unpacked(panels(shown["rows"][0])["ensemble"], (16, 8)), labels[2::4, 2::4])


def test_files_are_read_as_predict_reads_them(tmp_path, monkeypatch):
    image = Image.fromarray(tiny.STREETS.samples("test")[0].image())
    image.save(tmp_path / "film.gif", save_all=True, append_images=[image.rotate(180)])
    (note,) = read_scene(tmp_path / "film.gif").notes
    assert note == "Images like this one have several pages or frames, of which only the first is read."
    image.convert("CMYK").save(tmp_path / "print.jpg")
    assert read_scene(tmp_path / "print.jpg").image.shape == (32, 64, 3)
    Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(read_scene(tmp_path / "deep.png").image[..., 0], np.asarray(image.convert("L")))
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "print.jpg").read_bytes()[:700])
    with pytest.raises(CrosscoopError, match=r"^broken\.jpg: got 700 bytes that cannot be decoded"):
        read_scene(tmp_path / "broken.jpg")
    monkeypatch.setattr(module, "MAX_PIXELS", 2000)
    with pytest.raises(CrosscoopError, match=r"^print\.jpg: got 32 x 64 pixels, expected at most"):
        read_scene(tmp_path / "print.jpg")
    with pytest.raises(CrosscoopError, match="got 32 x 64 pixels, expected at most"):
        scene_of(tiny.STREETS.samples("test")[0])


def test_networks_are_read_from_every_kind_of_file(make_pair, load, tmp_path):
    network = make_pair(num_classes=12)
    about = replace(load().about, network={"branches": PAIR, "channels": 16, "num_classes": 12})
    write_safetensors(tmp_path / "pair.safetensors", network, about)
    HubModel(asdict(about)).save_pretrained(tmp_path / "hub")
    names = [str(tmp_path / "pair.safetensors"), f"hf-hub:{tmp_path / 'hub'}"]
    networks = open_networks(names, device="cpu")
    assert [network.name for network in networks] == names and [network.points for network in networks] == [ALL, ALL]
    assert samples_of(networks) == []
    write_safetensors(
        tmp_path / "other.safetensors", network, replace(about, class_names=[*about.class_names[1:], "sea"])
    )
    with pytest.raises(
        CrosscoopError, match=r"other\.safetensors: got 12 classes \(road, .*expected the 12 classes of"
    ):
        open_networks([names[0], str(tmp_path / "other.safetensors")], device="cpu")


def test_without_gradio(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(CrosscoopError, match=re.escape("pip install 'crosscoop[demo]'")):
        demo(["nowhere"])


def test_a_free_port_is_chosen():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CrosscoopError, match=rf"got --host 127\.0\.0\.1 and --port {port} \(.*in use"):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", port) == port and free_port("127.0.0.1", None) in PORTS
    for host, number in (("127.0.0.1", 99999), ("192.0.2.1", None)):
        with pytest.raises(CrosscoopError, match=f"got --host {host} and --port"):
            free_port(host, number)


# In a real browser.

LAUNCH = """
import sys
from crosscoop.cli import main

def audit(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        host, port, *_ = arguments if event == "socket.getaddrinfo" else arguments[1]
        if host not in (None, "127.0.0.1", "localhost") or port == 9:
            print("LEFT", event, arguments, file=sys.stderr)

sys.addaudithook(audit)
main(sys.argv[1:])
"""
"""Runs a command and reports connections to elsewhere, or to the proxy at port 9."""


@pytest.fixture
def served(tmp_path):
    """The address of a page with two runs, and their folder. Nothing is left once Ctrl-C has ended the command."""
    pytest.importorskip("gradio")
    tiny.fit(tmp_path / "first")
    tiny.fit(tmp_path / "second", "--network.strategy none")
    for name in ("temporary", "matplotlib", "files"):
        (tmp_path / name).mkdir()
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    folders = {"TMPDIR": "temporary", "MPLCONFIGDIR": "matplotlib", "HOME": "home"}
    environment = os.environ | proxies | {name: str(tmp_path / folder) for name, folder in folders.items()}
    before = {*tmp_path.iterdir(), tmp_path / "errors.txt"}
    with (tmp_path / "errors.txt").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, "demo", "first", "second", "--device", "cpu"],
            cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    try:
        yield process.stdout.readline().split()[0], tmp_path
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(60)
    assert code == 0 and "LEFT" not in (tmp_path / "errors.txt").read_text()
    assert list((tmp_path / "temporary").iterdir()) == [] and set(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_click_through(browser, served):
    waiting = pytest.importorskip("selenium.webdriver.support.wait").WebDriverWait(browser, 120, 0.3)
    address, folder = served
    network = open_networks([str(folder / "first")], device="cpu")[0]
    file = Image.fromarray(np.kron(tiny.STREETS.samples("val")[0].image(), np.ones((5, 5, 1), np.uint8)))
    file.save(folder / "files/photo.png")
    (folder / "files/broken.jpg").write_bytes(b"no image")

    def ask(script, *arguments):
        return browser.execute_script(f"return {script}", *arguments)

    def texts(selector):
        return ask(f"[...document.querySelectorAll('.play {selector}')].map((each) => each.textContent)")

    def wait_for(selector, text):
        waiting.until(lambda _: text in texts(selector))

    def click(selector):
        ask("document.querySelector(arguments[0]).click()", selector)

    def colors(number):
        """The RGBA of a picture's labels."""
        script = "(() => { const canvas = document.querySelectorAll('.play canvas')[arguments[0]]; return [...canvas"
        script += ".getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]; })()"
        return np.array(ask(script.replace("arguments[0]", str(number)), number), np.uint8).reshape(160, 320, 4)

    def upload(name):
        browser.find_element("css selector", "input[type=file]").send_keys(str(folder / "files" / name))

    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    browser.get(address)
    wait_for("h3", "second")
    assert texts("h3") == ["first", "second"]

    upload("photo.png")
    wait_for("h3", "photo.png")
    outputs = ["top (test_resnet)", "bottom (test_byobnet)", "ensemble", "disagreement"]
    assert texts("figcaption") == ["image", *outputs, *outputs, "difference from first"]
    prediction = network.predictor(np.asarray(file))
    expected = np.array(network.about.palette, np.uint8)[prediction.labels]
    assert np.array_equal(colors(3)[..., :3], expected) and (colors(3)[..., 3] == 255).all()

    picture = browser.find_elements("css selector", ".play .picture")[1]
    box = ask("arguments[0].getBoundingClientRect().toJSON()", picture)
    ask("arguments[0].dispatchEvent(new PointerEvent('pointermove', {clientX: arguments[1], clientY: arguments[2]}))",
        picture, box["x"] + 0.25 * box["width"] + 0.1, box["y"] + 0.75 * box["height"] + 0.1)  # fmt: skip
    under = [
        network.about.class_names[prediction.branch_labels[name][120, 80]] for name in ("top", "bottom", "ensemble")
    ]
    assert texts(".under")[1:4] == under
    assert texts(".under")[4] == ("they differ" if prediction.disagreement[120, 80] else "they agree")

    ask("(arguments[0].value = 30, arguments[0].dispatchEvent(new Event('input')))",
        browser.find_element("css selector", ".play input[type=range]"))  # fmt: skip
    assert ask("getComputedStyle(document.querySelector('.play canvas')).opacity") == "0.3"
    click(".play .legend button")
    name = texts(".legend [aria-pressed=true]")
    assert np.array_equal(colors(3)[..., 3] > 0, prediction.labels == network.about.class_names.index(name[0]))
    click(".play .legend button")
    assert (colors(3)[..., 3] == 255).all()

    browser.find_elements("css selector", "input[type=checkbox]")[1].click()
    wait_for("figcaption", "change of the ensemble")
    switched = network.connected_at(["connection1", "connection2", "decoder"])(np.asarray(file))
    assert np.array_equal(colors(3)[..., :3], np.array(network.about.palette, np.uint8)[switched.labels])
    assert texts(".note")[0].startswith("Switched off: aspp.")
    browser.find_elements("css selector", "input[type=checkbox]")[1].click()
    waiting.until(lambda _: "change of the ensemble" not in texts("figcaption"))

    upload("broken.jpg")
    waiting.until(lambda _: texts(".error"))
    assert texts(".error")[0].startswith("broken.jpg: got 8 bytes that cannot be decoded") and texts("h3") == []
    click(".samples .thumbnail-item")
    wait_for("figcaption", "ground truth")
    assert texts("h3")[0] == tiny.STREETS.samples("test")[0].name and texts(".error") == []

    for width in (320, 390, 1280):
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        assert ask("document.documentElement.scrollWidth") <= width
    loaded = ask("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [url for url in loaded if not url.startswith((address, "data:", "blob:"))] == []
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
