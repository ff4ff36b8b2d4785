"""A quantised column beside its source: codes of each fragment, a commit for every few of them.

Killed at any time, the next call goes on at the first fragment without codes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from featurestore.codecs.codec import Codec, CodecLoss, loss_of, piece_values
from featurestore.codecs.codec_files import column_name, read_codec, write_codec
from featurestore.codecs.codec_fitting import fit_codec
from featurestore.errors import IdentityError, LakeError
from featurestore.ids import mpp_name
from featurestore.lake import Lake
from featurestore.licences import field_licence
from featurestore.notebook.shown import Shown
from featurestore.read.first_reads import place_of
from featurestore.read.selection import Selection
from featurestore.storage.lock import writer_lease
from featurestore.storage.read_errors import reading
from featurestore.tables.lance_columns import ColumnFile, ColumnWriter
from featurestore.tables.lance_flat import Float16Array
from featurestore.tables.schema import features_table, identity_of, is_quantised

SAMPLE_TILES = 32_768
SAMPLE_BYTES = 512 << 20  # of wide columns (patch tokens) fewer tiles are sampled
LOSS_TILES = 2048
BLOCK_TILES = 16
COMMIT_FRAGMENTS = 16
PART_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True, repr=False)
class Quantised(Shown):
    """A quantised column at one mpp.

    Attributes:
        column: name of the column: that of its source, `~`, and the codec's.
        mpp: microns per pixel of its tiles.
        tiles: number of tiles that got codes now; 0 if all had them.
        bytes_per_tile: bytes of the codes of a tile.
        source_bytes_per_tile: bytes of the source's features of a tile.
        cosine: mean cosine between features and decoded features, over sampled tiles.
        cosine_least: least such cosine.
        error: norm of the differences over the norm of the features.
        clipped: share of values beyond the range that int8 was fitted on.
        version: version of the lake that has it.

    Examples:
        >>> [made] = sl.quantise(sl.open_lake("my-lake"), "student", mpps=[0.5])
        >>> made.column, made.tiles, made.cosine > 0.999
        ('student~int8', 312, True)
    """

    column: str
    mpp: float
    tiles: int
    bytes_per_tile: int
    source_bytes_per_tile: int
    cosine: float
    cosine_least: float
    error: float
    clipped: float
    version: int


def quantise(
    lake: Lake,
    source: str,
    *,
    codec: str = "int8",
    mpps: Sequence[float] = (),
    seed: int = 0,
    on_plan: Callable[[int], None] = lambda _: None,
    on_tiles: Callable[[int], None] = lambda _: None,
) -> list[Quantised]:
    """Write a teacher's features as codes of one byte, in a column of its own: `SOURCE~CODEC`.

    It is read as any other column; features are decoded to float16. Slides that were added later
    get their codes by the same call, with the codec that was fitted first.

    Args:
        lake: the lake; its newest version is quantised.
        source: name of the column.
        codec: `int8`, a line per channel (half the bytes), or `pq4` to `pq64`, books of pieces (a
            4th to a 64th of the bytes).
        mpps: microns per pixel of the tiles; all at which the source has features if empty.
        seed: seed of the sample on which the codec is fitted, and of the k-means.
        on_plan: called with the number of tiles that lack codes, at each mpp.
        on_tiles: called with the number of tiles that got codes.

    Raises:
        LakeError: there is no such column or codec, or the column is quantised itself.
        IdentityError: the column was made of other features of that name.
        DamageError: the source's features are not what was written.

    Examples:
        >>> lake = sl.open_lake("my-lake")
        >>> [made] = sl.quantise(lake, "student", codec="pq16", mpps=[0.5])
        >>> made.column, made.bytes_per_tile, made.source_bytes_per_tile
        ('student~pq16', 8, 128)
        >>> lake.refreshed().bag("s01a", "student~pq16", mpp=0.5).features.shape
        (24, 64)
    """
    piece_values(codec)  # raises if there is no such codec
    lake.committer.recover()
    lake = lake.refreshed()
    chosen = [lake.known_mpp(mpp) for mpp in mpps] or [
        mpp for mpp in lake.config.mpps if source in lake.teachers(mpp=mpp)
    ]
    for mpp in chosen or lake.config.mpps:
        lake.check_teacher(source, mpp=mpp)
        if is_quantised(_field(lake, source, mpp)):
            msg = f"'{source}' is quantised already; give the column that it was made of"
            raise LakeError(msg)
    with writer_lease(lake.store, f"quantise {source}"):
        return [_quantise_mpp(lake, source, codec, mpp, seed, on_plan, on_tiles) for mpp in chosen]


def _field(lake: Lake, column: str, mpp: float) -> pa.Field:
    return lake.table(features_table(mpp)).schema.field(column)


def _quantise_mpp(
    lake: Lake,
    source: str,
    codec_name: str,
    mpp: float,
    seed: int,
    on_plan: Callable[[int], None],
    on_tiles: Callable[[int], None],
) -> Quantised:
    sample_ND = _sample(lake, source, mpp, seed)
    field, codec = _column(lake, source, codec_name, mpp, sample_ND, seed)
    lake = lake.refreshed()
    todo = list(_fragments_to_do(lake, source, field.name, mpp))
    on_plan(sum(int(rows["tiles"].sum()) for _, rows in todo))
    files: list[ColumnFile] = []
    tiles = 0
    for fragment, rows in todo:
        files.append(_write_fragment(lake, source, field, codec, mpp, fragment, rows, on_tiles))
        tiles += int(rows["tiles"].sum())
        if len(files) == COMMIT_FRAGMENTS:
            lake.committer.commit_columns(mpp, files)
            files = []
    if files:
        lake.committer.commit_columns(mpp, files)
    loss = _loss(codec, sample_ND)
    return Quantised(
        column=field.name,
        mpp=mpp,
        tiles=tiles,
        bytes_per_tile=codec.codes,
        source_bytes_per_tile=2 * codec.dim,
        version=lake.refreshed().version,
        **{name: number for name, number in asdict(loss).items() if name != "tiles"},
    )


def _loss(codec: Codec, sample_ND: Float16Array) -> CodecLoss:
    """Return the loss on every n-th tile of a sample."""
    return loss_of(codec, sample_ND[:: max(1, len(sample_ND) // LOSS_TILES)])


def _column(
    lake: Lake, source: str, codec_name: str, mpp: float, sample_ND: Float16Array, seed: int
) -> tuple[pa.Field, Codec]:
    """Return the quantised column, as it is in the lake or after it was added, and its codec.

    Raises:
        IdentityError: it was made of other features.
    """
    name = column_name(source, codec_name)
    schema = lake.table(features_table(mpp)).schema
    identity = identity_of(schema.field(source))
    if name in schema.names:
        field = schema.field(name)
        own = ("source", "codec", "codec_sha256")
        kept = {key: fact for key, fact in identity_of(field).items() if key not in own}
        if not is_quantised(field) or kept != identity:
            msg = (
                f"'{name}' at mpp {mpp_name(mpp)} was made of other features than those of "
                f"'{source}' now; drop it first (slidelake drop --teacher {name})"
            )
            raise IdentityError(msg)
        return field, read_codec(lake.store, field)
    tokens = int(identity.get("tokens") or identity.get("sample") or 1)
    tokens = tokens if identity.get("pooling") == "patches" else 1
    codec = fit_codec(codec_name, sample_ND, tokens=tokens, seed=seed)
    licence = field_licence(_field(lake, source, mpp))
    field = write_codec(lake.store, source, mpp, codec, identity, licence)
    return lake.committer.add_teachers(mpp, [field])[0], codec


def _sample(lake: Lake, source: str, mpp: float, seed: int) -> Float16Array:
    """Return features [N, D] of tiles in blocks of neighbours, drawn from all slides."""
    rows = lake.features_of(source, mpp=mpp).filter(pl.col("tiles") > 0)
    if not rows.height:
        msg = f"no tile has features of '{source}' at mpp {mpp_name(mpp)}: run extract"
        raise LakeError(msg)
    selection = Selection(rows, mpp)
    dim = lake.teachers(mpp=mpp)[source]
    most = max(256, min(SAMPLE_TILES, SAMPLE_BYTES // (2 * dim)))
    blocks = -(-selection.tiles // BLOCK_TILES)
    count = min(blocks, -(-most // BLOCK_TILES))
    drawn = np.sort(np.random.default_rng(seed).choice(blocks, count, replace=False))
    at = (drawn[:, None] * BLOCK_TILES + np.arange(BLOCK_TILES)).ravel()
    located = selection.locate(at[at < selection.tiles])
    with reading(lake.store, f"features of '{source}' at mpp {mpp_name(mpp)}"):
        return lake.row_reader(mpp=mpp).read(located.ranges, [source]).by_teacher[source]


def _fragments_to_do(
    lake: Lake, source: str, name: str, mpp: float
) -> Iterator[tuple[int, pl.DataFrame]]:
    """Yield fragments in which a slide has features and no codes, with all slides of the source."""
    done = lake.features_of(name, mpp=mpp)
    rows = lake.features_of(source, mpp=mpp).filter(pl.col("tiles") > 0)
    for (fragment,), slides in rows.group_by("fragment", maintain_order=True):
        if not set(slides["slide"]) <= set(done["slide"]):
            yield int(fragment), slides.sort("row_start")


def _write_fragment(
    lake: Lake,
    source: str,
    field: pa.Field,
    codec: Codec,
    mpp: float,
    fragment: int,
    rows: pl.DataFrame,
    on_tiles: Callable[[int], None],
) -> ColumnFile:
    """Write the codes of a fragment's slides, null for all other rows."""
    reader = lake.row_reader(mpp=mpp)
    selection = Selection(
        lake.tiles_of(mpp=mpp, slide_ids=rows["slide_id"].to_list()).sort("row_start"),
        mpp,
        {source: rows["crc32"].to_numpy().astype(np.int64)},
    )
    physical = lake.table(features_table(mpp)).get_fragment(fragment).physical_rows
    step = max(1, PART_BYTES // (2 * codec.dim))
    with ColumnWriter(lake.store, mpp, field, fragment) as writer:
        for slide in range(len(selection)):
            # Codes of damaged features would be wrong for good.
            lake.first_reads.compare(reader, selection, [slide], [source])
            _, start, tiles = selection.place(slide)
            writer.skip(start - writer.rows)
            with reading(lake.store, f"{place_of(selection, slide)}: '{source}' can't be read"):
                for at in range(0, tiles, step):
                    some = min(step, tiles - at)
                    features = reader.features(fragment, start + at, some, source)
                    writer.append(selection.number(slide), codec.encode(features))
            on_tiles(tiles)
        writer.skip(physical - writer.rows)
        return writer.finish()
