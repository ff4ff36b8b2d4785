"""Grids and sources: numbers in, numbers out."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import InputError, SlideError
from ingest.grid import Grid, keep_tiles, plan_grids, tissue_shares
from ingest.select.sources import fingerprint, resolve, split_duplicates

RATIOS = {0.5: 1, 2.0: 4}


@pytest.mark.parametrize(
    ("slide_mpp", "side_px", "effective"),
    [
        (0.5, 256, 0.5),
        (0.499, 256, 0.499),
        (0.2527, 512, 0.5054),
        (0.25, 512, 0.5),
        (0.46, 278, 0.46 * 278 / 256),
        (0.121, 1024, 0.484),
    ],
)
def test_side_of_a_tile_at_level_0(slide_mpp: float, side_px: int, effective: float) -> None:
    if slide_mpp == 0.121:  # 0.484 is 3.2 % off: resampled, not snapped
        side_px, effective = 1058, 0.121 * 1058 / 256
    grids = plan_grids((10_000, 8_000), slide_mpp, 256, RATIOS)
    assert grids[0.5].side_px == side_px
    assert grids[0.5].effective_mpp == pytest.approx(effective)


@given(
    width=st.integers(1, 300_000),
    height=st.integers(1, 300_000),
    mpp=st.floats(0.1, 0.5),
)
def test_grids_nest_and_cover_the_slide(width: int, height: int, mpp: float) -> None:
    fine, coarse = plan_grids((width, height), mpp, 256, RATIOS).values()
    assert coarse.side_px == 4 * fine.side_px
    for grid in (fine, coarse):
        assert (grid.width - 1) * grid.side_px < width <= grid.width * grid.side_px
        assert (grid.height - 1) * grid.side_px < height <= grid.height * grid.side_px
        assert abs(grid.effective_mpp / grid.mpp - 1) < 0.021


@given(
    width=st.integers(1, 300_000),
    height=st.integers(1, 300_000),
    mpp=st.floats(0.1, 0.5),
    stride_px=st.integers(1, 256),
)
def test_overlapping_grids_nest_and_cover_the_slide(
    width: int, height: int, mpp: float, stride_px: int
) -> None:
    fine, coarse = plan_grids((width, height), mpp, 256, RATIOS, stride_px=stride_px).values()
    plain = plan_grids((width, height), mpp, 256, RATIOS)[0.5]
    assert (fine.side_px, fine.effective_mpp) == (plain.side_px, plain.effective_mpp)
    assert coarse.step_px == 4 * fine.step_px <= coarse.side_px
    assert fine.step_px == pytest.approx(fine.side_px * stride_px / 256, abs=1)
    for grid in (fine, coarse):
        assert (grid.width - 1) * grid.step_px < width <= grid.width * grid.step_px
        assert (grid.height - 1) * grid.step_px < height <= grid.height * grid.step_px
    # The parent of every tile is a cell of the coarse grid, and holds all of it.
    assert (fine.width - 1) // 4 < coarse.width
    last = 3 * fine.step_px + fine.side_px
    assert last <= coarse.side_px


def test_pixels_are_never_made_up() -> None:
    with pytest.raises(SlideError, match=r"1 mpp, coarser than the 0\.5 mpp asked"):
        plan_grids((1000, 1000), 1.0, 256, RATIOS)


def grid_of(
    width: int, height: int, side_px: int, ratio: int = 1, step_px: int | None = None
) -> Grid:
    return Grid(
        mpp=0.5,
        effective_mpp=0.5,
        tile_px=256,
        side_px=side_px,
        step_px=side_px if step_px is None else step_px,
        width=width,
        height=height,
        ratio=ratio,
    )


@given(st.integers(1, 60), st.integers(1, 60), st.integers(3, 40), st.integers(0, 2**32 - 1))
def test_tissue_share_is_the_exact_area(h: int, w: int, side: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((h, w)) < 0.5
    scale = 8  # a mask pixel is 8 level-0 pixels
    size = (w * scale, h * scale)
    grid = grid_of(-(-size[0] // side), -(-size[1] // side), side)
    pixels = np.zeros((grid.height * side, grid.width * side))
    pixels[: size[1], : size[0]] = np.kron(mask, np.ones((scale, scale)))
    expected = pixels.reshape(grid.height, side, grid.width, side).mean(axis=(1, 3))
    np.testing.assert_allclose(tissue_shares(mask, scale, [grid])[0], expected, atol=1e-6)


def test_kept_tiles_have_kept_parents() -> None:
    grids = [grid_of(10, 6, 256), grid_of(3, 2, 1024, ratio=4)]
    shares = [np.zeros((6, 10), np.float32), np.zeros((2, 3), np.float32)]
    shares[0][5, 9] = 0.5
    shares[1][0, 1] = 0.2
    fine, coarse = keep_tiles(shares, grids, 0.1)
    assert np.argwhere(fine).tolist() == [[5, 9]]
    assert np.argwhere(coarse).tolist() == [[0, 1], [1, 2]]


# ---------------------------------------------------------------------- sources


def test_folder_glob_and_file_name_the_same_slides(tmp_path: Path) -> None:
    for name in ("b.svs", "a.tiff", "notes.txt", "deep/c.SVS"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [s.slide_id for s in resolve([str(tmp_path)])] == ["a", "b", "c"]
    assert [s.slide_id for s in resolve([f"{tmp_path}/*.svs"])] == ["b"]
    assert [s.slide_id for s in resolve([f"{tmp_path}/b.svs", str(tmp_path)])] == ["b", "a", "c"]


def test_manifest_keeps_every_column(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(
        "slide_id,uri,patient_id,mpp,site\nS1,a.svs,7,0.25,A\nS2,/abs/b.svs,8,,B\n"
    )
    one, two = resolve([str(tmp_path / "m.csv")])
    assert (one.slide_id, one.uri, one.patient_id, one.mpp, one.extra) == (
        "S1", f"{tmp_path}/a.svs", "7", 0.25, {"site": "A"},
    )  # fmt: skip
    assert (two.uri, two.mpp) == ("/abs/b.svs", None)
    pl.read_csv(tmp_path / "m.csv").write_parquet(tmp_path / "m.parquet")
    assert resolve([str(tmp_path / "m.parquet")]) == [one, two]


def test_manifest_without_uri_says_so(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("slide,path\n1,a.svs\n")
    with pytest.raises(InputError, match="needs a column 'uri'"):
        resolve([str(tmp_path / "m.csv")])
    with pytest.raises(InputError, match="can't be read"):
        resolve([str(tmp_path / "none.csv")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no slides found"):
        resolve([str(tmp_path / "empty")])


def test_same_name_in_two_folders_is_noticed(tmp_path: Path) -> None:
    first, later = split_duplicates(resolve([f"{tmp_path}/x/a.svs", f"{tmp_path}/y/a.svs"]))
    assert [s.uri for s in first] == [f"{tmp_path}/x/a.svs"]
    assert [s.uri for s in later] == [f"{tmp_path}/y/a.svs"]


def test_fingerprint_is_of_content_not_of_time(tmp_path: Path) -> None:
    one, two = tmp_path / "a.svs", tmp_path / "b.svs"
    one.write_bytes(b"x" * 200_000)
    two.write_bytes(b"x" * 200_000)
    assert fingerprint(str(one)) == fingerprint(str(two))
    two.write_bytes(b"x" * 199_999 + b"y")
    assert fingerprint(str(one)) != fingerprint(str(two))
    with pytest.raises(SlideError, match="does not exist"):
        fingerprint(str(tmp_path / "c.svs"))
    with pytest.raises(SlideError, match="is a folder"):
        fingerprint(str(tmp_path))
