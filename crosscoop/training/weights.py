"""The weights that a training starts from: those of networks trained before."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import torch
from pytorch_lightning.utilities import rank_zero_only
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from crosscoop.checkpoints.read import find_checkpoint
from crosscoop.errors import CrosscoopError
from crosscoop.export.read import read_network
from crosscoop.files import note, shorten
from crosscoop.network import Branch, CooperativeNetwork, create_network
from crosscoop.network.create import HEADS
from crosscoop.network.mmseg import from_mmseg
from crosscoop.network.outputs import branch_names
from crosscoop.network.smp import from_smp

Weights: TypeAlias = str | dict[str, Any] | Sequence[str | dict[str, Any] | None]

SHOWN = 8
"""Number of differences that a message lists."""

DEPTH = {"branches": 3, "exchanges": 2, "ensemble": 2}
"""Number of words in a weight's name that name a part of the network."""

FOREIGN: Mapping[str, tuple[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]]] = {
    "deeplabv3plus_smp": ("segmentation_head.0.weight", from_smp),
    "deeplabv3plus_mmseg": ("decode_head.conv_seg.weight", from_mmseg),
}
"""By the branch that takes another library's weights: how the name of its classifier ends, and the translation."""


@dataclass(frozen=True)
class Source:
    """What `network.weights` names for a network or one of its branches.

    Args:
        source: A run's folder, a checkpoint, a .safetensors file, a repository (`hf-hub:NAME`), or the state dict of
            another library as .pth or .safetensors.
        branch: The branch to take, for a source with several.
        partial: Take what fits, instead of refusing a source that was built differently.
    """

    source: str
    branch: str | None = None
    partial: bool = False


@dataclass(frozen=True)
class Trained:
    """A network trained before.

    Attributes:
        source: Where it comes from.
        weights: Its weights by name.
        branches: The aspects of each branch by name; see `_describe`.
        exchanges: A description of the connections at each exchange point.
        of_classes: The names of the weights that depend on its classes; empty if these are the wanted ones.
    """

    source: Source
    weights: Mapping[str, Tensor]
    branches: Sequence[Mapping[str, str]]
    exchanges: Mapping[str, str]
    of_classes: frozenset[str]

    def branch(self, index: int, network: CooperativeNetwork) -> int:
        """Return the index of the branch from which a branch of a network starts.

        Raises:
            CrosscoopError: The branch does not exist, or several are possible.
        """
        names, name, source = branch_names(len(self.branches)), self.source.branch, self.source.source
        if name in names:
            return names.index(name)
        if name is not None:
            raise CrosscoopError(f"network.weights: got branch {name!r} of {source}, expected {', '.join(names)}.")
        own = _describe(network.branches[index])
        same = [i for i, each in enumerate(self.branches) if len(names) == 1 or each == own]
        if len(same) != 1:
            raise CrosscoopError(
                f"network.weights: got {source} with the branches {', '.join(names)}, of which {len(same) or 'none'} "
                f"match {own['backbone']}; expected the one to take: {{source: {source}, branch: {names[0]}}}."
            )
        return same[0]


def network_to_train(class_names: Sequence[str], weights: Weights | None = None, **options: Any) -> CooperativeNetwork:
    """Create a network and give it the weights that its training starts from.

    Args:
        class_names: One name per class.
        weights: What to start from: a run, a checkpoint, a .safetensors file or `hf-hub:NAME`; a list with one of these
            per branch (null: none) joins networks trained apart. `{source: runs/pair, branch: top}` takes one branch;
            `{source: runs/other, partial: true}` takes what fits of a network that was built differently. Classifiers
            are taken if the classes are the same. A state dict of smp's DeepLabV3Plus or of mmsegmentation's
            deeplabv3plus (.pth, .safetensors) fits a branch with that `class_path`. A resumed run reads nothing again.
        options: The arguments of `create_network`.

    Raises:
        CrosscoopError: See `create_network` and `start_from`.
    """
    network = create_network(**options)
    if weights is not None:
        lines = start_from(network, class_names, weights)
        if getattr(rank_zero_only, "rank", 0) == 0:
            print("\n".join(lines))
    return network


def start_from(network: CooperativeNetwork, class_names: Sequence[str], weights: Weights) -> list[str]:
    """Replace a network's weights by those of networks trained before.

    Args:
        network: The network, changed in place.
        class_names: The names of its classes. The weights that depend on the classes are taken from networks with the
            same ones only.
        weights: What to start from, see `network_to_train`.

    Returns:
        Lines that say what was taken, what was left out, and what keeps its new values.

    Raises:
        CrosscoopError: A source cannot be read or was built differently, or does not say which branch to take.
    """
    names = branch_names(len(network.branches))
    wanted: dict[str, Tensor] = network.state_dict()
    taken: dict[str, Tensor] = {}
    lines = []
    for i, source in enumerate(_sources(weights, len(names))):
        if source is None:
            continue
        with torch.random.fork_rng(devices=[]):  # what is newly drawn does not depend on the source
            trained = _read(source, class_names)
        whole = isinstance(weights, (str, dict)) and source.branch is None and len(trained.branches) == len(names)
        if isinstance(weights, (str, dict)) and not whole and len(names) > 1:
            raise CrosscoopError(
                f"network.weights: got {source.source}, which gives {1 if source.branch else len(trained.branches)} of "
                f"{len(names)} branches; expected a list with one source per branch, null for none."
            )
        pairs = {j: j for j in range(len(names))} if whole else {i: trained.branch(i, network)}
        fitting = _fitting(trained, pairs, whole, network)
        taken |= {own: trained.weights[key] for own, key in fitting.items()}
        left = {key: value for key, value in trained.weights.items() if key not in fitting.values()}
        lines += [f"network.weights: {source.source}", f"  taken: {_parts(fitting, wanted, names)}"]
        if left:
            lines += [f"  left out: {_parts(left, trained.weights, branch_names(len(trained.branches)))}"]
    network.load_state_dict({**wanted, **taken})
    new = [key for key in wanted if key not in taken]
    return [*lines, *([f"  newly drawn: {_parts(new, wanted, names)}"] if new else [])]


def _fitting(trained: Trained, pairs: Mapping[int, int], whole: bool, network: CooperativeNetwork) -> dict[str, str]:
    """Return the name of a trained network's weight for each weight of a network that takes it.

    Args:
        trained: The trained network.
        pairs: For each index of a branch that takes weights, the index of the branch that gives them.
        whole: Whether exchanges and ensemble take weights, too.
        network: The network that takes them.

    Raises:
        CrosscoopError: They were built differently, and not only what fits was asked for.
    """
    wanted, names = network.state_dict(), branch_names(len(network.branches))
    differences: dict[tuple[str, str], list[str]] = {}  # what was got and what was expected, and where
    different = []  # parts whose shapes need not be compared

    def compare(part: str, where: str, got: str, expected: str) -> None:
        if got != expected:
            differences.setdefault((got, expected), []).append(where)
            different.append(f"{part}.")

    given = {key: key for key in trained.weights if whole and key.startswith(("exchanges.", "ensemble."))}
    for own, theirs in pairs.items():
        before, after = f"branches.{theirs}.", f"branches.{own}."
        given |= {after + key.removeprefix(before): key for key in trained.weights if key.startswith(before)}
        expected = _describe(network.branches[own])
        for aspect, got in trained.branches[theirs].items():
            compare(f"branches.{own}", f"{aspect} of {names[own]}", got, expected[aspect])
    if whole:
        exchanges = _exchanges(network)
        for point in {**exchanges, **trained.exchanges}:
            got, wish = (each.get(point, "no exchange") for each in (trained.exchanges, exchanges))
            compare(f"exchanges.{point}", point, got, wish)
    fits = {own for own, key in given.items() if own in wanted and wanted[own].shape == trained.weights[key].shape}
    if trained.source.partial:
        return {own: key for own, key in given.items() if own in fits and key not in trained.of_classes}
    of_classes = [own for own, key in given.items() if key in trained.of_classes]
    free = ("ensemble.", *different, *of_classes)
    mine = [key for key in wanted if whole or key.startswith(tuple(f"branches.{own}." for own in pairs))]
    for key in dict.fromkeys([*mine, *given]):
        if key not in fits and not key.startswith(free):
            compare("", key, _shape(trained.weights, given.get(key)), _shape(wanted, key))
    if differences:
        lines = [f"- {shorten(where)}: got {got}, expected {wish}" for (got, wish), where in differences.items()]
        lines[SHOWN:] = [f"- {len(lines) - SHOWN} other differences"] if len(lines) > SHOWN else []
        advice = (
            f"network.weights: {trained.source.source} does not fit the network. Give the network the options of its "
            f"training, or take what fits: {{source: {trained.source.source}, partial: true}}."
        )
        raise CrosscoopError("\n".join([advice, *lines]))
    return {own: key for own, key in given.items() if own in fits and key not in trained.of_classes}


def _sources(weights: Weights, num_branches: int) -> list[Source | None]:
    """Return the source of each branch; a single one for the whole network."""
    several = not isinstance(weights, (str, dict))
    entries = list(weights) if several else [weights]
    if several and len(entries) != num_branches:
        raise CrosscoopError(
            f"network.weights: got {len(entries)} entries for {num_branches} branches; expected one per branch, or a "
            "single one for the whole network."
        )
    known = {field.name for field in fields(Source)}
    sources: list[Source | None] = []
    for entry in entries:
        values = {"source": entry} if isinstance(entry, str) else entry
        if values is None:
            sources.append(None)
            continue
        if not isinstance(values, Mapping) or (set(values) - known) or not isinstance(values.get("source"), str):
            raise CrosscoopError(
                f"network.weights: got {entry!r}, expected a run, a file or hf-hub:NAME, or the fields source and, "
                "optionally, branch and partial."
            )
        sources.append(Source(**values))
    return sources


def _read(source: Source, class_names: Sequence[str]) -> Trained:
    path = source.source
    if not (path.startswith("hf-hub:") or Path(path).exists()):
        raise CrosscoopError(
            f"network.weights: got {path}, which does not exist; expected a run, a checkpoint, .safetensors or "
            "hf-hub:NAME. Correct the path."
        )
    if Path(path).is_file() and not path.endswith((".ckpt", ".onnx", ".pt2")) and not _is_exported(path):
        return _read_foreign(source, len(class_names))
    if not path.startswith("hf-hub:") and Path(path).is_dir():
        path = str(find_checkpoint(None, path))
    network, about = read_network(path)
    if not isinstance(network, CooperativeNetwork):
        raise CrosscoopError(
            f"network.weights: {path} can only run as it is; expected a run, a checkpoint, .safetensors or hf-hub:NAME."
        )
    return Trained(
        source,
        network.state_dict(),
        [_describe(branch) for branch in network.branches],
        _exchanges(network),
        frozenset() if list(about.class_names) == list(class_names) else _of_classes(network, about.network),
    )


def _is_exported(path: str) -> bool:
    """Return whether a file is one that `crosscoop export` wrote, as far as its metadata tell."""
    try:
        with safe_open(path, "pt") as file:
            return "network" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _read_foreign(source: Source, num_classes: int) -> Trained:
    """Read the weights of another library's DeepLabV3+; as they name no classes, only the number of these counts."""
    path = source.source
    try:
        if path.endswith(".safetensors"):
            content: dict[str, Any] = dict(load_file(path))
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
        state: dict[str, Any] = content.get("state_dict", content)
        weights = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    except Exception as error:  # untrusted input: torch and pickle may raise almost anything
        raise CrosscoopError(
            f"network.weights: {path} cannot be read as weights ({type(error).__name__}); expected a run, a checkpoint "
            "or an export of crosscoop, or a state dict as .pth or .safetensors."
        ) from error
    for head, (mark, translate) in FOREIGN.items():
        if found := next((key for key in weights if key.endswith(mark)), None):
            wrapper = found.removesuffix(mark)  # of a Lightning module, or DDP
            own = translate({key.removeprefix(wrapper): value for key, value in weights.items()})
            parts = ("backbone.", "aspp.", "refine.", "project.", "join.", "second.", "classifier.")
            named = {f"branches.0.{key}" if key.startswith(parts) else key: value for key, value in own.items()}
            classifiers = frozenset(key for key in named if key.startswith("branches.0.classifier."))
            same = len(weights[found]) == num_classes
            if any(key.startswith(f"{wrapper}encoder.layer") for key in weights):
                note(
                    f"{path}: smp's own ResNets also dilate the first block of a dilated stage, timm's do not, so that "
                    "the network needs training before it predicts as it did. Those of smp's encoder tu-... are equal."
                )
            return Trained(source, named, [{"head": head}], {}, frozenset() if same else classifiers)
    raise CrosscoopError(
        f"network.weights: {path} has the weights {shorten(weights)}; expected those of a network of crosscoop, "
        "smp's DeepLabV3Plus or mmsegmentation's deeplabv3plus. A backbone's weights belong to network.pretrained."
    )


def _of_classes(network: CooperativeNetwork, options: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the weights whose shape follows the number of classes, by comparison with one more class."""
    larger = create_network(**{**options, "num_classes": options["num_classes"] + 1}).state_dict()
    return frozenset(key for key, value in network.state_dict().items() if larger[key].shape != value.shape)


def _describe(branch: Branch) -> dict[str, str]:
    """Return what a branch's weights depend on, apart from their shapes, by aspect."""
    return {
        "head": next((name for name, head in HEADS.items() if type(branch) is head), type(branch).__name__),
        "backbone": branch.backbone.name,
        "normalisation": "; ".join(f"mean {each['mean']}, std {each['std']}" for each in branch.backbone.normalisation),
    }


def _exchanges(network: CooperativeNetwork) -> dict[str, str]:
    """Return a description of the connections at each exchange point, with their operators."""
    names = branch_names(len(network.branches))
    return {
        point: ", ".join(
            f"{names[sender]} to {name} by {type(connection.fusion).__name__}"
            for name, receiver in zip(names, exchange.receivers, strict=True)
            for sender, connection in zip(receiver.senders, receiver.connections, strict=True)
        )
        for point, exchange in network.exchanges.items()
    }


def _shape(weights: Mapping[str, Tensor], key: str | None) -> str:
    return str(tuple(weights[key].shape)) if key and key in weights else "none"


def _parts(keys: Collection[str], all_keys: Collection[str], names: Sequence[str]) -> str:
    """Return which parts of a network weights belong to, such as `top: backbone, aspp; exchange: aspp1`.

    Args:
        keys: The names of the weights.
        all_keys: The names of all weights of the network.
        names: The names of its branches.
    """
    parts = {key: ".".join(key.split(".")[: DEPTH.get(key.partition(".")[0], 1)]) for key in all_keys}
    total, some = Counter(parts.values()), Counter(part for key, part in parts.items() if key in keys)
    groups: dict[str, list[str]] = {}
    for part, number in some.items():
        first, *rest = part.split(".")
        group, name = (names[int(rest[0])], rest[1]) if first == "branches" else (first.rstrip("s"), "".join(rest))
        groups.setdefault(group, []).append(name if number == total[part] else f"{name} ({number} of {total[part]})")
    return "; ".join(f"{group}: {', '.join(names)}".removesuffix(": ") for group, names in groups.items()) or "nothing"
