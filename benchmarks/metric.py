"""mIoU of an image of Cityscapes' size, from logits at stride 4 and including upsampling."""

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.segmentation import MeanIoU

from benchmarks.measure import Row, Setting, compare
from crosscoop.evaluation.inference import upsampled_labels
from crosscoop.evaluation.metrics import ConfusionMatrix
from crosscoop.evaluation.scores import Scores

CLASSES = 19
VOID = 255


def run(setting: Setting) -> list[Row]:
    """Compare with both torchmetrics implementations, on logits with large regions and on noise."""
    height, width = setting.pick((64, 128), (1024, 2048))
    rows = []
    for kind in ("regions", "noise"):
        logits = make_logits(kind, height // 4, width // 4).to(setting.device)
        mask = whole(logits, (height, width)).argmax(1)
        mask[torch.rand(mask.shape) < 0.3] = torch.randint(CLASSES, ())  # so that some labels are wrong
        mask[torch.rand(mask.shape) < 0.1] = VOID
        ours = ConfusionMatrix(CLASSES).to(setting.device)
        matrix = MulticlassConfusionMatrix(CLASSES, ignore_index=VOID).to(setting.device)
        mean = MeanIoU(CLASSES + 1, include_background=True, input_format="index").to(setting.device)  # without void
        shifted = mask.where(mask != VOID, CLASSES)

        def update(logits: Tensor = logits, mask: Tensor = mask, metric: ConfusionMatrix = ours) -> None:
            metric.update(upsampled_labels(logits, mask.shape[-2:]), mask)

        def update_mean(logits: Tensor = logits, mask: Tensor = shifted, metric: MeanIoU = mean) -> None:
            metric.update(whole(logits, mask.shape[-2:]).argmax(1), mask)

        def update_matrix(
            logits: Tensor = logits, mask: Tensor = mask, metric: MulticlassConfusionMatrix = matrix
        ) -> None:
            metric.update(whole(logits, mask.shape[-2:]).argmax(1), mask)

        what = f"update from logits of 19 classes at {height} x {width} ({kind})"
        rows.append(compare(what, update, "torchmetrics MeanIoU", update_mean, setting, times=8))
        rows.append(compare(what, update, "torchmetrics MulticlassConfusionMatrix", update_matrix, setting, times=4))
        for metric in (ours, matrix):
            metric.reset()
        update(), update_matrix()
        labels, expected = upsampled_labels(logits, (height, width)), whole(logits, (height, width)).argmax(1)
        names = [str(i) for i in range(CLASSES)]
        miou = Scores(ours.compute().cpu(), names).miou
        theirs = Scores(functional.pad(matrix.compute().cpu(), (0, 1)), names).miou
        rows[-1]["note"] = (
            f"mIoU {miou:.8f} and {theirs:.8f}; {int((labels != expected).sum())} of {labels.numel()} labels differ"
        )
    return rows


def whole(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    """Upsample logits to full resolution."""
    return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def make_logits(kind: str, height: int, width: int) -> Tensor:
    """Return logits `(1, 19, height, width)` of smooth regions with slight noise, or of noise only."""
    torch.manual_seed(0)
    noise = torch.randn(1, CLASSES, height, width)
    if kind == "noise":
        return noise
    return 4 * functional.interpolate(torch.randn(1, CLASSES, 4, 8), size=(height, width), mode="bicubic") + 0.2 * noise
