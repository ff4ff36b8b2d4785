"""The ways to find tissue, by name; `--tissue` chooses one."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ingest.errors import InputError
from ingest.grid import area_means
from ingest.readers.slide_reader import SlideReader
from ingest.teachers.own_file import SUFFIX
from ingest.tissue.isolated_cells import find_cells
from ingest.tissue.overview_tissue import (
    BoolArray,
    RgbArray,
    Tissue,
    find_tissue,
    saturated,
    verdict_of,
    without_specks,
)
from ingest.tissue.own_segmenter import OwnSegmenter, read_segmenter

STANDARD = "standard"
# A tile is kept for a quarter of one pixel of the overview: less is a neighbour's cell.
ANY_PX = 0.25

TissueBy = str | OwnSegmenter


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to find tissue.

    Attributes:
        summary: what the method does, in a line for people.
        mask: function of the slide, its overview [H, W, 3] and the overview's scale; it returns
            the tissue [H, W] and a note on it.
        least_px: pixels of the overview that have to be tissue for a tile to be kept, where that
            is not the lake's least share.
    """

    summary: str
    mask: Callable[[SlideReader, RgbArray, float], tuple[BoolArray, str]]
    least_px: float | None = None


def _everything(_: SlideReader, overview: RgbArray, __: float) -> tuple[BoolArray, str]:
    return np.ones(overview.shape[:2], bool), "tissue was not looked for"


def _fixed(slide: SlideReader, overview: RgbArray, scale: float) -> tuple[BoolArray, str]:
    mask, _ = saturated(overview)
    return without_specks(mask, slide.mpp * scale), "by a fixed threshold"


def _otsu(slide: SlideReader, overview: RgbArray, scale: float) -> tuple[BoolArray, str]:
    mask, threshold = saturated(overview, otsu=True)
    return without_specks(mask, slide.mpp * scale), f"by Otsu's threshold, {threshold} of 255"


def _cells(slide: SlideReader, overview: RgbArray, scale: float) -> tuple[BoolArray, str]:
    return find_cells(slide, overview, scale), "isolated cells were looked for"


METHODS = {
    "none": Method(summary="every tile is kept", mask=_everything, least_px=0.0),
    "fixed": Method(summary="saturation over 8 of 255", mask=_fixed),
    "otsu": Method(summary="saturation over Otsu's threshold", mask=_otsu),
    "cells": Method(summary="isolated cells: cytology", mask=_cells, least_px=ANY_PX),
}
"""All but `standard`, which is `ingest.tissue.overview_tissue.find_tissue`."""
NAMES = (STANDARD, *METHODS)


def chosen_method(text: str) -> TissueBy:
    """Return the method that `--tissue` names, or a user's segmenter.

    Raises:
        InputError: the text is neither a method nor a segmenter's file.
    """
    if text.endswith(SUFFIX):
        return read_segmenter(text)
    if text not in NAMES:
        msg = f"--tissue {text} given; it is one of {', '.join(NAMES)}, or a FILE.py of your own"
        raise InputError(msg)
    return text


def method_name(tissue_by: TissueBy) -> str:
    """Return the name of a way to find tissue, as a slide's row keeps it."""
    return tissue_by.name if isinstance(tissue_by, OwnSegmenter) else tissue_by


def tissue_of(
    slide: SlideReader,
    overview: RgbArray,
    scale: float,
    *,
    tissue_by: TissueBy = STANDARD,
    pen_veto: bool | None = None,
) -> Tissue:
    """Find tissue on a slide.

    Args:
        slide: the open slide.
        overview: the whole slide, [H, W, 3], at about 16 mpp.
        scale: side of one pixel of the overview in level-0 pixels.
        tissue_by: the method that finds tissue.
        pen_veto: whether pen is taken out of the tissue; None: by `standard` alone.

    Raises:
        SlideError: pixels can't be read, or a user's segmenter fails.
    """
    veto = tissue_by == STANDARD if pen_veto is None else pen_veto
    standard = find_tissue(overview, slide.mpp * scale, pen_veto=veto)
    if tissue_by == STANDARD:
        return standard
    if isinstance(tissue_by, OwnSegmenter):
        mask, words = _segmented(tissue_by, slide, overview, scale)
        least_px = ANY_PX if tissue_by.card.isolated else None
    else:
        method = METHODS[tissue_by]
        mask, words = method.mask(slide, overview, scale)
        least_px = method.least_px
    if veto:
        mask &= ~standard.pen
    share = float(mask.mean())
    return replace(
        standard,
        mask=mask,
        share=share,
        least_px=least_px,
        verdict="ok" if tissue_by == "none" else verdict_of(share, least_px),
        why=f"tissue on {share:.2%} of the slide, {words}",
    )


def _segmented(
    own: OwnSegmenter, slide: SlideReader, overview: RgbArray, scale: float
) -> tuple[BoolArray, str]:
    """Return a segmenter's mask, resized to the pixels of the overview, and a note on it."""
    pixels, its_scale = slide.overview(own.card.mpp)
    share = area_means(own.mask(pixels), its_scale, overview.shape[:2], scale)
    least = 0 if own.card.isolated else 0.5
    return share > least, f"as {own.name} says"
