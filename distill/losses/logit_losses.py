"""Losses of a student's logits against a teacher's, per sample, in float32.

Shape letters: B samples, C classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import DistillError
from distill.losses.numeric import check_batch, check_detached, check_positive, full_precision


def kl_loss(student_BC: Tensor, teacher_BC: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Compute T^2 KL(teacher || student) of softmax(logits / T), [B].

    T^2 keeps the size of gradients as T grows. Source: Hinton, Vinyals and Dean 2015
    (arXiv 1503.02531).

    Raises:
        DistillError: the teacher's logits require gradients, or the temperature is not above 0.
    """
    log_s_BC, log_t_BC = _log_softmaxes(student_BC, teacher_BC, temperature)
    return _kl(log_s_BC, log_t_BC) * temperature**2


def decoupled_loss(
    student_BC: Tensor,
    teacher_BC: Tensor,
    label_B: Tensor,
    *,
    temperature: float = 4.0,
    target_weight: float = 1.0,
    other_weight: float = 8.0,
) -> Tensor:
    """Compute the decoupled loss (DKD), [B]: T^2 (alpha KL(b_t || b_s) + beta KL(q_t || q_s)).

    b is (p_label, 1 - p_label), q the softmax over all other classes. `kl_loss` is the same with
    alpha 1 and beta 1 - p_label of the teacher: if the teacher is certain, the student learns
    nothing of the other classes' ratios.

    Source: Zhao et al. 2022 (arXiv 2203.08679); alpha 1, beta 8, T 4 are its values on CIFAR-100.

    Args:
        student_BC: the student's logits.
        teacher_BC: the teacher's logits.
        label_B: true class of each sample.
        temperature: the temperature T.
        target_weight: the weight alpha of the true class.
        other_weight: the weight beta of the other classes.

    Raises:
        DistillError: the teacher's logits require gradients, the temperature is not above 0, or
            there are fewer than three classes.
    """
    classes = student_BC.shape[-1]
    if classes < 3:
        msg = (
            f"decoupled distillation compares the classes beside the true one: {classes} classes "
            "given, at least 3 needed; take kl_loss"
        )
        raise DistillError(msg)
    log_s_BC, log_t_BC = _log_softmaxes(student_BC, teacher_BC, temperature)
    (sure_s_B2, rest_s_BC), (sure_t_B2, rest_t_BC) = (
        _decoupled(log_BC, label_B) for log_BC in (log_s_BC, log_t_BC)
    )
    target_B, other_B = _kl(sure_s_B2, sure_t_B2), _kl(rest_s_BC, rest_t_BC)
    return (target_weight * target_B + other_weight * other_B) * temperature**2


def label_loss(student_BC: Tensor, label_B: Tensor) -> Tensor:
    """Compute the cross-entropy of labels, [B]; 0 for samples without one.

    Args:
        student_BC: the student's logits.
        label_B: number of each sample's class, -1 without a label.
    """
    loss_B = F.cross_entropy(student_BC.float(), label_B.clamp_min(0), reduction="none")
    return torch.where(label_B >= 0, loss_B, 0)


def mixed_kl_loss(
    student_BC: Tensor,
    teacher_BC: Tensor,
    label_B: Tensor,
    *,
    temperature: float = 4.0,
    difficulty: float = 1.0,
) -> Tensor:
    """Compute T^2 KL(t' || student) with targets that lean on the label where a tile is hard, [B].

    t' = l p_t + (1 - l) y with the one-hot label y, p_t = softmax(teacher / T) and l =
    exp(-difficulty x d); d, the difficulty of a sample, is KL(p_t || p_s) at T = 1, without
    gradient. Samples without a label keep l = 1.

    Source: the mixture of Self-Evolution KD (arXiv 2412.15303), which mixes for tokens that are
    hard by their KL; its function l(d) was not seen.

    Args:
        student_BC: the student's logits.
        teacher_BC: the teacher's logits.
        label_B: number of each sample's class, -1 without a label.
        temperature: the temperature T.
        difficulty: how fast the label takes over; at 0 this is `kl_loss`.

    Raises:
        DistillError: the teacher's logits require gradients, or the temperature is not above 0.
    """
    log_s_BC, log_t_BC = _log_softmaxes(student_BC, teacher_BC, temperature)
    with torch.no_grad():
        hard_B = _kl(*_log_softmaxes(student_BC, teacher_BC, 1.0))
        share_B1 = torch.where(label_B >= 0, torch.exp(-difficulty * hard_B), 1.0)[:, None]
        one_hot_BC = F.one_hot(label_B.clamp_min(0), student_BC.shape[1])
        target_BC = share_B1 * log_t_BC.exp() + (1 - share_B1) * one_hot_BC
    return F.kl_div(log_s_BC, target_BC, reduction="none").sum(dim=-1) * temperature**2


def decoupled_levels_loss(
    student_BC: Tensor,
    teacher_BC: Tensor,
    label_B: Tensor,
    *,
    temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
    target_weight: float = 1.0,
    other_weight: float = 8.0,
) -> Tensor:
    """Compute multi-level distillation with each level decoupled, mean over temperatures, [B].

    With b = (p_label, 1 - p_label) [B, 2] and q [B, C], the softmax over all other classes (0 at
    the label), of softmax(logits / T), the loss is the sum over b (alpha) and q (beta) of

    - T^2 KL(teacher || student), for each sample (`decoupled_loss`);
    - ||x_t x_t^T - x_s x_s^T||^2 / B over the batch: a sample has the sum of its row;
    - ||x_t^T x_t - x_s^T x_s||^2 / (2 or C) over classes: all samples have the same value.

    Source: MDKD+ (KBS 2025) decouples each level of multi-level logit distillation; its code is not
    public, so that the form of the two upper levels is ours: those of `multi_level_loss` over b and
    q in place of p.

    Raises:
        DistillError: the teacher's logits require gradients, a temperature is not above 0 or none
            is given, there are fewer than three classes, or B < 2.
    """
    check_batch(len(student_BC), "multi-level distillation")
    if not temperatures:
        msg = "multi-level distillation needs at least one temperature, none given"
        raise DistillError(msg)
    levels = []
    for temperature in temperatures:
        instance_B = decoupled_loss(
            student_BC,
            teacher_BC,
            label_B,
            temperature=temperature,
            target_weight=target_weight,
            other_weight=other_weight,
        )
        logs = _log_softmaxes(student_BC, teacher_BC, temperature)
        (sure_s, rest_s), (sure_t, rest_t) = (_decoupled(log_BC, label_B) for log_BC in logs)
        sure_B, over_sure = _correlations(sure_s, sure_t)
        others = [_at_other_classes(rest, label_B) for rest in (rest_s, rest_t)]
        rest_B, over_rest = _correlations(*others)
        upper_B = target_weight * (sure_B + over_sure) + other_weight * (rest_B + over_rest)
        levels.append(instance_B + upper_B)
    return torch.stack(levels).mean(dim=0)


def multi_level_loss(
    student_BC: Tensor,
    teacher_BC: Tensor,
    *,
    temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
    batch_weight: float = 1.0,
    class_weight: float = 1.0,
) -> Tensor:
    """Compute the loss of multi-level logit distillation, mean over temperatures, [B].

    With P = softmax(logits / T), the loss is the sum of three terms with the means over samples

    - `kl_loss`, for each sample;
    - ||P_t P_t^T - P_s P_s^T||^2 / B over the batch: a sample has the sum of its row;
    - ||P_t^T P_t - P_s^T P_s||^2 / C over classes: all samples have the same value.

    Source: Jin, Wang and Lin 2023, "Multi-level logit distillation" (CVPR).

    Raises:
        DistillError: the teacher's logits require gradients, a temperature is not above 0 or none
            is given, or B < 2.
    """
    check_batch(len(student_BC), "multi-level distillation")
    if not temperatures:
        msg = "multi-level distillation needs at least one temperature, none given"
        raise DistillError(msg)
    levels = []
    for temperature in temperatures:
        logs = _log_softmaxes(student_BC, teacher_BC, temperature)
        instance_B = _kl(*logs) * temperature**2
        batch_B, over_classes = _correlations(*logs)
        levels.append(instance_B + batch_weight * batch_B + class_weight * over_classes)
    return torch.stack(levels).mean(dim=0)


def _log_softmaxes(
    student_BC: Tensor, teacher_BC: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    check_detached(teacher_BC, "a logit loss")
    check_positive(temperature, "temperature")
    log_s_BC = F.log_softmax(student_BC.float() / temperature, dim=-1)
    return log_s_BC, F.log_softmax(teacher_BC.float() / temperature, dim=-1)


def _kl(log_s_BC: Tensor, log_t_BC: Tensor) -> Tensor:
    """Compute KL(t || s) of log-probabilities, [B]."""
    return F.kl_div(log_s_BC, log_t_BC, reduction="none", log_target=True).sum(dim=-1)


def _decoupled(log_BC: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return logs of (p_label, 1 - p_label) [B, 2] and of the other classes' softmax [B, C - 1]."""
    others = torch.arange(log_BC.shape[-1] - 1, device=log_BC.device)
    others_BC = others + (others >= label_B[:, None])
    rest_BC = log_BC.gather(1, others_BC)
    # Summed and not 1 - p: where the teacher is sure, 1 - p is 0 in float32.
    total_B1 = rest_BC.logsumexp(dim=1, keepdim=True)
    return torch.cat([log_BC.gather(1, label_B[:, None]), total_B1], dim=1), rest_BC - total_B1


def _at_other_classes(rest_BC: Tensor, label_B: Tensor) -> Tensor:
    """Return logs of the other classes' softmax at their classes' places [B, C], -inf at the label.

    Args:
        rest_BC: logs of the softmax over the other classes [B, C - 1].
        label_B: the class that is left out.
    """
    others = torch.arange(rest_BC.shape[1], device=rest_BC.device)
    others_BC = others + (others >= label_B[:, None])
    empty_BC = rest_BC.new_full((len(rest_BC), rest_BC.shape[1] + 1), -torch.inf)
    return empty_BC.scatter(1, others_BC, rest_BC)


def _correlations(log_s_BC: Tensor, log_t_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared gaps of correlations over the batch, per row [B], and over classes []."""
    with full_precision(log_s_BC.exp(), log_t_BC.exp()) as (s_BC, t_BC):
        batch_B = (t_BC @ t_BC.T - s_BC @ s_BC.T).square().sum(dim=1)
        over_classes = (t_BC.T @ t_BC - s_BC.T @ s_BC).square().sum() / s_BC.shape[1]
        return batch_B, over_classes
