"""Pictures of tiles that a model weighed most and least, and of slides under its attention.

A tile's attention is shown as a multiple of its patient's mean: attention sums to 1 over a patient,
so that its plain value depends on the number of the patient's tiles.

Shape letters: N tiles.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from downstream.report.cases import groups
from downstream.report.kept_attention import read_tiles, weighs_alike
from downstream.report.plots.plots_attention import attention_png
from downstream.report.views.picture_sections import Picture
from ingest.pages import data_uri, decode_rgb, encode_jpeg, scaled

if TYPE_CHECKING:
    from downstream.report.cases import Case
    from downstream.report.finished_run import Json, Run
    from downstream.report.kept_attention import AttentionFile
    from featurestore import Lake

MOST_TILES, MOST_OF_PATIENT, MOST_GROUPS = 8, 2, 6
_TILE_PX, _MAP_PX, _MOST_SLIDES = 112, 640, 2
_KEPT = 4 * MOST_TILES


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Pictures of the tiles of one group, side by side.

    Attributes:
        title: the group, and whether its most or least weighed tiles are shown.
        tiles: for each tile `src` (data URI or None), `alt`, `patient`, and `text` under the
            picture; weighed tiles have `times`, their attention as a multiple of its patient mean.
        damage: why some tiles cannot be shown, or an empty string.
    """

    title: str
    tiles: list["Json"] = field(default_factory=list)
    damage: str = ""


def strips(
    lake: "Lake", run: "Run", arm: str, files: Sequence["AttentionFile"], slides: pl.DataFrame
) -> list[Strip]:
    """Return the most and the least weighed tiles of each group.

    At most two tiles are of one patient.

    Args:
        lake: the lake that holds the pixels.
        run: the run.
        arm: name of the arm.
        files: attention files of the arm.
        slides: slides and their patients, from `owners`.
    """
    of_group = dict(list(groups(run, arm).items())[:MOST_GROUPS])
    strip_tiles: dict[tuple[str, bool], list[pl.DataFrame]] = {}
    for file in files:
        tiles = _relative_attention(read_tiles(lake, file), slides)
        for name, patients in of_group.items():
            group_tiles = tiles.filter(pl.col("patient").is_in(patients))
            for most in (True, False):
                strip_tiles.setdefault((name, most), []).append(
                    _extreme_tiles(group_tiles, _KEPT, most=most)
                )
    return [
        _strip(lake, f"{name}, {'most' if most else 'least'} weighed", parts, most=most)
        for (name, most), parts in strip_tiles.items()
    ]


def _relative_attention(tiles: pl.DataFrame, slides: pl.DataFrame) -> pl.DataFrame:
    """Return the tiles with their patient, and attention as a multiple of the patient's mean."""
    owned = tiles.join(slides.select("slide_id", "patient"), on="slide_id", how="inner")
    mean = pl.col("attention").cast(pl.Float64).mean().over("patient")
    return owned.with_columns(times=pl.col("attention").cast(pl.Float64) / mean)


def _extreme_tiles(tiles: pl.DataFrame, count: int, *, most: bool) -> pl.DataFrame:
    """Return the tiles with the greatest or the least attention, few of one patient."""
    ordered = tiles.sort("times", "tile_id", descending=[most, False])
    return ordered.group_by("patient", maintain_order=True).head(MOST_OF_PATIENT).sort(
        "times", "tile_id", descending=[most, False]
    ).head(count)  # fmt: skip


def _strip(lake: "Lake", title: str, parts: Sequence[pl.DataFrame], *, most: bool) -> Strip:
    chosen = _extreme_tiles(pl.concat(parts), MOST_TILES, most=most)
    jpegs, damage = tile_pictures(lake, chosen)
    tiles = [
        {
            "src": jpegs.get(row["tile_id"]),
            "alt": f"tile at x {row['x']}, y {row['y']} of slide {row['slide_id']}",
            "patient": row["patient"],
            "text": f"{row['times']:.3g} \N{MULTIPLICATION SIGN}",
            "times": row["times"],
        }
        for row in chosen.iter_rows(named=True)
    ]
    return Strip(title=title, tiles=tiles, damage=damage)


def tile_pictures(lake: "Lake", tiles: pl.DataFrame) -> tuple[dict[int, str], str]:
    """Return pictures of tiles as data URIs by tile_id, and why others cannot be shown.

    Args:
        lake: the lake that holds the shards; a lake of imported features has none.
        tiles: rows with slide_id, tile_id and mpp.
    """
    jpegs, damage = tile_jpegs(lake, tiles)
    return {key: data_uri(_small_jpeg(jpeg), "image/jpeg") for key, jpeg in jpegs.items()}, damage


def tile_jpegs(lake: "Lake", tiles: pl.DataFrame) -> tuple[dict[int, bytes], str]:
    """Return the JPEGs of tiles as the lake holds them, by tile_id, and why others are not there.

    Args:
        lake: the lake that holds the shards; a lake of imported features has none.
        tiles: rows with slide_id, tile_id and mpp.
    """
    from featurestore import DamageError, ShardReader

    jpeg_of: dict[int, bytes] = {}
    damage = ""
    for (slide_id, mpp), rows in tiles.group_by("slide_id", "mpp", maintain_order=True):
        place = lake.tiles_of(mpp=float(str(mpp)), slide_ids=[str(slide_id)])
        if place["shard"].drop_nulls().is_empty():
            damage = f"the lake has no pixels of slide {slide_id}"
            continue
        keys = rows["tile_id"].to_numpy()
        try:
            with ShardReader.of(lake.store, place.row(0, named=True)) as reader:
                jpeg_of |= dict(zip(keys.tolist(), map(bytes, reader.jpegs(keys)), strict=True))
        except DamageError as error:
            # a page with fewer pictures tells more than no page
            damage = str(error)
    return jpeg_of, damage


def _small_jpeg(jpeg: bytes) -> bytes:
    """Return a tile's JPEG, reduced to the size at which it is shown."""
    return encode_jpeg(scaled(decode_rgb(jpeg), _TILE_PX))


def maps(
    lake: "Lake", case: "Case", arm: str, files: Sequence["AttentionFile"], slides: pl.DataFrame
) -> tuple[list[Picture], list[str]]:
    """Return pictures of a patient's slides under attention, and notes on omitted slides."""
    from featurestore import LakeError

    patient_slides = slides.filter(pl.col("patient") == case.patient)
    file = next((one for one in files if one.fold == case.fold), None)
    if file is None or patient_slides.is_empty():
        why = "no attention was kept of their fold" if file is None else "the lake has no slide"
        return [], [f"{case.title}: patient {case.patient} is not shown, {why} of theirs."]
    tiles = read_tiles(lake, file, patient_slides["slide_id"].to_list())
    if weighs_alike(tiles):
        return [], [f"{case.title}: every tile of patient {case.patient} weighs the same."]
    mass = tiles.group_by("slide_id").agg(pl.col("attention").cast(pl.Float64).sum())
    ordered = mass.sort("attention", "slide_id", descending=[True, False])
    pictures, notes = [], []
    for slide_id, share in ordered.head(_MOST_SLIDES).iter_rows():
        row = patient_slides.row(by_predicate=pl.col("slide_id") == slide_id, named=True)
        try:
            src = _attention_map(lake, row, tiles.filter(pl.col("slide_id") == slide_id))
        except LakeError as error:
            # as with tiles: damaged slides and those cut again get a note, the others are shown
            notes.append(f"{case.title}: slide {slide_id} is not shown, {error}.")
            continue
        if src is None:
            notes.append(f"{case.title}: the lake has no thumbnail of slide {slide_id}.")
            continue
        of_all = f"{share:.0%} of the patient's attention is on it" if ordered.height > 1 else ""
        pictures.append(_map_picture(case, arm, slide_id, src, of_all))
    if ordered.height > _MOST_SLIDES:
        left = ordered.height - _MOST_SLIDES
        notes.append(f"{case.title}: {left} more slides of patient {case.patient} are left out.")
    return pictures, notes


def _map_picture(case: "Case", arm: str, slide_id: str, src: str, of_all: str) -> Picture:
    """Return a slide's attention map with its caption."""
    tail = f"; {of_all}" if of_all else ""
    return Picture(
        src=src,
        alt=f"Thumbnail and attention map of {slide_id}",
        text=(
            f"{case.title}: slide {slide_id} of patient {case.patient}, by {arm} of fold "
            f"{case.fold}, in which they are tested{tail}. {case.text}. Colours are ranks within "
            "the slide."
        ),
        width=900,
    )


def _attention_map(lake: "Lake", slide: "Json", tiles: pl.DataFrame) -> str | None:
    """Return the slide beside the slide under attention, or None without a thumbnail."""
    thumbnail = lake.pictures(slide["slide_id"])["thumbnail"]
    if thumbnail is None or not slide["width_px"]:
        return None
    finest = tiles.filter(pl.col("mpp") == tiles["mpp"].min())
    drawn = attention_png(
        scaled(decode_rgb(thumbnail), _MAP_PX),
        *(finest[name].to_numpy() for name in ("x", "y", "attention")),
        tile_px_level0=tile_side(lake, slide["slide_id"], float(finest["mpp"][0])),
        width_px=slide["width_px"],
        height_px=slide["height_px"],
        title="thumbnail",
    )
    # as JPEG: photographs in PNG would be a quarter of the whole page
    return data_uri(encode_jpeg(decode_rgb(drawn), sharp=True), "image/jpeg")


def tile_side(lake: "Lake", slide_id: str, mpp: float) -> int:
    """Return the side of a slide's tiles at an mpp, in level-0 pixels.

    Raises:
        LakeError: The slide has no tiles at this mpp any more.
    """
    from featurestore import LakeError

    place = lake.tiles_of(mpp=mpp, slide_ids=[slide_id])
    if place.is_empty() or place["tile_px_level0"][0] is None:
        msg = f"slide '{slide_id}' has no tiles at mpp {mpp:g}: it was scanned or cut again"
        raise LakeError(msg)
    return int(place["tile_px_level0"][0])
