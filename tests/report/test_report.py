"""`crosscoop report`: its page, as text and in a real browser, and the confusion matrices that it shows."""

import csv
import json
import re
import shutil
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny import STREETS, crosscoop, fit

from crosscoop import load
from crosscoop.ablation.grid import Ablation
from crosscoop.commands.report import report
from crosscoop.data import Streets
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.scores import Scores
from crosscoop.prediction.pictures import save_confusion
from crosscoop.report.charts import Chart, Line, charts, image_charts
from crosscoop.report.gallery import choose
from crosscoop.report.page import signed
from crosscoop.report.runs import Run, read_run, read_runs

EVIL = "<script>alert('class')</script>\"$&"
QUIET = "--trainer.accelerator cpu --trainer.enable_progress_bar false"


class Evil(Streets):
    """Street scenes with a class that would like to be a script."""

    class_names = (EVIL, *Streets.class_names[1:])


class Page(HTMLParser):
    """What a page holds: its tags with their attributes, its text, its tables' cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[tuple[str, dict[str, str | None]]]]] = []
        self.text = ""
        self.in_cell = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append(("", dict(attrs)))
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell &= tag not in ("td", "th")

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] not in ("style", "script"):
            self.text += data
        if self.in_cell:
            words, attributes = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = words + data.strip(), attributes

    def table(self, kind):
        """The rows of the first table of a kind, as texts and as values."""
        classes = [attributes.get("class") or "" for tag, attributes in self.tags if tag == "table"]
        return self.tables[next(i for i, words in enumerate(classes) if kind in words.split())]

    def images(self):
        return [attributes for tag, attributes in self.tags if tag == "img" and "src" in attributes]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that were trained and tested, the second under a dangerous name; look, but do not touch."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [folder / "none", folder / "cross <script>alert('run')"]
    for run, options in zip(runs, ["--network.strategy none", "--seed_everything 1"], strict=True):
        fit(run, "--data.dataset test_report.Evil", options)
        crosscoop("test", "--run", run, QUIET)
    return runs


@pytest.fixture(scope="module")
def html(runs, tmp_path_factory):
    """The report of both."""
    output = tmp_path_factory.mktemp("report") / "report.html"
    crosscoop("report", *runs, "--output", output, "--num-images 2")
    return output.read_text()


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


@pytest.fixture
def run(runs, tmp_path):
    """A copy of the first run, to work on."""
    return Path(shutil.copytree(runs[0], tmp_path / "run"))


def read_json(path):
    return json.loads(path.read_text())


def decode(source):
    kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.*)", source).groups()
    image = Image.open(BytesIO(b64decode(data, validate=True)))
    assert image.format == kind.upper()
    image.load()
    return image


def write(folder, output="report.html", num_images=0, **options):
    """The page of a report without images, if none are asked for."""
    output = folder.parent / output
    report([str(folder)], str(output), num_images, **options)
    return Page(output.read_text())


# The confusion matrices in a run's folder.


def test_confusion_matrices_belong_to_the_figures(runs):
    metrics, confusion = (read_json(runs[1] / name) for name in ("metrics.json", "confusion.json"))
    assert (confusion["stage"], confusion["protocol"]) == ("test", metrics["protocol"])
    assert confusion["class_names"] == list(Evil.class_names)
    assert list(confusion["outputs"]) == ["top", "bottom", "ensemble"]
    labelled = sum(int((sample.mask() < 255).sum()) for sample in STREETS.samples("test"))
    for output, counts in confusion["outputs"].items():
        assert sum(map(sum, counts)) == labelled
        assert Scores(torch.tensor(counts), Evil.class_names).to_dict() == metrics["outputs"][output]
    with Image.open(runs[1] / "confusion.png") as picture:
        assert min(picture.size) > 500


def test_validation_leaves_confusion_matrices_and_its_configuration(run):
    crosscoop("validate", "--run", run, QUIET, "--inference.flip true")
    assert read_json(run / "confusion.json")["protocol"]["split"] == "val"
    assert yaml.safe_load((run / "validate.yaml").read_text())["inference"]["flip"] is True


@pytest.mark.parametrize(("classes", "wrong"), [(2, 0), (11, 3), (21, 0), (2, 5)])
def test_confusion_is_drawn(tmp_path, classes, wrong):
    counts = np.eye(classes, classes + 1, dtype=np.int64) * 7
    counts[0, -1] = wrong  # labels that are no class
    counts[1] = 0  # an absent class
    save_confusion(tmp_path / "new" / "a.png", counts, [f"class {i} $" for i in range(classes)], "title " * 30)
    with Image.open(tmp_path / "new" / "a.png") as picture:
        assert picture.width > 40 * classes


# What the page says.


def test_page_needs_nothing_else(html, page):
    references = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "poster", "action", "data", "xlink:href")
    ]
    assert references
    assert [value for value in references if not value.startswith(("data:image/", "#"))] == []
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", html)
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    assert "default-src 'none'" in html  # whatever slips in, a browser fetches nothing


def test_names_are_escaped(html, page):
    assert html.count("<script") == 1
    assert not {name for _, attributes in page.tags for name in attributes if name.startswith("on")}
    assert [row[0][0] for row in page.table("figures")].count(EVIL) == 1
    assert EVIL in page.text
    assert "cross <script>alert('run')" in page.text


def test_figures_equal_those_of_the_runs(runs, page):
    metrics = [read_json(run / "metrics.json") for run in runs]
    rows = {row[0][0]: row[1:] for row in page.table("figures")}
    names = {"mIoU": "miou", "pixel accuracy": "pixel_accuracy", "mean class accuracy": "mean_class_accuracy"}
    assert {*names, *Evil.class_names} < set(rows)
    for name in [*names, *Evil.class_names]:
        base, other = (
            [o[names[name]] if name in names else o["iou_per_class"][name] for o in record["outputs"].values()]
            for record in metrics
        )
        expected = [*base]
        for figure, reference in zip(other, base, strict=True):
            expected += [figure, None if None in (figure, reference) else figure - reference]
        values = [float(a["data-value"]) if a["data-value"] else None for _, a in rows[name]]
        assert values == expected
        assert [words for words, _ in rows[name]] == [
            "-" if figure is None else signed(figure) if i in (4, 6, 8) else f"{100 * figure:.2f}"
            for i, figure in enumerate(expected)
        ]


def test_differences_have_their_sign():
    differences = [0.1, -0.1, 1e-9, -1e-9, 0, 1]
    assert [signed(each) for each in differences] == ["+10.00", "\N{MINUS SIGN}10.00", "±0", "±0", "±0", "+100.00"]


def test_confusion_and_branches_equal_those_of_the_runs(runs, page):
    counts = np.array(read_json(runs[0] / "confusion.json")["outputs"]["ensemble"])[:, :-1]
    cells = [[words for words, _ in row[1:]] for row in page.table("confusion")[1:]]
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    assert cells == [[f"{share:.0f}" if share >= 0.5 else "" for share in row] for row in shares]
    branches = read_json(runs[0] / "branches.json")
    rows = {row[0][0]: [a.get("data-value") for _, a in row[2:]] for row in page.table("branches")}
    keys = ("only_top", "only_bottom", "neither", "saved", "lost", "disagree")
    for name, figures in branches.items():
        shown = rows[{"all": "all classes", "near outlines": "all classes, near outlines"}.get(name, name)]
        assert shown == ["" if figures[key] is None else str(figures[key]) for key in keys]


def test_protocol_stands_in_every_section(html):
    sections = dict(re.findall(r'<section id="(\w+)"(.*?)</section>', html, re.S))
    for name in ("runs", "classes", "branches", "confusion"):
        assert "Streets test" in sections[name].replace("Evil test", "Streets test")
        assert "3 images, whole images at their own size, single scale, no flip" in sections[name]
    assert "Evil val, whole images at their own size, single scale, no flip" in sections["curves"]
    assert "Evil test, whole images at their own size, single scale, no flip" in sections["gallery"]


def test_settings_show_what_differs(page):
    shown, folded = page.tables[:2]
    values = {row[0][0]: [words for words, _ in row[1:]] for row in shown}
    assert values["network.strategy"] == ["none", "cross_c1_c2"]
    assert values["seed_everything"] == ["0", "1"]
    assert values["network.branches"] == ["[test_resnet, test_byobnet]"]
    assert "model.poly_power" in {row[0][0] for row in folded}
    assert not {"run", "ckpt_path"} & {row[0][0] for row in [*shown, *folded]}


def test_gallery_holds_what_the_runs_predict(runs, page):
    images = page.images()
    assert len(images) == 2 * (2 + 2 * 4)
    pictures = [decode(image["src"]) for image in images]
    assert all(picture.size == (64, 32) for picture in pictures)
    assert all((image["width"], image["height"]) == ("64", "32") for image in images)
    chosen = list(choose(read_runs(runs), [s.name for s in STREETS.samples("test")], 2))
    samples = {sample.name: sample for sample in STREETS.samples("test")}
    captions = [a["data-caption"] for tag, a in page.tags if tag == "button" and "data-caption" in a]
    for i, name in enumerate(chosen):
        row = dict(zip(captions[10 * i : 10 * i + 10], pictures[10 * i : 10 * i + 10], strict=True))
        truth = next(picture for caption, picture in row.items() if caption == f"{name}: ground truth")
        colors = np.full((256, 3), (224, 224, 192), np.uint8)
        colors[:12] = STREETS.palette
        assert np.array_equal(np.array(truth.convert("RGB")), colors[samples[name].mask()])
        for run in runs:
            prediction = load(run / "best.ckpt", device="cpu")(samples[name].image())
            with (run / "images.csv").open() as file:
                figures = next(line for line in csv.DictReader(file) if line["image"] == name)
            for output, labels in prediction.branch_labels.items():
                caption = f"{name}: {run.name}, {output}, mIoU {100 * float(figures[f'miou_{output}']):.2f}"
                assert np.array_equal(np.array(row[caption].convert("RGB")), colors[labels])


def test_gallery_follows_the_configuration_of_the_test(run):
    config = yaml.safe_load((run / "test.yaml").read_text())
    config["data"] |= {"resize": [16, 24], "resize_masks": True}
    (run / "test.yaml").write_text(yaml.safe_dump(config))
    page = write(run, num_images=1)
    assert {decode(image["src"]).size for image in page.images()} == {(24, 16)}
    assert "resized to 16 x 24" in page.text
    assert "another protocol than its metrics" in page.text


def test_an_ablation_stands_for_its_rows(run, tmp_path, capsys):
    ablation = Ablation({}, cells={"The pair": {}, "Not yet": {}}, seeds=[3, 4], tests={"own size": {}})
    ablation.save(tmp_path / "ablation.yaml")
    cell = tmp_path / "the_pair/seed3"
    shutil.copytree(run, cell)
    (cell / "own_size").mkdir()
    for name in ("metrics.json", "confusion.json", "images.csv", "branches.json", "test.yaml"):
        (cell / name).rename(cell / "own_size" / name)
    crosscoop("report", tmp_path, "--num-images 0 --output", tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert "The pair" in page.text and "Missing: " not in page.text
    assert "not trained yet: Not yet" in capsys.readouterr().err
    shutil.rmtree(cell)
    with pytest.raises(CrosscoopError, match="an ablation without a trained cell"):
        report([str(tmp_path)])


def test_val_images_are_spread_evenly(run):
    assert "evenly spaced" in write(run, num_images=2, split="val").text


# What is missing, or does not belong together.


@pytest.mark.parametrize(
    "file", ["config.yaml", "history.csv", "metrics.json", "confusion.json", "images.csv", "branches.json"]
)
def test_missing_and_damaged_pieces_are_said(run, file):
    (run / file).write_text("{")
    assert f"{file} cannot be read" in write(run).text
    (run / file).unlink()
    assert f"Missing: {file}; run crosscoop " in write(run).text


def test_damaged_configuration_of_a_test_is_said(run):
    (run / "test.yaml").write_text("{")
    assert "test.yaml: cannot be read" in write(run, num_images=1).text


def test_configuration_alone_makes_a_page(run):
    for path in run.iterdir():
        if path.name != "config.yaml":
            path.unlink()
    run = run.rename(run.with_name("<script>"))
    page = write(run, num_images=2)
    text = page.text
    assert [tag for tag, _ in page.tags].count("script") == 1
    for words in (
        "Missing: history.csv",
        "No run has been measured yet",
        "<script> is not shown: ",
        "ckpt does not exist",
    ):
        assert words in text


def test_nothing_is_missing_in_a_tested_run(html):
    assert 'class="notices"' not in html
    assert 'class="missing"' not in html


def test_fit_without_test_says_so(run):
    record = read_json(run / "metrics.json")
    (run / "metrics.json").write_text(json.dumps({**record, "stage": "fit"}))
    assert "not from a test" in write(run).text


def test_missing_data_are_said(run):
    config = yaml.safe_load((run / "test.yaml").read_text())
    config["data"]["dataset"] = {"class_path": "crosscoop.data.CamVid", "init_args": {"root": "/nowhere"}}
    (run / "test.yaml").write_text(yaml.safe_dump(config))
    text = write(run, num_images=1).text
    assert "is not shown" in text
    assert "data.dataset.root: got /nowhere" in text


@pytest.mark.parametrize(
    ("fact", "value", "compared"),
    [("inference", "single scale, with flip", 3), ("num_images", 2, 3), ("split", "val", 0), ("dataset", "<i>", 0)],
)
def test_runs_that_do_not_compare_are_warned_of(run, runs, html, fact, value, compared):
    assert "not comparable" not in html
    record = read_json(run / "metrics.json")
    before, record["protocol"][fact] = record["protocol"][fact], value
    (run / "metrics.json").write_text(json.dumps(record))
    output = run.parent / "a.html"
    report([str(runs[0]), str(run)], str(output), 0)
    warning = re.search(r'<aside class="warning".*?</aside>', output.read_text(), re.S)[0]
    assert f"{fact.replace('num_', 'number of ')} (none: {before}; run: {value})" in Page(warning).text
    headers = [words for words, _ in Page(output.read_text()).table("figures")[1]]
    assert len(headers) == 1 + 6 + compared  # what was measured on something else is not compared


@pytest.mark.parametrize("path", ["nowhere", "."])
def test_folder_without_a_run_is_refused(tmp_path, monkeypatch, capsys, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        crosscoop("report", path)
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert all(words in message for words in (path, "got", "expected a run", "crosscoop fit --run"))
    assert not Path("report.html").exists()


def test_no_run_is_refused():
    with pytest.raises(CrosscoopError, match="got no run"):
        read_runs([])
    with pytest.raises(SystemExit):
        crosscoop("report")


def test_negative_number_of_images_is_refused(runs):
    with pytest.raises(CrosscoopError, match="--num-images: got -1, expected 0 or more"):
        report([str(runs[0])], num_images=-1)


def test_runs_of_one_name_are_told_apart(run, tmp_path):
    other = Path(shutil.copytree(run, tmp_path / "other" / "run"))
    assert [run.name for run in read_runs([run, other, run])] == [str(run), str(other)]


# Which images, which curves.


def test_images_are_those_on_which_the_runs_differ_most():
    first = Run(Path(), "a", images={"x": {"miou_ensemble": 0.5}, "y": {"miou_ensemble": 0.5}, "z": {}})
    second = Run(Path(), "b", images={"x": {"miou_network": 0.6}, "y": {"miou_network": 0.1}, "z": {}})
    chosen = choose([first, second], ["w", "x", "y", "z"], 3)
    assert chosen == {"y": "mIoU of a is 40.0 points above that of b", "x": "mIoU of b is 10.0 points above that of a"}
    assert list(choose([first, second], ["x", "y"], 1)) == ["y"]


def test_images_of_one_run():
    pair = {"x": {"miou_ensemble": 0.5, "disagreement": 0.1}, "y": {"miou_ensemble": 0.5, "disagreement": 0.2}}
    assert list(choose([Run(Path(), "a", images=pair)], ["x", "y"], 2)) == ["y", "x"]
    single = {"x": {"miou_network": 0.5}, "y": {"miou_network": 0.6}}
    assert list(choose([Run(Path(), "a", images=single)], ["x", "y"], 2)) == ["x", "y"]
    assert list(choose([Run(Path(), "a")], list("abcde"), 3)) == ["a", "c", "e"]


@pytest.mark.parametrize("values", [[0.5], [0, 0], [1e-9, 2e-9], [-3, 1e6], [5, 5.0001], [0.1, 0.2, 0.7], [99.9, 100]])
def test_curves_lie_in_their_frame(values):
    chart = Chart("", [Line("", 0, 0, list(enumerate(values)))], 2)
    assert 2 <= len(chart.values) <= 9
    assert chart.values[0] <= min(values) <= max(values) <= chart.values[-1] * (1 + 1e-9)
    for x, y in (chart.place(*point) for point in chart.lines[0].points):
        assert 44 <= x <= 448
        assert 9.9 <= y <= 232.1


def test_curves_leave_out_what_is_no_number(tmp_path):
    (tmp_path / "config.yaml").write_text("{}")
    (tmp_path / "history.csv").write_text("epoch,train/loss,val/miou/network\n0,nan,0.5\n1,inf,\n2,1.5,0.25\n")
    loss, iou = charts([read_run(tmp_path, "a")])
    assert loss.lines[0].points == [(2, 1.5)]
    assert iou.lines[0].points == [(0, 50), (2, 25)]


def test_images_are_compared_one_by_one():
    first = Run(Path(), "a", images={"x": {"miou_top": 0.5, "miou_ensemble": 0.5}, "y": {"miou_ensemble": 0.5}})
    second = Run(Path(), "b", images={"x": {"miou_network": 0.6}, "y": {"miou_network": 0.1}, "z": {"miou_network": 0}})
    (chart,) = image_charts([first, Run(Path(), "untested"), second])
    (line,) = chart.lines
    assert (chart.title, line.name) == ("mIoU above that of a (points)", "b: higher on 50 % of the images")
    assert line.color == 2 and line.points == [(25, pytest.approx(10)), (75, pytest.approx(-40))]
    (chart,) = image_charts([first])
    assert [line.name for line in chart.lines] == ["ensemble: higher on 0 % of the images"]
    assert image_charts([second]) == image_charts([]) == []


def test_confidence_is_shown(runs, page):
    figures = read_json(runs[0] / "calibration.json")
    assert list(figures["outputs"]) == ["top", "bottom", "ensemble"]
    for output, each in figures["outputs"].items():
        assert f"{output}: off by {100 * each['ece']:.1f} points on average" in page.text
    assert "top: test_resnet; bottom: test_byobnet" in page.text


# In a real browser.


@pytest.fixture
def opened(browser, html, tmp_path):
    """The page, open at a phone's or a desk's width."""

    def open_at(width):
        (tmp_path / "page.html").write_text(html)
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get((tmp_path / "page.html").as_uri())
        return browser

    yield open_at
    assert browser.get_log("browser") == []


def test_images_are_shown(opened):
    script = """
        const images = [...document.querySelectorAll("td img")];
        images.forEach((image) => (image.loading = "eager"));
        Promise.all(images.map((image) => image.decode())).then(
            () => arguments[0](images.map((image) => image.naturalWidth)), (error) => arguments[0](String(error)));
    """
    assert opened(1280).execute_async_script(script) == [64] * 20


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_page_does_not_scroll_sideways(opened, width):
    browser = opened(width)
    for details in browser.find_elements("css selector", "details"):
        browser.execute_script("arguments[0].open = true", details)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_headers_sort(opened):
    browser = opened(1280)

    def column(index):
        rows = "[...document.querySelector('.figures').tBodies[1].rows]"
        return browser.execute_script(f"return {rows}.map((row) => row.cells[arguments[0]].textContent)", index)

    headers = browser.find_elements("css selector", ".figures thead button")
    assert len(headers) == 10  # class, three outputs, three outputs with differences
    original = column(0)
    for index, header in enumerate(headers):
        for reverse in (index > 0, index == 0):
            browser.execute_script("arguments[0].click()", header)
            cells = column(index)
            order = "descending" if reverse else "ascending"
            assert header.find_element("xpath", "..").get_attribute("aria-sort") == order
            if index == 0:
                expected = browser.execute_script(
                    "return [...arguments[0]].sort((a, b) => a.localeCompare(b))", original
                )
                assert cells == (expected[::-1] if reverse else expected)
            else:
                numbers = [float(c.replace("\N{MINUS SIGN}", "-").replace("±", "")) for c in cells if c != "-"]
                assert numbers == sorted(numbers, reverse=reverse)
                assert cells[len(numbers) :] == ["-"] * (len(cells) - len(numbers))
        browser.execute_script("arguments[0].click()", header)
        assert column(0) == original
    assert browser.find_element("css selector", ".figures .summary th").text == "mIoU"


def test_legend_tells_values_and_switches_lines(opened, runs):
    browser = opened(1280)
    svg = browser.find_element("css selector", ".chart > svg")
    browser.execute_script("arguments[0].scrollIntoView({behavior: 'instant'})", svg)
    browser.execute_script(
        """const box = arguments[0].getBoundingClientRect();
        const at = {clientX: box.right - 5, clientY: box.top + 20, bubbles: true};
        arguments[0].querySelector(".pointer").dispatchEvent(new PointerEvent("pointermove", at));""",
        svg,
    )
    with (runs[0] / "history.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    outputs = browser.find_elements("css selector", ".chart output")
    assert outputs[0].text == f"{float(last['train/loss']):.3f}"
    button = browser.find_element("css selector", ".legend button")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert not browser.find_element("css selector", ".chart > svg .line").is_displayed()


def test_pictures_open_large(opened):
    browser = opened(390)
    button = browser.find_element("css selector", ".pictures td button")
    browser.execute_script("arguments[0].click()", button)
    caption = browser.find_element("css selector", "dialog p")
    assert caption.text.endswith(": image")
    browser.find_element("css selector", "dialog button[value='1']").click()
    assert caption.text.endswith(": ground truth")
    width = browser.execute_script("return document.querySelector('dialog img').getBoundingClientRect().width")
    assert 300 < width < 390
    browser.find_element("css selector", "dialog button:last-child").click()
    assert not browser.find_element("css selector", "dialog").is_displayed()
