"""The field of view of an encoder on the rows of a lake: pure arithmetic, no files.

A card states the side of its field in pixels and the mpp of these pixels. A row of a coarser grid
is a region of a finer one: 2 x 2 tiles of 256 px at 0.5 mpp are the tile at 1.0, and the field of
an encoder of 512 px at 0.5. What can't be had so is refused, with what would be fed in its place.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from featurestore import LakeConfig, mpp_code, mpp_name
from ingest.errors import FieldError
from ingest.stain_normalisation import Normalisation
from ingest.teachers.cards.card import Card

FovMode = Literal["exact", "nearest"]
Float64Array = npt.NDArray[np.float64]

#: Sides up to this ratio count as one field: 256 px for an encoder of 224, which resizes them.
NEAR = 1.15
#: A crop has more than this share of the row's side; less describes another place than the row.
LEAST_CROP = 0.5
#: Where pixels come from that no stored tile has, in the order of preference.
FILL = "slide, else background"


@dataclass(frozen=True, kw_only=True)
class FieldOfView:
    """The pixels that an encoder gets for a row of a features table.

    Attributes:
        mpp: microns per pixel of the stored tiles that the pixels are read from.
        ratio: number of stored tiles side by side under the row's tile; 1 for the row's own tile.
        region_px: side of these tiles together, in pixels.
        side_px: side of the middle that the encoder gets; `region_px` if it gets all.
        filled_at_most: greatest share of the field that may be filled with background; rows with
            a larger one get NaN.
        card_field: the field of the card, as (px, mpp), where another is fed in its place.
        normalisation: how the stains of its pixels are normalised; None if they are not.
    """

    mpp: float
    ratio: int = 1
    region_px: int
    side_px: int
    filled_at_most: float = 1.0
    card_field: tuple[int, float] | None = None
    normalisation: Normalisation | None = None

    @property
    def is_whole_tile(self) -> bool:
        """Whether the encoder gets the row's own tile, as it is."""
        return self.ratio == 1 and self.side_px == self.region_px

    def identity(self) -> dict[str, Any]:
        """Return the part of a column's identity that states what was seen; {} for the tile."""
        if self.is_whole_tile and self.card_field is None:
            return {}
        record: dict[str, Any] = {"px": self.side_px, "mpp": self.mpp, "of_px": self.region_px}
        if self.ratio > 1:
            record |= {"tiles": self.ratio, "fill": FILL, "filled_at_most": self.filled_at_most}
        if self.card_field is not None:
            record["in_place_of"] = list(self.card_field)
        return {"fov": record}

    @classmethod
    def of_identity(cls, identity: Mapping[str, Any], *, tile_px: int, mpp: float) -> Self:
        """Return the field of view of a column that is there, from its identity.

        Args:
            identity: identity of the column.
            tile_px: side of the lake's tiles.
            mpp: microns per pixel of the column's table.
        """
        record = identity.get("fov")
        normalisation = identity.get("normalisation", {}).get("method")
        if record is None:
            return cls(mpp=mpp, region_px=tile_px, side_px=tile_px, normalisation=normalisation)
        card_field = record.get("in_place_of")
        return cls(
            mpp=record["mpp"],
            ratio=record.get("tiles", 1),
            region_px=record["of_px"],
            side_px=record["px"],
            filled_at_most=record.get("filled_at_most", 1.0),
            card_field=None if card_field is None else (card_field[0], card_field[1]),
            normalisation=normalisation,
        )

    @property
    def corner_px(self) -> int:
        """Return where the middle begins in the region, as in torchvision's CenterCrop.

        >>> FieldOfView(mpp=0.5, region_px=256, side_px=224).corner_px
        16
        """
        return round((self.region_px - self.side_px) / 2)

    def shares(self) -> Float64Array:
        """Return the share of the field that each stored tile of the region has [r, r].

        >>> FieldOfView(mpp=0.5, ratio=3, region_px=768, side_px=512).shares().round(3).tolist()
        [[0.062, 0.125, 0.062], [0.125, 0.25, 0.125], [0.062, 0.125, 0.062]]
        """
        edges = np.arange(self.ratio + 1) * (self.region_px // self.ratio) - self.corner_px
        within_px: Float64Array = np.clip(edges, 0, self.side_px).astype(np.float64)
        along = (within_px[1:] - within_px[:-1]) / self.side_px
        shares: Float64Array = along[:, None] * along
        return shares

    def sees_as(self, other: "FieldOfView") -> bool:
        """Whether another field of view has the same pixels, whatever the card's field is."""
        return (self.mpp, self.ratio, self.side_px, self.filled_at_most) == (
            (other.mpp, other.ratio, other.side_px, other.filled_at_most)
        )

    def __str__(self) -> str:
        text = f"{self.side_px} px at {mpp_name(self.mpp)} mpp"
        if self.ratio > 1:
            text += f" from {self.ratio} x {self.ratio} tiles"
        if self.side_px != self.region_px:
            text += f", the middle of {self.region_px} px"
        if self.card_field is not None:
            text += f", in place of {self.card_field[0]} px at {mpp_name(self.card_field[1])}"
        return text


def field_of_view(
    card: Card, config: LakeConfig, mpp: float, mode: FovMode | None = None
) -> FieldOfView:
    """Return what an encoder gets for the rows of an mpp.

    Without a mode it gets the row's tile if the card states no field, or one of about that side at
    this mpp; else the field itself, from tiles of a finer mpp or as a crop of more than half of the
    row's side. `exact` is the field itself to the pixel, and any crop. `nearest` is what it gets
    without a mode or, where that is refused, the row's tile.

    Args:
        card: card of the encoder.
        config: settings of the lake.
        mpp: microns per pixel of the rows.
        mode: what a user allows.

    Raises:
        FieldError: the lake has no such field for these rows.

    >>> from ingest import CARDS
    >>> lake = LakeConfig(mpps=(0.5, 1.0))
    >>> print(field_of_view(CARDS["conch15"], lake, 1.0))
    512 px at 0.5 mpp from 2 x 2 tiles
    >>> print(field_of_view(CARDS["virchow2"], lake, 0.5, "exact"))
    224 px at 0.5 mpp, the middle of 256 px
    """
    tile = FieldOfView(mpp=mpp, region_px=config.tile_px, side_px=config.tile_px)
    if not card.field_px or not card.mpps:
        return tile
    view = _field(card, config, tile, mode)
    if view is None and mode == "nearest":
        return replace(tile, card_field=(card.field_px[0], card.mpps[0]))
    if view is None:
        raise FieldError(_refusal(card, config, mpp))
    return view


def _field(
    card: Card, config: LakeConfig, tile: FieldOfView, mode: FovMode | None
) -> FieldOfView | None:
    """Return the field of a card for rows of a tile; None if they do not have it."""
    is_known = any(mpp_code(tile.mpp) == mpp_code(card_mpp) for card_mpp in card.mpps)
    if is_known and any(_fits(config.tile_px, px, mode) for px in card.field_px):
        return tile
    largest = _largest_field(card, config, tile.mpp)
    if largest is None or mode == "exact":
        return largest
    return largest if largest.side_px > LEAST_CROP * largest.region_px else None


def _largest_field(card: Card, config: LakeConfig, mpp: float) -> FieldOfView | None:
    """Return the field of a card that has the largest share of a row's side; None without any."""
    fields = list(_fields(card, config, mpp))
    return max(fields, key=lambda view: view.side_px / view.region_px) if fields else None


def _fits(tile_px: int, field_px: int, mode: FovMode | None) -> bool:
    """Whether a tile is a card's field: to the pixel, or by a resize of a few per cent."""
    if mode == "exact":
        return tile_px == field_px
    return max(tile_px, field_px) <= NEAR * min(tile_px, field_px)


def _fields(card: Card, config: LakeConfig, mpp: float) -> Iterator[FieldOfView]:
    """Yield the fields of a card that lie within the row's tile, in the card's order."""
    nests = config.tile_px % config.step_px == 0
    stored = {mpp_code(stored_mpp): stored_mpp for stored_mpp in config.mpps}
    for card_mpp in card.mpps:
        ratio, rest = divmod(mpp_code(mpp), mpp_code(card_mpp))
        if rest or ratio < 1 or mpp_code(card_mpp) not in stored or (ratio > 1 and not nests):
            continue
        region_px = ratio * config.tile_px
        for px in card.field_px:
            if px <= region_px:
                yield FieldOfView(
                    mpp=stored[mpp_code(card_mpp)],
                    ratio=ratio,
                    region_px=region_px,
                    side_px=px,
                    filled_at_most=card.filled_at_most if ratio > 1 else 1.0,
                )


def _refusal(card: Card, config: LakeConfig, mpp: float) -> str:
    """Return why the rows of an mpp do not have a card's field, and what can be done."""
    sides = " or ".join(map(str, card.field_px))
    at = ", ".join(map(mpp_name, card.mpps))
    text = (
        f"{card.name} sees {sides} px at {at} mpp, which rows of mpp {mpp_name(mpp)} do not have: "
        f"in its place it would be fed {config.tile_px} px at {mpp_name(mpp)}"
    )
    others = [other for other in config.mpps if mpp_code(other) != mpp_code(mpp)]
    tiles = [
        FieldOfView(mpp=other, region_px=config.tile_px, side_px=config.tile_px) for other in others
    ]
    advice = [
        f"--mpp {mpp_name(tile.mpp)} has its field"
        for tile in tiles
        if _field(card, config, tile, None)
    ]
    if config.tile_px % config.step_px:
        apart = f"tiles of {config.tile_px} px that lie {config.step_px} px apart"
        advice.append(f"{apart} make up no region")
    if largest := _largest_field(card, config, mpp):
        advice.append(f"--fov exact feeds {largest}")
    return f"{text}; {'; '.join([*advice, '--fov nearest feeds it nevertheless'])}"
