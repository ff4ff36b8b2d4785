"""Task losses, weights, soft and pseudo labels against scikit-learn, scipy and numpy by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight

from downstream.mil.losses import (
    BagTask,
    balanced_order,
    class_weights,
    expert_agreement,
    pseudo_label_loss,
    pseudo_labels,
    soft_labels,
)
from downstream.mil.padded_bags import MilError

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(30, 4)) * 2
LABEL = np.arange(30) % 4


def test_losses_are_scikit_learns() -> None:
    many = BagTask(kind="multiclass", outputs=4)
    losses = many.loss(torch.from_numpy(LOGITS), torch.from_numpy(LABEL))
    assert losses.mean().item() == pytest.approx(log_loss(LABEL, softmax(LOGITS, axis=1)), rel=1e-5)
    one = BagTask(kind="binary")
    is_odd = LABEL % 2
    losses = one.loss(torch.from_numpy(LOGITS[:, :1]), torch.from_numpy(is_odd))
    expected = log_loss(is_odd, 1 / (1 + np.exp(-LOGITS[:, 0])))
    assert losses.mean().item() == pytest.approx(expected, rel=1e-5)
    several = BagTask(kind="multilabel", outputs=2)
    many_labels = np.stack([is_odd, LABEL > 1], axis=1).astype(float)
    losses = several.loss(torch.from_numpy(LOGITS[:, :2]), torch.from_numpy(many_labels))
    each = [log_loss(many_labels[:, c], 1 / (1 + np.exp(-LOGITS[:, c]))) for c in range(2)]
    assert losses.mean().item() == pytest.approx(np.mean(each), rel=1e-5)
    number = BagTask(kind="regression")
    losses = number.loss(torch.from_numpy(LOGITS[:, :1]), torch.from_numpy(LOGITS[:, 1]))
    np.testing.assert_allclose(losses, (LOGITS[:, 0] - LOGITS[:, 1]) ** 2, rtol=1e-5)


def test_soft_labels_that_are_sure_are_class_labels() -> None:
    task, logits = BagTask(kind="multiclass", outputs=4), torch.from_numpy(LOGITS)
    sure = torch.from_numpy(np.eye(4)[LABEL])
    torch.testing.assert_close(task.loss(logits, sure), task.loss(logits, torch.from_numpy(LABEL)))
    # the least cross-entropy with soft labels is their entropy, at the labels themselves
    soft = softmax(RNG.normal(size=(30, 4)), axis=1)
    least = task.loss(torch.from_numpy(np.log(soft)), torch.from_numpy(soft))
    np.testing.assert_allclose(least, -(soft * np.log(soft)).sum(axis=1), rtol=1e-5)
    assert (task.loss(logits, torch.from_numpy(soft)) >= least - 1e-6).all()


def test_weights_are_scikit_learns_and_survive_a_batch_of_one() -> None:
    label = np.array([0] * 7 + [1] * 2 + [2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=label)
    np.testing.assert_allclose(class_weights(label, 3), expected)
    with pytest.raises(MilError, match=r"\[7, 2, 1, 0\]"):
        class_weights(label, 4)
    weight = torch.tensor([0.5, 3.0])
    binary, several = BagTask(kind="binary"), BagTask(kind="multiclass", outputs=2)
    logit = torch.tensor([[0.7]])
    for y, factor in ((0, 0.5), (1, 3.0)):
        plain = binary.loss(logit, torch.tensor([y]))
        torch.testing.assert_close(binary.loss(logit, torch.tensor([y]), weight), factor * plain)
        pair = torch.cat([torch.zeros(1, 1), logit], dim=1)  # two classes by softmax: the same
        torch.testing.assert_close(several.loss(pair, torch.tensor([y]), weight), factor * plain)
    multi = BagTask(kind="multilabel", outputs=2)
    losses = multi.loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([5.0, 9.0]))
    assert losses.item() == pytest.approx((5 + 1) * np.log(2) / 2)
    with pytest.raises(MilError, match="give none"):
        BagTask(kind="regression").loss(logit, torch.tensor([1.0]), weight)


def test_scores_are_probabilities() -> None:
    logits = torch.from_numpy(LOGITS)
    many = BagTask(kind="multiclass", outputs=4).scores(logits)
    np.testing.assert_allclose(many, softmax(LOGITS, axis=1))
    one = BagTask(kind="binary").scores(logits[:, :1])
    np.testing.assert_allclose(one, 1 / (1 + np.exp(-LOGITS[:, 0])))
    assert torch.equal(BagTask(kind="regression", outputs=4).scores(logits), logits)


@pytest.mark.parametrize(("kind", "outputs"), [("binary", 2), ("multiclass", 1), ("multilabel", 0)])
def test_outputs_that_do_not_fit_are_refused(kind: str, outputs: int) -> None:
    with pytest.raises(MilError, match="binary has 1, multiclass 2 or more"):
        BagTask(kind=kind, outputs=outputs)  # type: ignore[arg-type]


@given(counts=st.lists(st.integers(1, 30), min_size=2, max_size=5), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_balanced_epoch_has_every_class_equally_often(counts: list[int], seed: int) -> None:
    label = np.repeat(np.arange(len(counts)), counts)
    order = balanced_order(label, seed=seed)
    assert len(order) == len(label)
    class_counts = np.bincount(label[order], minlength=len(counts))
    assert class_counts.max() - class_counts.min() <= 1
    times = np.bincount(order, minlength=len(label))
    for c in range(len(counts)):
        assert np.ptp(times[label == c]) <= 1  # no patient of a class comes more often than others


def test_agreement_of_experts_is_scipys_jensen_shannon() -> None:
    one, other = LOGITS, LOGITS[:, ::-1].copy()
    agreement = expert_agreement(torch.from_numpy(one), torch.from_numpy(other))
    expected = jensenshannon(softmax(one, axis=1), softmax(other, axis=1), axis=1) ** 2
    np.testing.assert_allclose(agreement, expected, atol=1e-6)


def test_an_ensembles_soft_label_is_the_mean_probability() -> None:
    members = RNG.normal(size=(5, 30, 4)) * 3
    mean, variance = soft_labels(members + 1000)
    expected = softmax(members, axis=2)
    np.testing.assert_allclose(mean, expected.mean(axis=0))
    np.testing.assert_allclose(variance, expected.var(axis=0))


def test_pseudo_labels_of_a_padded_batch() -> None:
    score = torch.tensor([[0.9, 0.1, 0.5, 0.6, 0.2, 9.0], [0.1, 0.2, 0.3, 9.0, 9.0, 9.0]])
    mask = torch.arange(6) < torch.tensor([[5], [3]])
    labels = pseudo_labels(score, mask, torch.tensor([1, 0]), tiles=2)
    assert labels.tolist() == [[1, 0, -1, 1, 0, -1], [0, 0, 0, -1, -1, -1]]
    small = pseudo_labels(score[1:], mask[1:], torch.tensor([1]), tiles=2)
    assert small.tolist() == [[0, -1, 1, -1, -1, -1]]  # half of three tiles is one at either end
    logits = torch.randn(2, 6)
    loss = pseudo_label_loss(logits, labels)
    kept = labels[0] >= 0
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits[0][kept], labels[0][kept].float()
    )
    assert loss[0].item() == pytest.approx(expected.item())
    assert pseudo_label_loss(logits, torch.full((2, 6), -1)).tolist() == [0, 0]
