"""The export formats, each with its writer and reader."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from crosscoop.checkpoints.about import About
from crosscoop.errors import CrosscoopError
from crosscoop.export.onnx import read_onnx, write_onnx
from crosscoop.export.prepare import Exportable
from crosscoop.network.cooperative import CooperativeNetwork
from crosscoop.network.create import create_network

EXAMPLE = (2, 3, 97, 131)


class Program(nn.Module):
    """A torch.export program as a network with named outputs.

    Args:
        program: The program's module.
        outputs: Names of its outputs, in order.
    """

    def __init__(self, program: nn.Module, outputs: list[str]) -> None:
        super().__init__()
        self.program, self.outputs = program, outputs

    def eval(self) -> "Program":
        """Return the program unchanged: it is always in evaluation mode, and torch refuses `eval` on it."""
        return self

    def forward(self, image: Tensor) -> Mapping[str, Tensor]:
        """Segment `(N, 3, H, W)` RGB in [0, 1] into logits `(N, num_classes, H, W)` by output name."""
        return dict(zip(self.outputs, self.program(image), strict=True))


def write_program(path: Path, network: CooperativeNetwork, about: About) -> None:
    """Write a torch.export .pt2 file, with the fields of `about` as its extra files."""
    dynamic = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    exportable = Exportable(network, about.outputs, about.upsampled)
    program = torch.export.export(exportable, (torch.rand(EXAMPLE),), dynamic_shapes={"image": dynamic})
    torch.export.save(program, path, extra_files=about.to_strings())


def read_program(path: Path) -> tuple[nn.Module, About]:
    """Read a .pt2 file.

    Raises:
        CrosscoopError: `crosscoop export` did not write it.
    """
    extra = {field.name: "" for field in fields(About)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # extra files are missing from other programs' files
            program = torch.export.load(path, extra_files=extra).module()
    except Exception as error:  # zip files, pickles and schemas each have their own exceptions
        raise CrosscoopError(
            f"{path}: cannot be read ({error}), expected a .pt2 file of `crosscoop export`."
        ) from error
    about = About.from_strings(path, extra)
    return Program(program, about.outputs), about


def write_safetensors(path: Path, network: CooperativeNetwork, about: About) -> None:
    """Write the unmodified weights, for training or for another program."""
    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(weights, path, about.to_strings())


def read_safetensors(path: Path) -> tuple[nn.Module, About]:
    """Create the network that a .safetensors file describes and load its weights.

    Raises:
        CrosscoopError: `crosscoop export` did not write the file, or its weights do not fit the network.
    """
    try:
        with safe_open(path, "pt") as file:
            about = About.from_strings(path, file.metadata() or {})
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CrosscoopError(
            f"{path}: cannot be read ({error}), expected a .safetensors file of `crosscoop export`."
        ) from error
    network = create_network(**about.network)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CrosscoopError(f"{path}: its weights do not fit the network that it describes ({error}).") from error
    return network, about


@dataclass(frozen=True)
class Format:
    """An export format.

    Attributes:
        suffix: Suffix of its files.
        write: Writes a network.
        read: Reads the network and its description back.
    """

    suffix: str
    write: Callable[[Path, CooperativeNetwork, About], None]
    read: Callable[[Path], tuple[nn.Module, About]]


FORMATS: Mapping[str, Format] = {
    "onnx": Format(".onnx", write_onnx, read_onnx),
    "torch_export": Format(".pt2", write_program, read_program),
    "safetensors": Format(".safetensors", write_safetensors, read_safetensors),
}
