"""`slidelake export --format hub`: Parquet and cards by slide, here or at any URL of fsspec.

`cohort.json` names each card with its SHA-256 and a card each file with its own, so each byte that
becomes a row is compared. A file is read into memory when its slide is imported, and not kept.
"""

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.config import LakeConfig
from featurestore.ids import mpp_code
from featurestore.interop.foreign_files import agree
from featurestore.interop.foreign_slide import (
    FloatArray,
    GridFacts,
    ImportFacts,
    InteropError,
    Problem,
    SlideFiles,
    SlideTiles,
)
from featurestore.interop.hub import hub_layout as layout
from featurestore.interop.hub.places import ExportPlace, open_place
from featurestore.licences import Licence, licence_from_json
from featurestore.messages import counted, listing
from featurestore.tables.checksums import features_crc32
from featurestore.tables.schema import TILE_FIELDS

LOOKS_FOR = f"{layout.INDEX}, which an export writes last, and the cards that it names"
SUFFIXES = (layout.INDEX,)
READS_AT_ONCE = 16
#: Columns of a tile that others say: its keys, and its slide.
KEYS = ("tile_id", "slide", "slide_id", "grid_y", "grid_x", "y", "x")


@dataclass(frozen=True, kw_only=True)
class HubSlide(SlideFiles):
    """A slide of an export at one mpp.

    Attributes:
        place: the export.
        index: contents of `cohort.json`.
        card: the slide's card.
        card_sha256: checksum of the card.
        mpp: microns per pixel of the tiles, as the export names it.
    """

    place: ExportPlace
    index: Mapping[str, Any] = field(repr=False)
    card: Mapping[str, Any] = field(repr=False)
    card_sha256: str
    mpp: str

    def shown(self, path: Path) -> str:
        """Return the URL of a file."""
        return f"{self.place.url}/{path}"

    @property
    def columns(self) -> Mapping[str, Any]:
        """Return the columns of the export at this mpp."""
        columns: Mapping[str, Any] = self.index["columns"].get(self.mpp, {})
        return columns


def is_named_so(path: Path) -> bool:
    """Whether a file is that of a hub's export, by its name."""
    return path.name == layout.INDEX


def find(folder: str | Path, facts: ImportFacts) -> tuple[list[SlideFiles], list[Problem]]:
    """Return the slides of an export at each mpp, with the columns that are wanted.

    Raises:
        InteropError: the export is not finished, a card is not what was written, or a column that
            the user wants is not there.
    """
    place = open_place(folder)
    try:
        index = layout.parsed(place.read(layout.INDEX), f"{place.url}/{layout.INDEX}")
    except FileNotFoundError as error:
        if "://" not in str(folder) and not (Path(folder) / layout.CARDS).is_dir():
            return [], []
        msg = (
            f"{place.url} has no {layout.INDEX}, which an export writes last: it is no export of "
            "the format hub, or is not finished; run the export again"
        )
        raise InteropError(msg) from error
    _check_teachers(facts, index, place.url)
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        cards = pool.map(lambda name: _card(place, name, index["slides"][name]), index["slides"])
        sources = [
            source
            for (slide_id, card_hash), card in zip(index["slides"].items(), cards, strict=True)
            for source in _sources(place, index, slide_id, card, card_hash, facts)
        ]
    return sources, []


def _check_teachers(facts: ImportFacts, index: Mapping[str, Any], url: str) -> None:
    names = {name for columns in index["columns"].values() for name in columns}
    if missing := sorted(set(facts.teachers) - names):
        msg = f"no features of {listing(missing)} in {url}; there are: {listing(sorted(names))}"
        raise InteropError(msg)


def _card(place: ExportPlace, slide_id: str, expected: str) -> dict[str, Any]:
    rel = layout.card_path(slide_id)
    content = _checked(place, rel, {"sha256": expected})
    card = layout.parsed(content, f"{place.url}/{rel}")
    if card["slide_id"] != slide_id:
        msg = f"{place.url}/{rel} is the card of '{card['slide_id']}', not of '{slide_id}'"
        raise InteropError(msg)
    return card


def _checked(place: ExportPlace, rel: str, entry: Mapping[str, Any]) -> bytes:
    """Return a file if its bytes are those that were written.

    Raises:
        InteropError: it is missing, or its checksum differs.
    """
    try:
        content = place.read(rel)
    except FileNotFoundError as error:
        msg = f"{place.url}/{rel} is missing; run the export again"
        raise InteropError(msg) from error
    if layout.sha256(content) != entry["sha256"]:
        msg = (
            f"{place.url}/{rel} is not what was written (SHA-256): it is damaged, or an export is "
            "at work or was cut short; run the export again"
        )
        raise InteropError(msg)
    return content


def _sources(
    place: ExportPlace,
    index: Mapping[str, Any],
    slide_id: str,
    card: Mapping[str, Any],
    card_hash: str,
    facts: ImportFacts,
) -> list[SlideFiles]:
    chosen_mpp = None if facts.mpp is None else mpp_code(facts.mpp)
    sources: list[SlideFiles] = []
    for mpp in sorted(card["tiles"], key=float):
        if chosen_mpp is not None and mpp_code(float(mpp)) != chosen_mpp:
            continue
        features = {
            teacher: Path(entry["file"])
            for teacher, entry in card["features"].get(mpp, {}).items()
            if not facts.teachers or teacher in facts.teachers
        }
        sources.append(
            HubSlide(
                slide_id=slide_id,
                coords=Path(card["tiles"][mpp]["file"]),
                features=features,
                place=place,
                index=index,
                card=card,
                card_sha256=card_hash,
                mpp=mpp,
            )
        )
    return sources


def config_of(sources: Sequence[SlideFiles]) -> LakeConfig:
    """Return the settings of the exported lake, for a new one."""
    source = _hub(sources[0])
    config = dict(source.index["lake"])
    return LakeConfig.from_json(layout.json_text(config).encode(), uri=source.place.url)


def _hub(source: SlideFiles) -> HubSlide:
    if not isinstance(source, HubSlide):
        msg = f"slide '{source.slide_id}' is of no export of the format hub"
        raise InteropError(msg)
    return source


def read_tiles(source: SlideFiles, facts: ImportFacts) -> SlideTiles:
    """Return the places, cells and scores of one slide's tiles.

    Raises:
        InteropError: the file is missing, or is not what was written.
    """
    hub = _hub(source)
    entry = hub.card["tiles"][hub.mpp]
    agree("--mpp", facts.mpp, float(hub.mpp), Path(hub.shown(Path(entry["file"]))))
    table = _table(hub, entry)
    slide = hub.card["facts"]
    tissue = hub.card.get("tissue")
    return SlideTiles(
        slide_id=hub.slide_id,
        x=table["x"].to_numpy().astype(np.int64),
        y=table["y"].to_numpy().astype(np.int64),
        tile_px=entry["tile_px"],
        tile_px_level0=entry["tile_px_level0"],
        mpp=float(hub.mpp),
        mpp_source="file",
        level0_mpp=slide.get("mpp"),
        level0_mpp_source=slide.get("mpp_source"),
        width_px=slide.get("width_px"),
        height_px=slide.get("height_px"),
        tissue_geojson=_checked(hub.place, tissue["file"], tissue).decode() if tissue else None,
        source=hub.shown(Path(layout.card_path(hub.slide_id))),
        attrs=entry["attrs"],
        grid=GridFacts(
            step_px=entry["grid_px_level0"],
            cells_y=table["grid_y"].to_numpy().astype(np.int64),
            cells_x=table["grid_x"].to_numpy().astype(np.int64),
            effective_mpp=entry["effective_mpp"],
            width=entry["grid_width"],
            height=entry["grid_height"],
            columns={
                tile_field.name: table[tile_field.name]
                for tile_field in TILE_FIELDS
                if tile_field.name not in KEYS and tile_field.name in table.column_names
            },
        ),
        facts=slide,
        mark=hub.card_sha256,
    )


def _table(hub: HubSlide, entry: Mapping[str, Any]) -> pa.Table:
    content = _checked(hub.place, entry["file"], entry)
    table = pq.read_table(io.BytesIO(content))
    if table.num_rows != entry["rows"]:
        rows = counted(table.num_rows, "row")
        msg = f"{hub.shown(Path(entry['file']))} has {rows}; the card says {entry['rows']}"
        raise InteropError(msg)
    return table


def read_features(source: SlideFiles, teacher: str, tiles: SlideTiles) -> FloatArray:
    """Return features float16 [N, D] of one column, in the order of the tiles.

    Tiles that the teacher left out are NaN.

    Raises:
        InteropError: the file is missing or not what was written, or is of another encoder or of
            other tiles than the export names.
    """
    hub = _hub(source)
    entry = hub.card["features"][hub.mpp][teacher]
    shown, dim = hub.shown(Path(entry["file"])), entry["dim"]
    column = hub.columns.get(teacher)
    if column is None or entry["identity_sha256"] != layout.sha256(
        layout.json_text(column["identity"]).encode()
    ):
        msg = f"{shown} is of another encoder than {layout.INDEX} names; run the export again"
        raise InteropError(msg)
    table = _table(hub, entry)
    values = table["features"].combine_chunks()
    kept = np.asarray(values.flatten(), np.float16).reshape(-1, dim)
    places = {(x, y): row for row, (x, y) in enumerate(tiles.xy.tolist())}
    rows = [
        places.get((x, y))
        for x, y in zip(table["x"].to_pylist(), table["y"].to_pylist(), strict=True)
    ]
    if None in rows or len(set(rows)) != len(rows):
        msg = f"{shown} has features of other tiles than the slide's; run the export again"
        raise InteropError(msg)
    features = np.full((len(tiles), dim), np.nan, np.float16)
    features[np.array(rows, np.int64)] = kept
    if features_crc32(features) != entry["crc32"]:
        msg = f"{shown} has other features than the exported lake (CRC-32); run the export again"
        raise InteropError(msg)
    return features


def identity(source: SlideFiles, teacher: str) -> dict[str, Any]:
    """Return the whole identity of a column's encoder."""
    kept: dict[str, Any] = _hub(source).columns[teacher]["identity"]
    return kept


def licence(source: SlideFiles, teacher: str) -> Licence | None:
    """Return the licence of a column's encoder; None if the exporting lake knew none."""
    kept = licence_from_json(_hub(source).columns[teacher]["licence"])
    return None if kept == Licence() else kept
