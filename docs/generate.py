"""What the documentation's build generates: the catalogue, the reference and the options of the command line.

A page names it in a comment, `<!-- generated: NAME -->`, which is replaced as Sphinx reads the page. The build also
checks that every public name that a page mentions is in the reference.
"""

import importlib
import inspect
import json
import pkgutil
import re
import runpy
from argparse import SUPPRESS
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import docstring_parser
import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.logging import getLogger
from sphinx.util.typing import stringify_annotation

from crosscoop.cli import COMMANDS
from crosscoop.commands.options import make_parser
from crosscoop.commands.predict import predict
from crosscoop.commands.training import TrainingCLI
from crosscoop.data import SegmentationData, SegmentationDataset
from crosscoop.network import FUSIONS, STRATEGIES, CooperativeNetwork, Strategy, create_network
from crosscoop.network.cost import count_macs, count_parameters
from crosscoop.network.ensemble import ENSEMBLES
from crosscoop.network.fusion import get_fusion
from crosscoop.network.strategy import POINTS
from crosscoop.training.lightning_fixes import give_defaults
from crosscoop.training.loss import Loss
from crosscoop.training.objective import Objective
from crosscoop.training.task import CooperativeSegmentation

DOCS = Path(__file__).parent
LOG = getLogger(__name__)

# -- the catalogue

LAYERS = {"connection1": 1, "aspp": 5, "connection2": 1, "decoder": 3}
"""The exchanges at each point of DeepLabV3+."""
WAYS = {"both": "in both directions", "top_to_bottom": "from top to bottom", "bottom_to_top": "from bottom to top"}
PAPER = {
    "none": "ensemble of independent networks; with one branch, the single network",
    "one_way": "conventional cooperative learning",
    "cross": "without C1 and C2",
    "cross_c1": "C1",
    "cross_c2": "C2",
    "cross_c1_c2": "C1 and C2: the proposed method",
}
"""What the paper calls each strategy."""
STUDIED = {"one_way": "one_way, top to bottom", "cross_c1_c2, add": "cross_c1_c2"}
"""The cells of the study that are not named like a strategy, or a strategy and an operator."""


def strategies() -> Iterator[str]:
    """Describe every connection strategy: its diagram, its cost, and what was measured."""
    for name, strategy in STRATEGIES.items():
        where = f"{', '.join(f'`{point}`' for point in strategy.points)} {WAYS[strategy.direction]}"
        yield f"### `{name}`\n\n{diagram(strategy)}"
        yield f"Connects {where if strategy.points else 'nothing'}. In the paper: {PAPER[name]}."
        yield facts(cost(name, "add"), measured(name))


def operators() -> Iterator[str]:
    """Describe every fusion operator: formula, source and options from its docstring, cost, and what was measured."""
    for name, operator in FUSIONS.items():
        yield f"### `{name}`\n\n{described(operator)}"
        yield facts(cost("cross_c1_c2", name), measured(f"cross_c1_c2, {name}"))


def ensembles() -> Iterator[str]:
    """Describe every ensemble."""
    yield from (f"### `{name}`\n\n{described(each)}" for name, each in ENSEMBLES.items())


def losses() -> Iterator[str]:
    """Describe every loss."""
    yield from (f"### `{each.__name__}`\n\n{described(each)}" for each in subclasses(Loss))


def objectives() -> Iterator[str]:
    """Describe every objective."""
    yield from (f"### `{each.__name__}`\n\n{described(each)}" for each in subclasses(Objective))


def subclasses(base: type[Any]) -> list[type[Any]]:
    """Return the classes of the package that an option of this type takes, in the order of their definition."""
    found = [base] + [each for every in base.__subclasses__() for each in subclasses(every)]
    return [each for each in found if each.__module__.startswith("crosscoop.") and not inspect.isabstract(each)]


def described(of: Callable[..., Any]) -> str:
    """Return the text of a class's docstring in Markdown, and its options as a list."""
    parsed = docstring_parser.parse(inspect.getdoc(of) or "")
    given = {"channels", "num_branches", "num_classes"}
    options = [f"- `{each.arg_name}`: {linked(each.description)}" for each in parsed.params
               if each.arg_name not in given]  # fmt: skip
    text = "\n\n".join(linked(part) for part in (parsed.short_description, parsed.long_description) if part)
    return f"{text}\n\n" + ("Options:\n\n" + "\n".join(options) if options else "")


def linked(text: str | None) -> str:
    """Make the addresses in a text links."""
    return re.sub(r"(?<![<(])(https?://[^\s),;]+[^\s),;.])", r"<\1>", " ".join((text or "").split()))


def facts(cost: tuple[int, int, int, int], measured: str) -> str:
    """Return cost and measurement as a list."""
    total, exchanges = f"{amount(cost[0])} parameters, {amount(cost[1])} multiply-adds", cost[2:]
    own = f"{amount(cost[2])} and {amount(cost[3])} of them" if any(exchanges) else "none of them"
    return f"- Cost: {total}, {own} in the exchanges\n- Measured: {measured}"


def amount(number: int) -> str:
    """Write a number with a unit that leaves two decimals."""
    unit, name = next((each for each in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if number >= each[0]), (1, ""))
    return f"{number / unit:.2f} {name}" if name else str(number)


@cache
def paper_pair() -> CooperativeNetwork:
    """Return the paper's pair, dense heads, 21 classes, on a device that computes nothing."""
    with torch.device("meta"):
        return create_network(strategy="none")


@cache
def cost(strategy: str, fusion: str) -> tuple[int, int, int, int]:
    """Return parameters and multiply-adds of the paper's pair at 513 x 513, and those of the exchanges alone."""
    with torch.device("meta"):
        pair = paper_pair()
        network = CooperativeNetwork(pair.branches, STRATEGIES[strategy], get_fusion(fusion)).eval()
        parameters, macs = count_parameters(network), count_macs(network, torch.empty(1, 3, 513, 513))
    if network.exchanges:
        own = cost("none", "add")
        return parameters, macs, parameters - own[0], macs - own[1]
    return parameters, macs, 0, 0


@cache
def study() -> dict[str, Any]:
    """Return what docs/camvid-study/rebuild.py defines."""
    return runpy.run_path(str(DOCS / "camvid-study" / "rebuild.py"))


def measured(cell: str) -> str:
    """Return the ensemble's mIoU in the study on CamVid, at both resolutions."""
    found, names = study(), STUDIED.get(cell, cell)
    miou = [found["figures"](names, test, "miou", "ensemble") for test in (found["FULL"], found["HALF"])]
    if not all(each.values for each in miou):
        return "not measured yet"
    full, half = map(found["percent"], miou)
    return f"mIoU {full} at full, {half} at training resolution ([study](camvid-study.md))"


def diagram(strategy: Strategy) -> str:
    """Draw the connections of two branches as an SVG, whose colours are in site.css."""
    parts, x = [], 70
    lanes = {"top": 26, "bottom": 94}
    for point in POINTS:
        first = x
        for _ in range(LAYERS[point]):
            ends = {"both": (1, 1), "top_to_bottom": (0, 1), "bottom_to_top": (1, 0)}[strategy.direction]
            if point in strategy.points:
                tips = (f'<path d="M{x - 4} 41l4-8 4 8z"/>' * ends[0]) + (f'<path d="M{x - 4} 79l4 8 4-8z"/>' * ends[1])
                parts.append(f'<g class="{point}"><path d="M{x} 40V80"/>{tips}</g>')
            parts += [f'<circle cx="{x}" cy="{y}" r="4"/>' for y in lanes.values()]
            x += 18
        parts.append(f'<text x="{(first + x - 18) / 2}" y="118">{point}</text>')
        x += 48 if point in ("connection1", "connection2") else 36
    for name, y in lanes.items():
        parts.insert(0, f'<path class="lane" d="M56 {y}H{x}"/><text class="name" x="0" y="{y + 4}">{name}</text>')
    label = f"Connections at {', '.join(strategy.points) or 'no point'}"
    return f'<svg class="connections" viewBox="0 0 {x + 6} 126" role="img" aria-label="{label}">{"".join(parts)}</svg>'


# -- the reference

MODULES = (
    *("crosscoop", "crosscoop.errors", "crosscoop.cli", "crosscoop.network", "crosscoop.network.strategy"),
    *("crosscoop.network.fusion", "crosscoop.network.ensemble", "crosscoop.network.exchange"),
    *("crosscoop.network.cooperative", "crosscoop.network.branch", "crosscoop.network.backbone"),
    *("crosscoop.network.deeplabv3plus", "crosscoop.network.smp", "crosscoop.network.mmseg"),
    *("crosscoop.network.freeze", "crosscoop.network.cost", "crosscoop.data", "crosscoop.data.dataset"),
    *("crosscoop.data.datasets.folder", "crosscoop.data.images", "crosscoop.evaluation.inference"),
    *("crosscoop.evaluation.metrics", "crosscoop.evaluation.scores", "crosscoop.evaluation.boundary"),
    *("crosscoop.prediction.predictor", "crosscoop.prediction.pictures"),
    *("crosscoop.training.task", "crosscoop.training.weights"),
    *("crosscoop.training.loss", "crosscoop.training.objective", "crosscoop.training.objective.teaching"),
    "crosscoop.training.callbacks",
)
"""What the reference covers, in its order. A name that several of them offer is listed under the first."""


def reference() -> Iterator[str]:
    """List every public name, documented by its docstring."""
    seen: set[int] = set()
    for path in MODULES:
        module = importlib.import_module(path)
        found = {name: getattr(module, name) for name in offered(module)}
        new = {name: each for name, each in found.items() if id(each) not in seen}
        seen |= {id(each) for each in new.values()}
        if new:
            yield f"## `{path}`\n\n{linked((module.__doc__ or '').partition(chr(10))[0])}"
            yield from (f"```{{eval-rst}}\n{automatic(f'{path}.{name}', each)}\n```" for name, each in new.items())


def offered(module: ModuleType) -> list[str]:
    """Return the public names of a module: classes, functions, and the documented constants that it defines."""
    if hasattr(module, "__all__"):  # a constant's docstring is in the module that defines it
        return [name for name in module.__all__ if callable(getattr(module, name))]
    own = [name for name, each in vars(module).items() if getattr(each, "__module__", "") == module.__name__]
    constants = [name for scope, name in ModuleAnalyzer.for_module(module.__name__).find_attr_docs() if not scope]
    return [name for name in dict.fromkeys((*own, *constants)) if not name.startswith("_")]


def automatic(path: str, each: Any) -> str:
    """Return the directive that documents a name."""
    if inspect.isclass(each):
        return f".. autoclass:: {path}\n   :members:\n   :show-inheritance:"
    return f".. autofunction:: {path}" if inspect.isfunction(each) else f".. autodata:: {path}\n   :no-value:"


def check_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of each public name that a page mentions and that the reference lacks."""
    documented = set(env.domains["py"].data["objects"])
    data = {path.rpartition(".")[2] for path in documented}
    for page in sorted(env.found_docs):
        text = Path(env.doc2path(page)).read_text("utf-8").replace("\\n", "\n")
        for path in sorted(set(mentioned(text))):
            try:
                each = pkgutil.resolve_name(path)
            except (ImportError, AttributeError):
                continue  # such as the name of a file
            home = f"{getattr(each, '__module__', '')}.{getattr(each, '__qualname__', '')}"
            found = {path, home} & documented or (not callable(each) and path.rpartition(".")[2] in data)
            if not (found or inspect.ismodule(each) or "._" in path):
                LOG.warning("%s is not in the reference; add its module to docs/generate.py", path, location=page)


def mentioned(text: str) -> Iterator[str]:
    """Yield the paths of the package's names in a text: `crosscoop.load`, `from crosscoop import load`."""
    yield from re.findall(r"\bcrosscoop(?:\.\w+)+", text)
    for module, names in re.findall(r"from (crosscoop[\w.]*) import ([^(\n]+|\([^)]+\))", text):
        yield from (f"{module}.{name}" for name in re.findall(r"\w+", names))


# -- the options of the command line

CHOICES = {
    "data.dataset": SegmentationDataset,
    "model.loss": Loss,
    "model.objective": Objective,
}
"""The options of fit that take a class of the package."""


class Parsed(Exception):  # noqa: N818
    """The parser of `crosscoop fit`, on its way out of Lightning."""


class Options(TrainingCLI):
    """The command line of training, which stops once its parser is complete."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Restrict the commands to fit: the options of the others are among its own."""
        return {"fit": LightningCLI.subcommands()["fit"]}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Hand out the parser."""
        raise Parsed(self.command_parser)


def fit_options() -> Iterator[str]:
    """List every option of fit, group by group."""
    give_defaults()
    try:
        Options(CooperativeSegmentation, SegmentationData, seed_everything_default=0, auto_configure_optimizers=False,
                args=["fit"])  # fmt: skip
    except Parsed as parsed:
        parser = parsed.args[0]
    groups: dict[str, list[Any]] = {}
    for action in parser._actions:
        groups.setdefault(action.dest.partition(".")[0] if "." in action.dest else "", []).append(action)
    titles = {
        "": "the run",
        "last": "last: the checkpoint to resume from",
        "nonfinite": "nonfinite losses and gradients",
    }
    order = ("", "network", "model", "data", "trainer", "inference")
    for group in [*order, *(name for name in groups if name not in order)]:
        yield from options(groups[group], "crosscoop fit", titles.get(group, group))


def choices() -> Iterator[str]:
    """List the options of the package's classes that an option of fit takes."""
    for option, base in CHOICES.items():
        for each in subclasses(base):
            parser = ArgumentParser()
            parser.add_class_arguments(each, option)
            chosen = f"--{option} {each.__name__}"
            yield from options(parser._actions, f"crosscoop fit {chosen}", chosen)


def commands() -> Iterator[str]:
    """List the options of every other command."""
    for name, (place, summary) in COMMANDS.items():
        if place.startswith("crosscoop.commands.training"):
            continue
        function = predict if name == "predict" else pkgutil.resolve_name(place)
        program = f"crosscoop {name}"
        yield from options(make_parser(function, name)._actions, program, f"{program}\n\n{summary}")


def options(actions: list[Any], program: str, title: str) -> Iterator[str]:
    """Describe options with type, default and meaning, below a title; nothing if there are none."""
    names = {action.dest for action in actions}
    shared = [group for group, one in SHARED.items() if one in names and program != "crosscoop fit"]
    own = [each for each in actions if each.default != SUPPRESS and each.dest.partition(".")[0] not in shared]
    if own:
        yield f"### {title}\n\n```{{program}} {program}\n```"
    for action in own:
        spelling = next((each for each in action.option_strings if each.startswith("--")), action.dest)
        required = action.required or not action.option_strings
        default = "required" if required else f"default `{value(action.default)}`"
        kind = ["flag"] if action.nargs == 0 else [f"type `{type_of(action)}`", default]
        yield f"`````{{option}} {spelling}\n{', '.join(kind)}\n\n{plain(action.help or '')}\n`````"
    for group in shared:
        yield f"Also all [options of the group `{group}`](#{group}) of `fit`."


SHARED = {"data": "data.batch_size", "inference": "inference.window"}
"""The groups of options that several commands have, and an option of each."""


def type_of(action: Any) -> str:
    """Return an option's type without the modules of its classes."""
    kind = getattr(action, "_typehint", None) or action.type or str
    return re.sub(r"(\w+\.)+(?=\w)", "", stringify_annotation(kind, "smart")).replace("~", "")


def value(default: Any) -> str:
    """Write a default as in YAML."""
    plain = json.loads(
        json.dumps(default, default=lambda each: each.as_dict() if isinstance(each, Namespace) else str(each))
    )
    text = yaml.safe_dump(plain, default_flow_style=True, width=1000, sort_keys=False)
    return re.sub(r"(class_path: )(\w+\.)+", r"\1", text).removesuffix("...\n").strip()


def plain(text: str) -> str:
    """Turn what Lightning's docstrings have of reStructuredText into Markdown."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    text = re.sub(r"`([^`<]+?) <(\S+?)>`_+", r"[\1](\2)", text)
    text = re.sub(r"\.\. (note|warning)::", lambda mark: f"**{mark[1].capitalize()}:**", text).replace("::", ":")
    return "\n\n".join(map(block, re.split(r"\n\s*\n", text)))


def block(text: str) -> str:
    """Return a paragraph, a list or an example in Markdown."""
    if ">>>" in text:
        return f"```python\n{text}\n```"
    return "\n".join(linked(line) for line in re.split(r"\n\s*(?=- )", text))


# -- Sphinx


def stepped() -> Iterator[str]:
    """Place the figure of a forward pass, which forward.js draws."""
    each = {name: {"points": list(one.points), "direction": one.direction} for name, one in STRATEGIES.items()}
    yield f"<div data-strategies='{json.dumps(each)}'></div>\n<script src=\"../_static/forward.js\"></script>"


CATALOGUE = (strategies, operators, ensembles, losses, objectives)
GENERATED: dict[str, Callable[[], Iterator[str]]] = {
    each.__name__: each for each in (*CATALOGUE, reference, fit_options, choices, commands, stepped)
}


def generate(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace the marks in a page, and give the first page the tables of contents that its lists are."""
    source[0], number = re.subn(r"<!-- generated: (\w+) -->", lambda mark: "\n\n".join(GENERATED[mark[1]]()), source[0])
    if number:  # the package may change while the page does not
        app.env.note_reread()
    if page == app.config.root_doc:
        for section in source[0].split("\n## ")[1:]:
            entries = re.findall(r"^- \[(.+?)\]\((.+?)\)", section, re.MULTILINE)
            lines = [f"{title} <{path.removesuffix('.md').removesuffix('.ipynb')}>" for title, path in entries]
            caption = section.partition("\n")[0]
            source[0] += "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *lines, "```", ""])


def finish(app: Sphinx, error: Exception | None) -> None:
    """Lead from the site's folder to its first page."""
    first = f"{app.config.root_doc}.html"
    (Path(app.outdir) / "index.html").write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={first}">')


def setup(app: Sphinx) -> dict[str, Any]:
    """Register what Sphinx calls."""
    app.connect("source-read", generate)
    app.connect("env-updated", check_names)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True}
