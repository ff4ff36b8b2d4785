"""ABMIL, CLAM and DSMIL against numpy by hand and torchmil."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchmil import models

from downstream.mil.aggregators.clam import Clam, TileLoss, smooth_svm
from downstream.mil.aggregators.dsmil import Dsmil
from downstream.mil.aggregators.pooling import Abmil, MaxPool, MeanPool
from downstream.mil.padded_bags import MilError, pad_bags
from tests.worlds.mil_examples import WIDTH, bags, doubles

__all__ = ["doubles"]  # the fixture
Array = NDArray[np.float64]

pytestmark = pytest.mark.usefixtures("doubles")


def test_abmil_by_hand() -> None:
    net, (x, *_) = Abmil(WIDTH, hidden=8, attention=4).eval(), bags("abmil", (9,))[0]
    weights = {key: tensor.detach().numpy() for key, tensor in net.named_parameters()}
    h = np.maximum(x.numpy() @ weights["stem.0.weight"].T + weights["stem.0.bias"], 0)
    both = h @ weights["attention.content_gate.weight"].T + weights["attention.content_gate.bias"]
    gated = np.tanh(both[:, :4]) / (1 + np.exp(-both[:, 4:]))
    score = (gated @ weights["attention.score.weight"].T)[:, 0]
    a = np.exp(score) / np.exp(score).sum()
    pooled = net(x)
    np.testing.assert_allclose(pooled.attention[0].detach(), a, rtol=1e-12)
    np.testing.assert_allclose(pooled.embedding[0].detach(), a @ h, rtol=1e-12)


def test_abmil_is_torchmils() -> None:
    ours = Abmil(WIDTH, hidden=8, attention=4).eval()
    head = torch.nn.Linear(8, 1)
    ref = models.ABMIL(in_shape=(WIDTH,), att_dim=4, gated=True, feat_ext=ours.stem).eval()
    content, gate = ours.attention.content_gate.weight.chunk(2)
    content_bias, gate_bias = ours.attention.content_gate.bias.chunk(2)
    with torch.no_grad():
        for layer, weight, bias in (
            (ref.pool.fc1.module, content, content_bias),
            (ref.pool.fc_gated.module, gate, gate_bias),
            (ref.classifier.module, head.weight, head.bias),
        ):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        ref.pool.fc2.weight.copy_(ours.attention.score.weight)
    batch = pad_bags(bags("abmil")[0])
    logits, score = ref(batch.x, batch.mask, return_att=True)
    pooled = ours(batch.x, batch.mask)
    torch.testing.assert_close(head(pooled.embedding)[:, 0], logits, rtol=1e-12, atol=1e-12)
    kept = score.masked_fill(~batch.mask, -torch.inf).softmax(dim=1)
    torch.testing.assert_close(pooled.attention, kept)


def test_mean_and_max_by_hand() -> None:
    x = bags("mean", (9,))[0][0]
    torch.testing.assert_close(MeanPool(WIDTH)(x).embedding[0], x.mean(dim=0))
    pooled = MaxPool(WIDTH)(x)
    torch.testing.assert_close(pooled.embedding[0], x.amax(dim=0))
    share = np.bincount(x.argmax(dim=0), minlength=9) / WIDTH
    np.testing.assert_allclose(pooled.attention[0], share)


def clam_by_hand(net: Clam, x: Array, label: int, attended: Array, h: Array) -> float:
    """The instance loss of one bag, class by class, as the paper says it."""
    del x
    weight = net.tile_classifiers.weight.detach().numpy().reshape(net.classes, 2, -1)
    bias = net.tile_classifiers.bias.detach().numpy().reshape(net.classes, 2)
    k, total = min(net.tiles, len(h) // 2), 0.0
    for c in range(net.classes):
        order = np.argsort(attended[min(c, len(attended) - 1)])
        high, low = order[::-1][:k], order[:k]
        if c == label:
            tiles = [(i, 1) for i in high] + [(i, 0) for i in low]
        else:
            tiles = [(i, 0) for i in high] if net.subtyping else []
        losses = []
        for i, tile_label in tiles:
            s = weight[c] @ h[i] + bias[c]
            if net.tile_loss == "smooth_svm":
                s = s + np.array([tile_label != 0, tile_label != 1])
            losses.append(np.log(np.exp(s).sum()) - s[tile_label])
        total += float(np.mean(losses)) if losses else 0.0
    return total / (net.classes if net.subtyping else 1)


@pytest.mark.parametrize("tile_loss", ["cross_entropy", "smooth_svm"])
@pytest.mark.parametrize("multi_branch", [False, True])
@pytest.mark.parametrize("subtyping", [False, True])
def test_clam_loss_by_hand(tile_loss: TileLoss, *, multi_branch: bool, subtyping: bool) -> None:
    net = Clam(
        WIDTH, classes=3, hidden=8, attention=4, dropout=0.0, tiles=4,
        multi_branch=multi_branch, subtyping=subtyping, tile_loss=tile_loss,
    ).train()  # fmt: skip
    features, _ = bags("clam_sb", (9, 30, 5))
    batch = pad_bags(features)
    label = torch.tensor([2, 0, 1])
    pooled = net(batch.x, batch.mask)
    losses = net.auxiliary(pooled, label).detach().numpy()
    for at, x in enumerate(features):
        h = net.stem(x).detach().numpy()
        attended = pooled.extras["branches"][at, :, : len(x)].detach().numpy()
        expected = clam_by_hand(net, x.numpy(), int(label[at]), attended, h)
        assert losses[at] == pytest.approx(expected, rel=1e-5)  # the loss is float32


def test_clam_with_a_single_tile_has_no_tile_loss() -> None:
    net = Clam(WIDTH, classes=2, hidden=8, subtyping=True).train()
    assert net.auxiliary(net(torch.randn(1, WIDTH)), torch.tensor([1])).item() == 0


def test_clam_refuses_evaluation_mode_and_label_vectors() -> None:
    net = Clam(WIDTH, classes=2, hidden=8).eval()
    pooled = net(torch.randn(6, WIDTH))
    with pytest.raises(MilError, match="training mode"):
        net.auxiliary(pooled, torch.tensor([1]))
    with pytest.raises(MilError, match="one class index a bag"):
        net.auxiliary(pooled, torch.tensor([[0.0, 1.0]]))


def test_smooth_svm_by_hand() -> None:
    # torchmil 1.0.2's own adds an [N, 1, C] margin to [N, C] scores and is no reference
    logits, label = torch.randn(20, 4) * 3, torch.arange(20) % 4
    for s, y, loss in zip(logits.numpy(), label.numpy(), smooth_svm(logits, label), strict=True):
        margins = [s[c] + (c != y) - s[y] for c in range(4)]
        assert loss.item() == pytest.approx(np.log(np.exp(margins).sum()))


def test_smooth_svm_tends_to_the_hinge() -> None:
    logits, label = torch.randn(50, 4) * 3, torch.arange(50) % 4
    rows = torch.arange(50)
    others = logits.clone()
    others[rows, label] = -torch.inf
    hinge = (1 + others.amax(dim=1) - logits[rows, label]).clamp(min=0)
    torch.testing.assert_close(
        smooth_svm(logits, label, temperature=1e-4), hinge, atol=1e-3, rtol=0
    )


def test_dsmil_by_hand() -> None:
    net, (x, *_) = Dsmil(WIDTH, classes=3, hidden=8, query=5).eval(), bags("dsmil", (9,))[0]
    pooled = net(x)
    h = net.stem(x).detach().numpy()
    linear = {k: v.detach().numpy() for k, v in net.named_parameters()}
    logits = h @ linear["tile_classifier.weight"].T + linear["tile_classifier.bias"]
    q = h @ linear["query.weight"].T + linear["query.bias"]
    v = h @ linear["value.1.weight"].T + linear["value.1.bias"]
    for c in range(3):
        score = q @ q[logits[:, c].argmax()] / np.sqrt(5)
        a = np.exp(score) / np.exp(score).sum()
        np.testing.assert_allclose(pooled.extras["branches"][0, c].detach(), a, rtol=1e-10)
        np.testing.assert_allclose(pooled.embedding[0, 8 * c : 8 * c + 8].detach(), a @ v)
    np.testing.assert_allclose(pooled.extras["max_logits"][0].detach(), logits.max(axis=0))


def test_dsmil_is_torchmils() -> None:
    ours = Dsmil(WIDTH, classes=1, hidden=8, query=5).eval()
    head = torch.nn.Linear(8, 1)
    ref = models.DSMIL(in_shape=(WIDTH,), att_dim=5, feat_ext=ours.stem).eval()
    ref.inst_classifier, ref.q_nn, ref.bag_classifier = ours.tile_classifier, ours.query, head
    with torch.no_grad():
        ours.value[1].weight.copy_(torch.eye(8))  # type: ignore[operator]
        ours.value[1].bias.zero_()  # type: ignore[operator]
    x = torch.randn(2, 9, WIDTH)
    logits, tile_logits = ref(x, return_inst_pred=True)
    pooled = ours(x)
    torch.testing.assert_close(head(pooled.embedding)[:, 0], logits)
    torch.testing.assert_close(pooled.extras["tile_logits"][..., 0], tile_logits)
