"""The distance transformer, the hierarchical model and fusion against dense float64 by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from downstream.mil.aggregators import transformer as mil_transformer
from downstream.mil.aggregators.fusion import Concat, FusedAggregator, ShazamGate
from downstream.mil.aggregators.hierarchy import CrossAttention, Hierarchical, children_rows
from downstream.mil.aggregators.pooling import Abmil
from downstream.mil.aggregators.transformer import Layer, PositionTransformer
from downstream.mil.aggregators.transmil import TransMil
from downstream.mil.layers import attention as mil_attention
from downstream.mil.padded_bags import MilError
from featurestore.ids import tile_ids
from featurestore.read.pairs import children_of
from tests.worlds.mil_examples import WIDTH, bags, doubles

__all__ = ["doubles"]  # the fixture
pytestmark = pytest.mark.usefixtures("doubles")


def dense_layer(layer: Layer, x: Tensor, place: Tensor) -> Tensor:
    """A whole transformer layer with its scores [L, L] in one piece."""
    part, heads = layer.attention, layer.attention.heads
    normed = layer.norm(x)
    q, k, v = (p.view(len(x), heads, -1).transpose(0, 1) for p in part.qkv(normed).chunk(3, dim=-1))
    apart = torch.cdist(place, place)
    apart[0], apart[:, 0] = 0, 0
    slope = torch.tensor([2 ** (-8 * (h + 1) / heads) for h in range(heads)])
    score = q @ k.mT * q.shape[-1] ** -0.5 - slope[:, None, None] * apart
    mixed = (torch.softmax(score, dim=-1) @ v).transpose(0, 1).flatten(1)
    x = x + part.out(mixed)
    tokens: Tensor = x + layer.network(x)
    return tokens


@pytest.mark.parametrize("block", [4, 512])
def test_transformer_by_hand_and_by_blocks(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(mil_transformer, "_BLOCK", block)
    net = PositionTransformer(WIDTH, hidden=16, heads=4, layers=3).eval()
    (features, *_), (coords, *_) = bags("transformer", (13,))
    x = torch.cat([net.class_token[None], net.stem(features)])
    place = torch.cat([torch.zeros(1, 2), coords.double()])
    for layer in (*net.layers, net.last):
        assert isinstance(layer, Layer)
        before, x = x, dense_layer(layer, x, place)
    expected = net.norm(x[0])
    pooled = net(features, None, coords)
    torch.testing.assert_close(pooled.embedding[0], expected, rtol=1e-6, atol=1e-7)
    q, k, _ = net.last.attention.qkv(net.last.norm(before)).view(14, 3, 4, 4).unbind(dim=1)
    share = torch.softmax(torch.einsum("hd,lhd->hl", q[0], k) / 2, dim=-1).mean(dim=0)[1:]
    torch.testing.assert_close(pooled.attention[0], share / share.sum())
    pooled.embedding.sum().backward()
    made = net.stem[0].weight.grad.clone()  # type: ignore[operator, union-attr]
    net.zero_grad()
    expected.sum().backward()
    torch.testing.assert_close(made, net.stem[0].weight.grad, rtol=1e-5, atol=1e-7)


def test_a_near_tile_counts_more_than_a_far_one() -> None:
    net = PositionTransformer(WIDTH, hidden=16, heads=2, layers=2, dropout=0).eval()
    x = torch.randn(3, WIDTH)
    near = net(x, None, torch.tensor([[0, 0], [0, 1], [0, 400]])).embedding
    same = net(x, None, torch.tensor([[0, 0], [0, 1], [0, 800]])).embedding
    other = net(x, None, torch.tensor([[0, 0], [0, 400], [0, 1]])).embedding
    # the bias of the gentlest head at 400 tiles is -1.6; what differs is only how far is far
    assert (near - same).abs().max() < (near - other).abs().max()


def hierarchy_by_hand(net: Hierarchical, x: Tensor, coords: Tensor) -> Tensor:
    """Two levels, tile by tile in loops."""
    h = net.stem(x)
    coarse, fine = (torch.nonzero(coords[:, 0] == level)[:, 0].tolist() for level in (0, 1))
    local, whole = net.local[0], net.whole[0]
    assert isinstance(local, CrossAttention)
    assert isinstance(whole, CrossAttention)
    keys = torch.cat([h[fine], net.prompts[0]])
    out = []
    for row in coarse:
        token = h[row]
        children = [f for f in fine if (coords[f, 1:] // 4).tolist() == coords[row, 1:].tolist()]
        if children:
            token = attend(local, token, token / token.norm(), h[children])
        out.append(attend(whole, token, token, keys))
    tokens = torch.stack(out)
    share = torch.softmax(net.attention(tokens[None])[0, 0], dim=0)
    return share @ tokens


def attend(part: CrossAttention, token: Tensor, asker: Tensor, others: Tensor) -> Tensor:
    inner = part.attention
    q = inner.query(asker).view(inner.heads, -1)
    k, v = (p.view(len(others), inner.heads, -1) for p in inner.key_value(others).chunk(2, dim=-1))
    share = torch.softmax(torch.einsum("hd,nhd->hn", q, k) * q.shape[-1] ** -0.5, dim=-1)
    tokens: Tensor = part.norm(token + inner.out(torch.einsum("hn,nhd->hd", share, v).flatten()))
    return tokens


@pytest.mark.parametrize("block", [3, 512])
def test_hierarchy_by_hand(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(mil_attention, "BLOCK_QUERIES", block)
    net = Hierarchical(WIDTH, hidden=16, heads=2).eval()
    (features, *_), (coords, *_) = bags("hierarchical", (9,))
    pooled = net(features, None, coords)
    expected = hierarchy_by_hand(net, features, coords)
    torch.testing.assert_close(pooled.embedding[0], expected, rtol=1e-9, atol=1e-10)
    levels = pooled.extras["levels"][0]
    assert levels[coords[:, 0] == 0].sum().item() == pytest.approx(1)
    # one coarse tile is without children: its share is not carried down
    lost = levels[coords[:, 0] == 0][0]
    torch.testing.assert_close(levels[coords[:, 0] == 1].sum(), 1 - lost)


def test_three_levels() -> None:
    top = torch.tensor([[0, 0, 0], [0, 0, 1]])
    middle = torch.tensor([[1, y, x] for y in range(4) for x in range(8)])
    fine = torch.tensor([[2, y, x] for y in range(0, 16, 3) for x in range(0, 32, 5)])
    coords = torch.cat([fine, top, middle])
    net = Hierarchical(WIDTH, ratios=(4, 4), hidden=16, heads=2).eval()
    pooled = net(torch.randn(len(coords), WIDTH), None, coords)
    assert pooled.attention[0, len(fine) : len(fine) + 2].sum().item() == pytest.approx(1)
    assert pooled.extras["levels"][0, len(fine) + 2 :].sum().item() == pytest.approx(1)


def test_children_are_those_of_the_lake() -> None:
    rng = np.random.default_rng(0)
    coarse = np.argwhere(rng.random((6, 7)) < 0.5)
    fine = np.argwhere(rng.random((24, 28)) < 0.6)
    fine = fine[[(f // 4).tolist() in coarse.tolist() for f in fine]]
    children = children_rows(torch.from_numpy(coarse), torch.from_numpy(fine), 4)
    above, below = (tile_ids(3, mpp, p[:, 0], p[:, 1]) for mpp, p in ((2.0, coarse), (0.5, fine)))
    expected = children_of(above, below, 4).reshape(len(coarse), 16)
    assert (children.numpy() == np.where(expected < 0, len(fine), expected)).all()


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        ([[0, 0, 0], [1, 0, 9]], "0 of 1 fine tiles are under one of 1 coarse"),
        ([[0, 0, 0], [1, 0, 0], [1, 0, 0]], "give each fine tile once"),
        ([[0, 0, 0], [0, 0, 1]], r"\[2, 0\] of 2 tiles are of levels 0 to 1"),
        ([[0, 0, 0], [1, 0, 0], [2, 0, 0]], r"\[1, 1\] of 3 tiles"),
    ],
)
def test_places_that_do_not_nest_are_refused(coords: list[list[int]], message: str) -> None:
    net = Hierarchical(WIDTH, hidden=16, heads=2)
    with pytest.raises(MilError, match=message):
        net(torch.randn(len(coords), WIDTH), None, torch.tensor(coords))


FUSIONS = {"concat": Concat, "shazam": ShazamGate}


@pytest.mark.parametrize("kind", FUSIONS)
def test_a_teachers_scale_does_not_matter(kind: str) -> None:
    fusion = FUSIONS[kind]([5, 7], 8).eval()
    x = torch.randn(2, 4, 12) * 10
    scaled = torch.cat([x[..., :5] * 100, x[..., 5:]], dim=-1)
    torch.testing.assert_close(fusion(scaled), fusion(x), rtol=1e-4, atol=1e-4)


def test_the_gate_reaches_what_follows() -> None:
    """Failure row 4: a gate in front of LayerNorm would have no gradient and no effect."""
    fusion = ShazamGate([5, 7], 8).eval()
    score = fusion.gate.score[-1]
    assert isinstance(score, nn.Linear)
    x = torch.randn(1, 6, 12)
    fusion(x).square().sum().backward()
    assert score.weight.grad is not None
    assert score.weight.grad.abs().max() > 1e-4
    with torch.no_grad():
        score.weight.zero_()
        score.bias.copy_(torch.tensor([30.0, -30.0]))
    torch.testing.assert_close(fusion.shares(x)[..., 0], torch.ones(1, 6))
    other = x.clone()
    other[..., 5:] = torch.randn(1, 6, 7)
    closed, changed = (fusion(part) for part in (x, other))
    torch.testing.assert_close(closed, changed)  # a teacher with no share has no say


def test_reconstruction_cannot_be_won_by_collapse() -> None:
    """Failure row 3: targets are the teachers' own features; no parameter reaches them."""
    fusion = ShazamGate([5, 7], 8)
    x, mask = torch.randn(2, 6, 12), torch.arange(6) < torch.tensor([[6], [4]])
    for part in fusion.maps:
        assert isinstance(part, nn.Linear)
        nn.init.zeros_(part.weight)
        nn.init.zeros_(part.bias)
    loss = fusion.reconstruct(fusion(x), x, mask)
    assert (loss > 0.5).all()  # a constant says nothing of a teacher
    expected = [fusion.reconstruct(fusion(b[None]), b[None], torch.ones(1, len(b)).bool())
                for b in (x[0], x[1, :4])]  # fmt: skip
    torch.testing.assert_close(loss, torch.cat(expected))


def test_reconstruction_by_hand_whatever_a_teachers_scale() -> None:
    fusion, x, mask = ShazamGate([5, 7], 8), torch.randn(1, 6, 12), torch.ones(1, 6).bool()
    fused = fusion(x)
    expected = []
    for back, part in zip(fusion.back, (x[0, :, :5], x[0, :, 5:]), strict=True):
        spread = part.var(dim=1, correction=0, keepdim=True)
        target = (part - part.mean(dim=1, keepdim=True)) / (spread + 1e-5).sqrt()
        rebuilt = back(fused[0])
        apart = (rebuilt - target).abs()
        huber = torch.where(apart < 1, apart**2 / 2, apart - 0.5).mean(dim=1)
        cosine = (rebuilt * target).sum(dim=1) / (rebuilt.norm(dim=1) * target.norm(dim=1))
        expected.append((1 - cosine + huber).mean())
    loss = fusion.reconstruct(fused, x, mask)
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)
    scaled = torch.cat([x[..., :5] * 100, x[..., 5:]], dim=-1)
    assert fusion.reconstruct(fused, scaled, mask).item() == pytest.approx(loss.item(), rel=1e-3)


def test_fused_aggregators_are_aggregators() -> None:
    net = FusedAggregator(
        ShazamGate([5, 7], 8), TransMil(8, hidden=16, dropout=0.0), reconstruct=0.01
    )
    (features, *_), (coords, *_) = bags("transmil", (9,))
    pooled = net.train()(features, None, coords)
    assert pooled.embedding.shape == (1, 16)
    assert pooled.penalty.item() > 0
    assert net.eval()(features, None, coords).penalty is None
    with pytest.raises(MilError, match="11 wide"):
        net(features[:, :11], None, coords)
    with pytest.raises(MilError, match="it is ShazamGate's"):
        FusedAggregator(Concat([5, 7], 8), Abmil(8, hidden=4), reconstruct=0.1)
