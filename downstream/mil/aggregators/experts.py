"""Two heads on one aggregator for long-tailed classes, after MDE-MIL without its text branch.

One head learns from bags as they come, which keeps the common classes right; the other from bags
drawn class by class, so that rare classes are learnt too; a third term keeps them in agreement.

Shape letters: B bags, C classes.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from downstream.mil.losses import BagTask, expert_agreement
from downstream.mil.model import MilModel, ModelOutput, added_loss, make_head
from downstream.mil.padded_bags import Aggregator, MilError, Pooled

if TYPE_CHECKING:
    from downstream.mil.padded_bags import PaddedBags


@dataclass(frozen=True, kw_only=True)
class Opinions:
    """Logits [B, C] of both heads, and the pooled embedding they were computed from."""

    natural: Tensor
    balanced: Tensor
    pooled: Pooled


class Experts(MilModel):
    """An aggregator with a head for either order of patients.

    Source: MDE-MIL (arXiv 2503.00915), whose loss weights are not known; the agreement's 0.25 is a
    re-implementation's. Its prompts distilled from a text encoder are left out, as a lake holds no
    text vectors. Of the aggregator's own losses `auxiliary` is not used; its branches and penalty
    learn from both orders.

    Args:
        aggregator: aggregator that both heads share.
        task: a multiclass task.
        agreement: weight of the term that keeps the heads in agreement.
        mean_D: see `MilModel`.
        std_D: see `MilModel`.

    Raises:
        MilError: Another kind of task.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        task: BagTask,
        *,
        agreement: float = 0.25,
        mean_D: Tensor | None = None,
        std_D: Tensor | None = None,
    ) -> None:
        super().__init__(aggregator, task, mean_D=mean_D, std_D=std_D)
        if task.kind != "multiclass" or task.is_ordered:
            order = " in an order" if task.is_ordered else ""
            msg = (
                f"a {task.kind} task{order}; experts are for classes that exclude each other "
                "(multiclass) and have no order"
            )
            raise MilError(msg)
        self.agreement, self.balanced = agreement, make_head(aggregator, task)

    def opinions(
        self, x: Tensor, mask: Tensor | None = None, coords: Tensor | None = None
    ) -> Opinions:
        """Return the logits of both heads for a bag or a padded batch, see `Aggregator.forward`."""
        pooled = self.pooled(x, mask, coords)
        return Opinions(
            natural=self.head(pooled.embedding),
            balanced=self.balanced(pooled.embedding),
            pooled=pooled,
        )

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        coords: Tensor | None = None,
        covariates_BK: Tensor | None = None,
    ) -> ModelOutput:
        """Return the mean probability of both heads, as log probabilities."""
        del covariates_BK  # `build_model` has refused them
        both = self.opinions(x, mask, coords)
        logs = torch.stack([part.float().log_softmax(1) for part in (both.natural, both.balanced)])
        return ModelOutput(
            logits=torch.logsumexp(logs, dim=0) - logs.new_tensor(2).log(), pooled=both.pooled
        )

    def pair_loss(
        self,
        natural: "PaddedBags",
        natural_label_B: Tensor,
        balanced: "PaddedBags",
        balanced_label_B: Tensor,
    ) -> Tensor:
        """Return the scalar loss of a pair of batches: each head on its own, agreement on both.

        Args:
            natural: bags in natural order.
            natural_label_B: class of each natural bag.
            balanced: bags in the order of `losses.balanced_order`.
            balanced_label_B: class of each balanced bag.
        """
        one = self.opinions(natural.x, natural.mask, natural.coords)
        other = self.opinions(balanced.x, balanced.mask, balanced.coords)
        apart_B = torch.cat(
            [expert_agreement(part.natural, part.balanced) for part in (one, other)]
        )
        added = [
            added_loss(part.pooled, partial(self.task.loss, target=label_B)).mean()
            for part, label_B in ((one, natural_label_B), (other, balanced_label_B))
        ]
        return (
            self.task.loss(one.natural, natural_label_B).mean()
            + self.task.loss(other.balanced, balanced_label_B).mean()
            + self.agreement * apart_B.mean()
            + torch.stack(added).sum()
        )
