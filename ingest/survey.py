"""What is known of a slide before a tile is cut: tissue, pen, and maps of all scores."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from ingest.grid import Grid, tissue_shares
from ingest.masks import read_mask
from ingest.readers.slide_reader import SlideReader
from ingest.scores import FOCUS_MPP, focus_map, score_maps, tile_means
from ingest.tissue import ALL_TISSUE, OVERVIEW_MPP, Tissue, find_tissue

# 32 pixels at 16 mpp are 512 um, which is one stored tile of 256 px at 2 mpp.
BLOCK_PX = 32

Float32Array = npt.NDArray[np.float32]
RgbArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A slide at about 16 mpp.

    Attributes:
        overview: RGB [H, W, 3].
        scale: side of one of its pixels in level-0 pixels.
        tissue: what was found on it, or given.
        maps: pen, brightness, saturation, focus, each [H, W]; focus is NaN off the tissue.
    """

    overview: RgbArray
    scale: float
    tissue: Tissue
    maps: dict[str, Float32Array]

    def shares(self, grids: Sequence[Grid]) -> list[Float32Array]:
        """Share of each tile that is tissue, [grid.height, grid.width] per grid, finest first."""
        return tissue_shares(self.tissue.mask, self.scale, grids)

    def scores(self, grids: Sequence[Grid]) -> list[dict[str, Float32Array]]:
        """Means of all maps over each tile: pen over all of it, the others over its tissue.

        Returns:
            Per grid, finest first, [grid.height, grid.width] by name; NaN where nothing is known.
        """
        found: list[dict[str, Float32Array]] = [{} for _ in grids]
        for name, values in self.maps.items():
            weights = None if name == "pen" else self.tissue.mask
            means = tile_means(values, self.scale, grids, weights)
            for scores, mean in zip(found, means, strict=True):
                scores[name] = mean
        return found


def survey(slide: SlideReader, *, pen_veto: bool = True, mask: str | None = None) -> Survey:
    """Look at a slide.

    Args:
        slide: open.
        pen_veto: take pen out of the tissue; see `find_tissue`.
        mask: a GeoJSON or PNG that says what is tissue instead.

    Raises:
        SlideError: pixels or the mask can't be read.
    """
    overview, scale = slide.overview(OVERVIEW_MPP)
    tissue = find_tissue(overview, slide.mpp * scale, pen_veto=pen_veto)
    if mask is not None:
        tissue = _given(tissue, mask, slide, overview.shape[:2], scale)
    maps = score_maps(overview, tissue)
    maps["focus"] = _focus(slide, tissue, scale)
    return Survey(overview=overview, scale=scale, tissue=tissue, maps=maps)


def _given(
    found: Tissue, path: str, slide: SlideReader, shape: tuple[int, int], scale: float
) -> Tissue:
    mask = read_mask(path, size_px=slide.size_px, shape=shape, scale=scale)
    share = float(mask.mean())
    return Tissue(
        mask=mask,
        pen=found.pen,
        share=share,
        pen_share=found.pen_share,
        verdict="suspicious" if share > ALL_TISSUE else "ok" if mask.any() else "no tissue",
        why=f"tissue on {share:.2%} of the slide, as {path} says",
    )


def _focus(slide: SlideReader, tissue: Tissue, scale: float) -> Float32Array:
    factor = _divisor(scale, scale * slide.mpp / FOCUS_MPP)
    blocks = _blocks(tissue, BLOCK_PX)
    pixels = (
        (y * factor, x * factor, slide.piece(scale / factor, x, y, width, height, factor))
        for y, x, height, width in blocks
    )
    return focus_map(pixels, tissue.mask.shape, factor)


def _divisor(scale: float, wanted: float) -> int:
    """The largest whole number up to `wanted` that divides `scale`, if that is whole itself."""
    most = max(1, round(wanted))
    if scale != int(scale):
        return most
    return max(n for n in range(1, most + 1) if not int(scale) % n)


def _blocks(tissue: Tissue, side: int) -> Iterator[tuple[int, int, int, int]]:
    """(y, x, height, width) of squares of an overview that hold tissue."""
    height, width = tissue.mask.shape
    for y in range(0, height, side):
        for x in range(0, width, side):
            if tissue.mask[y : y + side, x : x + side].any():
                yield y, x, min(side, height - y), min(side, width - x)


def mask_picture(seen: Survey, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Tissue (255) as a grey picture of a thumbnail's shape."""
    size = shape[::-1]
    picture: npt.NDArray[np.uint8] = cv2.resize(
        seen.tissue.mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_NEAREST
    )
    return picture
