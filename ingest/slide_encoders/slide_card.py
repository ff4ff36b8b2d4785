"""The facts of a slide encoder's card: the tiles that it was trained on, and how it is run.

The cards are in `slide_card_table.py`. Public tools feed one encoder different places of tiles, so
that the rule of the places belongs to the card, and to the identity of its vectors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ingest.slide_encoders.tile_cells import PlaceRule

if TYPE_CHECKING:
    from featurestore import Forbidden, Licence
    from featurestore.encodings import Unit


@dataclass(frozen=True, kw_only=True)
class SlideCard:
    """One slide encoder, as it is run.

    Attributes:
        name: name that the user types; vectors are called NAME.COLUMN.
        loader: `module:function` that builds the network; not needed in a user's own file.
        arguments: arguments of the network, as JSON.
        inputs: columns of tile features that it was trained on; empty: any column will do.
        input_dim: length of a tile's features; None: as the column has.
        dim: length of a vector; None: as long as a tile's features.
        tile_px: side of the tiles that it was trained on, in pixels at `mpp`; None: any.
        mpp: microns per pixel of these tiles; None: any.
        places: rule by which a tile's place is told to the network; see `tile_cells.py`.
        units: what it can encode: `slide`, `patient` (the tiles of all slides), `section`.
        has_weights: whether it has weights, which come from the user.
        needs_stats: whether it is fitted on statistics that `slidelake stats` keeps.
        keys: pattern and replacement by which names in the weights' file become the network's.
        unused: pattern of names in the file that this network does not use.
        files: names of the weights' files on the hub, first choice first.
        hub: repository on the Hugging Face hub.
        package: a distribution that ships the weights; None for all that are known.
        weights: path of the file inside that distribution.
        licence: licence of the weights, as far as it is known.
        forbids: what the licence forbids, in the words of `featurestore.licences`.
        gated: whether its source requires a licence to be accepted first.
        source: where the weights come from, in words.
        references: source of each fact.
        unverified: facts that could not be verified.
        version: version of the card, raised when a correction changes the numbers.

    Examples:
        >>> from ingest.slide_encoders import SLIDE_ENCODERS
        >>> card = SLIDE_ENCODERS["titan"]
        >>> isinstance(card, sl.SlideCard), card.inputs, card.tile_px, card.mpp, card.dim
        (True, ('conch15',), 512, 0.5, 768)
    """

    name: str
    loader: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    input_dim: int | None = None
    dim: int | None = None
    tile_px: int | None = None
    mpp: float | None = None
    places: PlaceRule = "none"
    units: "tuple[Unit, ...]" = ("slide",)
    has_weights: bool = False
    needs_stats: bool = False
    keys: tuple[tuple[str, str], ...] = ()
    unused: str = ""
    files: tuple[str, ...] = ()
    hub: str | None = None
    package: str | None = None
    weights: str | None = None
    licence: str = "unknown"
    forbids: "tuple[Forbidden, ...]" = ()
    gated: bool = False
    source: str = ""
    references: Mapping[str, str] = field(default_factory=dict)
    unverified: tuple[str, ...] = ()
    version: int = 1

    @property
    def terms(self) -> "Licence":
        """Return the licence with what it forbids.

        Examples:
            >>> from ingest.slide_encoders import SLIDE_ENCODERS
            >>> SLIDE_ENCODERS["mean"].terms.forbids
            ()
        """
        from featurestore import Licence

        return Licence(text=self.licence, forbids=self.forbids)

    @property
    def field_text(self) -> str:
        """Return the tiles that it was trained on in words.

        Examples:
            >>> from ingest.slide_encoders import SLIDE_ENCODERS
            >>> SLIDE_ENCODERS["titan"].field_text
            '512 px at 0.5 mpp'
        """
        if self.tile_px is None or self.mpp is None:
            return "any tiles"
        return f"{self.tile_px} px at {self.mpp} mpp"

    def identity(self) -> dict[str, Any]:
        """Return all that decides the numbers, except weights, tiles and their features.

        Examples:
            >>> from ingest.slide_encoders import SLIDE_ENCODERS
            >>> SLIDE_ENCODERS["mean"].identity()["places"]
            'none'
        """
        return {
            "encoder": self.name,
            "arguments": dict(self.arguments),
            "places": self.places,
            "version": self.version,
        }
