"""A robust head: its formula, its loss by hand, what it learns and keeps, and its column."""

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from scipy.special import erf, logsumexp
from sklearn.linear_model import LinearRegression

from distill.errors import DistillError
from distill.losses.acquisition_losses import acquisition_nce_loss
from distill.recipes.recipe import Recipe, Term
from distill.recipes.recipe_table import make_recipe
from distill.recipes.student_settings import RobustStudent
from distill.students.feature_students import extract
from distill.students.of_features.robust_head import RobustHead, RobustTask
from distill.students.task import Batch
from distill.targets.target import Norms
from featurestore import annotate
from tests.distill.students.test_feature_columns import kept
from tests.featurestore.read.test_stream_under import made
from tests.worlds.feature_worlds import (
    STAINED,
    backward,
    fit,
    norms_of,
    stained_batch,
    stained_causes,
    stained_sites,
)
from tests.worlds.training_lake import add_features

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = (STAINED, f"{STAINED}@S1")
SMALL: dict[str, Any] = {"atoms": 4, "rank": 4, "hidden": 32, "targets": "z-score"}


def norms() -> Norms:
    return norms_of({(STAINED, 0.5): stained_batch(512, 3).features[STAINED]}, "z-score")


def recipe(**changes: Any) -> Recipe:  # noqa: ANN401
    return make_recipe("robust", NAMES, **{**SMALL, "site": "clinical.site", **changes})


def task(**changes: Any) -> RobustTask:  # noqa: ANN401
    torch.manual_seed(0)
    return RobustTask(recipe(**changes), {STAINED: 24}, norms(), stained_sites())


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# ---------------------------------------------------------------------- formulas


@pytest.mark.parametrize("own_slide", [False, True])
def test_the_contrast_by_hand(*, own_slide: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 3, 5))
    site, slide = np.array([0, 0, 0, 1, 1, 1, 2]), np.array([0, 0, 1, 2, 3, 3, 4])
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    expected = np.zeros(7)
    for a, b in permutations(range(3), 2):
        for i in range(7):
            negatives = [
                unit[i, a] @ unit[j, a] / 0.2
                for j in range(7)
                if j != i and site[j] == site[i] and (own_slide or slide[j] != slide[i])
            ]
            positive = unit[i, a] @ unit[i, b] / 0.2
            expected[i] += (logsumexp([positive, *negatives]) - positive) / 6
    places = [torch.from_numpy(place) for place in (site, slide)]
    loss = acquisition_nce_loss(torch.from_numpy(x), *places, temperature=0.2, own_slide=own_slide)
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-6)
    assert loss[6] == 0  # alone at its site


def test_bad_inputs_are_refused() -> None:
    zeros = torch.zeros(4)
    with pytest.raises(DistillError, match="1 given, at least 2 needed"):
        acquisition_nce_loss(torch.zeros(4, 1, 3), zeros, zeros)
    with pytest.raises(DistillError, match="temperature must be above 0"):
        acquisition_nce_loss(torch.zeros(4, 2, 3), zeros, zeros, temperature=0)


def test_the_head_is_mettles_formula() -> None:
    torch.manual_seed(1)
    settings = RobustStudent(atoms=3, rank=2, hidden=5)
    head = RobustHead(settings, STAINED, 24, norms())
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(4, 24)
    state = {name: p.detach().double().numpy() for name, p in head.named_parameters()}

    def network(name: str, e: np.ndarray) -> np.ndarray:
        hidden = state[f"{name}.0.weight"] @ e + state[f"{name}.0.bias"]
        hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2  # GELU
        return np.asarray(state[f"{name}.2.weight"] @ hidden + state[f"{name}.2.bias"])

    for e, ours in zip(x.double().numpy(), head(x).detach().numpy(), strict=True):
        expected = e + network("shift", e)
        for atom, share in enumerate(network("mix", e)):
            expected += share * state["up"][atom].T @ (state["down"][atom] @ e)
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3)


def test_an_untrained_head_gives_the_teachers_features() -> None:
    batch = stained_batch(16, 1)
    ours = task().head.embed(batch.features, mpp=0.5)
    torch.testing.assert_close(ours, batch.features[STAINED].float(), rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------------- training


def same_tile_first(head: RobustHead, batch: Batch) -> float:
    """Share of tiles whose nearest tile in the other stain is the tile itself."""
    own, other = (head.embed({STAINED: batch.features[name]}, mpp=0.5) for name in NAMES)
    own, other = (x - x.mean(dim=0) for x in (own, other))
    cosine = torch.nn.functional.normalize(own, dim=1) @ torch.nn.functional.normalize(other).T
    return float((cosine.argmax(dim=1) == torch.arange(len(own))).float().mean())


def test_it_forgets_the_stain_and_keeps_the_causes() -> None:
    made_task, held = task(), stained_batch(256, 99)
    before = same_tile_first(made_task.head, held)
    fit(made_task, [stained_batch(128, seed) for seed in range(8)], 150, rate=5e-3)
    assert same_tile_first(made_task.head, held) > before + 0.3
    vectors = [
        made_task.head.embed(stained_batch(256, seed).features, mpp=0.5).numpy() for seed in (5, 99)
    ]
    probe = LinearRegression().fit(vectors[0], stained_causes(256, 5))
    assert probe.score(vectors[1], stained_causes(256, 99)) > 0.9
    fidelity = made_task.eval().predict(held)
    assert list(fidelity) == list(NAMES)
    for part in fidelity.values():
        torch.testing.assert_close(part.features, held.features[STAINED])


def test_every_parameter_has_a_gradient_and_losses_are_per_tile() -> None:
    made_task = task().train()
    losses = made_task(stained_batch(16, 1), generator())
    assert list(losses) == ["acquisition", "keep"]
    assert all(loss.shape == (16,) for loss in losses.values())
    backward(losses)
    assert [n for n, p in made_task.named_parameters() if p.grad is None] == []


def test_negatives_are_of_the_anchors_site() -> None:
    """With a site the loss has fewer negatives, so it is smaller; unknown sites are one more."""
    batch = stained_batch(64, 1)
    with_sites = task()(batch, generator())["acquisition"]
    torch.manual_seed(0)
    without = RobustTask(recipe(site=""), {STAINED: 24}, norms(), None)
    plain = without(batch, generator())["acquisition"]
    assert bool((with_sites < plain).all())
    site, slide = task().places(batch)
    assert set(site.tolist()) == {0.0, 1.0}
    torch.testing.assert_close(site, slide % 2)


def test_teachers_that_are_no_variants_are_refused() -> None:
    for names in (("t",), ("t", "u@S1"), ("t@S1", "t"), ("t", "t@L3")):
        with pytest.raises(DistillError, match="is of a column and its stain variants"):
            RobustTask(make_recipe("robust", names), {"t": 24}, norms(), None)
    with pytest.raises(DistillError, match="no term 'match' of a robust head"):
        task(terms=(Term(kind="match"),))


def test_a_robust_column_is_extracted_from_the_teachers_alone(tmp_path: Path) -> None:
    lake = made(tmp_path / "lake")
    for mpp in (0.5, 2.0):
        add_features(lake.refreshed(), {"plain@S1": 128}, mpp=mpp)
    sites = [{"slide_id": name, "site": "xy"[n % 2]} for n, name in enumerate("abcde")]
    annotate(lake.refreshed(), pl.DataFrame(sites), "clinical")
    lake = lake.refreshed()
    names = ("plain", "plain@S1")
    small = make_recipe("robust", names, atoms=2, rank=2, hidden=8, mpps=(0.5, 2.0), site="site")
    assert small.class_columns == ("site",)
    kept(lake, small, "steady")
    done = extract(lake.uri, ["steady"])
    assert not done.failed
    lake = lake.refreshed()
    assert lake.teachers(mpp=0.5)["steady"] == 128
    bag = lake.bag("a", ["steady", "plain"], mpp=0.5).by_teacher
    # Untrained, it is the teacher's own column.
    np.testing.assert_allclose(bag["steady"], bag["plain"], rtol=5e-3, atol=0.2)
