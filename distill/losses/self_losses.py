"""Self-distillation against a moving average: DINO, iBOT, KoLeo and the centre of the teacher.

Logits are over K prototypes. The teacher's probabilities come from `Centre.probabilities`; losses
are per sample, in float32.

Shape letters: B samples, N tokens, K prototypes, D embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import DistillError
from distill.losses.numeric import (
    check_batch,
    check_detached,
    check_positive,
    full_precision,
    weighted_mean,
)
from distill.losses.over_workers import mean_over_workers

EPSILON = 1e-8


class Centre(nn.Module):
    """A running mean of the teacher's logits, subtracted so that no prototype wins all samples.

    Only `update` changes it, equally on all workers; patch tokens need their own centre. Source:
    Caron et al. 2021, "Emerging properties in self-supervised vision transformers" (DINO).

    Args:
        prototypes: number of prototypes K.
        momentum: share of the old mean that an update keeps.
    """

    mean: Tensor

    def __init__(self, prototypes: int, *, momentum: float = 0.9) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            msg = f"the momentum of a centre must be from 0 to below 1, {momentum} given"
            raise DistillError(msg)
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(prototypes))

    @torch.no_grad()
    def probabilities(self, teacher_BK: Tensor, *, temperature: float) -> Tensor:
        """Return softmax((logits - centre) / temperature) over the last axis, without gradient.

        Raises:
            DistillError: the temperature is not above 0.
        """
        check_positive(temperature, "temperature")
        return F.softmax((teacher_BK.float() - self.mean) / temperature, dim=-1)

    @torch.no_grad()
    def update(self, teacher_BK: Tensor) -> None:
        """Move the centre towards the mean of all workers' logits; once a step, after the losses.

        Args:
            teacher_BK: this worker's logits [..., K].

        Raises:
            DistillError: no worker has any logits.
        """
        logits = teacher_BK.detach().float().flatten(0, -2)
        mean_K = mean_over_workers(logits.mean(dim=0), len(logits))
        if not len(logits) and bool(mean_K.isnan().any()):
            msg = "a centre cannot move towards no logits; give those of at least one sample"
            raise DistillError(msg)
        self.mean.lerp_(mean_K, 1 - self.momentum)


def dino_loss(student_BK: Tensor, teacher_BK: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Compute cross-entropy -sum p log softmax(logits / T) over the last axis, [B] or [B, N].

    Source: Caron et al. 2021 (arXiv 2104.14294).

    Args:
        student_BK: the student's logits.
        teacher_BK: the teacher's probabilities, from `Centre.probabilities`.
        temperature: the student's temperature; the teacher's is lower (0.04 to 0.07), so that its
            probabilities are sharper.

    Raises:
        DistillError: the probabilities require gradients, or the temperature is not above 0.
    """
    check_detached(teacher_BK, "a DINO loss")
    check_positive(temperature, "temperature")
    log_BK = F.log_softmax(student_BK.float() / temperature, dim=-1)
    return -(teacher_BK.float() * log_BK).sum(dim=-1)


def ibot_loss(
    student_BNK: Tensor, teacher_BNK: Tensor, mask_BN: Tensor, *, temperature: float = 0.1
) -> Tensor:
    """Compute the mean `dino_loss` of the tokens that were hidden from the student, per sample [B].

    A sample without masked tokens counts 0; usually half of the samples have none.

    Source: Zhou et al. 2022, "iBOT: image BERT pre-training with online tokenizer"
    (arXiv 2111.07832); the mean per sample as in DINOv2.

    Args:
        student_BNK: the student's logits of the tokens of a masked view.
        teacher_BNK: the teacher's probabilities of the tokens of the whole view.
        mask_BN: true where the student got a mask instead of the token.
        temperature: the student's temperature.

    Raises:
        DistillError: the probabilities require gradients, or the temperature is not above 0.
    """
    tokens_BN = dino_loss(student_BNK, teacher_BNK, temperature=temperature)
    return weighted_mean(tokens_BN, mask_BN)


def random_mask(
    samples: int,
    tokens: int,
    generator: torch.Generator,
    *,
    probability: float = 0.5,
    share: tuple[float, float] = (0.1, 0.5),
) -> Tensor:
    """Draw masks [samples, tokens] for `ibot_loss`: a sample is masked with a probability.

    The share of masked tokens is uniform between the two shares, the tokens are random. At least
    one token is masked and one token is not.

    Raises:
        DistillError: fewer than two tokens, or a probability or share outside 0 to 1.
    """
    if tokens < 2 or not 0 <= probability <= 1 or not 0 <= share[0] <= share[1] <= 1:
        msg = (
            f"tokens={tokens}, probability={probability}, share={share} given; at least 2 tokens, "
            "a probability and a rising pair of shares from 0 to 1 needed"
        )
        raise DistillError(msg)
    device = generator.device
    part_B = torch.empty(samples, device=device).uniform_(*share, generator=generator)
    count_B = (part_B * tokens).round().clamp(1, tokens - 1)
    chosen_B = torch.rand(samples, generator=generator, device=device) < probability
    # The rank of each token in a random order.
    rank_BN = torch.rand(samples, tokens, generator=generator, device=device).argsort().argsort()
    return (rank_BN < count_B[:, None]) & chosen_B[:, None]


def koleo_loss(x_BD: Tensor) -> Tensor:
    """Compute -log of the distance to the nearest other sample on the unit sphere, [B].

    At the minimum the batch is spread over the sphere.

    Source: Sablayrolles et al. 2019, "Spreading vectors for similarity search"
    (arXiv 1806.03198); DINOv2 adds it at a weight of 0.1.

    Raises:
        DistillError: B < 2.
    """
    check_batch(len(x_BD), "KoLeo")
    with full_precision(x_BD) as (x,):
        unit_BD = F.normalize(x, dim=-1)
        with torch.no_grad():
            cosine_BB = (unit_BD @ unit_BD.T).fill_diagonal_(-2)
            nearest_B = cosine_BB.argmax(dim=1)
        distance_B = torch.linalg.vector_norm(unit_BD - unit_BD[nearest_B], dim=-1)
        loss_B: Tensor = -(distance_B + EPSILON).log()
        return loss_B
