"""All aggregators alike: padding, masks, row order, gradients, precision, tasks, refusals."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from downstream.mil.aggregators.pooling import Abmil, MeanPool
from downstream.mil.aggregators.tile_canvas import stack_slides
from downstream.mil.losses import BagTask, TaskKind
from downstream.mil.model import MilModel, make_aggregator
from downstream.mil.padded_bags import Aggregator, MilError, pad_bags, plan_batches
from tests.worlds.mil_examples import NAMES, TASK, WIDTH, bags, doubles, model

__all__ = ["doubles"]  # the fixture

pytestmark = pytest.mark.usefixtures("doubles")


@pytest.mark.parametrize("name", NAMES)
def test_a_padded_batch_is_its_bags_one_by_one(name: str) -> None:
    net, (features, coords) = model(name).eval(), bags(name)
    batch = pad_bags(features, coords)
    x = batch.x.masked_fill(~batch.mask[..., None], float("nan"))  # what is masked does not matter
    far = (
        batch.coords.masked_fill(~batch.mask[..., None], 9999) if batch.coords is not None else None
    )
    pooled = net(x, batch.mask, far)
    for at, (bag, places) in enumerate(zip(features, coords, strict=True)):
        alone = net(bag, None, places)
        torch.testing.assert_close(pooled.logits[at], alone.logits[0], rtol=1e-10, atol=1e-12)
        attention = pooled.pooled.attention[at]
        torch.testing.assert_close(attention[: len(bag)], alone.pooled.attention[0])
        assert (attention[len(bag) :] == 0).all()
        assert attention.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_a_padded_batch_are_those_of_its_bags(name: str) -> None:
    net, (features, coords) = model(name).eval(), bags(name)
    batch = pad_bags(features, coords)
    x = batch.x.masked_fill(~batch.mask[..., None], float("nan")).requires_grad_()
    net(x, batch.mask, batch.coords).logits.square().sum().backward()
    together = {key: parameter.grad.clone() for key, parameter in grads(net).items()}
    assert x.grad is not None
    assert (x.grad[~batch.mask] == 0).all()
    assert not x.grad.isnan().any()
    net.zero_grad()
    for bag, places in zip(features, coords, strict=True):
        net(bag, None, places).logits.square().sum().backward()
    for key, parameter in grads(net).items():
        torch.testing.assert_close(together[key], parameter.grad, rtol=1e-8, atol=1e-10)


def grads(net: MilModel) -> dict[str, Any]:
    return {
        key: parameter for key, parameter in net.named_parameters() if parameter.grad is not None
    }


@pytest.mark.parametrize("name", NAMES)
def test_failure_18_the_order_of_rows_changes_nothing(name: str) -> None:
    net, (features, coords) = model(name).eval(), bags(name, (40,))
    order = torch.randperm(len(features[0]))
    pooled = net(features[0], None, coords[0])
    shuffled = net(features[0][order], None, coords[0][order])
    torch.testing.assert_close(shuffled.logits, pooled.logits, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(shuffled.pooled.attention, pooled.pooled.attention[:, order])


@pytest.mark.parametrize("name", ["rrt", "transformer", "transmil"])
def test_a_slide_may_be_moved_but_not_rearranged(name: str) -> None:
    net, (features, coords) = model(name).eval(), bags(name, (200,))
    pooled = net(features[0], None, coords[0]).logits
    moved = net(features[0], None, coords[0] + torch.tensor([3, 500])).logits
    torch.testing.assert_close(moved, pooled)
    rearranged = net(features[0], None, coords[0][torch.randperm(200)]).logits
    assert (rearranged - pooled).abs().max() > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_trained(name: str) -> None:
    net, (features, coords) = model(name).train(), bags(name, (150, 170))
    batch = pad_bags(features, coords)
    prediction = net(batch.x, batch.mask, batch.coords)
    net.loss(prediction, torch.tensor([0, 2])).sum().backward()  # type: ignore[no-untyped-call]
    idle = {
        key
        for key, parameter in net.named_parameters()
        if parameter.grad is None or not bool(parameter.grad.abs().sum())
    }
    assert not idle


@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision_is_near_and_finite(name: str) -> None:
    torch.set_default_dtype(torch.float32)
    net, (features, coords) = model(name).eval(), bags(name, (30,))
    x = features[0].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = net(x, None, coords[0])
        loss = net.train().loss(net(x, None, coords[0]), torch.tensor([1]))
    exact = net.eval()(x, None, coords[0])
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert (pooled.logits.float() - exact.logits).abs().max() < 0.15


@pytest.mark.parametrize("name", ["clam_mb", "clam_sb", "dsmil"])
def test_the_whole_loss_is_shared_between_bag_and_tiles(name: str) -> None:
    net, (features, _) = model(name).train(), bags(name, (20,))
    prediction, label = net(features[0]), torch.tensor([1])
    share = {"dsmil": 0.5}.get(name, 0.3)
    own = net.aggregator.auxiliary(prediction.pooled, label)
    expected = (1 - share) * TASK.loss(prediction.logits, label) + share * own
    torch.testing.assert_close(net.loss(prediction, label), expected)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "regression"])
@pytest.mark.parametrize("name", NAMES)
def test_every_task_or_a_reason(name: str, kind: TaskKind) -> None:
    task = BagTask(kind=kind, outputs=1 if kind == "binary" else 3)
    if name == "clam_mb" and kind != "multiclass":
        with pytest.raises(MilError, match="a branch for each class"):
            model(name, task)
        return
    net, (features, coords) = model(name, task).train(), bags(name, (20,))
    prediction = net(features[0], None, coords[0])
    assert prediction.logits.shape == (1, task.outputs)
    target = {
        "binary": torch.tensor([1.0]),
        "multiclass": torch.tensor([[0.1, 0.2, 0.7]]),
    }.get(kind, torch.tensor([[0.0, 1.0, 1.0]]))
    refused = {"clam_sb": {"multilabel", "regression"}, "dsmil": {"regression"}}
    if kind in refused.get(name, set()):
        with pytest.raises(MilError):
            net.loss(prediction, target)
    else:
        assert net.loss(prediction, target).isfinite().all()


def test_features_are_taken_as_a_lake_gives_them() -> None:
    torch.set_default_dtype(torch.float32)
    x = (torch.randn(5, WIDTH) * 300).half()
    for net in (model("abmil").eval(), MilModel(MeanPool(WIDTH), TASK)):
        torch.testing.assert_close(net(x).logits, net(x.float()).logits)


def test_standardisation_belongs_to_the_model() -> None:
    mean, std = torch.randn(WIDTH), torch.rand(WIDTH) + 0.5
    plain = model("mean").eval()
    scaled = MilModel(MeanPool(WIDTH), TASK, mean_D=mean, std_D=std).eval()
    scaled.load_state_dict({**plain.state_dict(), "mean": mean, "std": std})
    x = torch.randn(5, WIDTH)
    torch.testing.assert_close(scaled(x * std + mean).logits, plain(x).logits)
    with pytest.raises(MilError, match="give both or neither"):
        MilModel(MeanPool(WIDTH), TASK, mean_D=mean)


def test_bad_bags_are_refused() -> None:
    net: Aggregator = Abmil(WIDTH, hidden=8)
    with pytest.raises(MilError, match="a bag has no tile"):
        net(torch.zeros(2, 3, WIDTH), torch.tensor([[True] * 3, [False] * 3]))
    with pytest.raises(MilError, match="a bag has no tile"):
        net(torch.zeros(0, WIDTH))
    with pytest.raises(MilError, match=r"give \[B, N, D\]"):
        net(torch.zeros(2, 3, WIDTH), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(MilError, match="TransMil got coords None"):
        model("transmil")(torch.zeros(3, WIDTH))
    with pytest.raises(MilError, match="there is no aggregator 'attention'; known are abmil"):
        make_aggregator("attention", WIDTH, TASK)
    with pytest.raises(MilError, match="none of them empty"):
        pad_bags([torch.zeros(0, 3)])
    with pytest.raises(MilError, match="one a tile"):
        pad_bags([torch.zeros(2, 3)], [torch.zeros(3, 2)])


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    most=st.integers(1, 200),
    seed=st.integers(0, 9),
)
@settings(max_examples=100, deadline=None)
def test_batches_hold_every_bag_once_and_no_more_rows_than_allowed(
    sizes: list[int], most: int, seed: int
) -> None:
    tiles = np.array(sizes)
    plan = plan_batches(tiles, most_rows=most, seed=seed)
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(sizes)))
    for batch in plan:
        assert len(batch) == 1 or len(batch) * tiles[batch].max() <= most
    again = plan_batches(tiles, most_rows=most, seed=seed)
    assert all(np.array_equal(a, b) for a, b in zip(plan, again, strict=True))


def test_slides_of_a_patient_do_not_touch() -> None:
    one = np.array([[0, 0], [0, 1], [1, 0]])
    stacked = stack_slides([one, one + 7])
    assert len(np.unique(stacked, axis=0)) == 6
    assert stacked[3:, 0].min() - stacked[:3, 0].max() > 7
