"""DTFD-MIL, ACMIL, ILRA, RRT-MIL and WiKG against torchmil or plain loops in float64."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional
from torchmil.models import DTFDMIL
from torchmil.nn import AttentionPool

from downstream.kept.kept_model import KeptModel
from downstream.kept.mil_models import kept_mil, network_of
from downstream.mil.aggregators import rrt as rrt_module
from downstream.mil.aggregators import wikg as wikg_module
from downstream.mil.aggregators.acmil import Acmil, mean_similarity
from downstream.mil.aggregators.dtfd import Dtfd
from downstream.mil.aggregators.ilra import Ilra, LatentAttention
from downstream.mil.aggregators.pooling import GatedAttention
from downstream.mil.aggregators.rrt import RegionAttention, Rrt
from downstream.mil.aggregators.wikg import WiKG
from downstream.mil.layers.tile_regions import equal_regions
from downstream.mil.losses import BagTask
from downstream.mil.model import MilModel, make_aggregator
from downstream.mil.objective import Cox, Hazards, LabelObjective, Objective
from downstream.mil.padded_bags import MilError, pad_bags
from downstream.mil.predict import predict
from downstream.mil.train import train_mil
from downstream.run.fit_settings import MilSettings
from tests.downstream.mil.test_downstream_mil import cohort
from tests.worlds.mil_examples import TASK, WIDTH, bags, doubles

__all__ = ["doubles"]  # the fixture
pytestmark = pytest.mark.usefixtures("doubles")
Array = NDArray[np.float64]


def gated(part: GatedAttention, h: Tensor) -> Tensor:
    """Scores [A, N] of gated attention, written out."""
    content, gate = (h @ part.content_gate.weight.T + part.content_gate.bias).chunk(2, dim=-1)
    scores: Tensor = ((content.tanh() * gate.sigmoid()) @ part.score.weight.T + part.score.bias).T
    return scores


def pool_of(part: GatedAttention, width: int) -> AttentionPool:
    """torchmil's gated attention pool with our weights."""
    pool = AttentionPool(in_dim=width, att_dim=part.score.in_features, gated=True)
    content_W, gate_W = part.content_gate.weight.detach().chunk(2)
    content_b, gate_b = part.content_gate.bias.detach().chunk(2)
    pool.load_state_dict({
        "fc1.module.weight": content_W, "fc1.module.bias": content_b,
        "fc2.weight": part.score.weight.detach(),
        "fc_gated.module.weight": gate_W, "fc_gated.module.bias": gate_b,
    })  # fmt: skip
    return pool


def test_dtfd_is_torchmils(monkeypatch: pytest.MonkeyPatch) -> None:
    (x, *_), _ = bags("dtfd", (30,))
    task = BagTask(kind="binary")
    net = MilModel(Dtfd(WIDTH, classes=1, hidden=16, attention=8), task).train()
    ours = net.aggregator
    assert isinstance(ours, Dtfd)
    prediction = net(x)
    group = prediction.pooled.extras["groups"][0].numpy()

    def as_ours(index: NDArray[np.int64]) -> None:
        index[:] = np.argsort(group, kind="stable")

    monkeypatch.setattr(np.random, "shuffle", as_ours)
    theirs = DTFDMIL((16,), n_groups=4, distill_mode="afs")
    theirs.attention_pool, theirs.u_attention_pool = (
        pool_of(part, 16) for part in (ours.attention, ours.second)
    )
    for their_layer, our_layer in (
        (theirs.classifier, ours.classifier),
        (theirs.u_classifier, net.head),
    ):
        their_layer.load_state_dict(
            {f"module.{key}": part for key, part in our_layer.state_dict().items()}
        )
    h = ours.stem(x)
    bag, pseudo = theirs(h[None], return_pseudo_pred=True)
    # theirs cuts 30 tiles into 8, 8, 7 and 7 in order, ours deals as many to each
    assert np.bincount(group).tolist() == [8, 8, 7, 7]
    torch.testing.assert_close(prediction.logits[0], bag)
    assert prediction.pooled.branch_logits is not None
    torch.testing.assert_close(prediction.pooled.branch_logits[0, :, 0], pseudo[0])
    _, losses = theirs.compute_loss(torch.tensor([1.0]), h[None])
    whole = net.loss(prediction, torch.tensor([1.0]))
    torch.testing.assert_close(whole[0], sum(losses.values()))
    a_MN = torch.stack([
        torch.softmax(gated(ours.attention, h)[0].masked_fill(torch.tensor(group != m), -np.inf), 0)
        for m in range(4)
    ])  # fmt: skip
    share_M = torch.softmax(gated(ours.second, a_MN @ h)[0], 0)
    torch.testing.assert_close(prediction.pooled.attention[0], share_M @ a_MN)


def test_the_second_tier_does_not_teach_the_first() -> None:
    (x, *_), _ = bags("dtfd", (30,))
    net = MilModel(Dtfd(WIDTH, classes=3, hidden=16), TASK).train()
    net.task.loss(net(x).logits, torch.tensor([2])).sum().backward()  # type: ignore[no-untyped-call]
    taught = {key.split(".")[1] for key, part in net.named_parameters()
              if part.grad is not None and part.grad.abs().sum() > 0}  # fmt: skip
    assert taught == {"second", "weight", "bias"}  # tier 2 and the head


def test_pseudo_bags_are_dealt_at_random_in_training_and_alike_in_prediction() -> None:
    (x, *_), _ = bags("dtfd", (30,))
    net = Dtfd(WIDTH, classes=3, hidden=16)
    one, other = (net.train()(x).extras["groups"] for _ in range(2))
    assert not torch.equal(one, other)
    assert torch.equal(net.eval()(x).embedding, net(x).embedding)
    order = net(x).extras["groups"][0][
        gated(net.attention, net.stem(x))[0].argsort(descending=True)
    ]
    assert order.tolist() == [at % 4 for at in range(30)]
    few = net.train()(x[:3])
    assert few.branch_logits is not None
    torch.testing.assert_close(few.branch_logits[0, 3], few.branch_logits[0, 0])
    with pytest.raises(MilError, match="one pseudo-bag at least"):
        Dtfd(WIDTH, classes=2, groups=0)


def acmil_by_hand(net: MilModel, x: Tensor, hidden_AN: Tensor, label: int) -> tuple[Tensor, Tensor]:
    """Logits and loss of a training step, branch by branch."""
    part = net.aggregator
    assert isinstance(part, Acmil)
    assert isinstance(net.head, nn.Linear)
    h = part.stem(x)
    score = gated(part.attention, h)
    shares = [torch.softmax(score[a].masked_fill(hidden_AN[a], -1e9), 0) for a in range(len(score))]
    semantic = [functional.cross_entropy(head(share @ h), torch.tensor(label))
                for share, head in zip(shares, part.classifiers, strict=True)]  # fmt: skip
    cosines = [
        (one @ other) / (one.norm() * other.norm())
        for at, one in enumerate(shares)
        for other in shares[at + 1 :]
    ]
    logits = net.head(torch.stack(shares).mean(0) @ h)
    diversity = sum(cosines) / (len(shares) * (len(shares) - 1) / 2)
    loss = functional.cross_entropy(logits, torch.tensor(label)) + sum(semantic) / len(shares)
    return logits, loss + diversity


def test_acmil_by_hand() -> None:
    (x, *_), _ = bags("acmil", (30,))
    net = MilModel(Acmil(WIDTH, classes=3, hidden=16), TASK).train()
    prediction = net(x)
    hidden = prediction.pooled.extras["branches"][0] == 0
    logits, loss = acmil_by_hand(net, x, hidden, 2)
    torch.testing.assert_close(prediction.logits[0], logits)
    torch.testing.assert_close(net.loss(prediction, torch.tensor([2]))[0], loss)
    assert isinstance(net.aggregator, Acmil)
    top = gated(net.aggregator.attention, net.aggregator.stem(x)).topk(10).indices
    for branch, is_hidden in enumerate(hidden):
        assert int(is_hidden.sum()) == 6
        assert set(is_hidden.nonzero()[:, 0].tolist()) <= set(top[branch].tolist())
    assert not torch.equal(hidden, net(x).pooled.extras["branches"][0] == 0)  # drawn anew
    whole = net.eval()(x)
    assert (whole.pooled.attention > 0).all()
    torch.testing.assert_close(whole.logits[0], acmil_by_hand(net, x, hidden & False, 0)[0])


def test_few_tiles_are_never_all_masked() -> None:
    net = Acmil(WIDTH, classes=2, hidden=8).train()
    for tiles in (1, 2, 5):
        (x, *_), _ = bags("acmil", (tiles,))
        seen = net(x).extras["branches"][0] > 0
        assert (seen.sum(dim=1) == tiles - int(tiles * 0.6)).all()
    assert mean_similarity(torch.ones(2, 1, 5)).tolist() == [0, 0]
    with pytest.raises(MilError, match="masked=1"):
        Acmil(WIDTH, classes=2, masked=1.0)


def latent_by_hand(part: LatentAttention, query: Array, key: Array) -> tuple[Array, Array]:
    """Attention between two sets, head by head, and the share of each key."""
    w = {name: tensor.detach().numpy() for name, tensor in part.state_dict().items()}
    q0, k0, v0 = (
        tokens @ w[f"{name}.weight"].T + w[f"{name}.bias"]
        for name, tokens in (("query", query), ("key", key), ("value", key))
    )
    width, heads = q0.shape[1], part.attention.num_heads
    into, bias = w["attention.in_proj_weight"], w["attention.in_proj_bias"]
    q, k, v = (
        tokens @ into[at * width : (at + 1) * width].T + bias[at * width : (at + 1) * width]
        for at, tokens in enumerate((q0, k0, v0))
    )
    mixed, shares = np.empty_like(q), np.zeros((len(q), len(k)))
    for head in range(heads):
        at = slice(head * width // heads, (head + 1) * width // heads)
        score = np.exp(q[:, at] @ k[:, at].T / math.sqrt(width // heads))
        share = score / score.sum(axis=1, keepdims=True)
        mixed[:, at], shares = share @ v[:, at], shares + share / heads
    out = q0 + mixed @ w["attention.out_proj.weight"].T + w["attention.out_proj.bias"]

    def norm(x: Array, name: str) -> Array:
        spread = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        scaled: Array = spread * w[f"norms.{name}.weight"] + w[f"norms.{name}.bias"]
        return scaled

    out = norm(out, "0")
    out = norm(out + np.maximum(out @ w["out.weight"].T + w["out.bias"], 0), "1")
    if "gate.weight" in w:
        gate = query @ w["gate.weight"].T + w["gate.bias"]
        out = out * gate / (1 + np.exp(-gate))
    return out, shares


def test_ilra_by_hand() -> None:
    (features, *_), _ = bags("ilra", (19,))
    net = Ilra(WIDTH, hidden=16, rank=3, heads=4).eval()
    tiles = features.numpy()
    for block in net.blocks:
        latent = latent_by_hand(block.forth, block.latent[0].detach().numpy(), tiles)[0]  # type: ignore[arg-type, index]
        tiles = latent_by_hand(block.back, tiles, latent)[0]  # type: ignore[arg-type]
    expected, share = latent_by_hand(net.pooling, net.query.detach().numpy(), tiles)
    pooled = net(features)
    np.testing.assert_allclose(pooled.embedding.detach().numpy(), expected, atol=1e-10)
    np.testing.assert_allclose(pooled.attention.detach().numpy(), share, atol=1e-10)
    with pytest.raises(MilError, match="multiple of the heads"):
        Ilra(WIDTH, hidden=10)


def region_attention(part: RegionAttention, x: Tensor) -> Tensor:
    """Attention of one region [S, E], with the convolution as a loop over queries."""
    q, k, v = (p.view(len(x), part.heads, -1).transpose(0, 1) for p in part.qkv(x).chunk(3, dim=-1))
    score = q @ k.mT / math.sqrt(q.shape[-1])
    if part.around is not None:
        kernel = part.around.weight[:, 0, :, 0]
        half, whole = kernel.shape[1] // 2, score.clone()
        for query in range(len(x)):
            for step in range(-half, half + 1):
                if 0 <= query + step < len(x):
                    by_head = kernel[:, step + half, None]
                    whole[:, query] = whole[:, query] + by_head * score[:, query + step]
        score = whole
    out: Tensor = part.out((torch.softmax(score, -1) @ v).transpose(0, 1).flatten(1))
    return out


def rrt_by_hand(net: Rrt, x: Tensor, side: int) -> Tensor:
    """Windows of a square of tiles in raster order, one after the other."""
    h, window = net.stem(x), side // 8
    at = (
        torch.arange(side * side)
        .view(8, window, 8, window)
        .transpose(1, 2)
        .flatten(2)
        .flatten(0, 1)
    )
    normed = net.norms[0](h)
    changed = torch.zeros_like(h)
    for rows in at:
        changed[rows] = region_attention(net.within, normed[rows])
    h = h + changed
    normed = net.norms[1](h)
    scores = [normed[rows] @ net.prototypes for rows in at]
    speakers = torch.stack([
        torch.softmax(score, 0).T @ normed[rows] for score, rows in zip(scores, at, strict=True)
    ])  # fmt: skip
    met = torch.stack([region_attention(net.across, speakers[:, p]) for p in range(3)], dim=1)
    changed = torch.zeros_like(h)
    for region, (score, rows) in enumerate(zip(scores, at, strict=True)):
        low, high = score.min(0).values, score.max(0).values
        handed = (score - low) / (high - low + 1e-8) * torch.softmax(score, 1)
        changed[rows] = handed @ met[region]
    exchanged: Tensor = net.norms[2](h + changed)
    return exchanged


@pytest.mark.parametrize("block", [1, 2**18])
def test_rrt_by_hand_on_a_square(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(rrt_module, "_BLOCK_SCORES", block)
    net = Rrt(WIDTH, hidden=16, kernel=5).eval()
    x = torch.randn(256, WIDTH)
    nodes = rrt_by_hand(net, x, 16)
    score = net.score[2](torch.relu(net.score[0](nodes)))[:, 0]
    share = torch.softmax(score, 0)
    order = torch.randperm(256)
    coords = torch.stack([order // 16, order % 16], dim=1) + 40
    pooled = net(x[order], None, coords)
    torch.testing.assert_close(pooled.embedding[0], share @ nodes, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(pooled.attention[0], share[order], rtol=1e-6, atol=1e-9)
    pooled.embedding.square().sum().backward()
    made = net.within.qkv.weight.grad
    assert made is not None
    made = made.clone()
    net.zero_grad()
    (share @ nodes).square().sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(made, net.within.qkv.weight.grad, rtol=1e-6, atol=1e-9)
    with pytest.raises(MilError, match="the kernel is odd"):
        Rrt(WIDTH, kernel=4)


def test_regions_follow_the_tissue() -> None:
    """A strand of tiles: a square grid would have left most of 64 regions empty."""
    rng = np.random.default_rng(0)
    line = np.arange(640)
    cells = np.unique(np.stack([line // 2, line // 4 + rng.integers(0, 3, 640)], 1), axis=0)
    coords = torch.from_numpy(rng.permutation(cells))
    tiles = len(coords)
    mask = torch.ones(2, tiles + 3).bool()
    mask[:, tiles:] = False
    mask[1, 5:] = False
    both = torch.nn.functional.pad(coords, (0, 0, 0, 3)).expand(2, -1, -1)
    regions = equal_regions(both, mask, strips=8, most_tiles=1024)
    sizes = regions.mask.sum(dim=2)
    assert sizes[0].min() >= tiles // 64 - 1
    assert sizes[0].max() <= tiles // 64 + 2
    assert sizes[1].sum() == 5
    assert sorted(regions.rows[0][regions.mask[0]].tolist()) == list(range(tiles))
    spans = [
        coords[rows[there]] for rows, there in zip(regions.rows[0], regions.mask[0], strict=True)
    ]
    assert max(float((s.amax(0) - s.amin(0)).max()) for s in spans) < 45  # of 320 rows
    x = torch.randn(2, tiles + 3, 4) * mask[..., None]
    torch.testing.assert_close(regions.scatter(regions.gather(x), tiles + 3), x)
    many = equal_regions(both, mask, strips=2, most_tiles=16)
    assert int(many.mask[0].sum(dim=1).max()) <= 18


@pytest.mark.parametrize("block", [4, 512])
def test_wikg_by_hand(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(wikg_module, "_BLOCK", block)
    (x, *_), _ = bags("wikg", (15,))
    net = WiKG(WIDTH, hidden=16, neighbours=4).eval()
    h = net.stem(x)
    h = (h + h.mean(dim=0)) * 0.5
    heads, tails = net.head(h), net.tail(h)
    nodes = []
    for row, head in enumerate(heads):
        score = tails @ head * 16**-0.5
        near = sorted(range(15), key=lambda other: -score[other].item())[:4]
        share = torch.softmax(score[near], 0)
        edges = [p * tails[n] + (1 - p) * head for p, n in zip(share, near, strict=True)]
        told = torch.stack(
            [tails[n] @ torch.tanh(head + e) for n, e in zip(near, edges, strict=True)]
        )
        taken = torch.softmax(told, 0) @ tails[near]
        both = functional.leaky_relu(net.of_sum(head + taken))
        nodes.append(both + functional.leaky_relu(net.of_product(head * taken)))
        assert net(x).extras["neighbours"][0, row].tolist() == near
    node = torch.stack(nodes)
    share = torch.softmax(net.score(node)[:, 0], 0)
    pooled = net(x)
    torch.testing.assert_close(pooled.embedding[0], net.norm(share @ node))
    torch.testing.assert_close(pooled.attention[0], share)
    pooled.embedding[:, 0].sum().backward()
    made = net.tail.weight.grad
    assert made is not None
    made = made.clone()
    net.zero_grad()
    net.norm(share @ node)[0].backward()
    torch.testing.assert_close(made, net.tail.weight.grad)
    with pytest.raises(MilError, match="neighbours=0"):
        WiKG(WIDTH, neighbours=0)


@pytest.mark.parametrize("name", ["acmil", "dtfd", "ilra", "rrt", "wikg"])
def test_a_kept_model_is_the_model(name: str) -> None:
    torch.set_default_dtype(torch.float32)
    train = cohort(6, seed=0, shift=5.0)
    objective = LabelObjective.fit(
        BagTask(kind="multiclass", outputs=2), train.target, weighted=True
    )
    settings = MilSettings(hidden=16, epochs=2)
    width = train.bags[0].features.shape[1]
    model = train_mil(name, train, None, objective, settings, widths=(width,), seed=0).model
    kept = kept_mil(model, name, objective, settings, widths=(width,), ratios=())
    again = network_of(KeptModel.from_bytes(kept.to_bytes()))
    (logits, shares), (same, same_shares) = (predict(net, train.bags) for net in (model, again))
    np.testing.assert_array_equal(same, logits)
    np.testing.assert_array_equal(same_shares, shares)


@pytest.mark.parametrize("head", ["cox", "hazards"])
@pytest.mark.parametrize("name", ["acmil", "dtfd"])
def test_branches_learn_survival_by_its_own_loss(name: str, head: str) -> None:
    target = torch.tensor([[1.0, 1.0], [2.0, 0.0], [3.0, 1.0], [4.0, 1.0]])
    objective: Objective = Cox()
    if head == "hazards":
        objective = Hazards.fit(target.double().numpy(), list("abcd"), bins=2)
    features, _ = bags(name, (20, 15, 12, 9))
    net = MilModel(make_aggregator(name, WIDTH, objective.task, hidden=16), objective.task).train()
    batch = pad_bags(features)
    prediction = net(batch.x, batch.mask)

    def loss_of(logits: Tensor) -> Tensor:
        return objective.loss(logits, target)

    whole = net.whole_loss(loss_of, prediction, target)
    branches = prediction.pooled.branch_logits
    assert branches is not None
    expected = loss_of(prediction.logits)
    expected = expected + sum(loss_of(part) for part in branches.unbind(1)) / branches.shape[1]
    if prediction.pooled.penalty is not None:
        expected = expected + prediction.pooled.penalty
    torch.testing.assert_close(whole, expected)
    whole.mean().backward()  # type: ignore[no-untyped-call]
    taught = [part.grad is not None and bool(part.grad.abs().sum() > 0)
              for key, part in net.named_parameters() if "bias" not in key]  # fmt: skip
    assert all(taught)


@pytest.mark.slow
def test_experts_teach_the_branches() -> None:
    torch.set_default_dtype(torch.float32)
    train, test = (cohort(40, seed=seed, shift=5.0) for seed in (0, 1))
    objective = LabelObjective.fit(
        BagTask(kind="multiclass", outputs=2), train.target, weighted=True
    )
    settings = MilSettings(hidden=16, epochs=15, learning_rate=2e-3, experts=True)
    width = train.bags[0].features.shape[1]
    model = train_mil("dtfd", train, None, objective, settings, widths=(width,), seed=0).model
    score = objective.outcome(predict(model, test.bags)[0])[:, 1]
    assert roc_auc_score(test.target, score) > 0.85
