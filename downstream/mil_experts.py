"""Two heads on one aggregator for long-tailed classes, after MDE-MIL without its text branch.

One head learns from bags as they come, which keeps the common classes right; the other from bags
drawn class by class, which does not let the rare ones go under; a term holds them together.

Shape letters: B bags, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from downstream.mil_bags import Aggregator, MilError, Pooled
from downstream.mil_losses import Task, expert_agreement
from downstream.mil_model import make_head

if TYPE_CHECKING:
    from downstream.mil_bags import PaddedBags


@dataclass(frozen=True, kw_only=True)
class Opinions:
    """Logits [B, C] of both heads, and what they were made from."""

    natural: Tensor
    balanced: Tensor
    pooled: Pooled


class Experts(nn.Module):
    """An aggregator with a head for either order of patients.

    Source: MDE-MIL (arXiv 2503.00915), whose loss weights are not known; the agreement's 0.25 is a
    re-implementation's. Its prompts distilled from a text encoder are left out, as a lake holds no
    text vectors. The aggregator's own loss, if it has one, is not used.

    Args:
        aggregator: Shared by both.
        task: multiclass.
        agreement: Weight of the term that holds the heads together.

    Raises:
        MilError: Another kind of task.
    """

    def __init__(self, aggregator: Aggregator, task: Task, *, agreement: float = 0.25) -> None:
        super().__init__()
        if task.kind != "multiclass":
            msg = (
                f"a {task.kind} task; experts are for classes that exclude each other (multiclass)"
            )
            raise MilError(msg)
        self.aggregator, self.task, self.agreement = aggregator, task, agreement
        self.natural, self.balanced = make_head(aggregator, task), make_head(aggregator, task)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, coords: Tensor | None = None
    ) -> Opinions:
        """Both heads' logits of one bag or a padded batch, see `Aggregator.forward`."""
        pooled: Pooled = self.aggregator(x, mask, coords)
        return Opinions(
            natural=self.natural(pooled.embedding),
            balanced=self.balanced(pooled.embedding),
            pooled=pooled,
        )

    def loss(
        self,
        natural: PaddedBags,
        natural_label_B: Tensor,
        balanced: PaddedBags,
        balanced_label_B: Tensor,
    ) -> Tensor:
        """Loss of a pair of batches, a scalar: each head on its own batch, agreement on both.

        Args:
            natural: Bags in natural order.
            natural_label_B: Their classes.
            balanced: Bags in the order of `mil_losses.balanced_order`.
            balanced_label_B: Their classes.
        """
        one = self(natural.x, natural.mask, natural.coords)
        other = self(balanced.x, balanced.mask, balanced.coords)
        apart_B = torch.cat(
            [expert_agreement(part.natural, part.balanced) for part in (one, other)]
        )
        return (
            self.task.loss(one.natural, natural_label_B).mean()
            + self.task.loss(other.balanced, balanced_label_B).mean()
            + self.agreement * apart_B.mean()
        )

    def scores(self, opinions: Opinions) -> Tensor:
        """Mean probability of both heads, float64 [B, C]."""
        return (self.task.scores(opinions.natural) + self.task.scores(opinions.balanced)) / 2
