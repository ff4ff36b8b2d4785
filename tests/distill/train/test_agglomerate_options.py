"""Options of agglomerate: angles, shifts, an average as target, several sizes; plain formulas."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distill.errors import DistillError
from distill.losses.angle_losses import Dispersion, angle_between, angle_loss
from distill.recipes.recipe import Recipe, Term, Views
from distill.recipes.recipe_table import make_recipe
from distill.recipes.student_settings import TileStudent
from distill.students.tile_task import TileTask
from distill.targets.target_sources import CLS, PATCH, ViewGeometry
from distill.train.batches import Feed, mixed
from distill.train.mosaics import MosaicBatch
from distill.train.tile_choice import choose_tiles
from distill.train.views import draw, shifted, sized, turned
from distill.train.worker import switching
from featurestore import tile_parts
from tests.featurestore.read.test_stream_under import made as made_lake
from tests.worlds.tile_worlds import FINE, TileWorld, colours, train

pytestmark = pytest.mark.usefixtures("one_thread")

VIT: dict[str, Any] = {
    "architecture": "test_vit",
    "input_px": 64,
    "head_width": 16,
    "targets": "z-score",
}
CNN: dict[str, Any] = {**VIT, "architecture": "test_efficientnet"}


def recipe(teachers: tuple[str, ...] = ("a", "b"), **changes: Any) -> Recipe:  # noqa: ANN401
    return make_recipe("agglomerate", teachers, **{**CNN, **changes})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------- angles


def angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return np.asarray(np.arccos(cosine.clip(-1, 1)))


def test_angle_loss_by_numpy() -> None:
    rng = np.random.default_rng(0)
    p, t = rng.normal(1, 1, (2, 40, 6))
    mean = (t / np.linalg.norm(t, axis=1, keepdims=True)).mean(0)
    spread = (angles(t, np.tile(mean, (40, 1))) ** 2).mean()
    dispersion = Dispersion(6).train()(torch.from_numpy(t))
    assert float(dispersion) == pytest.approx(spread, rel=1e-4)
    loss = angle_loss(torch.from_numpy(p), torch.from_numpy(t), dispersion)
    np.testing.assert_allclose(loss, angles(p, t) ** 2 / spread, rtol=1e-4)


def test_angles_have_finite_gradients_where_vectors_are_equal_or_opposite() -> None:
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    y = torch.tensor([[1.0, 2.0], [-1.0, -2.0], [1.0, 0.0]])
    angle = angle_between(x, y)
    assert angle[:2].tolist() == pytest.approx([0, np.pi], abs=1e-5)
    (gradient,) = torch.autograd.grad(angle.square().sum(), x)
    assert bool(gradient.isfinite().all())


def test_the_dispersion_runs_over_steps_and_leaves_out_what_does_not_count() -> None:
    rng = np.random.default_rng(1)
    parts = [rng.normal(1, 1, (30, 4)) for _ in range(3)]
    running = Dispersion(4, momentum=0.5).train()
    direction, squared, weight = np.zeros(4), 0.0, 0.0
    for part in parts:
        nothing = np.concatenate([part, np.full((5, 4), 9.0)])
        counts = torch.tensor([1.0] * 30 + [0.0] * 5)
        ours = running(torch.from_numpy(nothing), counts)
        unit = part / np.linalg.norm(part, axis=1, keepdims=True)
        direction = 0.5 * direction + 0.5 * unit.mean(0)
        squared = 0.5 * squared + 0.5 * (angles(unit, np.tile(direction, (30, 1))) ** 2).mean()
        weight = 0.5 * weight + 0.5
        assert float(ours) == pytest.approx(squared / weight, rel=1e-4)
    state = running.state_dict()
    running.eval()(torch.from_numpy(parts[0]))
    assert all(torch.equal(x, state[name]) for name, x in running.state_dict().items())


def test_the_angle_takes_the_cosines_place_in_raw_space() -> None:
    """At share 1 the loss is 0.9 angle^2 / dispersion + 0.1 smooth L1, of one teacher."""
    world = TileWorld.make()
    term = Term(kind="match", settings={"angle": 1.0})
    task = world.task(recipe(("b",), terms=(term,), dihedral=False, stain=0.0)).train()
    batch = world.batch(16)
    predictions: list[Any] = []
    task.heads.register_forward_hook(lambda _m, _i, out: predictions.append(out))
    loss = task(batch, generator())["match b"].detach()
    predicted = predictions[0]["b", CLS].detach()
    goal = task.source("b", CLS).goal(batch, ViewGeometry(turns=torch.zeros(16, dtype=torch.int64)))
    assert goal.norm is not None
    raw = batch.features["b"].double().numpy()
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    spread = (angles(raw, np.tile(unit.mean(0), (16, 1))) ** 2).mean()
    guess = goal.norm.inverse(predicted).double().numpy()
    smooth = F.smooth_l1_loss(predicted, goal.target, reduction="none").mean(1)
    expected = 0.9 * angles(guess, raw) ** 2 / spread + 0.1 * smooth.double().numpy()
    np.testing.assert_allclose(loss, expected, rtol=2e-3)
    with pytest.raises(DistillError, match="'angle' is a share from 0 to 1, 2 given"):
        world.task(recipe(terms=(Term(kind="match", settings={"angle": 2.0}),)))


# ---------------------------------------------------------------------- shifts


@pytest.mark.parametrize("name", ["a:patches", "a:patches5"])
def test_a_shifted_view_is_compared_where_it_sees_the_teachers_tokens(name: str) -> None:
    """The targets are those of a teacher that is run on the view; what is mirrored has none."""
    world = TileWorld.make()
    batch = world.batch(64)
    settings = {**VIT, "targets": "none"}
    task = world.task(make_recipe("agglomerate", (name,), **settings, shift=1.0))
    assert (task.network.grid, task.network.stride_px) == ((4, 4), 16)
    assert batch.pixels is not None
    x = sized(batch.pixels, 64)
    view = draw(x, Views(stain=0.0, shift=1.0), generator(), stride_px=16)
    assert view.shifts is not None
    assert {-1, 0, 1} < set(view.shifts.flatten().tolist()) <= {-3, -2, -1, 0, 1, 2, 3}
    seen = turned(shifted(x, view.shifts * 16), view.turns, axes=(2, 3))
    torch.testing.assert_close(view.pixels, (seen.float() / 255 - 0.5) / 0.5)
    goal = task.source(name, PATCH).goal(
        batch, ViewGeometry(turns=view.turns, shifts=view.shifts, grid=(4, 4))
    )
    again = world.of("a", colours(seen.permute(0, 2, 3, 1), 4)).flatten(1, 2)
    if goal.cells is not None:
        again = again.gather(1, goal.cells[..., None].expand(-1, -1, again.shape[-1]))
    assert goal.weight is not None
    is_inside = goal.weight > 0
    assert 0.3 < float(is_inside.float().mean()) < 0.9
    torch.testing.assert_close(goal.target[is_inside], again[is_inside], atol=0.02, rtol=0.02)
    moved = view.shifts.abs()
    if name == "a:patches":
        expected = (4 - moved[:, 0]) * (4 - moved[:, 1])
        assert goal.weight.sum(dim=1).tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["a:patches", "a:patches5"])
def test_a_shifted_view_shows_the_neighbours_and_their_tokens_are_its_targets(name: str) -> None:
    world = TileWorld.make()
    parts = [world.batch(64, seed=n) for n in range(4)]
    batch = replace(parts[0], neighbours=parts[1:])
    made = make_recipe(
        "agglomerate", (name,), **{**VIT, "targets": "none"}, shift=1.0, neighbours=True, stain=0.0
    )
    task = world.task(made)
    views: list[torch.Tensor] = []
    task.network.register_forward_pre_hook(lambda _m, x: views.append(x[0].detach()))
    task(batch, generator())
    pixels = [sized(part.pixels, 64) for part in parts if part.pixels is not None]
    upper, lower = torch.cat(pixels[:2], dim=3), torch.cat(pixels[2:], dim=3)
    whole = torch.cat([upper, lower], dim=2)
    view = draw(whole, made.views, generator(), stride_px=16, mosaics=True)
    assert view.shifts is not None
    assert {0, 1} < set(view.shifts.flatten().tolist()) <= {0, 1, 2, 3}
    windows = torch.stack(
        [
            x[:, 16 * down : 16 * down + 64, 16 * across : 16 * across + 64]
            for x, (down, across) in zip(whole, view.shifts.tolist(), strict=True)
        ]
    )
    seen = turned(windows, view.turns, axes=(2, 3))
    torch.testing.assert_close(views[0], (seen.float() / 255 - 0.5) / 0.5)
    goal = task.source(name, PATCH).goal(
        batch, ViewGeometry(turns=view.turns, shifts=view.shifts, grid=(4, 4))
    )
    again = world.of("a", colours(seen.permute(0, 2, 3, 1), 4)).flatten(1, 2)
    if goal.cells is None:
        assert goal.weight is None  # all tokens count
        torch.testing.assert_close(goal.target, again, atol=0.02, rtol=0.02)
    else:
        assert goal.weight is not None
        again = again.gather(1, goal.cells[..., None].expand(-1, -1, again.shape[-1]))
        is_inside = goal.weight > 0
        torch.testing.assert_close(goal.target[is_inside], again[is_inside], atol=0.02, rtol=0.02)
    with pytest.raises(DistillError, match=r"neighbours=True given.*views\.shift=0\.5"):
        Views(neighbours=True)


def test_a_feed_gives_each_tile_with_its_neighbours(tmp_path: Path) -> None:
    """In any order, on any rank and from any step on; tiles without neighbours are left out."""
    lake = made_lake(tmp_path / "lake")
    names = lake.slides().collect()["slide_id"].to_list()
    tiny = make_recipe(
        "agglomerate", ("plain",), **CNN, shift=0.5, neighbours=True, batch_tiles=8, mpps=(0.5,)
    )
    chosen = choose_tiles(lake, tiny, names)[0.5]
    keys = lake.tiles(mpp=0.5).select("tile_id").collect()["tile_id"].sort().to_list()
    among = {place(key) for key in keys}
    steps = ((0, 1), (1, 0), (1, 1))
    whole = [key for key in keys if all(moved(key, step) in among for step in steps)]
    assert 0 < len(whole) < len(keys)
    assert [keys[row] for row in chosen.rows] == whole
    assert chosen.without_neighbours == len(keys) - len(whole)
    feed = Feed(lake=lake, recipe=tiny, slide_ids=names, rows={0.5: chosen.rows})
    for rank in range(2):
        streams = feed.training(rank=rank, world=2)
        batches = list(mixed(streams, epoch=1, seed=0))
        assert batches
        for batch in batches:
            assert isinstance(batch, MosaicBatch)
            for part, step in zip(batch.neighbours, steps, strict=True):
                expected = [moved(key, step) for key in batch.tile_id.tolist()]
                assert [place(key) for key in part.tile_id.tolist()] == expected
                assert part.pixels is not None
        later = list(mixed(feed.training(rank=rank, world=2), epoch=1, seed=0, first=1))
        assert [b.tile_id.tolist() for b in later] == [b.tile_id.tolist() for b in batches[1:]]


def place(key: int) -> tuple[int, int, int]:
    slide, _, y, x = tile_parts([key])
    return int(slide[0]), int(y[0]), int(x[0])


def moved(key: int, step: tuple[int, int]) -> tuple[int, int, int]:
    slide, y, x = place(key)
    return slide, y + step[0], x + step[1]


def test_views_of_nested_tiles_are_not_shifted() -> None:
    world = TileWorld.make()
    task = world.task(make_recipe("xmag", ("a",), **CNN, shift=0.5), fine=FINE)
    with pytest.raises(DistillError, match=r"can't be shifted; set views\.shift=0"):
        task(world.batch(8), generator())


# ---------------------------------------------------------------------- sizes


def drawn_sizes(task: TileTask, steps: int) -> Counter[int]:
    counts: Counter[int] = Counter()
    task.network.register_forward_pre_hook(lambda _m, x: counts.update([x[0].shape[2]]))
    for step in range(steps):
        task(TileWorld.make().batch(2, seed=step), generator(step))
    return counts


def test_sizes_are_drawn_equally_often_or_by_tokens() -> None:
    world = TileWorld.make()
    equal = drawn_sizes(world.task(recipe(sizes=(32, 96))).train(), 90)
    assert set(equal) == {32, 64, 96}
    assert min(equal.values()) > 18
    tokens = drawn_sizes(world.task(recipe(sizes=(32, 96), size_balance="tokens")).train(), 90)
    shares = np.array([1 / 32**2, 1 / 64**2, 1 / 96**2])
    expected = 90 * shares / shares.sum()
    assert [tokens[side] for side in (32, 64, 96)] == pytest.approx(expected, abs=12)


@pytest.mark.parametrize("settings", [CNN, VIT], ids=["cnn", "vit"])
def test_each_size_learns_and_is_measured(settings: dict[str, Any]) -> None:
    world = TileWorld.make()
    made = recipe(("a", "a:patches"), **{**settings, "sizes": (32,)})
    task = world.task(made)
    losses = train(task, world, steps=12)
    assert sum(losses[-4:]) < sum(losses[:4])
    task.eval()
    assert task.sizes == (32, 64)
    batch, shapes = world.batch(16, seed=7), {}
    for side in task.sizes:
        with task.at_size(side):
            prediction = task.predict(batch)["a"]
            shapes[side] = prediction.predicted
    assert not torch.allclose(shapes[32], shapes[64])
    torch.testing.assert_close(task.predict(batch)["a"].predicted, shapes[64])
    assert world.task(recipe()).sizes == ()


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DistillError, match=r"sizes=\[0\] given; each side is above 0"):
        TileStudent(sizes=(0,))
    with pytest.raises(DistillError, match="size_balance='px' given; allowed: steps, tokens"):
        TileStudent(size_balance="px")  # type: ignore[arg-type]
    with pytest.raises(DistillError, match="inputs and 32 px, and mixer_s32_224 takes 64 px alone"):
        TileWorld.make().task(recipe(architecture="mixer_s32_224", sizes=(32,)))


# ---------------------------------------------------------------------- an average as target


def test_the_average_is_one_more_target() -> None:
    world = TileWorld.make()
    task = world.task(
        recipe(extra_terms=(Term(kind="average", weight=0.5),), dihedral=False, stain=0.0)
    ).train()
    batch = world.batch(8)
    embeddings: list[torch.Tensor] = []
    task.network.register_forward_hook(lambda _m, _i, out: embeddings.append(out.embedding))
    term: Any = task.terms[1]
    loss = task(batch, generator())["average"].detach()
    assert batch.pixels is not None
    x = sized(batch.pixels, 64)
    with torch.no_grad():
        target = term.average.module(draw(x, Views(dihedral=False, stain=0), generator()).pixels)
    expected = 0.5 * (1 - F.cosine_similarity(embeddings[0].detach(), target.embedding))
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    name, before = next(iter(term.average.module.named_parameters()))
    before = before.clone()
    with torch.no_grad():
        for parameter in task.network.parameters():
            parameter.add_(1.0)
    task.after_step(0)
    after = dict(term.average.module.named_parameters())[name]
    torch.testing.assert_close(after, before + 0.9)  # momentum 0.1 at the first step
    with pytest.raises(DistillError, match="'average' is from 0 to below 1, 1 given"):
        world.task(recipe(extra_terms=(Term(kind="average", settings={"momentum": 1.0}),)))


def test_a_student_that_switches_modes_is_told() -> None:
    sizes = {
        "64": {"a": {"0.5": {"centred": 0.7}, "2.0": {"centred": 0.4}}},
        "32": {"a": {"0.5": {"centred": 0.65}, "2.0": {"centred": 0.6}}},
    }
    answer = switching(sizes)["a"]
    assert answer["best"] == {"centred": 0.7, "side_px": 64, "mpp": "0.5"}
    assert answer["worst"] == {"centred": 0.4, "side_px": 64, "mpp": "2.0"}
    assert (answer["gap"], answer["flagged"]) == (0.3, True)
    assert not switching({"64": sizes["32"]})["a"]["flagged"]
