"""Ensembles and cascades fitted on a split whose masks are known, such as val."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from rich.progress import track
from torch import Tensor

from crosscoop.data.dataset import VOID
from crosscoop.data.pipeline import EvaluationSet
from crosscoop.evaluation.inference import upsampled_labels
from crosscoop.evaluation.scores import Scores, count_pairs
from crosscoop.network.cooperative import CooperativeNetwork, confidence
from crosscoop.network.ensemble import Ensemble
from crosscoop.network.layers import resize
from crosscoop.network.outputs import ENSEMBLE

PIXELS = 2000
"""Labelled pixels of each image that an ensemble is fitted on."""


@torch.no_grad()
def sample_pixels(network: CooperativeNetwork, split: EvaluationSet) -> tuple[Tensor, Tensor]:
    """Return the branches' logits at some labelled pixels of each image of a split.

    Args:
        network: The network, in evaluation mode.
        split: The split.

    Returns:
        Logits `(B, P, num_classes)` of the branches, and true classes `(P,)`.
    """
    generator, logits, labels = torch.Generator().manual_seed(0), list[Tensor](), list[Tensor]()
    for image, mask in _images(split, "Reading logits"):
        labelled = (mask.flatten() != VOID).nonzero().squeeze(1)
        chosen = labelled[torch.randperm(len(labelled), generator=generator)[:PIXELS]]
        full = (resize(each.float(), mask.shape[-2:]) for each in network(image, upsample=False))
        logits.append(torch.stack([each[0].flatten(1).T[chosen] for each in full]))
        labels.append(mask.flatten()[chosen].long())
    return torch.cat(logits, 1), torch.cat(labels)


def fit(ensemble: Ensemble, logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Fit an ensemble's parameters.

    Args:
        ensemble: The ensemble.
        logits: `(B, P, num_classes)` of the branches.
        labels: True classes `(P,)`.

    Returns:
        The ensemble's loss before and after.
    """
    stacked = [each.T[None, :, :, None] for each in logits]  # (1, num_classes, P, 1)

    def loss() -> Tensor:
        return ensemble.loss(stacked, labels[None, :, None])

    parameters = list(ensemble.parameters())
    before = float(loss())
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.LBFGS(parameters, max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        current = loss()
        current.backward()  # type: ignore[no-untyped-call]
        return current

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    for parameter in parameters:
        parameter.requires_grad_(False)
    return before, float(loss())


@dataclass(frozen=True)
class Operation:
    """What a cascade does at one confidence.

    Attributes:
        confidence: Mean confidence from which the first branch's answer counts.
        sent: Share of the images that are sent on to the whole network.
        miou: mIoU of all answers, in [0, 1].
    """

    confidence: float
    sent: float
    miou: float


@torch.no_grad()
def operations(
    network: CooperativeNetwork, first: int, split: EvaluationSet, class_names: Sequence[str]
) -> list[Operation]:
    """Return what a cascade would do at every confidence, from no image sent on to all of them.

    Args:
        network: The network, in evaluation mode.
        first: The index of the branch that answers first.
        split: The split.
        class_names: One name per class.
    """
    number, found = len(class_names), list[tuple[float, Tensor, Tensor]]()
    for image, mask in _images(split, "Fitting the cascade"):
        logits = network.branches[first](image, upsample=False)
        whole = network.outputs(image, upsample=False)[ENSEMBLE]
        own, other = (count_pairs(upsampled_labels(each, mask.shape[-2:]), mask, number) for each in (logits, whole))
        found.append((float(confidence(logits)), own, other))
    found.sort(key=lambda each: each[0])
    counts = torch.stack([own for _, own, _ in found]).sum(0)
    curve = [Operation(0.0, 0.0, Scores(counts, class_names).miou)]
    for place, (_, own, whole) in enumerate(found, 1):  # the least confident first
        counts = counts + whole - own
        threshold = found[place][0] if place < len(found) else 1.0
        curve.append(Operation(threshold, place / len(found), Scores(counts, class_names).miou))
    return curve


def _images(split: EvaluationSet, what: str) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield each image `(1, 3, H, W)` in [0, 1] and its mask `(1, H, W)`."""
    for i in track(range(len(split)), what, transient=True):
        item = split[i]
        yield item["image"][None].float() / 255, item["mask"][None]
