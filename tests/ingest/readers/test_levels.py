"""Levels of a pyramid that are no reductions of level 0 are left out, and what is left is used."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from featurestore import Lake, LakeConfig, SlideCut, create_lake
from ingest.cut import cut_slide
from ingest.readers.level_reader import LevelReader
from ingest.readers.openslide_reader import OpenSlideReader
from ingest.readers.tiff.tiff_reader import TiffReader
from ingest.select.sources import fingerprint
from tests.conftest import shard_samples
from tests.worlds.planted_levels import FAULTS, Pixels, real_pixels, reduced, write_slide

CONFIG = LakeConfig(tile_px=256, mpps=(0.5, 2.0))


@pytest.fixture(scope="module")
def pyramid() -> list[Pixels]:
    """Levels 1, 4 and 16 as they should be."""
    pixels = real_pixels()
    return [pixels, reduced(pixels, 4), reduced(pixels, 16)]


def fit_levels(slide: LevelReader) -> list[bool]:
    return [slide.is_fit(level) for level in range(slide.levels)]


@pytest.mark.parametrize("jpeg", [True, False], ids=["jpeg", "deflate"])
@pytest.mark.parametrize("level", [1, 2])
def test_every_wrong_level_is_left_out(
    tmp_path: Path, pyramid: list[Pixels], level: int, *, jpeg: bool
) -> None:
    # Deflating takes time: the kinds that say most.
    names = FAULTS if jpeg else ("padded", "shifted", "narrow")
    for name in names:
        fault = FAULTS[name]
        levels = [fault(one) if n == level else one for n, one in enumerate(pyramid)]
        path = write_slide(tmp_path / f"{name}.tiff", levels, jpeg=jpeg)
        with TiffReader(str(path)) as slide:
            assert fit_levels(slide) == [n != level for n in range(3)], name
            (note,) = slide.notes
            assert note.startswith(f"level {level} is not used: it is ") or "differs" in note
            assert slide.name == ("tiff" if jpeg else "openslide")


# How scanners and converters make levels; none of it makes another picture.
WAYS = {
    "area": cv2.INTER_AREA,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "nearest": cv2.INTER_NEAREST,
}


@pytest.mark.parametrize("way", WAYS)
def test_right_levels_are_used_however_they_were_made(
    tmp_path: Path, pyramid: list[Pixels], way: str
) -> None:
    base = pyramid[0]
    sizes = [(base.shape[1] // by, base.shape[0] // by) for by in (2, 4, 8, 16, 32)]
    levels = [cv2.resize(base, size, interpolation=WAYS[way]) for size in sizes]
    path = write_slide(tmp_path / "a.tiff", [base, *levels], jpeg=True)
    for reader in (TiffReader, OpenSlideReader):
        with reader(str(path)) as slide:
            assert (all(fit_levels(slide)), slide.notes) == (True, [])


def test_a_pixel_more_or_less_and_a_shift_by_one_are_rounding(
    tmp_path: Path, pyramid: list[Pixels]
) -> None:
    base = pyramid[0]
    odd = cv2.resize(base, (683, 939), interpolation=cv2.INTER_AREA)
    moved = np.roll(pyramid[2], 1, axis=1)
    path = write_slide(tmp_path / "a.tiff", [base, odd, moved], jpeg=True)
    with TiffReader(str(path)) as slide:
        assert fit_levels(slide) == [True, True, True]
    two = np.roll(pyramid[1], 2, axis=0)
    path = write_slide(tmp_path / "b.tiff", [base, two], jpeg=True)
    with TiffReader(str(path)) as slide:
        assert slide.is_fit(1) is False
        assert slide.notes == ["level 1 is not used: it is shifted by 0, 2 px"]


def cut(lake: Lake, path: Path, number: int) -> SlideCut:
    size, mark = fingerprint(str(path))
    row = {"slide": number, "slide_id": path.stem, "uri": str(path), "bytes": size}
    return cut_slide(lake.store, lake.config, {**row, "fingerprint": mark})


def kept(slide_cut: SlideCut, mpp: float) -> set[tuple[int, int]]:
    tiles = slide_cut.grids[mpp].tiles
    return set(zip(tiles["grid_y"].to_pylist(), tiles["grid_x"].to_pylist(), strict=True))


@pytest.mark.slow
def test_tiles_are_those_of_the_slide_without_the_wrong_level(
    tmp_path: Path, pyramid: list[Pixels]
) -> None:
    lake = create_lake(tmp_path / "lake", CONFIG)
    bad_1 = [pyramid[0], FAULTS["shifted"](pyramid[1]), pyramid[2]]
    bad_2 = [*pyramid[:2], FAULTS["padded"](pyramid[2])]
    for number, (levels, without) in enumerate(
        ((bad_1, [pyramid[0], pyramid[2]]), (bad_2, pyramid[:2]))
    ):
        planted = cut(
            lake, write_slide(tmp_path / f"bad{number}.tiff", levels, jpeg=True), 2 * number
        )
        other = write_slide(tmp_path / f"good{number}.tiff", without, jpeg=True)
        right = cut(lake, other, 2 * number + 1)
        for mpp in CONFIG.mpps:
            assert kept(planted, mpp) == kept(right, mpp) != set()
        assert f"level {number + 1} is not used" in planted.row["notes"]
        assert right.row["notes"] is None
        assert (planted.row["mpp_x"], planted.row["mpp_y"]) == (0.5, 0.5)
        check_greys(lake, planted, pyramid[1])


def check_greys(lake: Lake, slide_cut: SlideCut, level_1: Pixels) -> None:
    """Tiles at 2 mpp show what level 0 shows there."""
    shard = slide_cut.grids[2.0].shard
    assert shard is not None
    samples = shard_samples(lake.store.path(shard.path))
    assert samples
    for sample in samples.values():
        tile = simplejpeg.decode_jpeg(sample["jpg"])
        sample_json = json.loads(sample["json"])
        x, y = sample_json["x"] // 4, sample_json["y"] // 4
        part = level_1[y : y + 256, x : x + 256]
        inside = tile[: part.shape[0], : part.shape[1]]
        # It is 28 and more where a wrong level is read.
        assert np.abs(inside.astype(int) - part).mean() < 9
