"""A moving average of the student as one more target.

Shape letters: B samples, D embedding.
"""

from types import MappingProxyType

import torch
from torch import nn

from distill.errors import DistillError
from distill.losses.feature_losses import cosine_loss
from distill.recipes.student_settings import TileStudent
from distill.terms.term import Losses, TermContext, TermInputs, TermLoss
from distill.train.ema import Ema
from distill.train.views import draw, sized


class AverageLoss(TermLoss):
    """Compares the embedding with that of a moving average of the student on another view.

    Source: MESA in C-RADIOv4 (arXiv 2601.17237), an average of momentum 0.9996 as one more target
    for the whole training. Changed: embeddings are compared, by 1 - cos, of two views of a tile;
    the momentum starts at (1 + step) / (10 + step), since short runs would else follow the random
    weights of their start.

    Settings: `momentum`, the greatest one.
    """

    allowed = MappingProxyType({"momentum": 0.9996})

    def __init__(self, context: TermContext) -> None:
        super().__init__(context)
        settings = context.recipe.student_as(TileStudent)
        self._views, self._input_px = context.recipe.views, settings.input_px
        most = self.settings["momentum"]
        if not 0 <= most < 1:
            msg = f"the momentum of term 'average' is from 0 to below 1, {most:g} given"
            raise DistillError(msg)
        self.average = Ema(context.student, lambda step: average_momentum(step, most))

    def forward(self, inputs: TermInputs) -> Losses:
        """Return one loss [B]."""
        if inputs.batch.pixels is None:
            msg = "a moving average sees pixels"
            raise TypeError(msg)
        x_BCHW = sized(inputs.batch.pixels, self._input_px)
        view = draw(x_BCHW, self._views, inputs.generator)
        with torch.no_grad():
            target_BD = self.average.module(view.pixels).embedding
        return {"average": cosine_loss(inputs.outputs.embedding, target_BD)}

    def after_step(self, step: int, student: nn.Module) -> None:
        """Update the moving average."""
        self.average.update(student, step)


def average_momentum(step: int, most: float) -> float:
    """Return the momentum of a step, counted from 0.

    >>> average_momentum(0, 0.9996), average_momentum(1_000_000, 0.9996)
    (0.1, 0.9996)
    """
    return min(most, (1 + step) / (10 + step))
