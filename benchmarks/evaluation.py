"""A whole evaluation at full resolution: the steps of `crosscoop test` against a loop with smp and torchmetrics."""

from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch.nn import functional
from torch.utils.data import DataLoader
from torchmetrics.segmentation import MeanIoU

from benchmarks.measure import Row, Setting, in_turn, peak_memory, row
from benchmarks.pipelines import MEAN, STD, generated
from benchmarks.training import PAIRS, smp
from crosscoop.data import SegmentationData
from crosscoop.network import create_network
from crosscoop.training.task import CooperativeSegmentation

CLASSES = 19


def run(setting: Setting) -> list[Row]:
    """Measure from files to mean IoU of top, bottom and ensemble, on whole images of Cityscapes' size."""
    branches = setting.pick(["test_resnet", "test_byobnet"], PAIRS["MobileNetV2 + EfficientNet-Lite0"])
    shape = setting.pick((64, 128), (1024, 2048))
    arguments = (branches, shape, setting.device)
    what = f"evaluation of top, bottom and ensemble, light pair, {shape[0]} x {shape[1]}"
    against = "smp + torchmetrics MeanIoU"
    works = [evaluation(kind, *arguments) for kind in ("ours", "channels_last", "theirs")]
    ours, channels_last, theirs = in_turn(works, setting.pick(1, 2), setting.device)
    rows = [
        row(what, ours, against, theirs, times=1.0),
        row(f"{what}, --model.channels_last true", channels_last, against, theirs, times=1.0),
    ]
    if not setting.quick:
        first, second = (
            peak_memory("benchmarks.evaluation:evaluation", kind, *arguments) for kind in ("ours", "theirs")
        )
        name = f"peak memory of the {what}"
        rows.append(row(name, [first["peak"]], against, [second["peak"]], at_most=1.0, unit="MiB"))
    return rows


def evaluation(kind: str, branches: list[str], shape: tuple[int, int], device: str) -> Callable[[], None]:
    """Return a function that evaluates one image."""
    torch.manual_seed(0)
    folder = Path(mkdtemp()) / "files"
    dataset = generated(folder, "Cityscapes", (shape[0], shape[1]), 1)
    data = SegmentationData(dataset, num_workers=0)
    evaluation_set = data.evaluation_set("train")
    if kind != "theirs":
        network = create_network(branches, CLASSES, strategy="none", separable=True).eval().to(device)
        task = CooperativeSegmentation(network, dataset.class_names, channels_last=kind == "channels_last").to(device)

        def ours() -> None:
            with torch.inference_mode():
                for batch in DataLoader(evaluation_set):
                    batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
                    task.validation_step(data.on_after_batch_transfer(batch, 0), 0)  # type: ignore[arg-type]
            task.evaluator.compute()

        return ours

    networks = [network.eval().to(device) for network in smp(branches, CLASSES)]
    metrics = [MeanIoU(CLASSES, input_format="index").to(device) for _ in range(3)]
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))

    def theirs() -> None:
        with torch.inference_mode():
            for batch in DataLoader(evaluation_set):
                image = (batch["image"].to(device).float() / 255 - mean) / std
                mask = batch["mask"].to(device).long()
                padded = functional.pad(image, (0, -image.shape[-1] % 16, 0, -image.shape[-2] % 16))
                logits = [network(padded)[..., : mask.shape[-2], : mask.shape[-1]] for network in networks]
                for metric, output in zip(metrics, [*logits, logits[0] + logits[1]], strict=True):
                    metric.update(output.argmax(1), mask)
        for metric in metrics:
            metric.compute()

    return theirs
