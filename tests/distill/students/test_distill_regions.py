"""The region encoder: tiles that are not there change nothing, it learns, and it can be kept."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn

from distill.errors import DistillError
from distill.recipes.recipe import Recipe, Term
from distill.recipes.recipe_table import make_recipe
from distill.recipes.student_settings import RegionStudent
from distill.students.hierarchy import Hierarchy, HierarchyInputs, group_by_parent
from distill.students.region_encoder import RegionEncoder
from distill.students.region_network import Tokens, crop_cells, crop_side, place_sines
from distill.students.task import Batch, FinerTiles, on_device
from distill.terms.region_task import RegionTask
from downstream.mil.layers.attention import MultiHeadAttention
from tests.featurestore.read.test_stream_under import made as made_lake
from tests.worlds.feature_worlds import (
    World,
    backward,
    centred_cosine,
    fit,
    norms_of,
    region_batch,
    region_norms,
)
from tests.worlds.training_lake import DIMS

pytestmark = pytest.mark.usefixtures("one_thread")

WORLD = World(dims={"eye": 24, "expert": 20})
SMALL = {
    "width": 32,
    "depth": 2,
    "heads": 4,
    "prompts": 3,
    "attention_layers": 2,
    "prototypes": 48,
    "head_width": 48,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def recipe(*teachers: str, **changes: Any) -> Recipe:  # noqa: ANN401
    return make_recipe("pathme", teachers or ("eye", "expert"), **{**SMALL, **changes})


def batch(samples: int = 8, seed: int = 1, **shape: Any) -> Batch:  # noqa: ANN401
    return region_batch(WORLD, samples, seed, **{"side": 2, "each": 2, **shape})


def task(*teachers: str, **changes: Any) -> RegionTask:  # noqa: ANN401
    shape = {name: changes.pop(name) for name in ("side", "each") if name in changes}
    made = recipe(*teachers, **changes)
    return RegionTask(made, WORLD.dims, region_norms(WORLD, batch(64, 7, **shape), made.targets))


def losses_of(made: RegionTask, regions: Batch, seed: int = 0) -> dict[str, Tensor]:
    losses: dict[str, Tensor] = made(regions, generator(seed))
    return losses


def changed(regions: Batch, change: Callable[[Tensor, Tensor], Tensor]) -> Batch:
    """The batch with other values in its grids: of a tensor [B, r, r, D] and its mask."""
    under = {
        mpp: FinerTiles(
            features={name: change(x, grid.mask) for name, x in grid.features.items()},
            mask=grid.mask,
        )
        for mpp, grid in regions.under.items()
    }
    return replace(regions, under=under)


# ---------------------------------------------------------------------- what it gives

NAMES = ["dino-fine", "dino-mid", "dino-across", "ibot", "koleo", "hierarchy", "expert expert"]


@pytest.mark.parametrize(("side", "each"), [(2, 2), (4, 4), (3, 2), (2, 4)])
def test_shapes_for_any_ratio(side: int, each: int) -> None:
    made, regions = task(side=side, each=each), batch(4, side=side, each=each)
    losses = losses_of(made, regions)
    assert list(losses) == NAMES
    assert all(x.shape == (4,) and x.isfinite().all() for x in losses.values())
    assert made.encoder.embed(regions).shape == (4, 32)
    prediction = made.eval().predict(regions)["expert"]
    mask = regions.under[1.0].mask
    assert prediction.mpp == 1.0
    assert prediction.predicted.shape == prediction.features.shape == (int(mask.sum()), 20)
    assert torch.equal(prediction.features, regions.under[1.0].features["expert"][mask])


def test_a_single_teacher_is_its_own_expert() -> None:
    losses = losses_of(task("eye"), batch())
    assert [name for name in losses if name.startswith("expert")] == ["expert eye"]


@pytest.mark.slow
def test_it_learns_its_expert_and_the_mean_of_a_region() -> None:
    """Held-out regions; the mean of the features gives a centred cosine of 0."""
    made, held = task(), batch(128, 999)
    before = centred_cosine(made.eval().predict(held)["expert"])
    batches = [batch(16, seed) for seed in range(12)]
    fit(made, batches, 70)
    first, last = (losses_of(x, batches[0])["expert expert"].mean() for x in (task(), made))
    assert last < 0.3 * first
    assert abs(before) < 0.3
    assert centred_cosine(made.eval().predict(held)["expert"]) > 0.85
    # What a region is, by a linear map of its vector fitted on others: the mean of its tiles.
    means, vectors = [], []
    for one in (batch(512, 11), held):
        under = one.under[1.0]
        x = made.encoder.norms.norm("eye", 1.0)(under.features["eye"])
        count = under.mask.sum(dim=(1, 2))[:, None]
        means.append((x * under.mask[..., None]).sum(dim=(1, 2)) / count)
        vectors.append(F.pad(made.encoder.embed(one), (0, 1), value=1))
    predicted = vectors[1] @ torch.linalg.lstsq(vectors[0], means[0]).solution
    residual = (predicted - means[1]).square().sum() / (
        means[1] - means[1].mean(dim=0)
    ).square().sum()
    assert residual < 0.3


def test_the_same_generator_gives_the_same_losses() -> None:
    made = task()
    one, same, other = (losses_of(made, batch(), seed) for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["dino-fine"], other["dino-fine"])
    assert not torch.equal(one["ibot"], other["ibot"])


def test_weights_are_those_of_the_recipe() -> None:
    terms = recipe().terms
    plain = losses_of(task(), batch())
    torch.manual_seed(0)
    twice = losses_of(task(terms=tuple(replace(t, weight=2 * t.weight) for t in terms)), batch())
    assert all(torch.allclose(2 * plain[name], twice[name]) for name in plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = losses_of(task(), batch())
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in rounded.values())


def test_terms_that_are_left_out_leave_nothing_behind() -> None:
    made = task(terms=(Term(kind="dino"),))
    losses = losses_of(made, batch())
    assert list(losses) == NAMES[:3]
    backward(losses)
    without = {n for n, p in made.named_parameters() if p.requires_grad and p.grad is None}
    assert not without
    assert made.predict(batch()) == {}


# ---------------------------------------------------------------------- gradients, the average


def test_all_parameters_learn_and_the_average_follows() -> None:
    made, regions = task(), batch(16)
    # Alike at the start, the student and the average would agree on the hierarchy.
    with torch.no_grad():
        for parameter in made.encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    backward(losses_of(made, regions))
    average = {f"own.average.{name}" for name, _ in made.own.average.named_parameters()}
    for name, parameter in made.named_parameters():
        assert parameter.requires_grad == (name not in average)
        assert (parameter.grad is None) == (name in average), name
        if parameter.grad is not None and not name.endswith("key_value.bias"):
            assert parameter.grad.any(), name
    old = made.own.average.module[0].classes.clone()  # type: ignore[index]
    made.after_step(0)
    new = made.own.average.module[0].classes  # type: ignore[index]
    expected = 0.992 * old + 0.008 * made.encoder.network.classes
    torch.testing.assert_close(new, expected)


def test_centres_follow_the_average() -> None:
    made, regions = task(), batch()
    losses_of(made, regions)
    region = made.encoder.region(regions)
    taught = made.own._average_of(region)
    made.after_step(0)
    mask = regions.under[1.0].mask.flatten(1)
    expected_logits = (taught.fine, taught.mid, taught.tokens[0][mask])
    for centre, logits in zip(made.own.centres, expected_logits, strict=False):
        torch.testing.assert_close(centre.mean, 0.1 * logits.mean(dim=0), atol=1e-5, rtol=1e-4)


def test_student_and_average_agree_at_the_start() -> None:
    made = task(terms=(Term(kind="dino"), Term(kind="hierarchy")))
    assert losses_of(made, batch())["hierarchy"].abs().max() < 1e-5


# ---------------------------------------------------------------------- tiles that are not there


@pytest.mark.parametrize("filler", [float("nan"), 3e4])
def test_tiles_that_are_not_there_change_nothing(filler: float) -> None:
    made, regions = task(side=2, each=4), batch(side=2, each=4, share=0.06)
    other = changed(regions, lambda x, mask: torch.where(mask[..., None], x, filler))
    assert not regions.under[4.0].mask.all()
    plain, perturbed = losses_of(made, regions), losses_of(made, other)
    assert all(torch.equal(plain[name], perturbed[name]) for name in plain)
    assert torch.equal(made.encoder.embed(regions), made.encoder.embed(other))
    one, two = (made.predict(b)["expert"] for b in (regions, other))
    assert torch.equal(one.predicted, two.predicted)
    assert torch.equal(one.features, two.features)
    backward(perturbed)
    gradients = [p.grad for p in made.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_tiles_that_are_not_there_are_as_if_left_out() -> None:
    """The streams give the same for a sequence with gaps as for one without them."""
    made, regions = task(), batch(6, share=0.4)
    network = made.encoder.network
    fine, mid, own_B1D = network.tokens(made.encoder.region(regions))
    assert not mid.mask.all()
    whole = (network.fine_stream(fine), network.mid_stream(mid, own_B1D))
    for sample in range(6):
        one = slice(sample, sample + 1)
        few = [
            Tokens(values=x.values[one, x.mask[sample]], mask=x.mask[one, x.mask[sample]])
            for x in (fine, mid)
        ]
        alone = (network.fine_stream(few[0]), network.mid_stream(few[1], own_B1D[one]))
        for both, single, tokens in zip(whole, alone, (fine, mid), strict=True):
            torch.testing.assert_close(both.cls[one], single.cls)
            torch.testing.assert_close(both.others[one], single.others)
            torch.testing.assert_close(both.tokens[one, tokens.mask[sample]], single.tokens)


def test_the_regions_vector_is_of_mid_tokens_that_are_there() -> None:
    module, mask = Hierarchy(16, 4, 1), torch.tensor([[True, False, True]])
    mid, others = torch.randn(1, 3, 16), torch.randn(1, 2, 16)
    level = HierarchyInputs(
        mid=mid,
        mid_there=mask,
        others=others,
        fine=torch.randn(1, 3, 4, 16),
        fine_there=torch.ones(1, 3, 4).bool(),
    )
    moved = replace(level, mid=torch.where(mask[..., None], mid, mid + 5))
    assert not torch.allclose(module(level).mid, module(moved).mid)
    torch.testing.assert_close(module(level).region, module(moved).region)


def test_hierarchy_looks_at_fine_tokens_that_are_there() -> None:
    """Own children and all of the region's; a mid token without any keeps what it is."""
    module, mask = Hierarchy(16, 4, 2), torch.rand(3, 4, 4) < 0.5
    mask[0, 1], mask[2] = False, False
    level = HierarchyInputs(
        mid=torch.randn(3, 4, 16),
        mid_there=torch.ones(3, 4).bool(),
        others=torch.randn(3, 2, 16),
        fine=torch.randn(3, 4, 4, 16),
        fine_there=mask,
    )
    moved = replace(level, fine=torch.where(mask[..., None], level.fine, level.fine + 5))
    for name in ("mid", "region"):
        torch.testing.assert_close(getattr(module(level), name), getattr(module(moved), name))
    turned = replace(level, fine=level.fine.flip(0))
    assert not torch.allclose(module(level).mid[:2], module(turned).mid[:2])
    torch.testing.assert_close(module(level).mid[2], module(turned).mid[2])


def test_a_region_without_finer_tiles_is_embedded_by_the_coarse_one_alone() -> None:
    made = task()
    regions = batch()
    for grid in regions.under.values():
        grid.mask[0] = False
    losses = losses_of(made, regions)
    assert all(x.isfinite().all() for x in losses.values())
    assert losses["expert expert"][0] == losses["dino-fine"][0] == losses["ibot"][0] == 0
    backward(losses)
    assert all(p.grad.isfinite().all() for p in made.parameters() if p.grad is not None)
    moved = replace(regions, features={"eye": regions.features["eye"].flip(0)})
    assert not torch.allclose(made.encoder.embed(moved)[0], made.encoder.embed(regions)[0])


def test_hidden_tokens_do_not_reach_the_student() -> None:
    made, regions = task(), batch()
    region = made.encoder.region(regions)
    hidden = (region.fine_there.flatten(1) & (torch.rand(8, 16) < 0.5), torch.zeros(8, 4).bool())
    other = replace(
        region, fine=torch.where(hidden[0].view(8, 4, 4, 1), region.fine + 5, region.fine)
    )
    one, two = (made.encoder.network(x, hidden) for x in (region, other))
    assert torch.equal(one.fine.cls, two.fine.cls)
    assert torch.equal(one.joined.region, two.joined.region)
    assert not torch.equal(made.encoder.network(region).fine.cls, one.fine.cls)
    assert not torch.equal(made.encoder.network(other).fine.cls, two.fine.cls)


# ---------------------------------------------------------------------- parts


def test_attention_is_torchs_own() -> None:
    ours, reference = MultiHeadAttention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        both = torch.cat([ours.query.weight, ours.key_value.weight])
        reference.in_proj_weight.copy_(both)
        reference.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
        reference.out_proj.load_state_dict(ours.out.state_dict())
    query, keys, mask = torch.randn(3, 2, 16), torch.randn(3, 5, 16), torch.rand(3, 5) < 0.5
    mask[:, 0], mask[2] = True, False
    attended = ours(query, keys, mask)
    expected = reference(query[:2], keys[:2], keys[:2], key_padding_mask=~mask[:2])[0]
    torch.testing.assert_close(attended[:2], expected)
    assert (attended[2] == 0).all()


def test_fine_cells_go_to_the_mid_cell_above_them() -> None:
    grid = torch.arange(36 * 2).view(1, 6, 6, 2)
    grouped = group_by_parent(grid, 3)
    for y in range(6):
        for x in range(6):
            mid, child = (y // 2) * 3 + x // 2, (y % 2) * 2 + x % 2
            assert torch.equal(grouped[0, mid, child], grid[0, y, x])


def dihedral(grid: Tensor, turn: int) -> Tensor:
    """A grid [B, r, r, ...] in one of its eight positions."""
    turned = torch.rot90(grid, turn % 4, (1, 2))
    return turned.flip(2) if turn >= 4 else turned


@pytest.mark.parametrize("turn", range(8))
def test_hierarchy_turns_with_its_grids(turn: int) -> None:
    """Turned grids give the turned mid tokens, and the same vector of the region."""
    module, side = Hierarchy(16, 4, 2), 3
    mid, fine = torch.randn(4, side, side, 16), torch.randn(4, 6, 6, 16)
    mid_there, fine_there = torch.rand(4, side, side) < 0.7, torch.rand(4, 6, 6) < 0.5
    others = torch.randn(4, 5, 16)

    def seen(turn: int) -> Any:  # noqa: ANN401
        grids = (dihedral(x, turn) for x in (mid, mid_there, fine, fine_there))
        a, b, c, d = grids
        level = HierarchyInputs(
            mid=a.flatten(1, 2),
            mid_there=b.flatten(1, 2),
            others=others,
            fine=group_by_parent(c, side),
            fine_there=group_by_parent(d, side),
        )
        return module(level)

    plain, turned = seen(0), seen(turn)
    expected = dihedral(plain.mid.view(4, side, side, 16), turn)
    torch.testing.assert_close(turned.mid.view(4, side, side, 16), expected)
    torch.testing.assert_close(turned.region, plain.region)


def test_crops_are_those_of_the_paper_and_squares() -> None:
    assert (crop_side(16, 6 / 16), crop_side(4, 3 / 4)) == (6, 3)
    assert [crop_side(side, 0.75) for side in (2, 3, 8)] == [1, 2, 6]
    squares = crop_cells(50, 20, 5, 3, generator())
    assert squares.shape == (50, 20, 9)
    corners = set()
    for cells in squares.flatten(0, 1).tolist():
        rows, columns = np.divmod(np.array(cells), 5)
        assert rows.tolist() == np.repeat(np.arange(3) + rows[0], 3).tolist()
        assert columns.tolist() == np.tile(np.arange(3) + columns[0], 3).tolist()
        corners.add((int(rows[0]), int(columns[0])))
    assert len(corners) == 9


def test_a_crop_takes_tokens_with_their_masks() -> None:
    tokens = Tokens(values=torch.randn(2, 9, 4), mask=torch.rand(2, 9) < 0.5)
    at = crop_cells(2, 3, 3, 2, generator())
    crops = tokens.at(at)
    for sample in range(2):
        for crop in range(3):
            row, cells = sample * 3 + crop, at[sample, crop]
            assert torch.equal(crops.values[row], tokens.values[sample, cells])
            assert torch.equal(crops.mask[row], tokens.mask[sample, cells])


def test_places_are_in_one_frame() -> None:
    """A cell's place is the mean of those of the cells under it, nearly: sines of slow waves."""
    fine, mid = place_sines(8, 32), place_sines(4, 32)
    under = group_by_parent(fine.view(1, 8, 8, 32), 4)[0].mean(dim=1)
    slow = torch.cat([torch.arange(4, 8), torch.arange(12, 16)])
    torch.testing.assert_close(under[:, slow], mid[:, slow], atol=0.01, rtol=0)
    assert len(torch.unique(fine, dim=0)) == 64


def test_prompts_are_new_in_each_block_of_the_coarse_stream_alone() -> None:
    made, regions = task(), batch()
    network, region = made.encoder.network, made.encoder.region(regions)
    outputs = network(region)
    assert (
        torch.autograd.grad(outputs.fine.cls.sum(), network.prompts, allow_unused=True)[0] is None
    )
    moved = torch.autograd.grad(network(region).mid.cls.square().sum(), network.prompts)[0]
    assert moved.flatten(1).norm(dim=1).min() > 0
    assert outputs.mid.others.shape == (8, 1 + 3, 32)


# ---------------------------------------------------------------------- from a lake


def test_batches_of_a_lake_are_regions(tmp_path: Path) -> None:
    """Cached features of three nested mpps, background and all, through the stream."""
    lake = made_lake(tmp_path / "lake")
    stream = lake.stream(
        "plain",
        mpp=2.0,
        under={1.0: "plain", 0.5: ["plain", "packed"]},
        batch_tiles=8,
        buffer_tiles=32,
        drop_last=True,
    )
    batches = [on_device(features, "cpu") for features in stream]
    features = {("plain", 2.0): torch.cat([b.features["plain"] for b in batches])}
    for teacher, mpp in (("plain", 1.0), ("plain", 0.5), ("packed", 0.5)):
        parts = [b.under[mpp].features[teacher][b.under[mpp].mask] for b in batches]
        features[teacher, mpp] = torch.cat(parts)
    norms = norms_of(features, "z-score")
    made = RegionTask(recipe("plain", "packed", targets="z-score"), DIMS, norms)
    history = fit(made, batches, 2)
    assert np.isfinite(history).all()
    for regions in batches:
        assert made.encoder.embed(regions).isfinite().all()
        prediction = made.predict(regions)["packed"]
        assert len(prediction.predicted) == int(regions.under[0.5].mask.sum())


# ---------------------------------------------------------------------- keeping, refusing


@pytest.mark.parametrize("targets", ["phi-s", "z-score"])
def test_it_is_kept_with_its_statistics(targets: str) -> None:
    made = task(targets=targets)
    weights = load(save({k: v.contiguous() for k, v in made.student.state_dict().items()}))
    student = recipe().student
    assert isinstance(student, RegionStudent)
    again = RegionEncoder.restored(student, "eye", (1.0, 2.0, 4.0), targets, weights)
    assert torch.equal(again.embed(batch()), made.eval().encoder.embed(batch()))


def test_a_checkpoint_goes_on_where_it_was() -> None:
    batches = [batch(8, seed) for seed in range(3)]
    made, again = task(), task()
    fit(made, batches, 2)
    again.load_state_dict(made.state_dict())
    one, two = (losses_of(x, batches[2]) for x in (made, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terms": (Term(kind="ibot"),)}, "and 'dino', without which"),
        ({"terms": (Term(kind="dino"), Term(kind="match"))}, "each of dino, ibot, koleo"),
        ({"terms": (Term(kind="dino"), Term(kind="dino"))}, "once at most"),
        ({"terms": (Term(kind="dino", settings={"x": 1}),)}, r"settings \['x'\]"),
        ({"terms": (Term(kind="dino", teachers=("d",)),)}, r"teachers \['d'\]"),
        ({"width": 30}, "multiple of"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DistillError, match=message):
        task(**changes)


def test_batches_that_are_no_regions_are_refused() -> None:
    made = task()
    with pytest.raises(DistillError, match=r"mpp 16\.0 with .* this encoder sees 4\.0"):
        made.encoder.embed(batch(side=4, each=4))
    regions = batch()
    fine_alone = replace(regions, under={1.0: regions.under[1.0]})
    with pytest.raises(DistillError, match=r"with \[1\.0\] under it given"):
        made.encoder.embed(fine_alone)
    two = {key: norm for key, norm in region_norms(WORLD, regions).items() if key[1] > 1}
    with pytest.raises(DistillError, match="of three mpps; 'eye' has statistics at"):
        RegionTask(recipe(), WORLD.dims, two)
    region = made.encoder.region(batch())
    with pytest.raises(DistillError, match="grids of 2 x 2 and 3 x 3 tiles"):
        replace(region, fine=region.fine[:, :3, :3])
