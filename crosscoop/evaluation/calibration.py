"""How far confidence can be trusted: the reliability diagram (Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchmetrics import Metric

STEPS = 1000
"""Steps of confidence that are counted."""
BINS = 20
"""Bins of a reliability diagram."""


class Calibration(Metric):
    """Counts of pixels by confidence, the probability of the predicted class, and by whether that class is right.

    They are taken where the network has logits, usually at every fourth pixel of a row and a column.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(STEPS, 2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, mask: Tensor) -> None:
        """Count a batch.

        Args:
            logits: `(N, num_classes, h, w)`.
            mask: `(N, H, W)` true class indices; others are ignored.
        """
        confidence, labels = logits.float().softmax(1).max(1)
        truth = interpolate(mask[:, None].float(), logits.shape[-2:], mode="nearest-exact")[:, 0]
        step = (confidence * STEPS).long().clamp(max=STEPS - 1)
        cases = (2 * step + (labels == truth))[(truth >= 0) & (truth < logits.shape[1])]
        self.counts += torch.bincount(cases, minlength=2 * STEPS).view(STEPS, 2)

    def compute(self) -> Tensor:
        """Return pixels `(STEPS, 2)` by confidence and by whether the label is wrong or right, summed over ranks."""
        return self.counts


def calibration_record(counts: Mapping[str, Tensor], protocol: str) -> dict[str, Any]:
    """Return the contents of `calibration.json`.

    For each output, `bins` has share of the pixels, mean confidence and accuracy of each bin with any pixels, and `ece`
    is the expected calibration error: the mean distance between the two. All are shares of 1.

    Args:
        counts: `Calibration.compute()` by output.
        protocol: How they were measured.
    """
    return {"protocol": protocol, "outputs": {output: _diagram(each.cpu().double()) for output, each in counts.items()}}


def _diagram(counts: Tensor) -> dict[str, Any]:
    binned = counts.view(BINS, -1, 2).sum(1)
    pixels, right = binned.sum(1), binned[:, 1]
    steps = (torch.arange(STEPS) + 0.5) / STEPS
    confidence = (counts.sum(1) * steps).view(BINS, -1).sum(1) / pixels
    shares, accuracy = pixels / pixels.sum(), right / pixels
    bins = [
        dict(zip(("share", "confidence", "accuracy"), map(float, each), strict=True))
        for each in zip(shares, confidence, accuracy, strict=True)
        if each[0] > 0
    ]
    return {"ece": sum(each["share"] * abs(each["confidence"] - each["accuracy"]) for each in bins), "bins": bins}
