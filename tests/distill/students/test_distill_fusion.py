"""Fusion of teachers' features: it learns, its gate works, targets are fixed, it can be kept."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn

from distill.errors import DistillError
from distill.recipes.recipe import Recipe, Term
from distill.recipes.recipe_table import make_recipe
from distill.recipes.student_settings import FusionStudent
from distill.students.fusion import FusedTiles, Fuser, FusionTask
from distill.students.task import Batch
from distill.targets.target import Norms
from downstream.mil.layers.teacher_fusion import TokenBlock
from tests.worlds.feature_worlds import World, backward, centred_cosine, fit, norms_of, tile_batch

pytestmark = pytest.mark.usefixtures("one_thread")

WORLD = World(dims={"a": 24, "b": 40, "c": 16})
NAMES = tuple(WORLD.dims)
MPPS = (0.5, 2.0)


def norms(targets: str = "phi-s") -> Norms:
    batches = {mpp: tile_batch(WORLD, 512, 5 + number) for number, mpp in enumerate(MPPS)}
    features = {(n, mpp): b.features[n] * (1 + mpp) for mpp, b in batches.items() for n in NAMES}
    return norms_of(features, targets)


def recipe(**changes: Any) -> Recipe:  # noqa: ANN401
    return make_recipe("shazam", NAMES, **{"width": 32, "blocks": 2, "head_width": 48, **changes})


def task(**changes: Any) -> FusionTask:  # noqa: ANN401
    made = recipe(**changes)
    return FusionTask(made, WORLD.dims, norms(made.targets))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(samples: int = 32, seed: int = 1, mpp: float = 0.5) -> Batch:
    plain = tile_batch(WORLD, samples, seed, mpp)
    return replace(plain, features={n: x * (1 + mpp) for n, x in plain.features.items()})


# ---------------------------------------------------------------------- what it gives


def test_losses_are_per_tile_and_named_by_term_and_teacher() -> None:
    losses = task()(batch(), generator())
    assert list(losses) == ["reconstruct a", "reconstruct b", "reconstruct c", "fuse"]
    assert all(loss.shape == (32,) and loss.dtype == torch.float32 for loss in losses.values())
    assert task().fuser.embed(batch().features, mpp=0.5).shape == (32, 32)


def test_it_learns_all_teachers_and_beats_their_means() -> None:
    """Held-out features; knowing nothing but the mean gives a centred cosine of 0."""
    made = task()
    before = {k: centred_cosine(p) for k, p in made.eval().predict(batch(256, 99)).items()}
    history = fit(made, [batch(64, seed) for seed in range(8)], 80)
    assert history[-1] < 0.2 * history[0]
    after = {k: centred_cosine(p) for k, p in made.eval().predict(batch(256, 99)).items()}
    assert all(abs(cosine) < 0.3 for cosine in before.values())
    assert all(cosine > 0.9 for cosine in after.values())


def test_a_vector_of_all_predicts_a_teacher_better_than_that_of_the_others() -> None:
    """A teacher that is not seen at all is worse off than one among those that are fused."""
    noisy = World(dims=WORLD.dims, noise=0.4)
    features = {n: tile_batch(noisy, 512, 5).features[n] for n in NAMES}
    fitted = norms_of({(n, 0.5): x for n, x in features.items()})
    cosines = {}
    for names in (NAMES, ("b", "c")):
        torch.manual_seed(0)
        made = FusionTask(replace(recipe(), teachers=names), noisy.dims, fitted)
        fit(made, [tile_batch(noisy, 64, seed) for seed in range(8)], 60)
        held = tile_batch(noisy, 256, 99)
        vectors = [made.fuser.embed(b.features, mpp=0.5) for b in (tile_batch(noisy, 512, 5), held)]
        targets = [fitted["a", 0.5](b.features["a"]) for b in (tile_batch(noisy, 512, 5), held)]
        ahead = torch.linalg.lstsq(F.pad(vectors[0], (0, 1), value=1), targets[0]).solution
        predicted = F.pad(vectors[1], (0, 1), value=1) @ ahead
        cosines[names] = float(F.cosine_similarity(predicted, targets[1]).mean())
    assert cosines[NAMES] > cosines["b", "c"] + 0.05


def test_all_parameters_learn() -> None:
    made = task()
    backward(made(batch(), generator()))
    bare = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()]
    assert not bare


def test_the_same_generator_gives_the_same_losses() -> None:
    made = task(weighting="keep-max", keep=0.3)
    one, same, other = (made(batch(), generator(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    kept = torch.stack([one[f"reconstruct {name}"] for name in NAMES]) > 0
    assert kept.any(dim=0).all()
    assert not kept.all()


def test_weights_of_terms_and_losses_in_float32_under_autocast() -> None:
    made = task()
    plain = made(batch(), generator())
    made.terms = [replace(term, weight=2 * term.weight) for term in made.terms]
    twice = made(batch(), generator())
    assert all(torch.allclose(2 * plain[name], twice[name]) for name in plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = made(batch(), generator())
    assert all(loss.dtype == torch.float32 for loss in rounded.values())
    assert all(torch.allclose(rounded[n], twice[n], rtol=0.2, atol=0.05) for n in plain)


# ---------------------------------------------------------------------- failures of the field


def test_failure_4_the_gate_reaches_the_vector_and_learns() -> None:
    made = task()
    backward(made(batch(), generator()))
    score = made.fuser.gate.score
    assert all(p.grad is not None and p.grad.norm() > 1e-6 for p in score.parameters())
    # All the weight on one teacher: the others hardly count any more.
    plain, only = batch(), made.fuser.gate.score[-1]
    assert isinstance(only, nn.Linear)
    with torch.no_grad():
        only.weight.zero_()
        only.bias.copy_(torch.tensor([20.0, 0.0, 0.0]))
    moved = {}
    for name in ("a", "b"):
        other = {**plain.features, name: plain.features[name].flip(0)}
        gap = made.fuser.embed(other, mpp=0.5) - made.fuser.embed(plain.features, mpp=0.5)
        moved[name] = float(gap.norm(dim=1).mean())
    assert moved["b"] < 1e-3 * moved["a"]


def test_failure_4_a_norm_before_the_first_block_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class PreNorm(TokenBlock):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__(width, heads)
            self._modules = {"norm": self.norm, **self._modules}

    monkeypatch.setattr("distill.students.fusion.TokenBlock", PreNorm)
    with pytest.raises(DistillError, match="a gate before LayerNorm is erased"):
        task()


def fused_by_hand(fused: FusedTiles, tokens_BKD: Tensor) -> Tensor:
    """Shazam's loss, with torch's own Huber loss."""
    total = torch.zeros(())
    for token_BD in tokens_BKD.unbind(dim=1):
        huber = F.huber_loss(fused.vector, token_BD, reduction="none", delta=1.0)
        total = total + (1 - F.cosine_similarity(fused.vector, token_BD)).sum() / 3
        total = total + huber.mean(dim=1).sum() / 3
    return total


def test_failure_3_fused_targets_are_detached() -> None:
    """The gradient is that of the same loss against constants; against moving targets it is not."""
    made = task(terms=(Term(kind="reconstruct"), Term(kind="fuse")))
    weight = made.fuser.maps[0].weight
    assert isinstance(weight, Tensor)
    ours = torch.autograd.grad(made(batch(), generator())["fuse"].sum(), weight)[0]
    gradients = []
    for constant in (True, False):
        fused = made.fuser(batch().features, 0.5)
        tokens_BKD = fused.tokens.detach().clone() if constant else fused.tokens
        loss = fused_by_hand(fused, tokens_BKD)
        gradients.append(torch.autograd.grad(loss, weight)[0])
    torch.testing.assert_close(ours, gradients[0], rtol=1e-4, atol=1e-5)
    assert (ours - gradients[1]).norm() > 0.1 * ours.norm()


# ---------------------------------------------------------------------- parts, and keeping them


def test_a_block_is_attention_as_torch_has_it() -> None:
    block, reference = TokenBlock(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(block.query_key_value.weight)
        reference.in_proj_bias.copy_(block.query_key_value.bias)
        reference.out_proj.load_state_dict(block.out.state_dict())
    x_BKD = torch.randn(5, 3, 16)
    expected = block.norm(x_BKD + reference(x_BKD, x_BKD, x_BKD)[0])
    torch.testing.assert_close(block(x_BKD), expected)


@pytest.mark.parametrize("targets", ["phi-s", "z-score", "none", "l2"])
def test_it_is_kept_with_its_statistics(targets: str) -> None:
    cosine = {"cosine": 1.0}
    made = task(targets=targets, terms=(Term(kind="reconstruct", settings=cosine),))
    weights = load(save({k: v.contiguous() for k, v in made.student.state_dict().items()}))
    student = recipe().student
    assert isinstance(student, FusionStudent)
    again = Fuser.restored(student, NAMES, MPPS, targets, weights)
    for mpp in MPPS:
        plain = made.fuser.embed(batch(mpp=mpp).features, mpp=mpp)
        assert torch.equal(again.embed(batch(mpp=mpp).features, mpp=mpp), plain)


def test_each_mpp_has_its_own_statistics() -> None:
    made = task()
    near, far = (made.fuser.embed(batch().features, mpp=mpp) for mpp in MPPS)
    assert not torch.allclose(near, far)
    predicted = made.predict(batch(mpp=2.0))
    assert {p.mpp for p in predicted.values()} == {2.0}
    own = norms()["b", 2.0].mean
    assert torch.equal(predicted["b"].norm.mean, own)
    with pytest.raises(DistillError, match=r"no statistics of 'a' at mpp 4\.0; there are those"):
        made.fuser.embed(batch().features, mpp=4.0)


def test_a_teacher_that_is_not_finite_is_not_hidden() -> None:
    """The loop stops on it and names the tile: nothing here may turn it into a number."""
    tiles = batch()
    tiles.features["a"][3] = float("nan")
    losses: dict[str, Tensor] = task()(tiles, generator())
    total = torch.stack(list(losses.values())).sum(dim=0)
    assert total.isnan().nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terms": (Term(kind="fuse"),)}, "no term 'reconstruct'"),
        ({"terms": (Term(kind="match"),)}, "no term 'match' of a fusion; known are reconstruct"),
        ({"terms": (Term(kind="fuse", settings={"x": 1}),)}, r"settings \['x'\]"),
        ({"terms": (Term(kind="fuse", teachers=("d",)),)}, r"teachers \['d'\]"),
        ({"targets": "l2"}, "adds nothing to the cosine"),
        ({"width": 33}, "a multiple of the 4 heads"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DistillError, match=message):
        task(**changes)
