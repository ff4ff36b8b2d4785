"""Pictures of slides with known tissue and pen: generated slides, and artefacts added to them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from ingest.readers.open_slide import open_slide

GLASS = 244
FAT = 6  # the generator's class
STROKE_PX = 40

Mask = npt.NDArray[np.bool_]
Picture = npt.NDArray[np.uint8]

# Corners of the rules by which histolab tells pens, which were set on scans of real slides; the
# dark blue ones have the hue of haematoxylin. The black ones are ours.
PENS = {
    "blue": [(60, 120, 190), (120, 170, 200), (145, 180, 210), (37, 95, 160), (30, 65, 130)],
    "green": [(70, 110, 110), (45, 115, 100), (30, 75, 60), (170, 210, 200), (30, 50, 35)],
    "dark blue": [(40, 35, 85), (60, 60, 120), (90, 90, 140)],
    "grey green": [(150, 160, 140), (100, 110, 105), (165, 180, 180)],
    "black": [(20, 20, 20), (45, 42, 44), (60, 58, 62)],
    "red": [(150, 80, 90), (110, 20, 30), (185, 65, 105), (220, 115, 145), (125, 40, 70)],
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A picture at 16 mpp, with its true tissue and pen.

    Attributes:
        group: group over which scores are averaged.
        name: name of the picture.
        picture: RGB [H, W, 3].
        tissue: true tissue [H, W]; None for a real picture.
        pen: true pen [H, W].
        fat: true fat [H, W].
    """

    group: str
    name: str
    picture: Picture
    tissue: Mask | None
    pen: Mask
    fat: Mask


def read_slide(path: Path, group: str) -> Case:
    """Return the case of a generated slide, with the truth beside it."""
    with open_slide(str(path)) as slide:
        picture, scale = slide.overview(16.0)
    with np.load(path.with_suffix(".truth.npz")) as truth:
        if abs(scale - int(truth["ds"])) > 0.1:
            msg = f"{path} has an overview at 1/{scale:g}, its truth is at 1/{truth['ds']}"
            raise ValueError(msg)
        shape = picture.shape[:2]
        tissue, pen, fat = (
            _fitted(mask, shape) for mask in (truth["tissue"], truth["pen"], truth["cls"] == FAT)
        )
    return Case(
        group=group, name=path.stem, picture=picture, tissue=tissue, pen=pen, fat=fat & tissue
    )


def _fitted(mask: Mask, shape: tuple[int, ...]) -> Mask:
    fitted = np.zeros(shape, bool)
    part = mask[: shape[0], : shape[1]]
    fitted[: part.shape[0], : part.shape[1]] = part
    return fitted


def changed(case: Case, group: str, picture: npt.ArrayLike, name: str = "") -> Case:
    """Return a case with the same truth and another picture."""
    pixels = np.clip(np.asarray(picture), 0, 255).astype(np.uint8)
    return replace(case, group=group, name=name or group, picture=pixels)


def without_truth(group: str, picture: npt.ArrayLike, *, tissue: bool = False) -> Case:
    """Return a case that is all glass, or all tissue."""
    pixels = np.clip(np.asarray(picture), 0, 255).astype(np.uint8)
    none = np.zeros(pixels.shape[:2], bool)
    whole = none | tissue
    return Case(group=group, name=group, picture=pixels, tissue=whole, pen=none, fat=none)


def painted(plain: Case) -> Iterator[Case]:
    """Yield a slide without pen, with strokes painted in published colours."""
    height, width = plain.picture.shape[:2]
    ink = np.zeros((height, width), np.uint8)
    turn = np.linspace(0, 4.5, 80)
    for x, y in ((0.27, 0.45), (0.72, 0.6)):
        ring = np.stack([x + 0.2 * np.cos(turn), y + 0.3 * np.sin(turn)], -1) * (width, height)
        points = [ring.astype(np.int32)]
        cv2.polylines(ink, points, isClosed=False, color=255, thickness=STROKE_PX, lineType=16)
    amount = cv2.GaussianBlur(ink, (0, 0), 1.5)[..., None] / 255
    rng = np.random.default_rng(0)
    amount = amount * (1 + 0.08 * cv2.resize(rng.normal(size=(30, 40)), (width, height))[..., None])
    for group, colours in PENS.items():
        for colour in colours:
            # Dye on the coverslip: what is below shines through it (Beer-Lambert).
            through = np.exp(amount * np.log(np.array(colour) / GLASS))
            case = changed(plain, f"pen, {group}", plain.picture * through, f"pen {colour}")
            yield replace(case, pen=ink > 127)


def edge_cases(plain: Case) -> Iterator[Case]:
    """Yield pictures with artefacts of scanners and laboratories."""
    assert plain.tissue is not None
    rng = np.random.default_rng(1)
    shape = plain.picture.shape
    glass = np.full(shape, GLASS, float)
    height, width = shape[:2]
    y, x = np.mgrid[:height, :width]
    yield without_truth("blank, noise 2", glass + rng.normal(0, 2, shape))
    yield without_truth("blank, noise 4", glass + rng.normal(0, 4, shape))
    yield without_truth("pure white", np.full(shape, 255))
    yield changed(plain, "stain x 0.25", GLASS * (np.maximum(plain.picture, 1) / GLASS) ** 0.25)
    yield changed(plain, "stain x 2", GLASS * (np.maximum(plain.picture, 1) / GLASS) ** 2.0)
    border = plain.picture.copy()
    frame = (x < 40) | (y < 30) | (x >= width - 25)
    border[frame] = rng.integers(0, 6, (int(frame.sum()), 3))
    yield replace(changed(plain, "black border", border), tissue=plain.tissue & ~frame)
    shade = 1 - 0.4 * np.exp(-(((x - 0.5 * width) / 60) ** 2) - ((y - 0.9 * height) / 40) ** 2)
    yield changed(plain, "grey shadow", plain.picture * shade[..., None])
    yield changed(plain, "dirt", _with_dirt(plain, rng))
    for colour, tint in (("yellow", (1, 0.99, 0.95)), ("green", (0.94, 1, 0.98))):
        yield changed(plain, f"{colour} glass", plain.picture * np.array(tint))
    yield changed(plain, "pink glass", plain.picture * np.array([1, 0.95, 0.98]))
    yield without_truth("all tissue", _inside(plain), tissue=True)


def _with_dirt(plain: Case, rng: np.random.Generator) -> Picture:
    """Return a picture with brown and grey specks of 30 to 400 um on glass and tissue."""
    picture = plain.picture.copy()
    height, width = picture.shape[:2]
    for _ in range(150):
        at = (int(rng.integers(width)), int(rng.integers(height)))
        tone = int(rng.integers(40, 140))
        colour = (tone, tone - int(rng.integers(12)), tone - int(rng.integers(25)))
        axes = (int(rng.integers(1, 13)), int(rng.integers(1, 5)))
        cv2.ellipse(picture, at, axes, float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
    return picture


def _inside(plain: Case) -> Picture:
    """Return the largest square of tissue without glass, repeated over a whole picture."""
    assert plain.tissue is not None
    away = cv2.distanceTransform(plain.tissue.astype(np.uint8), cv2.DIST_C, 3)
    half = int(away.max()) - 3
    y, x = np.unravel_index(int(away.argmax()), away.shape)
    square = plain.picture[y - half : y + half, x - half : x + half]
    tiled = np.tile(np.concatenate([square, square[:, ::-1]], 1), (4, 4, 1))
    height, width = plain.picture.shape[:2]
    return tiled[:height, :width]
