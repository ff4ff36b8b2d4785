"""A whole MIL model: standardised features, an aggregator, a head.

Shape letters: B bags, N tiles, K coordinates, D feature width, E embedding width, C outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from downstream.mil.covariate_fusion import GatedFusion, LateFusion
from downstream.mil.ordinal import OrdinalLink
from downstream.mil.padded_bags import Aggregator, MilError, Pooled
from downstream.run.model_tables import AGGREGATORS, load

if TYPE_CHECKING:
    from downstream.mil.losses import BagTask

LogitsLoss = Callable[[Tensor], Tensor]
"""The loss of a batch from logits [B, C]: of each bag [B], or one value [1]."""


@dataclass(frozen=True, kw_only=True)
class ModelOutput:
    """The output of a model on a batch.

    Attributes:
        logits: outputs of the head, [B, C].
        pooled: embedding and attention of the aggregator.
    """

    logits: Tensor
    pooled: Pooled


class MilModel(nn.Module):
    """A MIL model: standardise the features, pool them, predict.

    Mean and standard deviation are buffers of the model, so that it cannot be applied with another
    fold's.

    Args:
        aggregator: aggregator with one branch, or one for each class of the task.
        task: task that the model predicts.
        mean_D: mean of the TRAINING tiles; None to use features as they are.
        std_D: standard deviation of the TRAINING tiles, above 0.
        covariates: fusion of clinical covariates with the embedding; None without covariates.

    Raises:
        MilError: Branches that are not the task's classes, or a mean without a deviation.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        aggregator: Aggregator,
        task: "BagTask",
        *,
        mean_D: Tensor | None = None,
        std_D: Tensor | None = None,
        covariates: LateFusion | GatedFusion | None = None,
    ) -> None:
        super().__init__()
        if (mean_D is None) != (std_D is None):
            msg = "a mean and a standard deviation come together; give both or neither"
            raise MilError(msg)
        self.register_buffer("mean", mean_D)
        self.register_buffer("std", std_D)
        self.aggregator, self.task = aggregator, task
        self.head = make_head(aggregator, task)
        self.covariates = covariates
        self.link = OrdinalLink(task.outputs) if task.is_ordered else nn.Identity()

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        coords: Tensor | None = None,
        covariates_BK: Tensor | None = None,
    ) -> ModelOutput:
        """Return the logits of one bag or a padded batch, see `Aggregator.forward`.

        Args:
            x: features, see `Aggregator.forward`.
            mask: true where there is a tile.
            coords: places of the tiles.
            covariates_BK: encoded covariates of each bag, of a model that takes them.

        Raises:
            MilError: Covariates for a model without, or none for a model with them.
        """
        if (covariates_BK is None) != (self.covariates is None):
            takes = "no" if self.covariates is None else "its"
            inputs = "no covariates" if covariates_BK is None else "covariates"
            msg = f"{inputs} for a model that takes {takes} covariates"
            raise MilError(msg)
        pooled = self.pooled(x, mask, coords)
        if self.covariates is None or covariates_BK is None:
            logits = self.head(pooled.embedding)
        else:
            logits = self.covariates(self.head, pooled.embedding, covariates_BK)
        return ModelOutput(logits=self.link(logits), pooled=pooled)

    def pooled(self, x: Tensor, mask: Tensor | None = None, coords: Tensor | None = None) -> Pooled:
        """Return the embedding of standardised features by the aggregator."""
        if self.mean is not None and self.std is not None:
            x = (x - self.mean).div_(self.std)
        return self.aggregator(x, mask, coords)  # type: ignore[no-any-return]

    def loss(
        self, prediction: ModelOutput, target: Tensor, weight_C: Tensor | None = None
    ) -> Tensor:
        """Return the whole loss of each bag [B]: the task's, and the aggregator's own terms.

        Args:
            prediction: output of `forward` in training mode.
            target: see `BagTask.loss`; an aggregator's own loss uses the likeliest class of a soft
                label.
            weight_C: class weights of the task's loss; the aggregator's terms have none.

        Raises:
            MilError: An aggregator with a loss of its own on a regression or on survival.
        """
        return self.whole_loss(
            lambda logits_BC: self.task.loss(logits_BC, target, weight_C), prediction, target
        )

    def whole_loss(self, loss_of: LogitsLoss, prediction: ModelOutput, target: Tensor) -> Tensor:
        """Return the loss of the logits plus the terms of the aggregator and of a fusion.

        Args:
            loss_of: loss of each bag [B], or one value [1] for a batch, from logits [B, C].
            prediction: output of `forward` in training mode.
            target: see `loss`.

        Raises:
            MilError: An aggregator with a loss on tile labels, on a regression or on survival.
        """
        share = self.aggregator.auxiliary_share
        whole_B = (1 - share) * loss_of(prediction.logits)
        if share:
            whole_B = whole_B + share * self._auxiliary(prediction.pooled, target)
        return whole_B + added_loss(prediction.pooled, loss_of)

    def _auxiliary(self, pooled: Pooled, target: Tensor) -> Tensor:
        """Return the aggregator's own loss, for targets that it supports."""
        if self.task.kind == "regression":
            name = type(self.aggregator).__name__
            msg = f"{name} needs classes; take another model for numbers or survival"
            raise MilError(msg)
        if self.task.kind == "multiclass" and target.ndim == 2:
            target = target.argmax(dim=1)
        if self.task.kind == "multiclass":
            target = target.long()
        if self.task.kind == "binary":
            target = (target.reshape(-1) > 0.5).long()
        return self.aggregator.auxiliary(pooled, target)


def added_loss(pooled: Pooled, loss_of: LogitsLoss) -> Tensor:
    """Return what an aggregator adds to the loss of the bags: [B], or one value [1].

    It is the mean loss of its branches' logits plus its penalty.

    Args:
        pooled: output of the aggregator in training mode.
        loss_of: see `MilModel.whole_loss`.
    """
    added = pooled.embedding.new_zeros(1, dtype=torch.float32)
    if pooled.branch_logits is not None:
        branches = [loss_of(logits_BC) for logits_BC in pooled.branch_logits.unbind(dim=1)]
        added = added + torch.stack(branches).mean(dim=0)
    return added if pooled.penalty is None else added + pooled.penalty


class BranchHead(nn.Module):
    """A head with one logit per class from that class' own embedding, as in CLAM-MB.

    Args:
        width: width E of an embedding.
        classes: number C of classes.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, classes)

    def forward(self, embedding_BCE: Tensor) -> Tensor:
        """Return logits [B, C]."""
        return torch.einsum("bce,ce->bc", embedding_BCE, self.linear.weight) + self.linear.bias


def make_head(aggregator: Aggregator, task: "BagTask") -> nn.Module:
    """Return the linear head that fits an aggregator.

    Raises:
        MilError: The aggregator's branches are not the task's classes.
    """
    if aggregator.branches == 1:
        return nn.Linear(aggregator.width, task.scores_of_head)
    if task.is_ordered:
        msg = (
            f"{aggregator.branches} branches for classes in an order, which have one score; take a "
            "model with one branch, such as clam_sb"
        )
        raise MilError(msg)
    if task.kind == "multiclass" and aggregator.branches == task.outputs:
        return BranchHead(aggregator.width, task.outputs)
    msg = (
        f"{aggregator.branches} branches for a {task.kind} task of {task.outputs}; a branch for "
        "each class needs a multiclass task of as many, two for a binary question"
    )
    raise MilError(msg)


def make_aggregator(name: str, width: int, task: "BagTask", **options: object) -> Aggregator:
    """Return the aggregator of a name, with the options of its class.

    Raises:
        MilError: No such name.
    """
    if name not in AGGREGATORS:
        msg = f"there is no aggregator {name!r}; known are {', '.join(sorted(AGGREGATORS))}"
        raise MilError(msg)
    entry = AGGREGATORS[name]
    if entry.tile_classes != "none":
        # a binary task has one output, of which a classifier of tiles may need two
        least = 2 if entry.tile_classes == "at least two" else 1
        options = {"classes": max(task.outputs, least), **options}
    aggregator = load(entry.loader)(width, **{**entry.options, **options})
    if not isinstance(aggregator, Aggregator):
        msg = f"{entry.loader} is no aggregator"
        raise MilError(msg)
    return aggregator
