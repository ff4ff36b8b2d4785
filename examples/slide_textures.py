"""The library of tissue textures: seven classes and single lymphocytes.

The library is the same for every cohort, since it is biology and not chance; drawing it takes
about 3 s for a period of 2048 px and 1 s for 1024 px, so it is kept per process.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from examples.slide_drawing import Nuclei, Pixels, Sheet, draw_nuclei, jittered
from examples.slide_tissues import (
    Draw,
    Glands,
    Ground,
    Texture,
    as_pixels,
    fat,
    glandular,
    sheet_of_cells,
    stroma,
    wrapped,
)

CLASSES = ("stroma", "normal_gland", "low_grade", "high_grade", "lymphoid", "necrosis", "fat")
STROMA, NORMAL_GLAND, LOW_GRADE, HIGH_GRADE, LYMPHOID, NECROSIS, FAT = range(len(CLASSES))

_LIBRARY_SEED = 11


@dataclass(frozen=True, kw_only=True)
class Library:
    """The textures of one period.

    Attributes:
        period: number of pixels after which every texture repeats.
        classes: one texture per entry of `CLASSES`.
        lymphocytes: (H, W) haematoxylin of single lymphocytes, to be laid over any class.
        rank: (H, W) a lymphocyte shows where the local density (0-254) is above its rank; 255
            where there is none.
    """

    period: int
    classes: tuple[Texture, ...]
    lymphocytes: Pixels
    rank: Pixels


_NORMAL_GLANDS = Glands(
    radius_px=(44, 78),
    wall=2.5,
    layers=1,
    roughness=0.10,
    gap_px=16,
    nuclei=Nuclei(diameter_px=13, elongation=1.4, density=125, spread=16),
    cytoplasm=(14, 36),
)
_LOW_GRADE_GLANDS = Glands(
    radius_px=(40, 84),
    wall=2.3,
    layers=2,
    roughness=0.32,
    gap_px=9,
    nuclei=Nuclei(diameter_px=15.5, elongation=1.7, density=140, pleomorphism=0.16),
    cytoplasm=(24, 46),
)
# With the cytoplasm below, this class has the mean colour of the low-grade one to within 1 of 255:
# grade is to be recognised by form.
_HIGH_GRADE_NUCLEI = Nuclei(
    diameter_px=19,
    elongation=1.25,
    density=120,
    spread=28,
    pleomorphism=0.26,
    vesicular=0.6,
    nucleoli=0.55,
)
_LYMPHOCYTE = Nuclei(diameter_px=12.5, elongation=1.08, density=172, spread=20, pleomorphism=0.08)
_DEBRIS = Nuclei(diameter_px=6.5, elongation=1.3, density=150, spread=40, pleomorphism=0.5)

#: In the order of `CLASSES`.
_DRAW: tuple[Draw, ...] = (
    stroma,
    glandular(_NORMAL_GLANDS),
    glandular(_LOW_GRADE_GLANDS),
    sheet_of_cells(_HIGH_GRADE_NUCLEI, step_px=31, blue=17, pink=44, mottle=5),
    sheet_of_cells(_LYMPHOCYTE, step_px=16, blue=18, pink=26, mottle=4),
    sheet_of_cells(_DEBRIS, step_px=40, blue=14, pink=68, mottle=10),
    fat,
)


def _lymphocytes(ground: Ground) -> tuple[Pixels, Pixels]:
    """Draw single lymphocytes and their ranks, see `Library`."""
    rng = np.random.default_rng([_LIBRARY_SEED, 200])
    cells = Sheet(ground.period)
    # Far enough apart to be whole: one that is hidden must not cut a piece from one that shows.
    draw_nuclei(rng, cells, jittered(rng, ground.period, 27, 0.2), _LYMPHOCYTE)
    ranks = np.concatenate([[255], rng.integers(0, 255, len(cells.centres))]).astype(np.uint8)
    return wrapped(as_pixels(ground.nuclear(cells))), wrapped(ranks[cells.owners()])


@cache
def library(period: int) -> Library:
    """Draw the textures of all classes, once per process and period.

    Args:
        period: 1024 or 2048 pixels; each doubling costs four times as much.
    """
    ground = Ground(np.random.default_rng([_LIBRARY_SEED, 100]), period)
    classes = tuple(
        draw(np.random.default_rng([_LIBRARY_SEED, number]), ground)
        for number, draw in enumerate(_DRAW)
    )
    lymphocytes, rank = _lymphocytes(ground)
    return Library(period=period, classes=classes, lymphocytes=lymphocytes, rank=rank)
