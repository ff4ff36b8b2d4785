"""Focus of tiles against blur that is known: which measure, and how coarse the pixels may be.

    python -m benchmarks.tissue_focus SLIDES

SLIDES holds slides of the generator with their `.truth.npz`. It blurs by a Gaussian of 4 pixels of
0.5 um. AUC: the chance that a tile of 128 um that is sharp has the higher score than a blurred one
of the same slide (tiles half way, under pen or with little tissue are left out). The real slide is
blurred here, by Gaussians of several widths.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from simplejpeg import decode_jpeg, encode_jpeg
from sklearn.metrics import roc_auc_score

from benchmarks.report import RESULTS, table, write_report
from benchmarks.tissue_cases import Mask, Picture
from ingest.readers.open_slide import open_slide
from ingest.scores.focus import FOCUS_MPP, focus_map
from ingest.tissue.overview_tissue import find_tissue

REAL = Path(__file__).parent.parent / "examples" / "data" / "CMU-1-Small-Region.svs"
GLASS = 244
CELLS = 8  # of 16 um along a tile of 128 um
NEAR_CELLS = 61

Scores = npt.NDArray[np.float32]
Measure = Callable[[Picture, int], Scores]


def focus(pixels: Picture, factor: int) -> Scores:
    """Return our focus score: energy of the Laplacian over energy of the gradient."""
    shape = (pixels.shape[0] // factor, pixels.shape[1] // factor)
    return focus_map([(0, 0, pixels[: shape[0] * factor, : shape[1] * factor])], shape, factor)


def laplacian(pixels: Picture, factor: int) -> Scores:
    """Return the usual focus score: mean square of the Laplacian of grey."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return cells(cv2.Laplacian(grey, cv2.CV_32F) ** 2, factor)


def cells(focus_scores: Scores, factor: int) -> Scores:
    """Return means over squares of `factor` pixels; pixels of partial squares are dropped."""
    height, width = (n // factor * factor for n in focus_scores.shape)
    size = (width // factor, height // factor)
    means: Scores = cv2.resize(focus_scores[:height, :width], size, interpolation=cv2.INTER_AREA)
    return means


def of_tiles(focus_scores: Scores, within: Mask) -> tuple[Scores, Scores]:
    """Return each tile's mean within a mask, and the share of the tile in the mask."""
    share = cells(within.astype(np.float32), CELLS)
    sums = cells(np.where(within, focus_scores, 0).astype(np.float32), CELLS)
    means: Scores = (sums / np.maximum(share, 1e-6)).astype(np.float32)
    return means, share


def auc(sharp: Scores, blurred: Scores) -> float:
    """Return the probability that a sharp tile has a higher score than a blurred tile."""
    truth = np.r_[np.ones(len(sharp)), np.zeros(len(blurred))]
    return float(roc_auc_score(truth, np.r_[sharp, blurred]))


def fainter(pixels: Picture, strength: float) -> Picture:
    """Return the same section in a stain of another strength."""
    faint = GLASS * (np.maximum(pixels, 1) / GLASS) ** strength
    return np.clip(faint, 0, 255).astype(np.uint8)


def halved(pixels: Picture) -> Picture:
    """Return the picture at twice the mpp."""
    size = (pixels.shape[1] // 2, pixels.shape[0] // 2)
    half: Picture = cv2.resize(
        pixels[: size[1] * 2, : size[0] * 2], size, interpolation=cv2.INTER_AREA
    )
    return half


def on_generated(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """Yield the AUC on each slide, for each measure, mpp and strength of stain."""
    scores_by_case: dict[tuple[str, float, float], list[tuple[float, float, float]]] = {}
    for path in paths:
        with open_slide(str(path)) as slide:
            pixels, _ = slide.overview(FOCUS_MPP)
        with np.load(path.with_suffix(".truth.npz")) as file:
            truth = {name: file[name] for name in ("tissue", "pen", "blur")}
        for mpp, at in ((FOCUS_MPP, pixels), (2 * FOCUS_MPP, halved(pixels))):
            for strength in (1.0, 0.5, 0.25):
                fainter_pixels = fainter(at, strength)
                for name, run in (("focus", focus), ("Laplacian", laplacian)):
                    sharp, blurred = split(run(fainter_pixels, round(16 / mpp)), truth)
                    row = (auc(sharp, blurred), float(np.median(sharp)), float(np.median(blurred)))
                    scores_by_case.setdefault((name, mpp, strength), []).append(row)
    for (name, mpp, strength), rows in scores_by_case.items():
        aucs, sharp_ones, blurred_ones = zip(*rows, strict=True)
        yield {
            "slides": f"generated ({len(rows)})",
            "measure": name,
            "mpp": mpp,
            "stain": strength,
            "sigma_um": 2.0,
            "auc_worst": round(min(aucs), 4),
            "auc_median": round(statistics.median(aucs), 4),
            "sharp": round(statistics.median(sharp_ones), 3),
            "blurred": round(statistics.median(blurred_ones), 3),
        }


def split(focus_scores: Scores, truth: dict[str, Mask]) -> tuple[Scores, Scores]:
    """Return the scores of the certainly sharp tiles, and of the certainly blurred tiles."""
    height, width = focus_scores.shape
    tissue, pen, blur = (truth[name][:height, :width] for name in ("tissue", "pen", "blur"))
    focus_scores = focus_scores[: tissue.shape[0], : tissue.shape[1]]
    clear = tissue & ~(cv2.dilate(pen.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0)
    near = cv2.dilate(blur.astype(np.uint8), np.ones((NEAR_CELLS, NEAR_CELLS), np.uint8))
    scores, share = of_tiles(focus_scores, clear)
    inside, outside = (cells(mask.astype(np.float32), CELLS) for mask in (blur, near))
    return scores[(share > 0.5) & (outside == 0)], scores[(share > 0.5) & (inside > 0.9)]


def on_real() -> Iterator[dict[str, Any]]:
    """Yield the AUC of the real slide against its blurred copies."""
    with open_slide(str(REAL)) as slide:
        sharp_pixels, _ = slide.overview(0.5)
    sharp = real_scores(sharp_pixels)
    for sigma_um in (0.5, 1.0, 2.0, 3.0):
        blurred = real_scores(cv2.GaussianBlur(sharp_pixels, (0, 0), sigma_um / 0.5))
        for (name, mpp), scores in sharp.items():
            yield {
                "slides": "real (CMU)",
                "measure": name,
                "mpp": mpp,
                "stain": 1.0,
                "sigma_um": sigma_um,
                "auc_worst": None,
                "auc_median": round(auc(scores, blurred[name, mpp]), 4),
                "sharp": round(float(np.median(scores)), 3),
                "blurred": round(float(np.median(blurred[name, mpp])), 3),
            }


def real_scores(pixels: Picture) -> dict[tuple[str, float], Scores]:
    """Return scores of the tiles with tissue, from a picture at 0.5 mpp after JPEG encoding."""
    by_score = {}
    pixels = decode_jpeg(encode_jpeg(np.ascontiguousarray(pixels), quality=80))
    tissue = find_tissue(halved(halved(halved(halved(halved(pixels))))), 16.0).mask
    for mpp in (0.5, 1.0, 2.0, 4.0):
        for name, run in (("focus", focus), ("Laplacian", laplacian)):
            focus_scores = run(pixels, round(16 / mpp))
            shape = tuple(min(a, b) for a, b in zip(focus_scores.shape, tissue.shape, strict=True))
            cut = (slice(shape[0]), slice(shape[1]))
            scores, share = of_tiles(focus_scores[cut], tissue[cut])
            by_score[name, mpp] = scores[share > 0.5]
        pixels = halved(pixels)
    return by_score


def main() -> None:
    """Run, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slides", type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    paths = [p for p in sorted(options.slides.glob("*.svs")) if p.stem != "plain"]
    lines = [*on_generated(paths), *on_real()]
    print(table(lines))
    settings = {"slides": len(paths), "tile_um": 16 * CELLS}
    print(write_report(RESULTS, lines, settings, name="tissue-focus"))


if __name__ == "__main__":
    main()
