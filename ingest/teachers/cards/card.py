"""The facts of a teacher card: all that decides the numbers of an encoder, and where it comes from.

The cards themselves are in `card_table.py`. A hash of the weights and what a card says of the
numbers are kept with each column in the lake.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # the cards alone are listed without the store, which takes a second to import
    from featurestore import Forbidden, Licence

Pooling = Literal["cls", "mean", "cls+mean", "own"]
Interpolation = Literal["bicubic", "bilinear"]
Precision = Literal["float32", "float16", "bfloat16"]
Engine = Literal["torch", "onnxruntime"]


@dataclass(frozen=True, kw_only=True)
class Card:
    """One encoder, as it is run.

    Attributes:
        name: name that the user types; the column has it too, with the pooling if there are
            several.
        architecture: timm's name of the network, or the name of a network in `networks.py`.
        arguments: arguments that build it, as JSON; layers have their names in timm.layers or
            torch.nn.
        dim: length of a token, and of an embedding unless it joins two tokens.
        own_dim: length of the network's own embedding (pooling `own`), if it is not `dim`.
        input_px: side of the square that the network sees.
        resize_px: side to which a tile is resized first, if larger; then the middle is cropped.
        mean: mean that is subtracted per channel from pixels scaled to 0..1.
        std: standard deviation by which each channel is divided.
        interpolation: how a tile of another size is resized, always antialiased.
        poolings: embeddings it can return; its authors recommend the first. `cls` is
            the class token, `mean` the mean of the patch tokens, `own` the output of its own head.
        prefix_tokens: number of tokens before the patch tokens: class token and registers.
        patch_px: side of a patch; None if the network has no patch tokens.
        maps: whether it is convolutional: its last map's places are then its tokens.
        mpps: microns per pixel that it was trained for, best first; empty if not on microscopy.
        field_px: sides in pixels, at one of `mpps`, of the squares that its authors feed, the best
            first; they are resized to `resize_px` or `input_px`. Empty: a tile of any side.
        filled_at_most: greatest share of a field that may be filled with background where its tiles
            were not kept and the slide can't be reached; rows with more have no features.
        precision: precision in which its authors, or most of its users, run it on GPUs.
        licence: licence of the weights, as far as it is known.
        forbids: what the licence forbids, in the words of `featurestore.licences`.
        gated: whether its source requires a licence to be accepted first.
        source: where the weights come from, in words.
        hub: repository on the Hugging Face hub.
        files: names of the weights' files on the hub, first choice first.
        keys: how the weights' names become the network's names; see `weight_keys.py`.
        package: a distribution on the package index that ships the weights, if one does.
        weights: path of the file inside that distribution.
        references: source of each fact.
        unverified: facts that could not be verified.
        version: version of the card, raised when a correction changes the numbers.

    Examples:
        >>> from ingest import CARDS
        >>> card = CARDS["uni2_h"]
        >>> isinstance(card, sl.Card), card.dim, card.mpps, card.gated
        (True, 1536, (0.5,), True)
    """

    name: str
    architecture: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    dim: int
    own_dim: int | None = None
    input_px: int
    resize_px: int | None = None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"
    poolings: tuple[Pooling, ...] = ("own",)
    prefix_tokens: int = 0
    patch_px: int | None = None
    maps: bool = False
    mpps: tuple[float, ...] = ()
    field_px: tuple[int, ...] = ()
    filled_at_most: float = 0.5
    precision: Precision = "float32"
    licence: str = "unknown"
    forbids: "tuple[Forbidden, ...]" = ()
    gated: bool = False
    source: str = ""
    hub: str | None = None
    files: tuple[str, ...] = ()
    keys: str = "same"
    package: str | None = None
    weights: str | None = None
    references: Mapping[str, str] = field(default_factory=dict)
    unverified: tuple[str, ...] = ()
    version: int = 1

    @property
    def grid(self) -> tuple[int, int] | None:
        """Return the number of patch tokens down and across; None without patch tokens.

        Examples:
            >>> from ingest import CARDS
            >>> CARDS["uni2_h"].grid
            (16, 16)
        """
        side = self.input_px // self.patch_px if self.patch_px else 0
        return (side, side) if side else None

    @property
    def terms(self) -> "Licence":
        """Return the licence with what it forbids.

        Examples:
            >>> from ingest import CARDS
            >>> CARDS["uni2_h"].terms.forbids
            ('commercial use', 'sharing derivatives', 'sharing students')
        """
        from featurestore import Licence

        return Licence(text=self.licence, forbids=self.forbids)

    def pooled_dim(self, pooling: Pooling) -> int:
        """Return the length of an embedding of a pooling.

        Examples:
            >>> from ingest import CARDS
            >>> CARDS["virchow2"].pooled_dim("cls+mean")
            2560
        """
        if pooling == "own":
            return self.own_dim or self.dim
        return 2 * self.dim if pooling == "cls+mean" else self.dim

    def identity(self) -> dict[str, Any]:
        """Return all that decides the numbers, except the weights and the pooling of tokens.

        Examples:
            >>> from ingest import CARDS
            >>> CARDS["uni2_h"].identity()["architecture"]
            'vit_giant_patch14_224'
        """
        names = ("architecture", "arguments", "input_px", "resize_px", "interpolation", "version")
        facts = {name: getattr(self, name) for name in names}
        return {**facts, "mean": list(self.mean), "std": list(self.std)}


def card_json(card: Card) -> bytes:
    """Return a card as the JSON that is kept beside a student's weights."""
    return (json.dumps(asdict(card), indent=2) + "\n").encode()


def card_from_json(record: Mapping[str, Any]) -> Card:
    """Return a card from its kept JSON; fields of a later version are ignored."""
    lists = ("mean", "std", "poolings", "mpps", "field_px", "files", "unverified", "forbids")
    fields: dict[str, Any] = {
        name: tuple(record[name]) if name in lists else record[name]
        for name in Card.__dataclass_fields__
        if name in record
    }
    return Card(**fields)
