"""Reading of networks from checkpoints, exported files and the Hugging Face Hub."""

from pathlib import Path

from torch import nn

from crosscoop.checkpoints.about import About, about_alone
from crosscoop.checkpoints.read import read_checkpoint_network
from crosscoop.errors import CrosscoopError
from crosscoop.export.formats import FORMATS
from crosscoop.files import note
from crosscoop.network.cooperative import CooperativeNetwork
from crosscoop.network.outputs import branch_names


def read_network(path: str | Path, branch: str | None = None) -> tuple[nn.Module, About]:
    """Read a network and its description from a checkpoint, an exported file or a repository (`hf-hub:NAME`).

    Args:
        path: The file, or the repository's name.
        branch: A branch to be read alone, as a network of its own without connections.

    Raises:
        CrosscoopError: The file does not exist, crosscoop did not write it, its weights do not fit its network, or it
            does not contain the branch.
    """
    network, about = _read(path)
    if branch is None:
        return network, about
    if not isinstance(network, CooperativeNetwork):
        raise CrosscoopError(
            f"branch: got {branch!r}, but {path} can only run as a whole. Use the checkpoint, or export the branch "
            f"alone with crosscoop export --branch {branch}."
        )
    names = branch_names(len(network.branches))
    if branch not in names:
        raise CrosscoopError(f"branch: got {branch!r}, expected one of {', '.join(names)}.")
    index = names.index(branch)
    if not network.learns_alone(index):
        note(
            f"{path}: branch {branch} was trained with connections from other branches, and predicts worse without "
            "them. To use it alone, train it with connection dropout (network.strategy)."
        )
    return network.alone(index), about_alone(about, network, index)


def _read(path: str | Path) -> tuple[nn.Module, About]:
    if str(path).startswith("hf-hub:"):
        from crosscoop.export.hub import read_hub  # slow to import

        return read_hub(str(path).removeprefix("hf-hub:"))
    if Path(path).suffix == ".pt2":
        raise CrosscoopError(
            f"{path}: got a torch.export file, which may run code when it is read; expected a checkpoint, .onnx or "
            ".safetensors. If you trust its author, read it with torch.export.load."
        )
    if Path(path).is_file() and Path(path).suffix in (".onnx", ".safetensors"):
        return next(format.read(Path(path)) for format in FORMATS.values() if format.suffix == Path(path).suffix)
    return read_checkpoint_network(path)
