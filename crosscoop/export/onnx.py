"""ONNX files, for ONNX Runtime and many other programs."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from crosscoop.checkpoints.about import About
from crosscoop.errors import CrosscoopError
from crosscoop.export.prepare import Exportable
from crosscoop.network.cooperative import CooperativeNetwork

REMEDY = "Install it with pip install 'crosscoop[onnx]'."


def write_onnx(path: Path, network: CooperativeNetwork, about: About) -> None:
    """Write an .onnx file with dynamic batch size, height and width, and the fields of `about` as its metadata.

    Raises:
        CrosscoopError: A required package is missing.
    """
    try:
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise CrosscoopError(f"Export to ONNX needs {error.name}. {REMEDY}") from error
    program = torch.onnx.export(
        Exportable(network, about.outputs, about.upsampled),
        (torch.rand(2, 3, 97, 131),),
        dynamo=True,
        dynamic_shapes={"image": {0: "batch", 2: "height", 3: "width"}},
        input_names=["image"],
        output_names=about.outputs,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(about.to_strings())
    program.save(path)


def read_onnx(path: Path) -> tuple[nn.Module, About]:
    """Read a network that ONNX Runtime runs.

    Raises:
        CrosscoopError: The file cannot be read, `crosscoop export` did not write it, or ONNX Runtime is missing.
    """
    network = OnnxNetwork(path)
    return network, About.from_strings(path, network.session.get_modelmeta().custom_metadata_map)


class OnnxNetwork(nn.Module):
    """An .onnx file run by ONNX Runtime, with as many threads as torch; on a GPU if both support it.

    Args:
        path: The file.

    Raises:
        CrosscoopError: The file cannot be read, or ONNX Runtime is missing.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise CrosscoopError(f"{path}: running it needs {error.name}. {REMEDY}") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        wanted = (["CUDAExecutionProvider"] if torch.cuda.is_available() else []) + ["CPUExecutionProvider"]
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers)
        except Exception as error:  # the only common base of ONNX Runtime's exceptions
            raise CrosscoopError(
                f"{path}: cannot be read ({error}), expected an .onnx file of `crosscoop export`."
            ) from error
        self.outputs = [output.name for output in self.session.get_outputs()]

    def forward(self, image: Tensor) -> Mapping[str, Tensor]:
        """Segment `(N, 3, H, W)` RGB in [0, 1] into logits `(N, num_classes, H, W)` by output name."""
        name = self.session.get_inputs()[0].name
        try:
            logits = self.session.run(None, {name: image.cpu().numpy()})
        except Exception as error:
            raise RuntimeError(str(error)) from error
        return {key: torch.from_numpy(value).to(image.device) for key, value in zip(self.outputs, logits, strict=True)}
