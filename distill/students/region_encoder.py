"""The student of regions: from cached features of one teacher at three nested mpps to a vector.

Shape letters: B regions, E embedding of the teacher, D width.
"""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.recipes.student_settings import RegionStudent
from distill.students.region_network import Region, RegionNetwork, RegionOutputs
from distill.students.task import Batch
from distill.targets.kept_norms import KeptNorms, blank_norms
from distill.targets.target import Norms


class RegionEncoder(nn.Module):
    """A network that embeds a coarse tile and the tiles of two finer mpps under it as one vector.

    The vector is the mean of hierarchical attention's outputs for the coarse stream: the mid tokens
    that exist, the region's own token, and the prompts.

    Kept of PatHME: features of one teacher at three mpps, one linear map and GELU for all; one
    backbone; prompts for the coarse stream alone. Changed: features are normalised by statistics
    that are kept with the weights; tiles that do not exist are masked; the coarse tile itself
    is a token of the coarse stream; any two ratios of mpps.

    Args:
        settings: width, depth, heads and the other sizes.
        teacher: the column that the encoder reads.
        dim: width E of the teacher's features.
        norms: normalisations of the teacher at three mpps.

    Raises:
        DistillError: the number of mpps is not three.
    """

    def __init__(self, settings: RegionStudent, teacher: str, dim: int, norms: Norms) -> None:
        super().__init__()
        mpps = sorted({mpp for name, mpp in norms if name == teacher}, reverse=True)
        if len(mpps) != 3:
            msg = f"a region is of three mpps; '{teacher}' has statistics at {mpps}"
            raise DistillError(msg)
        self.teacher = teacher
        self.coarse, self.mid, self.fine = mpps
        self.norms = KeptNorms([teacher], norms)
        self.network = RegionNetwork(settings, dim)

    @classmethod
    def restored(
        cls,
        settings: RegionStudent,
        teacher: str,
        mpps: Sequence[float],
        targets: str,
        weights: Mapping[str, Tensor],
    ) -> Self:
        """Restore an encoder from its weights, in evaluation mode.

        Args:
            settings: the settings at training.
            teacher: the column that the encoder reads.
            mpps: mpps of the three levels.
            targets: kind of normalisation, one of `target.NORMS`.
            weights: state of the encoder.
        """
        dim = weights["network.project.0.weight"].shape[1]
        encoder = cls(settings, teacher, dim, blank_norms(targets, {teacher: dim}, mpps))
        encoder.load_state_dict(dict(weights))
        return encoder.eval()

    def region(self, batch: Batch) -> Region:
        """Gather the normalised features of a batch.

        Raises:
            DistillError: the batch has another mpp, or lacks the tiles of the finer mpps.
        """
        if batch.mpp != self.coarse or {self.mid, self.fine} - set(batch.under):
            msg = (
                f"a batch of mpp {batch.mpp} with {sorted(batch.under)} under it given; this "
                f"encoder sees {self.coarse} with {[self.fine, self.mid]}"
            )
            raise DistillError(msg)
        mid, fine = batch.under[self.mid], batch.under[self.fine]
        return Region(
            coarse=self._normalised(batch.features, self.coarse),
            mid=self._normalised(mid.features, self.mid),
            mid_there=mid.mask,
            fine=self._normalised(fine.features, self.fine),
            fine_there=fine.mask,
        )

    def _normalised(self, features: Mapping[str, Tensor], mpp: float) -> Tensor:
        return self.norms.norm(self.teacher, mpp)(features[self.teacher])

    def forward(self, batch: Batch) -> RegionOutputs:
        """Return the network's outputs for a batch."""
        outputs: RegionOutputs = self.network(self.region(batch))
        return outputs

    @torch.no_grad()
    def embed(self, batch: Batch) -> Tensor:
        """Embed regions as vectors [B, D], float32."""
        vector_BD: Tensor = self(batch).joined.region
        return vector_BD.float()
