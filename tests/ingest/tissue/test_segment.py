"""The ways to find tissue: every tile, plain thresholds, single cells, a user's own segmenter."""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
import tifffile

from featurestore import LakeConfig, create_lake
from ingest.cut import cut_or_reason, cut_slide
from ingest.errors import InputError
from ingest.grid import area_means, plan_grids
from ingest.readers.open_slide import open_slide
from ingest.survey import survey
from ingest.tissue.own_segmenter import read_segmenter
from ingest.tissue.tissue_methods import METHODS, NAMES, TissueBy, chosen_method, tissue_of
from tests.conftest import REAL_SLIDE, ROOT

EXAMPLE = str(ROOT / "examples" / "own_segmenter.py")
SIDE_PX, TILES = 256, 12
# Optical density in R, G, B of a nucleus in haematoxylin, and of cytoplasm in the three colours of
# Papanicolaou's stain: light green, eosin, orange G.
NUCLEUS = np.array([0.65, 0.70, 0.29])
CYTOPLASM = np.array([[0.16, 0.05, 0.04], [0.02, 0.16, 0.03], [0.02, 0.07, 0.18]])


def cytology(path: Path, noise: float) -> npt.NDArray[np.bool_]:
    """Write a cytology slide at 0.5 mpp; gives which of its tiles hold a cell, [12, 12].

    Cells of 14 to 50 um, and lymphocytes of 8, of which a nucleus is all that is seen, lie far
    apart on glass, in about half of the tiles; there is dirt, too.
    """
    rng = np.random.default_rng(4)
    glass = rng.normal(244, noise, (SIDE_PX, SIDE_PX, 3))
    pixels = np.tile(glass, (TILES, TILES, 1)).astype(np.float32)
    holds = rng.random((TILES, TILES)) < 0.5
    for row, column in np.argwhere(holds).tolist():
        tile = pixels[row * SIDE_PX :, column * SIDE_PX :][:SIDE_PX, :SIDE_PX]
        radius = int(rng.integers(8, 51))  # of the cytoplasm, in pixels of 0.5 um
        at = rng.integers(radius + 40, SIDE_PX - radius - 40, 2)
        cytoplasm = CYTOPLASM[rng.integers(3)] * (radius > 13)
        for strength, size in ((cytoplasm, radius), (0.6 * NUCLEUS, 8)):
            layer = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
            cv2.circle(layer, at.tolist(), size, 1, -1)
            tile *= np.exp(-strength * layer[..., None])
    for y, x in ((700, 90), (90, 1800)):  # grey dirt of 30 x 20 um
        pixels[y : y + 40, x : x + 60] = (70, 68, 66)
    tifffile.imwrite(path, np.clip(pixels, 0, 255).astype(np.uint8), tile=(256, 256),
                     photometric="rgb", resolution=(20_000, 20_000),
                     resolutionunit="CENTIMETER")  # fmt: skip
    return holds


def glass(side: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).normal(243, 1, (side, side, 3)).astype(np.uint8)


def write_slide(path: Path, pixels: npt.NDArray[np.uint8]) -> Path:
    """Write a picture as a slide at 0.5 mpp."""
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb",
                     resolution=(20_000, 20_000), resolutionunit="CENTIMETER")  # fmt: skip
    return path


def kept(path: Path, tissue_by: TissueBy) -> npt.NDArray[np.bool_]:
    with open_slide(str(path)) as slide:
        grids = list(plan_grids(slide.size_px, slide.mpp, SIDE_PX, {0.5: 1, 2.0: 4}).values())
        return survey(slide, tissue_by=tissue_by).kept(grids, 0.1)[0]


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.5, 4.0])
def test_every_tile_with_a_cell_is_kept_and_no_other(tmp_path: Path, noise: float) -> None:
    holds = cytology(tmp_path / "c.tif", noise)
    np.testing.assert_array_equal(kept(tmp_path / "c.tif", "cells"), holds)
    # What is asked of tissue drops nearly all of them.
    assert kept(tmp_path / "c.tif", "standard").sum() < 0.2 * holds.sum()


def test_cells_become_tiles_of_a_lake_at_all_mpps(tmp_path: Path) -> None:
    holds = cytology(tmp_path / "c.tif", 2.0)
    lake = create_lake(tmp_path / "lake", LakeConfig(mpps=(0.5, 2.0)))
    row = {"slide": 0, "slide_id": "c", "uri": str(tmp_path / "c.tif"), "fingerprint": "1"}
    made = cut_slide(lake.store, lake.config, {**row, "tissue_by": "cells"})
    at = np.argwhere(holds)
    tiles = made.grids[0.5].tiles
    assert pl.DataFrame(tiles).select("grid_y", "grid_x").rows() == [
        tuple(yx) for yx in at.tolist()
    ]
    parents = {(y // 4, x // 4) for y, x in at.tolist()}
    coarse = made.grids[2.0].tiles.select(["grid_y", "grid_x"]).to_pylist()
    assert {(tile["grid_y"], tile["grid_x"]) for tile in coarse} == parents
    assert made.row["verdict"] == "ok"
    assert "isolated cells were looked for" in made.row["why"]


def test_standard_says_that_isolated_cells_are_left_out(tmp_path: Path) -> None:
    holds = cytology(tmp_path / "c.tif", 2.0)
    with open_slide(str(tmp_path / "c.tif")) as slide:
        overview, scale = slide.overview(16.0)
        tissue = tissue_of(slide, overview, scale)
    assert tissue.verdict in {"no tissue", "suspicious"}
    specks = int(tissue.why.partition(" specks of colour were left out")[0].split()[-1])
    assert 20 <= specks <= holds.sum()  # of cells of 14 um less than a pixel is left
    assert "isolated cells need --tissue cells" in tissue.why
    with open_slide(str(REAL_SLIDE)) as slide:
        assert "specks" not in tissue_of(slide, *slide.overview(16.0)).why


def test_cells_of_a_blank_slide_are_none(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).normal(243, 3, (1024, 1024, 3))
    tifffile.imwrite(tmp_path / "blank.tif", pixels.astype(np.uint8), tile=(256, 256))
    lake = create_lake(tmp_path / "lake", LakeConfig())
    row = {"slide": 0, "slide_id": "b", "uri": str(tmp_path / "blank.tif"), "fingerprint": "1"}
    outcome = cut_or_reason(lake.store, lake.config, {**row, "mpp": 0.5, "tissue_by": "cells"})
    assert isinstance(outcome, dict)
    assert "no tissue found" in outcome["reason"]


def test_none_keeps_every_tile_that_begins_on_the_slide(tmp_path: Path) -> None:
    assert kept(REAL_SLIDE, "none").shape == (12, 9)
    assert kept(REAL_SLIDE, "none").all()
    # glass, too, and tiles of which 8 of 256 px are on the slide
    path = write_slide(tmp_path / "glass.tif", glass(4 * SIDE_PX + 8))
    assert kept(path, "none").shape == (5, 5)
    assert kept(path, "none").all()
    with open_slide(str(path)) as slide:
        tissue = tissue_of(slide, *slide.overview(16.0), tissue_by="none")
    assert tissue.mask.all()
    assert tissue.verdict == "ok"


def test_specks_smaller_than_a_cell_are_no_cells(tmp_path: Path) -> None:
    pixels = glass(4 * SIDE_PX)
    for y, x in ((100, 100), (400, 700), (900, 300)):  # 2.5 x 2.5 um; a nucleus has 8 across
        pixels[y : y + 5, x : x + 5] = (150, 90, 170)
    assert not kept(write_slide(tmp_path / "specks.tif", pixels), "cells").any()
    cv2.circle(pixels, (640, 640), 8, (150, 90, 170), -1)
    found = kept(write_slide(tmp_path / "cell.tif", pixels), "cells")
    np.testing.assert_array_equal(np.argwhere(found), [[2, 2]])


def test_thresholds_are_what_they_are_called(tmp_path: Path) -> None:
    """A faint piece beside a strong one: Otsu loses the faint one, the fixed threshold keeps it."""
    pixels = np.random.default_rng(0).normal(243, 1, (2048, 2048, 3))
    pixels[256:1024, 256:1024] = (170, 60, 130)
    pixels[1280:1792, 1280:1792] = (238, 222, 234)
    tifffile.imwrite(tmp_path / "t.tif", pixels.astype(np.uint8), tile=(256, 256),
                     photometric="rgb", resolution=(20_000, 20_000),
                     resolutionunit="CENTIMETER")  # fmt: skip
    with open_slide(str(tmp_path / "t.tif")) as slide:
        overview, scale = slide.overview(16.0)
        fixed, otsu, standard = (
            tissue_of(slide, overview, scale, tissue_by=name)
            for name in ("fixed", "otsu", "standard")
        )
    strong, faint = np.s_[12:28, 12:28], np.s_[44:52, 44:52]
    assert fixed.mask[strong].all()
    assert fixed.mask[faint].all()
    assert otsu.mask[strong].all()
    assert not otsu.mask[faint].any()
    assert standard.mask[faint].all()
    assert "by Otsu's threshold" in otsu.why
    assert "by a fixed threshold" in fixed.why


def test_pen_is_taken_out_by_standard_and_by_others_where_it_is_asked_for(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).normal(243, 1, (4096, 4096, 3))
    pixels[256:2048, 256:2048] = (225, 160, 200)
    pixels[2560:3840, 2560:3840] = (60, 120, 190)
    tifffile.imwrite(tmp_path / "p.tif", pixels.astype(np.uint8), tile=(256, 256),
                     photometric="rgb", resolution=(20_000, 20_000),
                     resolutionunit="CENTIMETER")  # fmt: skip
    ink = np.s_[84:116, 84:116]
    with open_slide(str(tmp_path / "p.tif")) as slide:
        overview, scale = slide.overview(16.0)

        def found(name: str, **veto: bool) -> float:
            by = tissue_of(slide, overview, scale, tissue_by=name, **veto)
            return float(by.mask[ink].mean())

        assert (found("standard"), found("standard", pen_veto=False)) == (0.0, 1.0)
        assert (found("fixed"), found("fixed", pen_veto=True)) == (1.0, 0.0)


# -------------------------------------------------------------- a user's own


def test_example_segmenter_finds_what_standard_finds() -> None:
    own = chosen_method(EXAMPLE)
    with open_slide(str(REAL_SLIDE)) as slide:
        overview, scale = slide.overview(16.0)
        standard = tissue_of(slide, overview, scale).mask
        tissue = tissue_of(slide, overview, scale, tissue_by=own)
    assert 2 * (tissue.mask & standard).sum() / (tissue.mask.sum() + standard.sum()) > 0.85
    assert "as colour-and-shade (" in tissue.why


def own_file(folder: Path, body: str, card: str = 'name="mine", mpp=8.0') -> str:
    path = folder / "mine.py"
    path.write_text(
        "import numpy as np\nfrom slidelake import Segmenter\n"
        f"SEGMENTER = Segmenter({card})\ndef build():\n    return lambda overview: {body}\n"
    )
    return str(path)


def test_own_segmenter_sees_its_mpp_and_its_mask_lies_where_it_should(tmp_path: Path) -> None:
    """It marks what lies above row 50 and left of column 30 of its own overview, of 8 mpp."""
    body = "np.indices(overview.shape[:2])[0] + 0 * overview[..., 0] < 50"
    own = read_segmenter(own_file(tmp_path, body))
    with open_slide(str(REAL_SLIDE)) as slide:
        overview, scale = slide.overview(16.0)
        tissue = tissue_of(slide, overview, scale, tissue_by=own)
    assert tissue.mask[:25].all()
    assert not tissue.mask[25:].any()


def test_another_file_or_other_weights_are_another_segmenter(tmp_path: Path) -> None:
    one = read_segmenter(own_file(tmp_path, "overview[..., 0] < 200"))
    other = read_segmenter(own_file(tmp_path, "overview[..., 0] < 201"))
    assert one.name != other.name
    path = Path(own_file(tmp_path, "overview[..., 0] < 200"))
    weights = tmp_path / "w.bin"
    path.write_text(path.read_text() + f"WEIGHTS = {str(weights)!r}\n")
    with pytest.raises(InputError, match=r"its WEIGHTS, .*w\.bin, are not a file"):
        read_segmenter(str(path))
    weights.write_bytes(b"1")
    first = read_segmenter(str(path)).name
    weights.write_bytes(b"2")
    assert read_segmenter(str(path)).name != first


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("1 / 0", r"^\S*\.py failed on it: ZeroDivisionError"),
        ("overview", r"of shape \[93, 70, 3\]; a mask of finite numbers .* of shape \[93, 70\]"),
        ("overview[..., 0] * np.nan", "a mask of finite numbers"),
        ("overview[..., 0] < 0", "no tissue found"),
    ],
)
def test_segmenter_that_fails_is_the_slides_reason(tmp_path: Path, body: str, reason: str) -> None:
    lake = create_lake(tmp_path / "lake", LakeConfig())
    own = read_segmenter(own_file(tmp_path, body, 'name="mine", mpp=16.0'))
    row = {"slide": 0, "slide_id": "r", "uri": str(REAL_SLIDE), "fingerprint": "1"}
    outcome = cut_or_reason(lake.store, lake.config, {**row, "tissue_by": own})
    assert isinstance(outcome, dict)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(outcome["reason"])


def test_what_is_no_way_to_find_tissue_is_refused(tmp_path: Path) -> None:
    assert [chosen_method(name) for name in NAMES] == ["standard", *METHODS]
    with pytest.raises(
        InputError, match=r"one of standard, none, fixed, otsu, cells, or a FILE\.py"
    ):
        chosen_method("hsv")
    for text, reason in (
        ("x = 1", "must define SEGMENTER"),
        ("import nowhere", "can't be run: ModuleNotFoundError"),
        ("from slidelake import Segmenter\nSegmenter(name='m', mpp=0.1)", "allowed are 1 to 64"),
    ):
        (tmp_path / "bad.py").write_text(text)
        with pytest.raises(InputError, match=reason):
            chosen_method(str(tmp_path / "bad.py"))
    with pytest.raises(InputError, match="can't be read"):
        chosen_method(str(tmp_path / "gone.py"))


def test_means_over_other_pixels_are_exact() -> None:
    values = np.random.default_rng(0).random((12, 18)) < 0.5
    halved = area_means(values, 2.0, (6, 9), 4.0)
    np.testing.assert_allclose(halved, values.reshape(6, 2, 9, 2).mean(axis=(1, 3)), atol=1e-6)
    assert area_means(values, 2.0, (7, 9), 4.0)[6].max() == 0
    doubled = area_means(values, 2.0, (24, 36), 1.0)
    np.testing.assert_allclose(doubled, values.repeat(2, 0).repeat(2, 1), atol=1e-6)
