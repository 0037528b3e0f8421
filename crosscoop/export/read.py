"""Reading of networks from checkpoints, exported files and the Hugging Face Hub."""

from pathlib import Path

from torch import nn

from crosscoop.checkpoints.about import About
from crosscoop.checkpoints.read import read_checkpoint_network
from crosscoop.errors import CrosscoopError
from crosscoop.export.formats import FORMATS


def read_network(path: str | Path) -> tuple[nn.Module, About]:
    """Read a network and its description from a checkpoint, an exported file or a repository (`hf-hub:NAME`).

    Raises:
        CrosscoopError: The file does not exist, crosscoop did not write it, or its weights do not fit its network.
    """
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
