"""Normalisations as part of a student of features, so that it is run as it was trained.

The statistics are buffers, so they lie in the student's weights and move to its device. PHI-S of a
teacher of 1,280 channels is 6.6 MB at each mpp.

Shape letters: B samples, D embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields

import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.targets.target import Norms, Rotator, Standardiser, TargetNorm, Unchanged, UnitLength


class KeptNorm(nn.Module):
    """A normalisation with its statistics as buffers.

    Args:
        norm: the normalisation to keep.
    """

    def __init__(self, norm: TargetNorm) -> None:
        super().__init__()
        self._kind = type(norm)
        for field in fields(norm):
            statistic = torch.as_tensor(getattr(norm, field.name), dtype=torch.float32)
            self.register_buffer(field.name, statistic.clone())

    @property
    def norm(self) -> TargetNorm:
        """Return the normalisation on the device of the buffers."""
        return self._kind(**dict(self.named_buffers()))

    def forward(self, features_BD: Tensor) -> Tensor:
        """Normalise features [..., D], float32, without gradient."""
        return self.norm(features_BD)


class KeptNorms(nn.Module):
    """Normalisations of several teachers at several mpps.

    Args:
        teachers: the teachers, in the order in which their norms are kept.
        norms: normalisations by teacher and mpp; those of other teachers are left out.
    """

    def __init__(self, teachers: Sequence[str], norms: Norms) -> None:
        super().__init__()
        order = {teacher: place for place, teacher in enumerate(teachers)}
        keys = sorted((key for key in norms if key[0] in order), key=lambda k: (order[k[0]], k[1]))
        # Teachers' names may have characters that names of modules may not: the place is the name.
        self._at = {key: place for place, key in enumerate(keys)}
        self.kept = nn.ModuleList(KeptNorm(norms[key]) for key in keys)

    def norm(self, teacher: str, mpp: float) -> TargetNorm:
        """Return the normalisation of a teacher at an mpp.

        Raises:
            DistillError: there are no statistics of the teacher at the mpp.
        """
        if (teacher, mpp) not in self._at:
            kept_names = ", ".join(f"{name} at {at}" for name, at in self._at) or "none"
            msg = f"no statistics of '{teacher}' at mpp {mpp}; there are those of {kept_names}"
            raise DistillError(msg)
        norm: TargetNorm = self.kept[self._at[teacher, mpp]].norm  # type: ignore[assignment]
        return norm


def blank_norms(targets: str, dims: Mapping[str, int], mpps: Sequence[float]) -> Norms:
    """Return normalisations of the right shapes, to be filled by `load_state_dict`.

    Args:
        targets: one of `target.NORMS`.
        dims: width D of each teacher's features.
        mpps: mpps of the tiles.

    Raises:
        DistillError: the normalisation is not known.
    """
    return {(name, mpp): _blank_norm(targets, dim) for name, dim in dims.items() for mpp in mpps}


def _blank_norm(targets: str, dim: int) -> TargetNorm:
    mean = torch.zeros(dim)
    if targets == Unchanged.name:
        return Unchanged(mean=mean)
    if targets == UnitLength.name:
        return UnitLength(mean=mean, length=1.0)
    if targets == Standardiser.name:
        return Standardiser(mean=mean, std=torch.ones(dim))
    if targets == Rotator.name:
        return Rotator(mean=mean, rotation=torch.eye(dim), scale=1.0)
    msg = f"no normalisation '{targets}' of features is known"
    raise DistillError(msg)
