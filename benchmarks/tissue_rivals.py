"""Other projects' tissue detectors, run by an interpreter that has them installed.

    python -m benchmarks.tissue_rivals PICTURES.npz MASKS.npz    # needs hs2p, histolab, opencv
    python -m benchmarks.tissue_rivals --ihc PICTURE.npz         # needs scikit-image

It imports nothing of ours, so that it runs where slidelake is not installed. CLAM is no package:
its sequence of calls and its defaults (create_patches_fp.py) are followed here, with hs2p's own
`threshold` and `otsu` methods, which descend from it, as a check of the first half.
"""

import functools
import importlib
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

REPEATS = 5
REF_PATCH_PX = 512
AREA_TISSUE, AREA_HOLE, MAX_HOLES = 100, 16, 8

Mask = npt.NDArray[np.bool_]
Picture = npt.NDArray[np.uint8]
Detector = Callable[[Picture], Mask]


def clam_mask(picture: Picture, *, otsu: bool) -> npt.NDArray[np.uint8]:
    """Return CLAM's binary image: saturation, median 7, threshold 8 or Otsu's, closing 4."""
    saturation = cv2.medianBlur(cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)[:, :, 1], 7)
    kind = cv2.THRESH_OTSU + cv2.THRESH_BINARY if otsu else cv2.THRESH_BINARY
    _, mask = cv2.threshold(saturation, 0 if otsu else 8, 255, kind)
    closed: npt.NDArray[np.uint8] = cv2.morphologyEx(
        mask, cv2.MORPH_CLOSE, np.ones((4, 4), np.uint8)
    )
    return closed


def clam(picture: Picture, *, otsu: bool, downsample: float = 32.0) -> Mask:
    """Return the mask of CLAM's contours over 100 patches of 512 px, less their 8 largest holes."""
    mask = clam_mask(picture, otsu=otsu)
    patch = int(REF_PATCH_PX**2 / downsample**2)
    contours, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(mask.shape, np.uint8)
    if tree is None:
        return filled > 0
    parents = tree[0][:, 3]
    for number in np.flatnonzero(parents == -1).tolist():
        inner = [contours[i] for i in np.flatnonzero(parents == number).tolist()]
        area = cv2.contourArea(contours[number]) - sum(cv2.contourArea(hole) for hole in inner)
        if area <= AREA_TISSUE * patch:
            continue
        largest = sorted(inner, key=cv2.contourArea, reverse=True)[:MAX_HOLES]
        holes = [hole for hole in largest if cv2.contourArea(hole) > AREA_HOLE * patch]
        cv2.drawContours(filled, [contours[number]], -1, 1, cv2.FILLED)
        cv2.drawContours(filled, holes, -1, 0, cv2.FILLED)
    return filled > 0


def hs2p(method: str) -> Detector:
    """Return the mask of hs2p's detector with default numbers; `hsv` is its default method."""
    config = importlib.import_module("hs2p.configs").SegmentationConfig(method=method)
    segment = importlib.import_module("hs2p.segmentation").segment_tissue_image
    return lambda picture: np.asarray(segment(picture, config=config) > 0)


def histolab() -> Detector:
    """Apply the filters of histolab's TissueMask to the thumbnail of a slide."""
    compositions = importlib.import_module("histolab.filters.compositions")
    slide = importlib.import_module("histolab.slide").Slide
    from_array = importlib.import_module("PIL.Image").fromarray
    filters = compositions.FiltersComposition(slide).tissue_mask_filters
    return lambda picture: np.asarray(filters(from_array(picture)), bool)


def detectors() -> dict[str, Detector]:
    """Return all detectors by name."""
    return {
        "CLAM, default": functools.partial(clam, otsu=False),
        "CLAM, Otsu": functools.partial(clam, otsu=True),
        "hs2p 6.1, default (hsv)": hs2p("hsv"),
        "histolab 0.7, TissueMask": histolab(),
    }


def check_clam(pictures: dict[str, Picture]) -> None:
    """Compare our version of CLAM's first half with hs2p's, and raise if they differ.

    Raises:
        AssertionError: a mask differs.
    """
    for name, picture in pictures.items():
        for method, otsu in (("threshold", False), ("otsu", True)):
            if not np.array_equal(hs2p(method)(picture), clam_mask(picture, otsu=otsu) > 0):
                msg = f"CLAM's {method} and hs2p's differ on {name}"
                raise AssertionError(msg)


def main(source: str, target: Path) -> None:
    """Run all detectors over all pictures, or write out a real one that a package brings along."""
    if source == "--ihc":
        np.savez(target, ihc=importlib.import_module("skimage.data").immunohistochemistry())
        return
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")
    with np.load(source) as file:
        pictures: dict[str, Picture] = {name: file[name] for name in file.files}
    check_clam(pictures)
    masks: dict[str, Mask] = {}
    times: dict[str, dict[str, float]] = {}
    for detector, run in detectors().items():
        for name, picture in pictures.items():
            seconds = []
            for _ in range(REPEATS):
                start = time.perf_counter()
                masks[f"{name}|{detector}"] = run(picture)
                seconds.append(time.perf_counter() - start)
            times.setdefault(detector, {})[name] = 1e3 * statistics.median(seconds)
    np.savez_compressed(target, allow_pickle=False, **masks)
    target.with_suffix(".json").write_text(json.dumps(times))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
