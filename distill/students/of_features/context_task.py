"""The training task of tiles in context: any teacher in, all teachers out, tiles hidden; no pixels.

Source: TICON (arXiv 2512.21331).

Shape letters: B regions, S tokens (all tiles of a region), K teachers, E embedding of a teacher,
D width.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import DistillError
from distill.losses.feature_losses import FeatureMatch
from distill.losses.numeric import weighted_mean
from distill.losses.self_losses import random_mask
from distill.losses.weighting import make_weighting
from distill.recipes.recipe import Recipe
from distill.recipes.student_settings import ContextStudent
from distill.students.heads import make_head
from distill.students.of_features.context_network import ContextNetwork, NearBlock, RegionTiles
from distill.students.student_kind import FeatureStudent, StudentKind, TaskInputs, feature_card
from distill.students.task import Batch, FeaturePrediction, TrainingTask
from distill.targets.target import Norms
from distill.terms.feature_terms import check_term

SETTINGS: dict[str, dict[str, float]] = {
    "context": {"cosine": 0.9, "least": 0.3, "most": 0.7, "visible": 0.1}
}


class ContextTask(TrainingTask):
    """Trains a `ContextNetwork` to reconstruct all teachers' features of all tiles of a region.

    Term "context": for each region a teacher is drawn, whose features are read; a share between
    `least` and `most` of its tiles is hidden; a decoder and a head for each teacher predict that
    teacher's normalised features of each tile that exists. Hidden tiles weigh 1, others `visible`;
    `cosine` is the share of the cosine, the rest is smooth L1; the recipe weights the teachers.

    Kept of TICON: the drawn teacher, hidden tiles, all teachers' features as targets. Changed: its
    share of hidden tiles and its loss were not seen; the coarse tile is one of the tiles; teachers
    are drawn for each region, so that every map takes part in each step.

    Args:
        recipe: recipe of a `ContextStudent`.
        dims: width E of each teacher's features.
        norms: normalisation of every teacher at every mpp.

    Raises:
        DistillError: there is another term than one "context", or a setting is not known.
    """

    def __init__(self, recipe: Recipe, dims: Mapping[str, int], norms: Norms) -> None:
        super().__init__()
        settings = recipe.student_as(ContextStudent)
        if [term.kind for term in recipe.terms] != list(SETTINGS):
            msg = f"terms {[t.kind for t in recipe.terms]} given; tiles in context have 'context'"
            raise DistillError(msg)
        (term,) = recipe.terms
        check_term(recipe, term, SETTINGS["context"])
        self._weight = term.weight
        self._settings = {**SETTINGS["context"], **term.settings}
        self.network = ContextNetwork(settings, {n: dims[n] for n in recipe.teachers}, norms)
        self.decoder = nn.ModuleList(
            NearBlock(settings.width, settings.heads) for _ in range(settings.decoder_depth)
        )
        self.heads = nn.ModuleList(
            make_head(recipe.head, settings.width, width=recipe.head_width, dim_out=dims[name])
            for name in recipe.teachers
        )
        self.weighting = make_weighting(recipe.weighting, len(recipe.teachers), keep=recipe.keep)
        cosine = self._settings["cosine"]
        self._match = FeatureMatch(targets=recipe.targets, cosine_weight=cosine)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the weighted losses [B] by teacher: "context TEACHER"."""
        region = self.network.region(batch)
        samples, tokens = region.is_present.shape
        is_hidden_BS = self._hidden(samples, tokens, generator).to(region.is_present.device)
        place_B = torch.randint(len(self.network.teachers), (samples,), generator=generator)
        shares_BK = F.one_hot(place_B, len(self.network.teachers)).float()
        predictions = self._predictions(
            region, shares_BK.to(region.is_present.device), is_hidden_BS
        )
        weight_BS = torch.where(is_hidden_BS, 1.0, self._settings["visible"]) * region.is_present
        losses_KB = torch.stack(
            [
                weighted_mean(self._match(predictions[name], region.features[name]), weight_BS)
                for name in self.network.teachers
            ]
        )
        shares_KB = self.weighting(losses_KB, generator)
        losses_KB = self._weight * shares_KB * losses_KB
        return {f"context {name}": losses_KB[i] for i, name in enumerate(self.network.teachers)}

    def _hidden(self, samples: int, tokens: int, generator: torch.Generator) -> Tensor:
        share = (self._settings["least"], self._settings["most"])
        return random_mask(samples, tokens, generator, probability=1.0, share=share)

    def _predictions(
        self, region: RegionTiles, shares_BK: Tensor, is_hidden_BS: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the predicted targets [B, S, E] by teacher."""
        x_BSD = self.network(region, shares_BK, is_hidden_BS)
        bias_BHSS = self.network.bias(region)
        for block in self.decoder:
            x_BSD = block(x_BSD, bias_BHSS)
        return {n: head(x_BSD) for n, head in zip(self.network.teachers, self.heads, strict=True)}

    @torch.no_grad()
    def predict(self, batch: Batch) -> dict[str, FeaturePrediction]:
        """Predict the teachers' features of the coarse tiles from the teacher of the column.

        "TEACHER hidden" is predicted from the tiles under a coarse tile, which is hidden itself.
        """
        region = self.network.region(batch)
        is_hidden_BS = torch.zeros_like(region.is_present)
        is_hidden_BS[:, 0] = True
        shares_BK = self.network.shares_of(self.network.reads, len(is_hidden_BS))
        predictions = {}
        for suffix, mask_BS in (("", None), (" hidden", is_hidden_BS)):
            for name, predicted_BSE in self._predictions(region, shares_BK, mask_BS).items():
                predictions[f"{name}{suffix}"] = FeaturePrediction(
                    predicted=predicted_BSE[:, 0].float(),
                    features=batch.features[name],
                    norm=self.network.norms.norm(name, batch.mpp),
                    mpp=batch.mpp,
                )
        return predictions

    @property
    def student(self) -> nn.Module:
        """Return the network; decoder and heads are not needed to use it."""
        return self.network

    @property
    def kept_parts(self) -> dict[str, nn.Module]:
        """Return the student, the decoder and the heads."""
        return {**super().kept_parts, "decoder": self.decoder, "heads": self.heads}

    @property
    def dim(self) -> int:
        """Return the width of a tile's vector."""
        return self.network.width


def _context_task(inputs: TaskInputs) -> ContextTask:
    """Build a network of tiles in context with its decoder and heads."""
    if not inputs.under:
        msg = (
            f"recipe '{inputs.recipe.name}' sees tiles under a coarser tile; give it two nested "
            "mpps or more: --mpp 0.5 --mpp 2 (and --set levels=3 for three)"
        )
        raise DistillError(msg)
    dims = {column.name: column.dim for column in inputs.columns}
    return ContextTask(inputs.recipe, dims, inputs.norms)


def _restored_network(card: Mapping[str, Any], weights: Mapping[str, Tensor]) -> FeatureStudent:
    """Restore a network of tiles in context from its card and weights."""
    teachers, recipe, levels = card["teachers"], card["recipe"], card["levels"]
    settings = ContextStudent(**recipe["student"])
    network = ContextNetwork.restored(settings, teachers, levels, recipe["targets"], weights)
    return FeatureStudent(
        embed=network.embed, teachers=[network.reads], levels=tuple(levels), batch_tiles=32
    )


CONTEXT = StudentKind(
    task=_context_task,
    keep=feature_card,
    restore=_restored_network,
    term_settings=lambda kind: SETTINGS.get(kind, {}),
)
