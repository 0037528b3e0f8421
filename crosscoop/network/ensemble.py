"""Ensembles: how the logits of all branches become one prediction."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from crosscoop.errors import CrosscoopError
from crosscoop.network.lookup import find


class Ensemble(nn.Module):
    """Sum of the branches' logits, the paper's ensemble, and the contract of any other: subclass it.

    Args:
        num_branches: The number of branches.
        num_classes: Channels of the logits.
    """

    def __init__(self, num_branches: int, num_classes: int) -> None:
        super().__init__()

    def forward(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the ensemble's logits.

        Args:
            logits: Each branch's, `(N, num_classes, h, w)`, all of one size.
        """
        first, *others = logits
        return sum(others, first)

    def loss(self, logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Return what `crosscoop join` minimises to fit the parameters: the ensemble's cross entropy.

        Args:
            logits: Each branch's, `(N, num_classes, h, w)`, all of one size.
            labels: True classes `(N, h, w)`.
        """
        return cross_entropy(self(logits), labels)


class MeanProbability(Ensemble):
    """Mean of the branches' probabilities, as their logarithm."""

    def forward(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the ensemble's logits.

        Args:
            logits: Each branch's, `(N, num_classes, h, w)`, all of one size.
        """
        return torch.stack([each.log_softmax(1) for each in logits]).logsumexp(0)


class Weighted(Ensemble):
    """Sum of the branches' log probabilities with a weight per class and branch and a bias per class, all fitted.

    For a single branch this is vector scaling (Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599).

    Args:
        num_branches: The number of branches.
        num_classes: Channels of the logits.
    """

    def __init__(self, num_branches: int, num_classes: int) -> None:
        super().__init__(num_branches, num_classes)
        self.weight = nn.Parameter(torch.ones(num_branches, num_classes), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(num_classes), requires_grad=False)

    def forward(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the ensemble's logits.

        Args:
            logits: Each branch's, `(N, num_classes, h, w)`, all of one size.
        """
        weights, bias = self.weight[:, None, :, None, None], self.bias[:, None, None]
        weighted = [each.log_softmax(1) * weight for each, weight in zip(logits, weights, strict=True)]
        return torch.stack(weighted).sum(0) + bias


class MostConfident(Ensemble):
    """The logarithm of the probabilities of the branch that is most confident at a pixel.

    The logits are divided by a temperature per branch first, which is fitted (Guo et al., ICML 2017,
    https://arxiv.org/abs/1706.04599): each branch alone is then calibrated.

    Args:
        num_branches: The number of branches.
        num_classes: Channels of the logits.
    """

    def __init__(self, num_branches: int, num_classes: int) -> None:
        super().__init__(num_branches, num_classes)
        self.temperature = nn.Parameter(torch.ones(num_branches), requires_grad=False)

    def forward(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the ensemble's logits.

        Args:
            logits: Each branch's, `(N, num_classes, h, w)`, all of one size.
        """
        scaled = torch.stack([each / own for each, own in zip(logits, self.temperature, strict=True)]).log_softmax(2)
        chosen = scaled.amax(2, keepdim=True).argmax(0, keepdim=True)
        return scaled.gather(0, chosen.expand_as(scaled[:1])).squeeze(0)

    def loss(self, logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Return the sum of the branches' own cross entropies: each is calibrated by itself.

        Args:
            logits: Each branch's, `(N, num_classes, h, w)`, all of one size.
            labels: True classes `(N, h, w)`.
        """
        own = [cross_entropy(each / scale, labels) for each, scale in zip(logits, self.temperature, strict=True)]
        return torch.stack(own).sum()


ENSEMBLES = {
    "sum": Ensemble,
    "mean_probability": MeanProbability,
    "weighted": Weighted,
    "most_confident": MostConfident,
}
"""The ensembles that the package provides, by name."""


def get_ensemble(name: str) -> type[Ensemble]:
    """Return the ensemble that a configuration names.

    Args:
        name: A name (`weighted`) or the import path of an `Ensemble`.

    Raises:
        CrosscoopError: It does not exist.
    """
    found: Any = find(name, ENSEMBLES, "network.ensemble")
    if not (isinstance(found, type) and issubclass(found, Ensemble)):
        raise CrosscoopError(f"network.ensemble: {name!r} is {found!r}, expected a subclass of crosscoop.Ensemble.")
    return found
