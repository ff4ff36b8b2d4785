"""The tiles that a slide encoder is given: whether they are those it was trained on, and reading.

Shape letters: N tiles, D width of the features of all columns.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ingest.errors import SlideEncoderError
from ingest.slide_encoders.sections import sections_of
from ingest.slide_encoders.slide_card import SlideCard
from ingest.slide_encoders.tile_cells import PLACE_RULES, TilePlaces

if TYPE_CHECKING:
    from featurestore import Lake

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class EncoderTiles:
    """The tiles of a slide, or of all slides of a patient, as a network gets them.

    Attributes:
        features: float32 [N, D], columns side by side.
        places: int64 [N, 2], by the card's rule.
        x: left edges in level-0 pixels [N].
        y: top edges in level-0 pixels [N].
        tile_px_level0: side of a tile in level-0 pixels, of the first slide.
    """

    features: Float32Array
    places: Int64Array
    x: npt.NDArray[np.int32]
    y: npt.NDArray[np.int32]
    tile_px_level0: int

    def by_section(self, *, tile_um: float) -> "list[EncoderTiles]":
        """Return the tiles of each section of tissue, from left to right.

        Args:
            tile_um: side of a tile in microns.
        """
        section_N = sections_of(
            np.stack([self.x, self.y], axis=1).astype(np.int64) // self.tile_px_level0,
            tile_um=tile_um,
        )
        return [
            replace(
                self,
                features=self.features[section_N == number],
                places=self.places[section_N == number],
                x=self.x[section_N == number],
                y=self.y[section_N == number],
            )
            for number in range(int(section_N.max()) + 1)
        ]


def unfit_inputs(
    card: SlideCard, lake: "Lake", columns: Sequence[str], *, mpp: float
) -> Iterator[str]:
    """Yield what is other about the tiles and features than a card was trained on, in words."""
    if card.inputs and tuple(columns) != card.inputs:
        yield f"features {' and '.join(columns)}, not {' and '.join(card.inputs)}"
    if card.tile_px is not None and card.mpp is not None:
        fed = sorted({field_of(lake, column, mpp) for column in columns})
        trained = (card.tile_px, card.mpp)
        yield from (f"{px} px at {at} mpp" for px, at in fed if (px, at) != trained)
    if card.places != "none" and lake.config.stride_px is not None:
        yield f"tiles that overlap (a step of {lake.config.stride_px} px)"


def field_of(lake: "Lake", column: str, mpp: float) -> tuple[int, float]:
    """Return what an encoder of tiles saw for a column: the side in pixels, and the mpp of them.

    A column that did not see the row's tile as it is says so in its identity, as `fov`.
    """
    identity: Mapping[str, Any] = {}
    if column in lake.teachers(mpp=mpp):
        identity = lake.identity(column, mpp=mpp)
    fov = identity.get("fov")
    if isinstance(fov, Mapping) and {"px", "mpp"} <= set(fov):
        return int(fov["px"]), float(fov["mpp"])
    return lake.config.tile_px, lake.known_mpp(mpp)


def check_inputs(
    card: SlideCard, lake: "Lake", columns: Sequence[str], *, mpp: float, any_inputs: bool
) -> list[str]:
    """Return the differences that the user has accepted; none where the tiles are as they must be.

    Raises:
        SlideEncoderError: the tiles or features are not those of the card, or have another width.
        LakeError: a column is not in the lake.
    """
    for column in columns:
        lake.check_teacher(column, mpp=mpp)
    width = sum(lake.teachers(mpp=mpp)[column] for column in columns)
    if card.input_dim is not None and width != card.input_dim:
        msg = (
            f"{card.name} was trained on {' and '.join(card.inputs) or 'features'} with "
            f"{card.input_dim} numbers a tile; {', '.join(columns)} has {width}"
        )
        raise SlideEncoderError(msg)
    differences = list(unfit_inputs(card, lake, columns, mpp=mpp))
    if differences and not any_inputs:
        trained = f"{' and '.join(card.inputs)} of {card.field_text}".removeprefix(" of ")
        msg = (
            f"{card.name} was trained on {trained}; it would be fed {'; '.join(differences)}. "
            "Extract the column that it knows, or say --any-inputs if it is meant: the vectors "
            "keep what they were made of"
        )
        raise SlideEncoderError(msg)
    return differences


def tile_sides(lake: "Lake", *, mpp: float) -> dict[str, int | None]:
    """Return the side of each slide's tiles in level-0 pixels; None where the lake knows none."""
    return dict(lake.tiles_of(mpp=mpp).select("slide_id", "tile_px_level0").iter_rows())


def read_tiles(
    card: SlideCard,
    lake: "Lake",
    slide_ids: Sequence[str],
    columns: Sequence[str],
    *,
    mpp: float,
    sides: Mapping[str, int | None],
) -> EncoderTiles:
    """Return the tiles of some slides with features of all columns.

    Args:
        card: the slide encoder, whose rule tells the places.
        lake: read at its own version.
        slide_ids: names of the slides.
        columns: columns of tile features, side by side.
        mpp: microns per pixel of the tiles.
        sides: of `tile_sides`, looked up once for all slides.

    Raises:
        SlideEncoderError: no tile has features of all columns.
        LakeError: a slide lacks the features of a column.
        DamageError: the stored features differ from the written features.
    """
    rows, slide_N = lake.slide_rows(slide_ids, columns, mpp=mpp)
    if not len(rows.tile_id):
        msg = f"no tile of {', '.join(slide_ids)} has features of {', '.join(columns)}"
        raise SlideEncoderError(msg)
    places = np.empty((len(rows.tile_id), 2), np.int64)
    for number, slide in enumerate(slide_ids):
        own = slide_N == number
        if own.any():
            places[own] = PLACE_RULES[card.places](
                TilePlaces(x=rows.x[own], y=rows.y[own], tile_px_level0=_side(sides, slide))
            )
    parts = list(rows.by_teacher.values())
    features = np.concatenate(parts, axis=1, dtype=np.float32)
    return EncoderTiles(
        features=features,
        places=places,
        x=rows.x,
        y=rows.y,
        tile_px_level0=_side(sides, slide_ids[0]),
    )


def _side(sides: Mapping[str, int | None], slide: str) -> int:
    side = sides[slide]
    if side is None:
        msg = (
            f"the lake does not know how large the tiles of slide '{slide}' are at level 0, so "
            "their places can't be told to a slide encoder"
        )
        raise SlideEncoderError(msg)
    return side
