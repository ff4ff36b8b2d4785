"""A small head on a frozen teacher's column that depends less on stain and site; no pixels.

Sources: the form of the head is Mettle's (slide2vec, `mettle.py`), the loss that of SPECTRA
(`distill.losses.acquisition_losses`). It is trained from the cached columns of a teacher and of its
stain variants, and run on the teacher's column alone.

Shape letters: B samples, V variants, A atoms, r rank, E embedding of the teacher.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.losses.acquisition_losses import acquisition_nce_loss
from distill.losses.feature_losses import FeatureMatch
from distill.losses.over_workers import loss_over_workers
from distill.recipes.recipe import Recipe
from distill.recipes.student_settings import RobustStudent
from distill.students.student_kind import FeatureStudent, StudentKind, TaskInputs, feature_card
from distill.students.task import Batch, FeaturePrediction, TrainingTask
from distill.targets.kept_norms import KeptNorms, blank_norms
from distill.targets.target import Norms
from distill.targets.tile_classes import TileClasses
from distill.terms.feature_terms import check_term
from featurestore import tile_parts

SETTINGS: dict[str, dict[str, float]] = {
    "acquisition": {"temperature": 0.1, "own_slide": 0},
    "keep": {"cosine": 0.9},
}
VARIANT = re.compile(r"(?P<column>.+)@S[1-9][0-9]*")


class RobustHead(nn.Module):
    """Adds mixed low-rank maps and a shift to an embedding: e + sum_a m_a(e) Q_a P_a e + shift(e).

    Kept of Mettle: the form, 16 atoms of rank 8, hidden 256. Changed: it works on features that are
    normalised by statistics kept with the weights, and its output is turned back into the teacher's
    space; it starts as the identity, so that the untrained column is the teacher's.

    Args:
        settings: atoms, rank and hidden units.
        teacher: the column that the head reads.
        dim: width E of the teacher's features.
        norms: normalisations of the teacher at every mpp.
    """

    def __init__(self, settings: RobustStudent, teacher: str, dim: int, norms: Norms) -> None:
        super().__init__()
        self.teacher, self.dim = teacher, dim
        self.norms = KeptNorms([teacher], norms)
        size = (settings.atoms, settings.rank, dim)
        self.down = nn.Parameter(torch.randn(size) * dim**-0.5)
        self.up = nn.Parameter(torch.zeros(size))
        self.mix = nn.Sequential(
            nn.Linear(dim, settings.hidden), nn.GELU(), nn.Linear(settings.hidden, settings.atoms)
        )
        self.shift = nn.Sequential(
            nn.Linear(dim, settings.hidden), nn.GELU(), nn.Linear(settings.hidden, dim)
        )
        last = self.shift[-1]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    @classmethod
    def restored(
        cls,
        settings: RobustStudent,
        teacher: str,
        mpps: Sequence[float],
        targets: str,
        weights: Mapping[str, Tensor],
    ) -> Self:
        """Restore a head from its weights, in evaluation mode.

        Args:
            settings: the settings at training.
            teacher: the column that the head reads.
            mpps: mpps of the tiles.
            targets: kind of normalisation, one of `target.NORMS`.
            weights: state of the head.
        """
        dim = weights["down"].shape[2]
        head = cls(settings, teacher, dim, blank_norms(targets, {teacher: dim}, mpps))
        head.load_state_dict(dict(weights))
        return head.eval()

    def forward(self, target_BE: Tensor) -> Tensor:
        """Return the changed embedding of normalised features [B, E]."""
        low_BAr = torch.einsum("be,are->bar", target_BE, self.down)
        mixed_BAr = self.mix(target_BE)[..., None] * low_BAr
        moved_BE = torch.einsum("bar,are->be", mixed_BAr, self.up)
        out_BE: Tensor = target_BE + moved_BE + self.shift(target_BE)
        return out_BE

    @torch.no_grad()
    def embed(self, features: Mapping[str, Tensor], *, mpp: float) -> Tensor:
        """Return the vectors [B, E] of raw features by teacher, float32, in the teacher's space."""
        norm = self.norms.norm(self.teacher, mpp)
        return norm.inverse(self(norm(features[self.teacher])).float())


class RobustTask(TrainingTask):
    """Trains a `RobustHead` on a column and its stain variants.

    Terms: "acquisition", contrast between the variants of a tile with negatives of its own site and
    variant (settings `temperature`; `own_slide`, 1 if tiles of the anchor's slide are negatives);
    and "keep", cosine and smooth L1 of the head's output of each variant and the unchanged tile's
    own features (setting `cosine`, the share of the cosine), without which nothing ties the column
    to what the teacher knows.

    Args:
        recipe: recipe of a `RobustStudent`; the first teacher is the column, the others are its
            stain variants.
        dims: width E of each teacher's features.
        norms: normalisations of the first teacher at every mpp.
        sites: classes of tiles by site; None if all are of one.

    Raises:
        DistillError: a teacher is no stain variant of the first, or a term or setting is not known.
    """

    def __init__(
        self, recipe: Recipe, dims: Mapping[str, int], norms: Norms, sites: TileClasses | None
    ) -> None:
        super().__init__()
        self.columns, self._sites = recipe.teachers, sites
        check_variants(recipe.teachers)
        self.terms = recipe.terms
        for term in recipe.terms:
            if term.kind not in SETTINGS:
                msg = f"no term '{term.kind}' of a robust head; known are {', '.join(SETTINGS)}"
                raise DistillError(msg)
            check_term(recipe, term, SETTINGS[term.kind])
        settings, teacher = recipe.student_as(RobustStudent), recipe.teachers[0]
        self.head = RobustHead(settings, teacher, dims[teacher], norms)
        self._match = [
            FeatureMatch(targets=recipe.targets, cosine_weight=term.settings.get("cosine", 0.9))
            if term.kind == "keep"
            else None
            for term in recipe.terms
        ]

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the weighted losses [B]: "acquisition" and "keep"."""
        norm = self.head.norms.norm(self.columns[0], batch.mpp)
        target_BVE = torch.stack([norm(batch.features[name]) for name in self.columns], dim=1)
        out_BVE = self.head(target_BVE.flatten(0, 1)).view(target_BVE.shape)
        losses: dict[str, Tensor] = {}
        for term, match in zip(self.terms, self._match, strict=True):
            if match is None:
                settings = {**SETTINGS["acquisition"], **term.settings}
                loss_B = self._acquisition(out_BVE, batch, settings)
            else:
                own_BVE = target_BVE[:, :1].expand_as(out_BVE)
                loss_B = match(out_BVE, own_BVE).mean(dim=1)
            losses[term.kind] = losses.get(term.kind, 0) + term.weight * loss_B
        return losses

    def _acquisition(self, out_BVE: Tensor, batch: Batch, settings: Mapping[str, float]) -> Tensor:
        site_B, slide_B = self.places(batch)

        def loss(x_NVE: Tensor, site_N: Tensor, slide_N: Tensor) -> Tensor:
            return acquisition_nce_loss(
                x_NVE,
                site_N,
                slide_N,
                temperature=settings["temperature"],
                own_slide=bool(settings["own_slide"]),
            )

        return loss_over_workers(loss, out_BVE, site_B, slide_B)

    def places(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the numbers of each tile's site and slide [B], on the device of the features.

        Tiles without a site count as of one more site.
        """
        keys = batch.tile_id.cpu().numpy()
        slide_B = torch.from_numpy(tile_parts(keys)[0].copy())
        sites = torch.zeros_like(slide_B)
        if self._sites is not None:
            sites = torch.from_numpy(self._sites.of(keys))
        device = batch.features[self.columns[0]].device
        # Workers exchange float32, which has every whole number below 16 million.
        return sites.float().to(device), slide_B.float().to(device)

    @torch.no_grad()
    def predict(self, batch: Batch) -> dict[str, FeaturePrediction]:
        """Pair the head's output of each variant with the unchanged tile's own features."""
        norm = self.head.norms.norm(self.columns[0], batch.mpp)
        return {
            name: FeaturePrediction(
                predicted=self.head(norm(batch.features[name])).float(),
                features=batch.features[self.columns[0]],
                norm=norm,
                mpp=batch.mpp,
            )
            for name in self.columns
        }

    @property
    def student(self) -> nn.Module:
        """Return the head."""
        return self.head

    @property
    def dim(self) -> int:
        """Return the width of the vector, which is the teacher's."""
        return self.head.dim


def check_variants(teachers: Sequence[str]) -> None:
    """Refuse teachers of which the others are no stain variants of the first.

    Raises:
        DistillError: a teacher is no stain variant of the first, or there is none.
    """
    first, *others = teachers
    wrong = [
        name
        for name in others
        if (match := VARIANT.fullmatch(name)) is None or match["column"] != first
    ]
    if wrong or not others:
        msg = (
            f"recipe 'robust' is of a column and its stain variants; {', '.join(teachers)} given: "
            f"give --teacher {first} --teacher {first}@S1 (extract {first}@S1 makes it)"
        )
        raise DistillError(msg)


def _robust_task(inputs: TaskInputs) -> RobustTask:
    """Build a robust head with its terms."""
    dims = {column.name: column.dim for column in inputs.columns}
    site = inputs.recipe.student_as(RobustStudent).site
    sites = inputs.classes[site] if site else None
    return RobustTask(inputs.recipe, dims, inputs.norms, sites)


def _restored_head(card: Mapping[str, Any], weights: Mapping[str, Tensor]) -> FeatureStudent:
    """Restore a robust head from its card and weights."""
    teacher, recipe = card["teachers"][0], card["recipe"]
    settings = RobustStudent(**recipe["student"])
    head = RobustHead.restored(settings, teacher, card["levels"], recipe["targets"], weights)
    return FeatureStudent(
        embed=lambda batch: head.embed(batch.features, mpp=batch.mpp), teachers=[teacher]
    )


ROBUST = StudentKind(
    task=_robust_task,
    keep=feature_card,
    restore=_restored_head,
    term_settings=lambda kind: SETTINGS.get(kind, {}),
)
