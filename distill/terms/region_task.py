"""The training task of a region encoder over cached grids of features; no pixels.

Source: PatHME (hvcl/PatHME), re-written from its description, as its public code does not run. Each
class lists what was kept and what was changed.

Shape letters: B regions, N fine tokens, E embedding of a teacher, D width, T experts.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distill.losses.feature_losses import FeatureMatch
from distill.losses.numeric import weighted_mean
from distill.losses.weighting import make_weighting
from distill.recipes.recipe import Recipe
from distill.recipes.student_settings import RegionStudent
from distill.students.heads import make_head
from distill.students.region_encoder import RegionEncoder
from distill.students.region_network import RegionOutputs
from distill.students.student_kind import FeatureStudent, StudentKind, TaskInputs, feature_card
from distill.students.task import Batch, FeaturePrediction, TrainingTask
from distill.targets.kept_norms import KeptNorms
from distill.targets.target import Norms
from distill.terms.region_terms import SETTINGS, RegionSelf, region_terms


class RegionTask(TrainingTask):
    """Trains a `RegionEncoder` by self-distillation and by experts.

    Terms: "dino", class tokens of crops against those of the whole in each stream, and across the
    streams; "ibot", hidden tokens of both grids; "koleo", class tokens; "expert", each expert's
    fine features from the fine tokens; "hierarchy", 1 - cos of hierarchical attention's
    outputs in the student and the moving average (PatHME divides it by 0.1: a weight of 10).

    Kept of PatHME: the terms and their weights, crops of 6 x 6 of 16 x 16 and 3 x 3 of 4 x 4 cells
    (the same shares of other grids), hidden tokens, the momentum. Changed:
    - DINO across the streams also takes the region's vector, since the hierarchical term alone is
      smallest where all regions are one constant.
    - Each expert has its own head and normalised targets; a single teacher is both input and
      expert. The recipe weights the experts; their weights add up to 1.
    - The teacher's temperature (0.05) and the momentum (0.992) are constant, where PatHME raises
      them to 0.07 and 1; a running centre per stream; 1 prototype head for both streams' class
      tokens, so that they can be compared, and 1 for tokens; as many prototypes as in the
      recipe (65,536 there); the mean of KoLeo and iBOT over both streams.

    Args:
        recipe: recipe of a `RegionStudent`; the first teacher is the input, the others are experts.
        dims: width E of each teacher's features.
        norms: normalisations of the first teacher at three mpps, of the experts at the finest mpp.

    Raises:
        DistillError: a term or a setting is not known, or statistics are missing.
    """

    def __init__(self, recipe: Recipe, dims: Mapping[str, int], norms: Norms) -> None:
        super().__init__()
        settings, teacher = recipe.student_as(RegionStudent), recipe.teachers[0]
        terms = region_terms(recipe)
        self.encoder = RegionEncoder(settings, teacher, dims[teacher], norms)
        self.own = RegionSelf(settings, terms, self.encoder.network)
        self.experts = _experts(recipe)
        self.expert_norms = KeptNorms(
            self.experts, {k: norm for k, norm in norms.items() if k[1] == self.encoder.fine}
        )
        self.heads = nn.ModuleList(
            make_head(recipe.head, settings.width, width=recipe.head_width, dim_out=dims[name])
            for name in self.experts
        )
        if self.experts:
            self._weight, share = terms.weight("expert"), terms.setting("expert", "cosine")
            self._match = FeatureMatch(targets=recipe.targets, cosine_weight=share)
            self.weighting = make_weighting(recipe.weighting, len(self.experts), keep=recipe.keep)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the weighted losses [B]: dino-fine, dino-mid, dino-across, ..., expert NAME."""
        region = self.encoder.region(batch)
        outputs, losses = self.own(self.encoder.network, region, generator)
        if self.experts:
            losses |= self._expert_losses(outputs, batch, generator)
        return losses  # type: ignore[no-any-return]

    def _expert_losses(
        self, outputs: RegionOutputs, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        under, losses = batch.under[self.encoder.fine], []
        mask_BN = under.mask.flatten(1)
        for name, head in zip(self.experts, self.heads, strict=True):
            raw_BNE = under.features[name].flatten(1, 2)
            target_BNE = self.expert_norms.norm(name, self.encoder.fine)(raw_BNE)
            target_BNE = torch.where(mask_BN[..., None], target_BNE, 0)
            loss_BN = self._match(head(outputs.fine.tokens), target_BNE)
            losses.append(weighted_mean(loss_BN, mask_BN))
        losses_TB = torch.stack(losses)
        shares_TB = self.weighting(losses_TB, generator)
        losses_TB = self._weight * shares_TB * losses_TB
        return {f"expert {name}": losses_TB[i] for i, name in enumerate(self.experts)}

    def after_step(self, step: int) -> None:
        """Update the moving average and the centres."""
        self.own.after_step(self.encoder.network, step)

    @torch.no_grad()
    def predict(self, batch: Batch) -> dict[str, FeaturePrediction]:
        """Predict each expert's features from the fine tokens of tiles that exist."""
        tokens_BND = self.encoder(batch).fine.tokens
        under = batch.under[self.encoder.fine]
        mask_BN = under.mask.flatten(1)
        return {
            name: FeaturePrediction(
                predicted=head(tokens_BND[mask_BN]).float(),
                features=under.features[name].flatten(1, 2)[mask_BN],
                norm=self.expert_norms.norm(name, self.encoder.fine),
                mpp=self.encoder.fine,
            )
            for name, head in zip(self.experts, self.heads, strict=True)
        }

    @property
    def student(self) -> nn.Module:
        """Return the encoder; heads and the average are not needed to use it."""
        return self.encoder

    @property
    def compiled_parts(self) -> list[nn.Module]:
        """Return the network, which sees whole regions, and its blocks, which see crops, too."""
        return [self.encoder.network, *self.encoder.network.blocks]

    @property
    def kept_parts(self) -> dict[str, nn.Module]:
        """Return the student and its heads."""
        return {**super().kept_parts, "heads": self.heads}

    @property
    def dim(self) -> int:
        """Return the width of a region's vector."""
        return self.encoder.network.width


def _experts(recipe: Recipe) -> tuple[str, ...]:
    """Return the teachers whose fine features are predicted; () without the term "expert"."""
    for term in recipe.terms:
        if term.kind == "expert":
            return term.teachers or recipe.teachers[1:] or recipe.teachers
    return ()


def _region_task(inputs: TaskInputs) -> RegionTask:
    """Build a region encoder with its heads and terms."""
    dims = {column.name: column.dim for column in inputs.columns}
    return RegionTask(inputs.recipe, dims, inputs.norms)


def _restored_encoder(card: Mapping[str, Any], weights: Mapping[str, Tensor]) -> FeatureStudent:
    """Restore a region encoder from its card and weights."""
    teachers, recipe, levels = card["teachers"], card["recipe"], card["levels"]
    settings = RegionStudent(**recipe["student"])
    encoder = RegionEncoder.restored(settings, teachers[0], levels, recipe["targets"], weights)
    return FeatureStudent(
        embed=encoder.embed, teachers=teachers[:1], levels=tuple(levels), batch_tiles=16
    )


REGION = StudentKind(
    task=_region_task,
    keep=feature_card,
    restore=_restored_encoder,
    term_settings=lambda kind: SETTINGS.get(kind, {}),
)
