"""Tissue and pen: colours that others measured, shapes drawn here, real and generated slides."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from examples.cohort import make_cohort
from ingest.readers.open_slide import open_slide
from ingest.tissue.overview_tissue import BoolArray, RgbArray, find_tissue, tinted_glass
from tests.conftest import REAL_SLIDE

GLASS = 243
PINK = (225, 160, 200)
BLUE = (60, 120, 190)

# Stain vectors (optical density in R, G, B) that Ruifrok and colleagues measured, as scikit-image
# lists them in skimage.color.colorconv.
STAINS = {
    "haematoxylin": (0.65, 0.70, 0.29),
    "eosin": (0.07, 0.99, 0.11),
    "DAB": (0.27, 0.57, 0.78),
    "PAS": (0.175, 0.972, 0.155),
    "Feulgen": (0.464, 0.830, 0.308),
    "Fast Red": (0.214, 0.851, 0.478),
    "Fast Blue": (0.749, 0.606, 0.267),
    "azocarmine": (0.093, 0.866, 0.491),
    "Orange G": (0.107, 0.368, 0.924),
    "ponceau": (0.100, 0.737, 0.668),
}
COLD_STAINS = {
    "Alcian blue": (0.875, 0.458, 0.158),
    "aniline blue": (0.853, 0.509, 0.113),
    "methyl blue": (0.800, 0.591, 0.105),
    "light green": (0.947, 0.254, 0.197),
    "methyl green": (0.980, 0.144, 0.133),
}
# Corners of the rules by which histolab's filters tell pens on scans of real slides.
PENS = {
    "blue": [(60, 120, 190), (120, 170, 200), (145, 180, 210), (37, 95, 160), (30, 65, 130)],
    "green": [(70, 110, 110), (45, 115, 100), (30, 75, 60), (170, 210, 200), (30, 50, 35)],
    "black": [(20, 20, 20), (45, 42, 44), (60, 58, 62)],
}
RED_PENS = [(150, 80, 90), (110, 20, 30), (185, 65, 105), (220, 115, 145), (125, 40, 70)]


def glass(shape: tuple[int, int] = (300, 400)) -> RgbArray:
    rng = np.random.default_rng(0)
    return np.clip(rng.normal(GLASS, 1.5, (*shape, 3)), 0, 255).astype(np.uint8)


def disc(x: int, y: int, radius: int, shape: tuple[int, int] = (300, 400)) -> BoolArray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 < radius**2)


def noisy(colour: tuple[float, ...], count: int) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(1)
    return np.clip(rng.normal(colour, 2, (count, 3)), 0, 255).astype(np.uint8)


def slide_with_stroke(colour: tuple[int, ...], width_px: int = 24) -> tuple[RgbArray, BoolArray]:
    """A pink disc, and a pen's stroke beside it."""
    picture = glass()
    picture[disc(120, 150, 90)] = PINK
    stroke = np.zeros(picture.shape[:2], np.uint8)
    cv2.line(stroke, (280, 40), (320, 260), 1, width_px)
    picture[stroke > 0] = noisy(colour, int(stroke.sum()))
    return picture, stroke > 0


def dice(one: BoolArray, other: BoolArray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


# --------------------------------------------------------------------- tissue


def test_blank_noisy_glass_is_no_tissue() -> None:
    tissue = find_tissue(glass(), 16.0)
    assert (tissue.verdict, tissue.share, tissue.pen_share) == ("no tissue", 0, 0)
    assert tissue.why == "tissue on 0.00% of the slide"


def test_pink_disc_on_glass_is_found() -> None:
    picture, expected = glass(), disc(200, 150, 80)
    picture[expected] = PINK
    tissue = find_tissue(picture, 16.0)
    assert tissue.verdict == "ok"
    assert dice(tissue.mask, expected) > 0.97
    assert tissue.share == tissue.mask.mean()


def test_black_border_and_specks_are_not_tissue() -> None:
    picture = glass()
    # What a scanner leaves there is not pure black, and any colour of it is fully saturated.
    picture[:20] = np.random.default_rng(0).integers(0, 6, (20, 400, 3))
    picture[100:102, 100:102] = (200, 60, 120)
    tissue = find_tissue(picture, 16.0)
    assert tissue.verdict == "no tissue"
    assert not tissue.pen.any()


def test_grey_shadow_is_not_tissue() -> None:
    y, x = np.mgrid[:300, :400]
    shade = 1 - 0.5 * np.exp(-(((x - 200) / 60) ** 2 + ((y - 150) / 60) ** 2))
    picture = (glass() * shade[..., None]).astype(np.uint8)
    assert find_tissue(picture, 16.0).share < 0.001


@pytest.mark.parametrize("colour", [(60, 56, 50), (120, 116, 106), (95, 95, 92)])
def test_grey_and_brownish_dirt_is_not_tissue_unless_it_lies_on_it(colour: tuple[int, ...]) -> None:
    picture, expected = glass(), disc(280, 150, 80)
    picture[expected] = noisy(PINK, int(expected.sum()))
    for x, y in ((60, 60), (100, 200), (260, 150), (300, 170)):
        cv2.ellipse(picture, (x, y), (9, 5), 30, 0, 360, colour, -1)
    tissue = find_tissue(picture, 16.0)
    assert dice(tissue.mask, expected) > 0.97
    assert not tissue.mask[:, :190].any()


def test_small_dark_fragments_of_ihc_stay_tissue() -> None:
    """Haematoxylin under DAB is the greyest that a section gets."""
    picture = glass()
    density = np.array(STAINS["haematoxylin"]) + np.array(STAINS["DAB"])
    for number, strength in enumerate((0.5, 1.0, 1.6)):
        spot = disc(80 + 100 * number, 150, 9)
        picture[spot] = noisy(tuple(GLASS * np.exp(-strength * density)), int(spot.sum()))
        assert find_tissue(picture, 16.0).mask[spot].mean() > 0.8


@pytest.mark.parametrize("strength", [0.25, 0.5, 2.0])
def test_faint_and_heavy_stain_is_found(strength: float) -> None:
    picture, expected = glass(), disc(200, 150, 80)
    picture[expected] = [round(GLASS * (c / GLASS) ** strength) for c in PINK]
    assert dice(find_tissue(picture, 16.0).mask, expected) > 0.97


@pytest.mark.parametrize("tint", [(1, 0.99, 0.94), (0.93, 1, 0.99), (0.94, 0.95, 1)])
def test_tinted_glass_is_taken_as_white(tint: tuple[float, ...]) -> None:
    picture, expected = glass(), disc(200, 150, 80)
    picture[expected] = noisy(PINK, int(expected.sum()))
    tinted = (picture * np.array(tint)).astype(np.uint8)
    tissue = find_tissue(tinted, 16.0)
    assert dice(tissue.mask, expected) > 0.97
    assert not tissue.pen.any()
    assert "glass is tinted (R, G, B" in tissue.why
    tinted[200:260, 20:380] = noisy((60, 120, 190), 60 * 360).reshape(60, 360, 3)
    assert find_tissue(tinted, 16.0).pen[205:255, 30:370].all()


def test_glass_is_what_the_border_agrees_on() -> None:
    picture = glass()
    picture[:] = (229, 240, 240)
    np.testing.assert_array_equal(np.array(tinted_glass(picture)), (229, 240, 240))
    picture[:, ::3] = (243, 243, 243)  # two thirds still agree
    assert tinted_glass(picture) is not None
    mixed = np.random.default_rng(0).integers(185, 256, picture.shape).astype(np.uint8)
    assert tinted_glass(mixed - np.array([12, 0, 0], np.uint8)) is None
    picture[:12], picture[-12:], picture[:, :12], picture[:, -12:] = (5, 5, 5, 5)
    assert tinted_glass(picture) is None


def test_pale_pink_is_never_taken_as_glass() -> None:
    rng = np.random.default_rng(0)
    pale = np.clip(rng.normal((238, 226, 236), 2, (300, 400, 3)), 0, 255).astype(np.uint8)
    tissue = find_tissue(pale, 16.0)
    assert (tissue.verdict, tissue.share > 0.99) == ("suspicious", True)


def test_slide_without_glass_on_its_border_is_not_balanced() -> None:
    """Pale blue mucin in a core that fills the picture."""
    with open_slide(str(REAL_SLIDE)) as slide:
        pixels, _ = slide.overview(2.0)
    inside = cv2.resize(pixels[580:680, 200:320], (400, 300), interpolation=cv2.INTER_AREA)
    inside[100:200, 100:300] = noisy((215, 222, 236), 100 * 200).reshape(100, 200, 3)
    assert find_tissue(inside, 16.0).share > 0.98


def test_slide_that_is_all_tissue_is_kept_and_suspicious() -> None:
    with open_slide(str(REAL_SLIDE)) as slide:
        pixels, _ = slide.overview(2.0)
    inside = cv2.resize(pixels[580:680, 200:320], (400, 300), interpolation=cv2.INTER_AREA)
    tissue = find_tissue(inside, 16.0)
    assert tissue.share > 0.98
    assert tissue.verdict == "suspicious"


def test_little_is_lost_of_tiny_generated_slides(cohort: Path) -> None:
    for path in sorted((cohort.parent / "slides").glob("*.svs")):
        truth = np.load(cohort.parent / "truth" / f"{path.stem}.truth.npz")["tissue"]
        with open_slide(str(path)) as slide:
            tissue = find_tissue(slide.overview(16.0)[0], 16.0)
        assert (truth & ~tissue.mask).sum() < 0.02 * truth.sum()
        assert tissue.share < 0.9


@pytest.mark.slow
def test_generated_slide_matches_its_truth(tmp_path: Path) -> None:
    """Two pieces of tissue and a pen's thin line, drawn by the generator of the examples."""
    make_cohort(tmp_path, patients=2, slides=2, workers=1)
    for path in sorted((tmp_path / "slides").glob("*.svs")):
        truth = np.load(tmp_path / "truth" / f"{path.stem}.truth.npz")
        with open_slide(str(path)) as slide:
            overview, scale = slide.overview(16.0)
            mpp = slide.mpp * scale
        assert scale == truth["downsample"]
        tissue = find_tissue(overview, mpp)
        assert tissue.verdict == "ok"
        drawn = cv2.dilate(truth["pen"].astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
        lost = truth["tissue"] & ~tissue.mask & ~drawn
        assert lost.sum() < 0.01 * truth["tissue"].sum()
        # A pixel with a twentieth of tissue has colour, so the mask ends a pixel or two outside.
        near = cv2.dilate(truth["tissue"].astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        assert (tissue.mask & ~near & ~drawn).sum() < 0.05 * truth["tissue"].sum()


# ------------------------------------------------------------------------ pen


@pytest.mark.parametrize("colour", [c for pens in PENS.values() for c in pens])
def test_pens_of_real_slides_are_told_from_tissue(colour: tuple[int, ...]) -> None:
    picture, stroke = slide_with_stroke(colour)
    tissue = find_tissue(picture, 16.0)
    assert dice(tissue.pen, stroke) > 0.9
    assert tissue.mask[stroke].mean() < 0.02
    assert dice(tissue.mask, disc(120, 150, 90)) > 0.97


@pytest.mark.parametrize("colour", [BLUE, (37, 95, 160), (45, 115, 100)])
def test_nothing_is_left_along_the_soft_rim_of_a_stroke(colour: tuple[int, ...]) -> None:
    """Uneven pale violet beside the ink, as where a stroke has dried, is no tissue of its own."""
    picture, stroke = slide_with_stroke(colour)
    wide = cv2.dilate(stroke.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    picture[wide & ~stroke] = (215, 205, 230)
    tissue = find_tissue(picture, 16.0)
    assert dice(tissue.mask, disc(120, 150, 90)) > 0.97
    assert tissue.mask[:, 240:].sum() < 20


@pytest.mark.parametrize("colour", RED_PENS)
def test_red_pen_stays_tissue(colour: tuple[int, ...]) -> None:
    """Known limit: it has the colours of eosin and blood."""
    picture, stroke = slide_with_stroke(colour)
    tissue = find_tissue(picture, 16.0)
    assert not tissue.pen.any()
    assert tissue.mask[stroke].mean() > 0.95


@pytest.mark.parametrize("stain", STAINS)
@pytest.mark.parametrize("density", [0.15, 0.6, 2.0])
def test_stains_are_not_pens(stain: str, density: float) -> None:
    picture, expected = glass(), disc(200, 150, 80)
    colour = GLASS * np.exp(-density * np.array(STAINS[stain]))
    picture[expected] = noisy(tuple(colour), int(expected.sum()))
    tissue = find_tissue(picture, 16.0)
    assert not tissue.pen.any()
    assert dice(tissue.mask, expected) > 0.97


@pytest.mark.parametrize("stain", COLD_STAINS)
def test_blue_and_green_stains_need_the_veto_off(stain: str) -> None:
    """Known limit: half of the tissue in such a stain is told as suspicious, most of it is kept."""
    colour = GLASS * np.exp(-0.8 * np.array(COLD_STAINS[stain]))
    picture, expected = glass(), disc(200, 150, 80)
    picture[expected] = PINK
    half = expected & (np.arange(400) < 190)
    picture[half] = noisy(tuple(colour), int(half.sum()))
    taken = find_tissue(picture, 16.0)
    assert taken.verdict == "suspicious"
    assert "taken out" in taken.why
    kept = find_tissue(picture, 16.0, pen_veto=False)
    assert dice(kept.mask, expected) > 0.97
    assert kept.verdict == "ok"
    np.testing.assert_array_equal(kept.pen, taken.pen)
    picture[expected] = noisy(tuple(colour), int(expected.sum()))
    whole = find_tissue(picture, 16.0)
    assert whole.verdict == "mostly pen"
    assert dice(whole.mask, expected) > 0.97


def test_what_is_mostly_pen_is_kept_and_told() -> None:
    picture, stroke = slide_with_stroke(BLUE, width_px=60)
    picture[disc(120, 150, 95)] = GLASS
    picture[disc(120, 150, 40)] = PINK
    tissue = find_tissue(picture, 16.0)
    assert tissue.verdict == "mostly pen"
    assert tissue.mask[stroke].mean() > 0.95
    assert tissue.why.endswith("% of what was found looks like pen, left in")


def test_little_tissue_beside_much_pen_is_suspicious() -> None:
    picture, _ = slide_with_stroke(BLUE, width_px=30)
    picture[disc(120, 150, 95)] = GLASS
    picture[disc(120, 150, 60)] = PINK
    tissue = find_tissue(picture, 16.0)
    assert tissue.verdict == "suspicious"
    assert dice(tissue.mask, disc(120, 150, 60)) > 0.95


def test_thin_line_of_ink_on_the_margin_of_a_specimen_stays_tissue() -> None:
    picture, whole = glass(), disc(200, 150, 80)
    picture[whole & ~disc(200, 150, 75)] = (45, 115, 100)  # 80 um wide
    picture[disc(200, 150, 75)] = PINK
    tissue = find_tissue(picture, 16.0)
    assert not tissue.pen.any()
    assert dice(tissue.mask, whole) > 0.97


def test_inked_margin_of_the_real_slide_stays_tissue() -> None:
    """A part of its border has the colour of green ink; no wide stroke has."""
    with open_slide(str(REAL_SLIDE)) as slide:
        overview, scale = slide.overview(16.0)
        mpp = slide.mpp * scale
    green = overview.astype(int)
    assert ((green[..., 1] - green[..., 0] > 8) & (green[..., 1] < 220)).sum() > 10
    with_veto, without = (find_tissue(overview, mpp, pen_veto=on) for on in (True, False))
    assert not with_veto.pen.any()
    np.testing.assert_array_equal(with_veto.mask, without.mask)
    assert 0.35 < with_veto.share < 0.45


@pytest.mark.parametrize("mpp", [8.0, 16.0, 32.0])
def test_sizes_are_in_microns(mpp: float, scaled: Callable[[RgbArray, float], RgbArray]) -> None:
    picture, stroke = slide_with_stroke(BLUE)
    tissue = find_tissue(scaled(picture, 16 / mpp), mpp)
    expected = scaled(stroke.astype(np.uint8), 16 / mpp) > 0
    assert dice(tissue.pen, expected) > 0.85
    assert tissue.mask[expected].mean() < 0.05


@pytest.fixture
def scaled() -> Callable[[RgbArray, float], RgbArray]:
    def resize(picture: RgbArray, by: float) -> RgbArray:
        kind = cv2.INTER_AREA if by < 1 else cv2.INTER_NEAREST
        resized: RgbArray = cv2.resize(picture, None, fx=by, fy=by, interpolation=kind)
        return resized

    return resize
