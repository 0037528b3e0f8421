"""One network of the branches of several, without training."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from crosscoop.checkpoints.about import without_start
from crosscoop.checkpoints.read import read_checkpoint, read_checkpoint_network
from crosscoop.errors import CrosscoopError
from crosscoop.network.cooperative import CooperativeNetwork
from crosscoop.network.create import create_network
from crosscoop.network.outputs import branch_names

HEADS = ("channels", "separable", "atrous_rates")
"""Options of a network that its heads share."""


def joined(
    checkpoints: Sequence[Path], ensemble: str, branch: str | None = None
) -> tuple[CooperativeNetwork, dict[str, Any]]:
    """Return a network of the branches of one or more checkpoints, in this order, and its checkpoint.

    Args:
        checkpoints: The checkpoints; of several, no branch needs connections.
        ensemble: Name of the new network's ensemble.
        branch: The branch of a single checkpoint that is kept alone; by default, all are.

    Raises:
        CrosscoopError: A checkpoint cannot be read, they have different classes, image sizes or output strides, or a
            branch depends on connections or does not exist.
    """
    contents = [read_checkpoint(path)["crosscoop"] for path in checkpoints]
    networks = [read_checkpoint_network(path)[0] for path in checkpoints]
    config = deepcopy(contents[0]["config"])
    options = config["network"]
    if len(networks) > 1 or branch is not None:
        for path, content, network in zip(checkpoints, contents, networks, strict=True):
            _check(path, content, checkpoints[0], contents[0], network, branch)
        entries = [entry for content in contents for entry in _branches(content["config"]["network"])]
        if branch is not None:
            index = branch_names(len(entries)).index(branch)
            entries, networks = [entries[index]], [networks[0].alone(index)]
        options = {**options, "branches": entries, "strategy": "none"}
    config["network"] = {**without_start(options), "ensemble": ensemble, "cascade": None}
    config["model"].pop("objective", None)  # it may have parameters of other branches
    network = create_network(**config["network"], num_classes=len(contents[0]["class_names"]))
    weights = {key: value for key, value in network.state_dict().items() if key.startswith("ensemble.")}
    branches = [each for part in networks for each in part.branches]
    for i, each in enumerate(branches):
        weights |= {f"branches.{i}.{key}": value for key, value in each.state_dict().items()}
    if len(networks) == 1:
        exchanged = networks[0].state_dict().items()
        weights |= {key: value for key, value in exchanged if key.startswith("exchanges.")}
    network.load_state_dict(weights)
    return network.eval(), {**contents[0], "config": config, "joined": [str(path) for path in checkpoints]}


def _check(
    path: Path,
    content: Mapping[str, Any],
    first_path: Path,
    first: Mapping[str, Any],
    network: CooperativeNetwork,
    branch: str | None,
) -> None:
    config, expected = content["config"], first["config"]
    for what, own, other in (
        ("classes", content["class_names"], first["class_names"]),
        ("data.resize", config["data"]["resize"], expected["data"]["resize"]),
        ("network.output_stride", config["network"]["output_stride"], expected["network"]["output_stride"]),
    ):
        if own != other:
            raise CrosscoopError(
                f"{path}: got {what} {own}, expected {other} as in {first_path}. Join networks that were trained alike."
            )
    names = branch_names(len(network.branches))
    if branch is not None and branch not in names:
        raise CrosscoopError(f"--branch: got {branch}, expected one of {', '.join(names)}.")
    wanted = names if branch is None else [branch]
    if dependent := [name for name in wanted if not network.learns_alone(names.index(name))]:
        raise CrosscoopError(
            f"{path}: got the branch {dependent[0]}, which was trained with connections from the others; expected "
            "branches trained to stand alone, with network.strategy none or connection dropout."
        )


def _branches(network: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of the branches, each with the options that the heads of its network share."""
    heads = {option: network[option] for option in HEADS}
    entries: list[dict[str, Any]] = [
        {"backbone": branch} if isinstance(branch, str) else branch for branch in network["branches"]
    ]
    return [
        {**entry, "class_path": "deeplabv3plus", "init_args": {**heads, **(entry.get("init_args") or {})}}
        if entry.get("class_path", "deeplabv3plus") == "deeplabv3plus"
        else entry
        for entry in entries
    ]
