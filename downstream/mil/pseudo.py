"""A tile classifier beside an aggregator, trained on pseudo labels of its own moving average.

After MILTS (Nat Commun 2024): in a positive bag the tiles that a slowly moving copy finds most
likely are positive and the least likely ones negative; in a negative bag all are negative.

Shape letters: B bags, N tiles, D feature width.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from downstream.mil.losses import pseudo_label_loss, pseudo_labels
from downstream.mil.padded_bags import Aggregator, MilError, Pooled

if TYPE_CHECKING:
    from downstream.mil.losses import BagTask


class PseudoTiles(Aggregator):
    """An aggregator with a tile classifier, whose share of the loss is 0.3, as in CLAM.

    Changed: the classifier is linear on the features, which are a foundation model's, where the
    original trains the encoder with it; the aggregator's own embedding decides the bag.

    Args:
        aggregator: aggregator without a loss of its own on tiles.
        width: feature width D.
        task: task of two classes.
        tiles: most tiles that are labelled at either end.
        momentum: momentum of the moving copy, per step.

    Raises:
        MilError: More than two classes, or an aggregator with a loss of its own.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        aggregator: Aggregator,
        width: int,
        task: "BagTask",
        *,
        tiles: int,
        momentum: float = 0.99,
    ) -> None:
        super().__init__()
        if task.kind != "multiclass" or task.outputs != 2 or aggregator.auxiliary_share:
            name = type(aggregator).__name__
            msg = (
                f"pseudo labels with {name} and a {task.kind} task of {task.outputs}; they are for "
                "two classes and a model without a loss of its own on tiles"
            )
            raise MilError(msg)
        self.aggregator, self.tiles, self.momentum = aggregator, tiles, momentum
        self.classifier = nn.Linear(width, 1)
        self.register_buffer("weight", self.classifier.weight.detach().clone())
        self.register_buffer("bias", self.classifier.bias.detach().clone())
        self.width, self.branches = aggregator.width, aggregator.branches
        self.coords, self.auxiliary_share = aggregator.coords, 0.3

    def pool(self, x_BND: Tensor, mask_BN: Tensor, coords_BNK: Tensor | None) -> Pooled:
        """Return the embedding of a batch; in training, keep the inputs of `auxiliary`."""
        pooled: Pooled = self.aggregator(x_BND, mask_BN, coords_BNK)
        if self.training:
            self._follow()
            with torch.no_grad():
                pooled.extras["tile_scores"] = (x_BND @ self.weight.T + self.bias)[..., 0]
            pooled.extras["tile_logits"] = self.classifier(x_BND)[..., 0]
            pooled.extras["tile_mask"] = mask_BN
        return pooled

    def auxiliary(self, pooled: Pooled, target: Tensor) -> Tensor:
        """Return the cross-entropy of the labelled tiles [B]."""
        extras = pooled.extras
        labels_BN = pseudo_labels(
            extras["tile_scores"], extras["tile_mask"], target, tiles=self.tiles
        )
        return pseudo_label_loss(extras["tile_logits"], labels_BN)

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the copy a little towards the classifier."""
        self.weight.lerp_(self.classifier.weight, 1 - self.momentum)
        self.bias.lerp_(self.classifier.bias, 1 - self.momentum)
