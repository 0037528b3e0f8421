"""What a cascade does on a split: the share sent on, the mean cost, the time."""

import time
from typing import TypedDict

import torch
from torch import Tensor
from torchmetrics import SumMetric

from crosscoop.network.cooperative import CooperativeNetwork
from crosscoop.network.cost import branch_macs
from crosscoop.network.outputs import branch_names


class CascadeRecord(TypedDict):
    """What a cascade did.

    Attributes:
        branch: Name of the branch that answers first.
        confidence: Mean confidence from which its answer counts.
        sent: Share of the images, or windows, that were sent on to the other branches.
        cost: Mean multiply-adds as a share of the whole network's; None where they cannot be counted.
        seconds: Mean time per image, or window.
    """

    branch: str
    confidence: float
    sent: float
    cost: float | None
    seconds: float


class CountedCascade:
    """A network's cascade, which counts what it does, over all ranks.

    Args:
        network: A network with a cascade.
    """

    def __init__(self, network: CooperativeNetwork) -> None:
        self.network, self.size = network, (0, 0)
        self.seen, self.sent, self.seconds = SumMetric(), SumMetric(), SumMetric()

    def __call__(self, image: Tensor) -> Tensor:
        """Return the cascade's logits `(N, num_classes, H/4, W/4)`.

        Args:
            image: `(N, 3, H, W)` RGB in [0, 1].
        """
        start = _now(image)
        logits, sent = self.network.cascaded(image, upsample=False)
        taken = _now(image) - start
        for metric, value in ((self.seen, len(image)), (self.sent, sent.sum()), (self.seconds, taken)):
            metric.to(image.device).update(value)
        self.size = (image.shape[-2], image.shape[-1])
        return logits

    def record(self) -> CascadeRecord:
        """Return what the cascade did since the last call."""
        cascade = self.network.cascade
        assert cascade
        seen, sent, seconds = (float(metric.compute()) for metric in (self.seen, self.sent, self.seconds))
        for metric in (self.seen, self.sent, self.seconds):
            metric.reset()
        macs = branch_macs(self.network, *self.size)
        share = sent / seen
        return {
            "branch": branch_names(len(self.network.branches))[cascade.branch],
            "confidence": cascade.confidence,
            "sent": share,
            "cost": (macs[cascade.branch] + share * (sum(macs) - macs[cascade.branch])) / sum(macs) if macs else None,
            "seconds": seconds / seen,
        }


def describe_cascade(record: CascadeRecord) -> str:
    """Describe what a cascade did in one line."""
    cost = "" if record["cost"] is None else f"{100 * record['cost']:.1f} % of the network's multiply-adds, "
    return (
        f"Cascade: {record['branch']} answers from a confidence of {record['confidence']:.4f}; "
        f"{100 * record['sent']:.1f} % sent on, {cost}{record['seconds']:.3f} s per image"
    )


def _now(image: Tensor) -> float:
    if image.is_cuda:
        torch.cuda.synchronize(image.device)
    return time.perf_counter()
