"""TransMIL and its parts against dense matrices in float64, torch's convolution and torchmil."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmil import models

from downstream.mil.aggregators.tile_canvas import stack_slides
from downstream.mil.aggregators.tile_grid import grid_conv, neighbours, raster_order
from downstream.mil.aggregators.transmil import Positions, TransMil
from downstream.mil.layers.nystrom import NystromAttention, landmark_runs, pseudo_inverse
from downstream.mil.padded_bags import MilError, pad_bags
from tests.worlds.mil_examples import WIDTH, bags, doubles

__all__ = ["doubles"]  # the fixture
Array = NDArray[np.float64]
pytestmark = pytest.mark.usefixtures("doubles")


def softmax(score: Array) -> Array:
    powers = np.exp(score - score.max(axis=-1, keepdims=True))
    divided: Array = powers / powers.sum(axis=-1, keepdims=True)
    return divided


def weights(part: nn.Module) -> dict[str, Array]:
    return {key: tensor.detach().numpy() for key, tensor in part.state_dict().items()}


def nystrom_by_hand(part: NystromAttention, x: Array) -> tuple[Array, Array]:
    """Dense Nystrom attention of one sequence, head by head, with numpy's pseudo-inverse."""
    w, (tokens, width) = weights(part), x.shape
    q, k, v = np.split(x @ w["qkv.weight"].T, 3, axis=1)
    marks, d = min(part.landmarks, tokens), width // part.heads
    run = np.arange(tokens) * marks // tokens
    mixed, first = np.empty_like(x), np.zeros(tokens)
    for head in range(part.heads):
        at = slice(head * d, (head + 1) * d)
        q_mark = np.stack([q[run == m, at].mean(axis=0) for m in range(marks)])
        k_mark = np.stack([k[run == m, at].mean(axis=0) for m in range(marks)])
        scale = d**-0.5
        core = softmax(q_mark @ k_mark.T * scale)
        whole = softmax(q[:, at] @ k_mark.T * scale) @ np.linalg.pinv(core)
        whole = whole @ softmax(q_mark @ k[:, at].T * scale)
        mixed[:, at] = whole @ v[:, at]
        first += whole[0] / part.heads
    return mixed @ w["out.0.weight"].T + w["out.0.bias"], first


@pytest.mark.parametrize("tokens", [3, 8, 21, 40])
def test_nystrom_attention_by_hand(tokens: int) -> None:
    part = NystromAttention(16, heads=2, landmarks=8, iterations=30).eval()
    x = torch.randn(1, tokens, 16)
    out, first = part(x, torch.ones(1, tokens, dtype=torch.bool))
    expected, expected_first = nystrom_by_hand(part, x[0].numpy())
    np.testing.assert_allclose(out[0].detach(), expected, atol=1e-8)
    np.testing.assert_allclose(first[0].detach(), expected_first, atol=1e-8)


def test_with_as_many_landmarks_as_tokens_it_is_exact_attention() -> None:
    part = NystromAttention(16, heads=2, landmarks=64, iterations=40).eval()
    x = torch.randn(1, 12, 16)
    q, k, v = (p.view(1, 12, 2, 8).transpose(1, 2) for p in part.qkv(x).chunk(3, dim=-1))
    exact = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    out, _ = part(x, torch.ones(1, 12, dtype=torch.bool))
    torch.testing.assert_close(out, part.out(exact), atol=1e-6, rtol=0)


def test_landmarks_are_runs_of_almost_equal_length() -> None:
    mask = torch.arange(11) < torch.tensor([[11], [3]])
    runs, has = landmark_runs(mask, 4, dtype=torch.float64)
    lengths = (runs > 0).sum(dim=-1)
    assert lengths[0].tolist() == [3, 3, 3, 2]
    assert lengths[1].tolist() == [1, 1, 1, 0]
    assert has.tolist() == [[True] * 4, [True] * 3 + [False]]
    torch.testing.assert_close(runs.sum(dim=-1), has.double())


def test_a_sequences_inverse_does_not_depend_on_the_batch() -> None:
    one = torch.softmax(torch.randn(1, 2, 6, 6) * 3, dim=-1)
    other = torch.softmax(torch.randn(1, 2, 6, 6) * 20, dim=-1)
    both = pseudo_inverse(torch.cat([one, other]), 6)
    torch.testing.assert_close(both[:1], pseudo_inverse(one, 6), rtol=1e-12, atol=1e-12)
    exact = np.linalg.pinv(one.numpy())
    np.testing.assert_allclose(pseudo_inverse(one, 40), exact, atol=1e-8)


def dense_positions(part: Positions, x: Tensor, coords: Tensor) -> Tensor:
    """The convolutions of the paper on a dense grid with empty cells."""
    side = coords.amax(dim=0) + 1
    grid = torch.zeros(1, x.shape[1], int(side[0]), int(side[1]))
    grid[0, :, coords[:, 0], coords[:, 1]] = x.T
    out: Tensor = torch.stack([grid, *(conv(grid) for conv in part.kernels)]).sum(dim=0)
    return out[0, :, coords[:, 0], coords[:, 1]].T


def test_positions_are_torchs_convolutions_on_the_true_grid() -> None:
    features, coords = bags("transmil", (30, 7))
    part = Positions(WIDTH)
    batch = pad_bags(features, coords)
    assert batch.coords is not None
    order = raster_order(batch.coords, batch.mask)
    at = torch.arange(2)[:, None]
    convolved = part(batch.x[at, order], batch.mask, batch.coords[at, order])
    for bag in range(2):
        rows = order[bag, : len(features[bag])]
        x, places = features[bag][rows], coords[bag][rows]
        expected = dense_positions(part, x, places)
        torch.testing.assert_close(convolved[bag, : len(x)], expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_the_grid_convolution() -> None:
    _, coords = bags("transmil", (12, 5))
    batch = pad_bags([c.double() for c in coords], coords)
    assert batch.coords is not None
    order = raster_order(batch.coords, batch.mask)
    near = neighbours(batch.coords[torch.arange(2)[:, None], order], batch.mask, reach=1)
    x = torch.randn(17, 3, requires_grad=True)
    kernel = torch.randn(3, 9, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: grid_conv(a, b, near), (x, kernel))


def test_neighbours_do_not_wrap_round_rows_or_bags() -> None:
    # the last cell of a row and the first of the next are neighbours in storage only
    coords = torch.tensor([[[0, 0], [0, 9], [1, 0]], [[0, 0], [0, 1], [5, 5]]])
    near = neighbours(coords, torch.ones(2, 3, dtype=torch.bool), reach=1)
    neighbour_rows = [sorted(set(row.tolist()) - {6}) for row in near]
    assert neighbour_rows == [[0, 2], [1], [0, 2], [3, 4], [3, 4], [5]]


def test_slides_of_a_patient_are_no_neighbours() -> None:
    one = np.argwhere(np.ones((3, 3)))
    coords = torch.from_numpy(stack_slides([one, one]))[None]
    near = neighbours(coords, torch.ones(1, 18, dtype=torch.bool), reach=3)
    assert near[:9][near[:9] < 18].max() == 8
    assert near[9:][near[9:] < 18].min() == 9


def test_two_tiles_in_one_place_are_refused() -> None:
    net = TransMil(WIDTH, hidden=16)
    coords = torch.tensor([[0, 1], [4, 2], [0, 1]])
    with pytest.raises(MilError, match=r"two tiles of bag 0 are at \(y, x\) = \[0, 1\]"):
        net(torch.randn(3, WIDTH), None, coords)


def layers_of(net: TransMil) -> list[NystromAttention]:
    return [layer for layer in net.layers if isinstance(layer, NystromAttention)]


def test_transmil_by_hand() -> None:
    net = TransMil(WIDTH, hidden=16, heads=2, landmarks=4).eval()
    first_layer, last_layer = layers_of(net)
    first_layer.iterations = last_layer.iterations = 30
    (features, *_), (coords, *_) = bags("transmil", (13,))
    pooled = net(features, None, coords)
    order = np.lexsort((coords[:, 1].numpy(), coords[:, 0].numpy()))
    h = net.stem(features[order])
    x = torch.cat([net.class_token[None], h]).detach()
    x = x + torch.from_numpy(nystrom_by_hand(first_layer, net.norms[0](x).detach().numpy())[0])
    x = torch.cat([x[:1], dense_positions(net.positions, x[1:], coords[order])]).detach()
    changed, first = nystrom_by_hand(last_layer, net.norms[1](x).detach().numpy())
    expected = net.norms[2](x[0] + torch.from_numpy(changed[0]))
    torch.testing.assert_close(pooled.embedding[0], expected, atol=1e-7, rtol=0)
    attention = np.zeros(13)
    attention[order] = np.maximum(first[1:], 0)
    np.testing.assert_allclose(pooled.attention[0].detach(), attention / attention.sum(), atol=1e-7)


@pytest.mark.parametrize("side", [3, 7])
def test_transmil_is_torchmils_where_definitions_agree(side: int) -> None:
    """A full square in raster order, a number of landmarks that divides N + 1, one bag."""
    marks = 5  # divides 10 and 50
    ours = TransMil(WIDTH, hidden=16, heads=4, landmarks=marks).eval()
    head = nn.Linear(16, 1)
    ref = models.TransMIL(
        in_shape=(WIDTH,), att_dim=16, n_heads=4, n_landmarks=marks, feat_ext=ours.stem
    ).eval()
    ref.classifier, ref.norm = head, ours.norms[2]
    with torch.no_grad():
        ref.cls_token.copy_(ours.class_token[None, None])
        for layer, other, norm in zip(layers_of(ours), ref.layers, ours.norms, strict=False):
            layer.out.load_state_dict({"0.weight": torch.eye(16), "0.bias": torch.zeros(16)})
            other.att_module.qkv_nn = layer.qkv
            other.norm1 = norm
        ref.pos_layer.proj, ref.pos_layer.proj1, ref.pos_layer.proj2 = ours.positions.kernels
    x = torch.randn(1, side * side, WIDTH)
    coords = torch.cartesian_prod(torch.arange(side), torch.arange(side))[None]
    logits, attention = ref(x, return_att=True)
    pooled = ours(x, None, coords)
    torch.testing.assert_close(head(pooled.embedding)[:, 0], logits, rtol=1e-9, atol=1e-9)
    kept = attention.clamp(min=0)
    torch.testing.assert_close(pooled.attention, kept / kept.sum(), rtol=1e-7, atol=1e-9)
