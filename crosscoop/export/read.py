"""A network from whatever file holds one: a checkpoint, or what was exported of it."""

from pathlib import Path

from torch import nn

from crosscoop.checkpoints.about import About
from crosscoop.checkpoints.read import read_checkpoint_network
from crosscoop.errors import CrosscoopError
from crosscoop.export.formats import FORMATS


def read_network(path: str | Path) -> tuple[nn.Module, About]:
    """The network that a checkpoint, an exported file or a repository (`hf-hub:NAME`) holds, and its description.

    Raises:
        CrosscoopError: There is no such file, it is none of ours, or its weights do not fit its network.
    """
    if str(path).startswith("hf-hub:"):
        from crosscoop.export.hub import read_hub  # slow to import

        return read_hub(str(path).removeprefix("hf-hub:"))
    if Path(path).suffix == ".pt2":
        raise CrosscoopError(
            f"{path}: got a file of torch.export, which may run code when it is read; expected a checkpoint, .onnx or "
            ".safetensors. Read it with torch.export.load, if you trust whoever made it."
        )
    if Path(path).is_file() and Path(path).suffix in (".onnx", ".safetensors"):
        return next(format.read(Path(path)) for format in FORMATS.values() if format.suffix == Path(path).suffix)
    return read_checkpoint_network(path)
