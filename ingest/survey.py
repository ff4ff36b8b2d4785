"""Facts of a slide before a tile is cut: tissue, pen, and maps of all scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from ingest.grid import Grid, keep_tiles, tissue_shares
from ingest.readers.slide_reader import SlideReader
from ingest.scores.score_table import SlideView, slide_scores
from ingest.scores.tile_means import tile_means
from ingest.tissue.masks import read_mask
from ingest.tissue.overview_tissue import OVERVIEW_MPP, Tissue, verdict_of
from ingest.tissue.tissue_methods import STANDARD, TissueBy, tissue_of

Float32Array = npt.NDArray[np.float32]
RgbArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A slide at about 16 mpp.

    Attributes:
        overview: RGB [H, W, 3].
        scale: side of one pixel of the overview in level-0 pixels.
        tissue: the tissue that was found on the slide, or that a mask marks.
        maps: maps of the scores that are means over the slide or its tissue, each [H, W], by name.
    """

    overview: RgbArray
    scale: float
    tissue: Tissue
    maps: dict[str, Float32Array]

    def shares(self, grids: Sequence[Grid]) -> list[Float32Array]:
        """Return tissue shares of tiles, [grid.height, grid.width] per grid, finest first."""
        return tissue_shares(self.tissue.mask, self.scale, grids)

    def kept(self, grids: Sequence[Grid], tissue_min: float) -> list[npt.NDArray[np.bool_]]:
        """Return the kept tiles of each grid, finest first.

        A tile is kept for the lake's least share of tissue, or for less where single cells were
        looked for.
        """
        least, least_px = [tissue_min] * len(grids), self.tissue.least_px
        if least_px is not None:
            cells = [least_px * (self.scale / grid.side_px) ** 2 for grid in grids]
            least = [min(tissue_min, share) for share in cells]
        return keep_tiles(self.shares(grids), grids, least)

    def scores(self, grids: Sequence[Grid]) -> list[dict[str, Float32Array]]:
        """Return all scores of kind `slide` of each tile.

        Returns:
            Per grid, finest first, [grid.height, grid.width] by name; NaN where no value is known.
        """
        by_grid: list[dict[str, Float32Array]] = [{} for _ in grids]
        for name, score in slide_scores().items():
            if score.weighting == "tile":
                means = tissue_shares(self.maps[name] > 0, self.scale, grids)
            else:
                weights = self.tissue.mask if score.weighting == "tissue" else None
                means = tile_means(self.maps[name], self.scale, grids, weights)
            for scores, mean in zip(by_grid, means, strict=True):
                scores[name] = mean
        return by_grid


def survey(
    slide: SlideReader,
    *,
    pen_veto: bool | None = None,
    mask: str | None = None,
    tissue_by: TissueBy = STANDARD,
) -> Survey:
    """Return the survey of a slide: its overview, its tissue and the maps of its scores.

    Args:
        slide: the open slide.
        pen_veto: whether pen is taken out of the tissue; None: as the method does.
        mask: a GeoJSON or PNG file that marks the tissue instead.
        tissue_by: the method that finds tissue where there is no mask.

    Raises:
        SlideError: pixels or the mask can't be read.
    """
    overview, scale = slide.overview(OVERVIEW_MPP)
    by = STANDARD if mask is not None else tissue_by
    tissue = tissue_of(slide, overview, scale, tissue_by=by, pen_veto=pen_veto)
    if mask is not None:
        tissue = _of_mask(tissue, mask, slide, overview.shape[:2], scale)
    view = SlideView(slide=slide, overview=overview, scale=scale, tissue=tissue)
    maps = {
        name: score.slide_map(view) for name, score in slide_scores().items() if score.slide_map
    }
    return Survey(overview=overview, scale=scale, tissue=tissue, maps=maps)


def _of_mask(
    by_method: Tissue, path: str, slide: SlideReader, shape: tuple[int, int], scale: float
) -> Tissue:
    mask = read_mask(path, size_px=slide.size_px, shape=shape, scale=scale)
    share = float(mask.mean())
    return Tissue(
        mask=mask,
        pen=by_method.pen,
        share=share,
        pen_share=by_method.pen_share,
        verdict=verdict_of(share, least_px=0),
        why=f"tissue on {share:.2%} of the slide, as {path} says",
    )


def mask_picture(slide_survey: Survey, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return the tissue (255) as a grey picture of a thumbnail's shape."""
    size = shape[::-1]
    picture: npt.NDArray[np.uint8] = cv2.resize(
        slide_survey.tissue.mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_NEAREST
    )
    return picture
