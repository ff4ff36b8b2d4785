"""Slide encoders run on cached features of tiles: one vector per slide, patient or section.

Slides are read and encoded one after the other. What is encoded appears in the lake in commits, at
most `COMMIT_S` apart, so a run that was stopped goes on with the slides that lack a vector.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from cluster import progress
from featurestore import DamageError, LakeError, Licence, Shown, forbidden_by_any, open_lake
from featurestore.encodings import SlideEncoding, Unit, kept_rows, put_vectors, sources_of
from featurestore.stats import kept_stats, moments_of
from featurestore.storage import writer_lease
from ingest.errors import SlideEncoderError
from ingest.slide_encoders.find_slide_encoder import SlideEncoder, find_slide_encoder, with_weights
from ingest.slide_encoders.slide_card_table import BASELINE
from ingest.slide_encoders.slide_tiles import EncoderTiles, check_inputs, read_tiles, tile_sides

if TYPE_CHECKING:
    from torch import nn

    from featurestore import Lake, Moments

COMMIT_S = 60.0

Float32Array = npt.NDArray[np.float32]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, repr=False)
class EncodeResult(Shown):
    """Result of encoding slides or patients.

    Attributes:
        name: name of the vectors in the lake, as mean.uni2_h.
        unit: `slide`, `patient` or `section`.
        mpp: microns per pixel of the tiles.
        dim: length of a vector.
        encoded: number of vectors that were computed now.
        vectors: number of vectors of present tiles that the lake has.
        waiting: names of slides or patients that lack the tile features.
        failed: `name` and `reason` of each slide or patient that could not be encoded.
        differences: what the encoder was fed other than it was trained on (`any_inputs`).
        licence: licences of the encoder and of the columns in words.
        version: version of the lake that has the vectors.
        seconds: time of the run.

    Examples:
        >>> encoded = sl.encode("my-lake", "max", features=["student"], mpp=0.5)
        >>> encoded.name, encoded.encoded, encoded.dim
        ('max.student', 13, 64)
    """

    name: str
    unit: Unit
    mpp: float
    dim: int
    encoded: int
    vectors: int
    waiting: list[str] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    licence: str = ""
    version: int = 0
    seconds: float = 0.0


# With many parameters: the public function names every setting that users change.
def encode(
    lake_uri: str,
    slide_encoder: str,
    *,
    features: Sequence[str],
    mpp: float | None = None,
    by: Unit = "slide",
    name: str | None = None,
    weights: str | None = None,
    code: str | None = None,
    device: str | None = None,
    any_inputs: bool = False,
) -> EncodeResult:
    """Make one vector of each slide or patient from cached features of its tiles.

    Slides whose vectors are there and of their present tiles are not encoded again.

    Args:
        lake_uri: the lake.
        slide_encoder: name of a slide encoder's card, or path of a Python file of one's own.
        features: columns of tile features that it reads, side by side.
        mpp: microns per pixel of the tiles; None for the only mpp of the lake.
        by: `slide`, `patient` (the tiles of all slides of a patient) or `section`.
        name: name of the vectors; ENCODER.COLUMN if None.
        weights: folder of weights, which holds NAME.safetensors; SLIDELAKE_WEIGHTS if None.
        code: folder of the authors' code, for encoders that run it.
        device: `cpu` or `cuda`; None for a GPU if there is one.
        any_inputs: feed the columns also where the encoder was trained on other tiles.

    Raises:
        SlideEncoderError: the encoder is not known, lacks its weights, or knows other tiles.
        LakeError: a column is not in the lake, or a job is in the way.
        IdentityError: the lake has vectors of this name that were made otherwise.

    Examples:
        >>> sl.encode("my-lake", "mean", features=["uni2_h"], mpp=0.5).vectors
        13
        >>> lake = sl.open_lake("my-lake")
        >>> lake.slide_features("mean.uni2_h").collect()["vector"].dtype
        Array(Float32, shape=(1536,))
        >>> sl.encode("my-lake", "mean", features=["uni2_h"], mpp=0.5, by="patient").vectors
        12
    """
    begun = time.monotonic()
    lake = open_lake(lake_uri)
    encoder, columns = find_slide_encoder(slide_encoder, code=code), list(features)
    at = only_mpp(lake, mpp)
    check_columns(encoder, columns, by)
    differences = check_inputs(encoder.card, lake, columns, mpp=at, any_inputs=any_inputs)
    encoder = with_weights(encoder, weights)
    plan = EncodingPlan.of(
        lake, encoder, columns, mpp=at, by=by, name=name, differences=differences
    )
    with writer_lease(lake.store, f"encode {plan.encoding.name}"):
        counts = _run(lake, plan, device)
    newest = lake.refreshed()
    return EncodeResult(
        name=plan.encoding.name,
        unit=by,
        mpp=plan.encoding.mpp,
        dim=counts.dim,
        encoded=counts.encoded,
        vectors=counts.vectors,
        waiting=plan.waiting,
        failed=counts.failed,
        differences=plan.differences,
        licence=str(plan.encoding.licence),
        version=newest.version,
        seconds=round(time.monotonic() - begun, 3),
    )


@dataclass(frozen=True, kw_only=True)
class EncodingPlan:
    """The slides to encode, the encoder, and the vectors that it makes of them.

    Attributes:
        encoder: the slide encoder.
        encoding: the encoding, with its identity; `dim` is 0 until the first vector is there.
        sources: all slides or patients that have the tile features, of `sources_of`.
        waiting: names of those that lack them.
        differences: what the encoder is fed other than it was trained on.
        stats: mean and covariance that the encoder is fitted on; None for most.
    """

    encoder: SlideEncoder
    encoding: SlideEncoding
    sources: pl.DataFrame
    waiting: list[str]
    differences: list[str]
    stats: "Moments | None"

    # With many parameters: those of `encode`.
    @classmethod
    def of(
        cls,
        lake: "Lake",
        encoder: SlideEncoder,
        columns: list[str],
        *,
        mpp: float,
        by: Unit,
        name: str | None,
        differences: list[str],
    ) -> "EncodingPlan":
        """Return the plan of an encoder that can be run on these columns.

        Raises:
            SlideEncoderError: the lake keeps no statistics that the encoder is fitted on.
        """
        chosen = name or vector_name(encoder.card.name, columns, by)
        stats, fitted_on = _stats(lake, encoder, columns, mpp, chosen)
        tiles = {"tile_px": lake.config.tile_px, "step_px": lake.config.step_px, "mpp": mpp}
        identity = {
            **encoder.identity(),
            "columns": {column: lake.identity(column, mpp=mpp) for column in columns},
            "tiles": tiles,
            "unit": by,
            **({"fitted_on": fitted_on} if fitted_on else {}),
            **({"differences": differences} if differences else {}),
        }
        encoding = SlideEncoding(
            name=chosen,
            unit=by,
            columns=tuple(columns),
            mpp=mpp,
            dim=0,
            identity=json.loads(json.dumps(identity)),  # as it is when it is read again
            licence=joint_licence(lake, encoder, columns),
        )
        sources = sources_of(lake, columns, mpp=mpp, unit=by)
        lacking = pl.col("features_crc32").is_null()
        return cls(
            encoder=encoder,
            encoding=encoding,
            sources=sources.filter(~lacking),
            waiting=sources.filter(lacking)[encoding.keys[0]].to_list(),
            differences=differences,
            stats=stats,
        )

    def network(self, lake: "Lake", device: str | None) -> "Callable[[EncoderTiles], Float32Array]":
        """Return the function that encodes the tiles of a slide.

        Raises:
            SlideEncoderError: the network can't be built, or there is no such device.
        """
        from ingest.slide_encoders.slide_network import NetworkInputs

        dims = lake.teachers(mpp=self.encoding.mpp)
        inputs = NetworkInputs(
            dims=tuple(dims[column] for column in self.encoding.columns),
            stats=self.stats,
            code=self.encoder.code,
        )
        return _runner(self.encoder.network(inputs), self.encoder.card.name, device)


def check_columns(encoder: SlideEncoder, columns: Sequence[str], by: Unit) -> None:
    """Raise SlideEncoderError for columns named twice, or a unit that is not encoded."""
    if not columns or len(set(columns)) < len(columns):
        msg = f"--features {', '.join(columns) or 'nothing'}: name a column, each once"
        raise SlideEncoderError(msg)
    card = encoder.card
    if by not in card.units:
        msg = f"{card.name} encodes a {' or a '.join(card.units)}, not a {by}"
        raise SlideEncoderError(msg)


def vector_name(encoder: str, columns: Sequence[str], by: Unit) -> str:
    """Return the name of vectors: encoder, columns, and what has a vector if it is no slide.

    >>> vector_name("mean", ["uni2_h"], "slide"), vector_name("mean", ["uni2_h"], "patient")
    ('mean.uni2_h', 'mean.uni2_h.patient')
    """
    parts = [encoder, *(column.replace("+", "-") for column in columns)]
    return ".".join([*parts, *([] if by == "slide" else [by])])


def only_mpp(lake: "Lake", mpp: float | None) -> float:
    """Return an mpp of the lake: the given one, or the only one.

    Raises:
        LakeError: there are several, or no tiles at the given one.
    """
    if mpp is not None:
        return lake.known_mpp(mpp)
    if len(lake.config.mpps) > 1:
        msg = f"{lake.uri} has tiles at several mpps, {list(lake.config.mpps)}; give --mpp"
        raise LakeError(msg)
    return lake.config.mpps[0]


def joint_licence(lake: "Lake", encoder: SlideEncoder, columns: Sequence[str]) -> Licence:
    """Return the licences of a slide encoder and of the columns that it reads as one."""
    from ingest.teachers.find_teacher import column_licences

    licences = column_licences(lake, columns)
    if encoder.card.source != BASELINE:
        licences = {encoder.card.name: encoder.card.terms, **licences}
    text = "; ".join(f"{name}: {licence.text}" for name, licence in licences.items())
    return Licence(text=text, forbids=forbidden_by_any(list(licences.values())))


def _stats(
    lake: "Lake", encoder: SlideEncoder, columns: Sequence[str], mpp: float, name: str
) -> "tuple[Moments | None, str]":
    """Return the statistics that an encoder is fitted on, and their folder.

    Vectors that are there already go on with their own; new ones take the newest.

    Raises:
        SlideEncoderError: the lake keeps no statistics of the column.
    """
    if not encoder.card.needs_stats:
        return None, ""
    cards = kept_stats(lake, columns[0], mpp=mpp)
    earlier = [one for one in lake.slide_encodings() if (one.name, one.mpp) == (name, mpp)]
    if earlier:
        cards = [card for card in cards if card["path"] == earlier[0].identity.get("fitted_on")]
    if not cards:
        msg = (
            f"{encoder.card.name} is fitted on the statistics of '{columns[0]}' at mpp {mpp}, and "
            f"the lake keeps none: slidelake stats LAKE --teacher {columns[0]} --mpp {mpp}"
        )
        raise SlideEncoderError(msg)
    return moments_of(lake, cards[-1]), str(cards[-1]["path"])


def _runner(
    network: "nn.Module", name: str, device: str | None
) -> Callable[[EncoderTiles], Float32Array]:
    """Return the function that runs a network on the tiles of a slide."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        msg = "--device cuda, and torch sees no GPU here; leave it out, or give cpu"
        raise SlideEncoderError(msg)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    moved = network.to(place)

    def encode_tiles(tiles: EncoderTiles) -> Float32Array:
        with torch.inference_mode():
            vector = moved(
                torch.from_numpy(tiles.features).to(place),
                torch.from_numpy(tiles.places).to(place),
            )
        if not isinstance(vector, torch.Tensor) or vector.ndim != 1:
            shape = tuple(vector.shape) if isinstance(vector, torch.Tensor) else type(vector)
            msg = f"{name} gives {shape} for a slide, and must give one vector [D]"
            raise SlideEncoderError(msg)
        values: Float32Array = vector.float().cpu().numpy()
        return values

    return encode_tiles


@dataclass(kw_only=True)
class _Counts:
    """The numbers of vectors that a run has made so far."""

    dim: int = 0
    encoded: int = 0
    vectors: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)


def _run(lake: "Lake", plan: EncodingPlan, device: str | None) -> _Counts:
    """Encode what lacks a vector, and commit the vectors on the way; else no network is built."""
    key, counts = plan.encoding.keys[0], _Counts()
    earlier = {one.place: one for one in lake.slide_encodings()}.get(plan.encoding.place)
    encoding = replace(plan.encoding, dim=earlier.dim if earlier else 0)
    kept = kept_rows(lake, encoding, plan.sources) if earlier else None
    done = set() if kept is None else set(kept[key])
    counts.dim, counts.vectors = encoding.dim, len(done)
    todo = plan.sources.filter(~pl.col(key).is_in(list(done)))
    if not todo.height:
        return counts
    encode_tiles = plan.network(lake, device)
    new: list[Row] = []
    committed = time.monotonic()
    with progress("encode", total=todo.height, unit=f"{plan.encoding.unit}s") as bar:
        for rows in _encoded(lake, plan, todo, encode_tiles, counts):
            new += rows
            bar.advance(1)
            if new and time.monotonic() - committed > COMMIT_S:
                kept, encoding = _commit(lake, encoding, kept, new)
                new, committed = [], time.monotonic()
    if new:
        kept, encoding = _commit(lake, encoding, kept, new)
    if kept is not None:
        counts.dim, counts.vectors = encoding.dim, kept.height
    return counts


def _encoded(
    lake: "Lake",
    plan: EncodingPlan,
    todo: pl.DataFrame,
    encode_tiles: Callable[[EncoderTiles], Float32Array],
    counts: _Counts,
) -> Iterator[list[Row]]:
    """Yield the rows of each slide or patient; none for one that failed."""
    encoding, card = plan.encoding, plan.encoder.card
    sides = tile_sides(lake, mpp=encoding.mpp)
    for source in todo.iter_rows(named=True):
        name = source[encoding.keys[0]]
        try:
            tiles = read_tiles(
                card, lake, source["slides"], encoding.columns, mpp=encoding.mpp, sides=sides
            )
            parts = [tiles]
            if encoding.unit == "section":
                parts = tiles.by_section(tile_um=lake.config.tile_px * encoding.mpp)
            rows = [
                _row(source, encoding, number, part, encode_tiles(part))
                for number, part in enumerate(parts)
            ]
        except (DamageError, SlideEncoderError) as error:
            counts.failed.append({"name": name, "reason": str(error)})
            rows = []
        counts.encoded += len(rows)
        yield rows


def _row(
    source: Row, encoding: SlideEncoding, number: int, tiles: EncoderTiles, vector: Float32Array
) -> Row:
    """Return a row of the encoding's table; `number` is that of the section.

    Raises:
        SlideEncoderError: the vector holds numbers that are not finite.
    """
    if not np.isfinite(vector).all():
        msg = "its vector is not finite; look at its tiles' features, or the encoder's weights"
        raise SlideEncoderError(msg)
    key, names = encoding.keys[0], ("tiles_crc32", "features_crc32")
    row = {key: source[key], "section": number, "tiles": len(tiles.x), "vector": vector}
    row |= {name: source[name] for name in names}
    return row if "section" in encoding.keys else {n: row[n] for n in row if n != "section"}


def _commit(
    lake: "Lake", encoding: SlideEncoding, kept: pl.DataFrame | None, new: Sequence[Row]
) -> tuple[pl.DataFrame, SlideEncoding]:
    """Put new rows into the lake beside those that are there; return all rows and the encoding."""
    dim = encoding.dim or len(new[0]["vector"])
    vectors = np.stack([row["vector"] for row in new])
    plain = [{name: row[name] for name in row if name != "vector"} for row in new]
    kinds: dict[str, type[pl.DataType]] = {"section": pl.Int32, "tiles": pl.Int32}
    kinds |= {"tiles_crc32": pl.UInt32, "features_crc32": pl.UInt32}
    schema = {name: kind for name, kind in kinds.items() if name in plain[0]}
    frame = pl.DataFrame(plain, schema_overrides=schema).with_columns(
        pl.Series("vector", vectors, pl.Array(pl.Float32, dim))
    )
    if kept is not None and kept.height:
        frame = pl.concat([kept, frame.select(kept.columns)])
    encoding = put_vectors(lake, replace(encoding, dim=dim), frame)
    return frame, encoding
