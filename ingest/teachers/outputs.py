"""What of a teacher becomes a column: `virchow2:cls+mean`, `uni:mean@L12`, `uni2_h:patches25`.

A name is a card's, then what is taken of its tokens, then the block after which they are taken:

- `cls`, `mean` (of the patch tokens), `cls+mean`, `own` (what the network's own head makes of
  them);
- `patches`: all patch tokens, row after row, prefix tokens left out; `patches25`: 25 of them, other
  ones for each tile, whose places in the grid are in the column `...:places25`;
- `@L12`: after the 12th block and the final norm; after the last one if it is not given;
- `@S1`: of the first stain variant of each tile (see `stain.py`), not of the tile as it is;
- `@macenko`, `@reinhard`: of tiles whose stains are normalised (see `stain_normalisation.py`).

A column whose field of view is put together from several tiles has one more beside it, `...@filled`
(`filled_output`): the share of each field that was filled with background.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ingest.errors import TeacherError
from ingest.stain_normalisation import Normalisation, normalisation_identity
from ingest.teachers.cards.card import Card

NAME = re.compile(
    r"(?P<card>[A-Za-z0-9_-]+)(:(?P<what>[a-z+]+)(?P<sample>[1-9][0-9]*)?)?"
    r"(@L(?P<layer>[1-9][0-9]*))?(@S(?P<stain>[1-9][0-9]*)|@(?P<normalisation>macenko|reinhard))?"
)
SAMPLED = ("patches", "places")
#: What the column of the shares is in place of a pooling, and the end of its name.
FILLED = "filled"
# Places are kept as float16 like all else, which holds whole numbers exactly up to this.
MOST_PLACES = 2048

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Output:
    """One column of a teacher.

    Attributes:
        column: name of the column in the lake.
        pooling: `cls`, `mean`, `cls+mean`, `own`, `patches` or `places`.
        sample: number of patch tokens that are taken of each tile; all if None.
        layer: number of the block after which tokens are taken, from 1; the last if None.
        stain: number of the stain variant; None for the tile as it is.
        normalisation: how the stains of tiles are normalised; None for tiles as they are.
        dim: number of values for each tile.
        tokens: number of patch tokens in these values; None without patch tokens.
    """

    column: str
    pooling: str
    sample: int | None
    layer: int | None
    stain: int | None
    dim: int
    tokens: int | None = None
    normalisation: Normalisation | None = None

    def identity(self) -> dict[str, Any]:
        """Return the part of an output that decides its numbers."""
        facts = {"pooling": self.pooling, "dim": self.dim, "sample": self.sample}
        facts |= {"layer": self.layer, "stain": self.stain, "tokens": self.tokens}
        identity = {name: fact for name, fact in facts.items() if fact is not None}
        if self.normalisation is not None:
            identity |= normalisation_identity(self.normalisation)
        return identity


def card_name(teacher: str) -> str:
    """Return the name of the card that a teacher's name begins with; a codec (`~int8`) is left out.

    Raises:
        TeacherError: the text is no teacher's name.
    """
    return _parsed(teacher.partition("~")[0])["card"] or ""


def _parsed(teacher: str) -> dict[str, str | None]:
    match = NAME.fullmatch(teacher)
    source, _, codec = teacher.partition("~")
    if codec:
        msg = (
            f"'{teacher}' is a quantised column, which no teacher makes: "
            f"slidelake quantise LAKE --features {source} --codec {codec}"
        )
        raise TeacherError(msg)
    if match is None:
        msg = (
            f"'{teacher}' names no teacher: give NAME, NAME:POOLING, NAME:POOLING@L12, @S1 or "
            "@macenko"
        )
        raise TeacherError(msg)
    return match.groupdict()


def outputs_of(teacher: str, card: Card) -> list[Output]:
    """Return the columns of a teacher's name: one, or two where patch tokens are sampled.

    Where a card has several poolings, its column names the pooling.

    Raises:
        TeacherError: the card has no such pooling, tokens or number of them.
    """
    parts = _parsed(teacher)
    pooling = parts["what"] or card.poolings[0]
    sample, layer, stain = (int(parts[name] or 0) or None for name in ("sample", "layer", "stain"))
    _check(teacher, card, pooling, sample, layer)
    whats = [pooling] if sample is None else SAMPLED
    normalisation = cast("Normalisation | None", parts["normalisation"])
    outputs = [_output(card, name, sample, layer, stain) for name in whats]
    if normalisation is None:
        return outputs
    return [
        replace(output, column=f"{output.column}@{normalisation}", normalisation=normalisation)
        for output in outputs
    ]


def _output(
    card: Card, pooling: str, sample: int | None, layer: int | None, stain: int | None
) -> Output:
    at = (f"@L{layer}" if layer else "") + (f"@S{stain}" if stain else "")
    plain = len(card.poolings) == 1 and pooling == card.poolings[0]
    column = card.name if plain else f"{card.name}:{pooling}{sample or ''}"
    tokens = sample or (card.grid[0] * card.grid[1] if card.grid else 0)
    dims = {"patches": tokens * card.dim, "places": tokens}
    dim = dims[pooling] if pooling in dims else card.pooled_dim(pooling)  # type: ignore[arg-type]
    return Output(
        column=column + at,
        pooling=pooling,
        sample=sample,
        layer=layer,
        stain=stain,
        dim=dim,
        tokens=tokens if pooling == "patches" else None,
    )


def filled_output(output: Output) -> Output:
    """Return the column of the shares of another column's fields that were filled."""
    return Output(
        column=f"{output.column}@{FILLED}",
        pooling=FILLED,
        sample=None,
        layer=None,
        stain=None,
        dim=1,
    )


def _check(teacher: str, card: Card, pooling: str, sample: int | None, layer: int | None) -> None:
    patches = card.grid[0] * card.grid[1] if card.grid else 0
    poolings = (*card.poolings, *(("mean", "patches") if patches else ()))
    if pooling not in poolings:
        msg = f"'{teacher}': {card.name} gives {', '.join(dict.fromkeys(poolings))}, not {pooling}"
        raise TeacherError(msg)
    if sample is not None and (pooling != "patches" or not sample < patches <= MOST_PLACES):
        msg = (
            f"'{teacher}': {card.name} has {patches} patch tokens a tile, not {sample} of {pooling}"
        )
        raise TeacherError(msg)
    if layer is not None and (not patches or card.maps or pooling == "own"):
        msg = f"'{teacher}': {card.name} gives {pooling} of its last block alone"
        raise TeacherError(msg)


def places(tile_id: Int64Array, patches: int, sample: int) -> Int64Array:
    """Return the kept patch tokens of each tile, ascending [B, sample]; its key decides them.

    Args:
        tile_id: keys of the tiles [B].
        patches: number of patch tokens of a tile.
        sample: number of patch tokens that are kept.
    """
    first: npt.NDArray[np.uint64] = tile_id.astype(np.uint64) * np.uint64(patches)
    each: npt.NDArray[np.uint64] = first[:, None] + np.arange(patches).astype(np.uint64)
    mixed = _mix(each)
    return np.sort(np.argsort(mixed, axis=1, kind="stable")[:, :sample], axis=1)


def drawn(tile_id: Int64Array, count: int) -> Int64Array:
    """Return the places of some tiles, ascending; their keys decide which.

    Args:
        tile_id: keys of all tiles [N].
        count: number of tiles that are drawn; all if there are fewer.
    """
    order = np.argsort(_mix(tile_id.astype(np.uint64)), kind="stable")
    return np.sort(order[:count])


def in_share(tile_id: Int64Array, share: float) -> npt.NDArray[np.bool_]:
    """Return whether each tile [B] is in a share of all tiles; its key decides it."""
    drawn = (_mix(tile_id.astype(np.uint64)) >> np.uint64(11)).astype(np.float64)
    is_drawn: npt.NDArray[np.bool_] = drawn < share * 2.0**53
    return is_drawn


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return a hash of each number by SplitMix64's finaliser (Steele, Lea, Flood 2014).

    The hashes are as good as random, and the same on every machine.
    """
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def only(outputs: Sequence[Output], columns: Sequence[str]) -> list[Output]:
    """Return the outputs of some columns."""
    return [output for output in outputs if output.column in columns]
