"""Students of pixels: every recipe learns, every term has gradients, each option has effect."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from distill.errors import DistillError
from distill.recipes.recipe import Recipe, Term
from distill.recipes.recipe_table import make_recipe, parse_terms
from distill.recipes.student_settings import TileStudent
from distill.students.student import TileNetwork
from distill.targets.target_sources import TeacherColumn
from distill.terms.term_table import TERMS
from ingest import TeacherError
from ingest.teachers import channels_last_map
from tests.worlds.tile_worlds import DIM, FINE, TileWorld, train

TINY: dict[str, Any] = {"architecture": "test_efficientnet", "input_px": 64, "head_width": 32}
VIT: dict[str, Any] = {
    "architecture": "test_vit",
    "input_px": 32,
    "arguments": {"patch_size": 8},
}
SWIN: dict[str, Any] = {
    "architecture": "swin_tiny_patch4_window7_224",
    "input_px": 64,
    "arguments": {"embed_dim": 12, "depths": [1, 1, 1], "num_heads": [1, 2, 4]},
}
CASES: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "agglomerate": ("agglomerate", ("a", "b"), {}),
    "agglomerate-tokens": ("agglomerate", ("a", "a:patches", "b"), {}),
    "agglomerate-sample": ("agglomerate", ("a", "a:patches5"), {}),
    "agglomerate-vit": ("agglomerate", ("a", "a:patches"), VIT),
    "agglomerate-ladder": ("agglomerate", ("a", "b"), {"head": "ladder"}),
    "agglomerate-widths": ("agglomerate", ("a", "b"), {"widths": (64,)}),
    "xmag": ("xmag", ("a", "b"), {}),
    "agglomerate-swin": ("agglomerate", ("a", "a:patches"), SWIN),
    "gpfm": ("gpfm", ("a", "b"), {}),
    "gpfm-vit": ("gpfm", ("a", "b"), VIT),
    "gpfm-swin": ("gpfm", ("a", "b"), SWIN),
    "h0": ("h0", ("a", "a:patches"), {}),
    "g2l": ("g2l", ("a",), {}),
}


def case(name: str, **more: Any) -> Recipe:  # noqa: ANN401
    recipe, teachers, settings = CASES[name]
    return make_recipe(recipe, teachers, **{**TINY, "targets": "z-score", **settings, **more})


def fine(recipe: Recipe) -> float | None:
    return FINE if recipe.levels == 2 else None


#: Cases that take longest; a case of each kind of student and of each term is left.
LONG = (
    "agglomerate-sample",
    "agglomerate-swin",
    "agglomerate-widths",
    "gpfm",
    "gpfm-swin",
    "gpfm-vit",
    "h0",
)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in CASES]
)
def test_recipe_learns_and_beats_the_mean_feature_on_new_tiles(name: str) -> None:
    torch.set_num_threads(1)
    world, recipe = TileWorld.make(), case(name)
    task = world.task(recipe, fine=fine(recipe))
    losses = train(task, world)
    assert sum(losses[-5:]) < sum(losses[:5])
    task.eval()
    for teacher, prediction in task.predict(world.batch(128, seed=7)).items():
        raw, guess = prediction.features.float(), prediction.norm.inverse(prediction.predicted)
        mean = prediction.norm.mean.expand_as(raw)
        ours, nothing = (F.cosine_similarity(x, raw).mean() for x in (guess, mean))
        assert ours > nothing, teacher


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_has_a_gradient_in_every_step(name: str) -> None:
    """Workers wait for each other's gradients: one that has none would stop them."""
    world, recipe = TileWorld.make(), case(name)
    task = world.task(recipe, fine=fine(recipe)).train()
    losses = task(world.batch(8), torch.Generator().manual_seed(0))
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    trained = {n: p for n, p in task.named_parameters() if p.requires_grad}
    assert [n for n, p in trained.items() if p.grad is None] == []


@pytest.mark.parametrize(
    "text",
    [
        "contrast=0.1",
        "log-sum",
        "average",
        "mutual",
        "mutual/clinical.grade",
        "hint:b",
        "relation=10",
        "token-relation",
        "prototypes=0.1",
        "self",
        "kl:b",
        "decoupled:b=0.5",
        "multi-level:b",
        "kl:b/clinical.grade",
        "decoupled:b/clinical.grade=0.5",
        "multi-level:b/clinical.grade",
        "decoupled-levels:b",
        "decoupled-levels:b/clinical.grade",
        "label/clinical.grade",
        "privileged:b=0.1",
    ],
)
def test_a_term_can_be_added_to_any_recipe_and_reaches_the_network(text: str) -> None:
    teachers = ("a", "a:patches", "b")
    extra = parse_terms([text])
    recipe = make_recipe("agglomerate", teachers, **TINY, targets="z-score", extra_terms=extra)
    world = TileWorld.make(scale=1.0)
    task = world.task(recipe).train()
    losses = task(world.batch(8), torch.Generator().manual_seed(0))
    term_losses = {name: loss for name, loss in losses.items() if not name.startswith("match")}
    assert term_losses
    for loss in term_losses.values():
        assert loss.shape == (8,)
    network = [p for p in task.network.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(
        torch.stack(list(term_losses.values())).sum(), network, allow_unused=True
    )
    assert sum(float(g.abs().sum()) for g in gradients if g is not None) > 0
    assert extra[0].kind in TERMS


@pytest.mark.parametrize(
    "change",
    [
        {"targets": "phi-s"},
        {"weighting": "static"},
        {"weighting": "balance"},
        {"keep": 1.0},
        {"stain": 0.3},
        {"brightness": 0.2},
        {"dihedral": False},
        {"widths": (32,)},
        {"shift": 0.5},
        {"sizes": (96, 128)},
        {"terms": (Term(kind="match", settings={"angle": 0.5}),)},
        {"head": "linear"},
        {"head_width": 16},
        {"input_px": 96},
        {"seed": 1},
    ],
)
def test_each_option_changes_the_outcome(change: dict[str, Any]) -> None:
    """Failure 19 of the field: a flag that is silently ignored."""
    world = TileWorld.make()

    def loss(recipe: Recipe) -> float:
        task = world.task(recipe).train()
        losses = task(world.batch(16), torch.Generator().manual_seed(recipe.seed))
        return float(torch.stack(list(losses.values())).sum().detach())

    assert loss(case("agglomerate", **change)) != pytest.approx(loss(case("agglomerate")), rel=1e-5)


def test_background_under_a_tile_changes_nothing() -> None:
    world, recipe = TileWorld.make(), case("xmag")
    task = world.task(recipe, fine=FINE).eval()
    batch = world.batch(8)
    before = task(batch, torch.Generator().manual_seed(0))
    under = batch.under[FINE]
    for values in under.features.values():
        values[~under.mask] = torch.nan
    after = task(batch, torch.Generator().manual_seed(0))
    for name, loss in before.items():
        torch.testing.assert_close(after[name], loss)


def test_recipes_that_do_not_fit_are_refused() -> None:
    world = TileWorld.make()
    with pytest.raises(DistillError, match="no term 'kll': did you mean 'kl'"):
        world.task(case("agglomerate", extra_terms=(Term(kind="kll"),)))
    with pytest.raises(DistillError, match="has no setting temp"):
        world.task(case("agglomerate", extra_terms=(Term(kind="contrast", settings={"temp": 1}),)))
    with pytest.raises(DistillError, match="name its column of a, b"):
        world.task(case("agglomerate", extra_terms=(Term(kind="kl"),)))
    with pytest.raises(DistillError, match="extract patch tokens as TEACHER:patches"):
        world.task(make_recipe("h0", ("a",), **TINY, targets="z-score"))
    with pytest.raises(DistillError, match=r"widths \[4096\] given for a student of"):
        world.task(case("agglomerate", widths=(4096,)))
    with pytest.raises(DistillError, match="no number after '='"):
        parse_terms(["contrast=much"])
    with pytest.raises(DistillError, match="prefix tokens must be left out"):
        TeacherColumn(name="a:patches", teacher="a", dim=DIM, tokens=17, side=4)


@pytest.mark.parametrize("name", CASES)
def test_losses_are_float32_under_bfloat16_and_near_those_of_float32(name: str) -> None:
    world, recipe = TileWorld.make(), case(name)
    task = world.task(recipe, fine=fine(recipe)).train()
    plain = task(world.batch(16), torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = task(world.batch(16), torch.Generator().manual_seed(0))
    for term, loss in low.items():
        assert loss.dtype == torch.float32
        assert bool(torch.isfinite(loss).all())
        assert float(loss.mean().detach()) == pytest.approx(
            float(plain[term].mean().detach()), rel=0.2
        )


@pytest.mark.parametrize("settings", [SWIN, VIT, TINY], ids=["swin", "vit", "cnn"])
def test_tokens_are_where_the_network_sees_them(settings: dict[str, Any]) -> None:
    """The token of the corner that is changed changes most, whatever the network's layout."""
    torch.manual_seed(0)
    network = TileNetwork(TileStudent(**{k: x for k, x in settings.items() if k != "head_width"}))
    network.eval()
    side = settings["input_px"]
    rows, columns = network.grid
    x_BCHW = torch.zeros(2, 3, side, side)
    x_BCHW[1, :, side - side // rows :, : side // columns] = 2.0  # the lower left corner
    with torch.no_grad():
        outputs = network(x_BCHW)
    assert outputs.tokens.shape == (2, rows, columns, network.token_dim)
    assert network.token_dim == network.trunk.num_features
    change = (outputs.tokens[1] - outputs.tokens[0]).norm(dim=-1)
    assert int(change.argmax()) == (rows - 1) * columns


def test_a_layout_that_is_not_said_is_refused() -> None:
    network = torch.nn.Identity()
    network.num_features = 5  # type: ignore[assignment]
    assert channels_last_map(network, torch.zeros(1, 5, 2, 3)).shape == (1, 2, 3, 5)
    with pytest.raises(TeacherError, match="set its output_fmt to NHWC"):
        channels_last_map(network, torch.zeros(1, 2, 3, 5))
    network.output_fmt = "NHWC"  # type: ignore[assignment]
    assert channels_last_map(network, torch.zeros(1, 2, 3, 5)).shape == (1, 2, 3, 5)


def test_patch_tokens_that_are_no_square_are_refused() -> None:
    class Oblong(torch.nn.Module):
        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 6, 4)

        def forward_head(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=1)

    network = TileNetwork(TileStudent(architecture="test_vit", input_px=32))
    network.trunk = Oblong()
    with pytest.raises(DistillError, match="6 patch tokens, which are no square grid"):
        network(torch.zeros(2, 3, 32, 32))


def test_crops_are_whole_tokens_and_a_network_of_one_size_is_refused() -> None:
    sizes = {
        name: TileNetwork(TileStudent(**settings), crop_share=0.5).crop_px
        for name, settings in {
            "vit": VIT,
            "swin": SWIN,
            "cnn": {"architecture": "test_efficientnet", "input_px": 64},
            "patch14": {
                "architecture": "test_vit",
                "input_px": 56,
                "arguments": {"patch_size": 14},
            },
        }.items()
    }
    assert sizes == {"vit": 16, "swin": 32, "cnn": 32, "patch14": 28}
    with pytest.raises(DistillError, match="mixer_s32_224 takes 64 px alone; take another --arch"):
        TileNetwork(TileStudent(architecture="mixer_s32_224", input_px=64), crop_share=0.5)
    no_crops = case(
        "gpfm-vit", terms=(Term(kind="match"), Term(kind="self", settings={"crops": 0}))
    )
    assert TileWorld.make().task(no_crops).network.crop_px is None
