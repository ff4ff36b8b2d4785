"""Import of the files of another tool: tiles slide by slide, then features by teacher.

Tiles are committed in batches and features in files of whole fragments, so memory holds one
slide's features at a time. What a commit made visible is not done again, whenever the import was
stopped. A file that can't be taken stops itself alone and is listed with its reason.
"""

import itertools
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from featurestore.commits.cuts import ROWS_PER_FRAGMENT, SlideCut
from featurestore.config import LakeConfig
from featurestore.errors import LakeError
from featurestore.ids import mpp_name
from featurestore.interop.aligned_rows import order_of
from featurestore.interop.foreign_slide import (
    ImportFacts,
    InteropError,
    Problem,
    SlideFiles,
    SlideTiles,
)
from featurestore.interop.formats import (
    FORMATS,
    find_sources,
    problem_of,
    read_tiles,
    reader_of,
)
from featurestore.interop.imported_columns import TeacherImport
from featurestore.interop.incoming_tiles import (
    cells_of,
    config_for,
    grid_of,
    lake_mpp,
    slide_row,
)
from featurestore.interop.lake_tiles import slide_rows, tile_places
from featurestore.lake import Lake
from featurestore.notebook.shown import Shown
from featurestore.opening import create_lake, open_lake
from featurestore.storage.lock import writer_lease
from featurestore.storage.store import Store
from featurestore.tables.schema import READY

COMMIT_SLIDES = 64
COMMIT_S = 60.0
LOOKED_UP = 1000  # slides in one look-up

Row = dict[str, Any]


@dataclass(kw_only=True, repr=False)
class ImportResult(Shown):
    """Counts of imported slides, tiles and features, and the files that were not imported.

    Attributes:
        lake: folder or URL of the lake.
        format: name of the tool's format.
        slides: slides of the folder that are in the lake now.
        new: slides that were not in the lake before.
        tiles: tiles added, by mpp.
        features: slides that got features, by teacher and mpp ("uni at 0.5").
        failed: files that could not be imported, with slide and reason.
        left_out: undamaged files without content for a lake, with slide and reason.
        seconds: duration of the import.
    """

    lake: str
    format: str
    slides: int = 0
    new: int = 0
    tiles: dict[str, int] = field(default_factory=dict)
    features: dict[str, int] = field(default_factory=dict)
    failed: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def note(self, problem: Problem) -> None:
        """Record a file that was not imported."""
        record = asdict(problem)
        (self.failed if record.pop("failed") else self.left_out).append(record)


def import_folder(
    lake_uri: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    format: str,
    facts: ImportFacts | None = None,
    on_slide: Callable[[str, str], None] = lambda slide_id, part: None,
) -> ImportResult:
    """Import the tiles and features of a folder into a lake; create the lake if it is missing.

    Args:
        lake_uri: the lake; a new lake gets the tile size and the mpps of the files.
        folder: folder that the tool wrote, subfolders included; with `hub` also a URL of fsspec.
        format: name of the format, an entry of `READABLE`.
        facts: facts that the files lack.
        on_slide: called with each slide and the part that was added: "tiles", or a teacher's name.

    Raises:
        InteropError: no such folder, nothing of this format, a teacher without a name, or files
            that no one lake can hold.
        IdentityError: a teacher of the same name, but another encoder, is in the lake.
    """
    start = time.perf_counter()
    existing = open_lake(lake_uri) if Store(lake_uri).exists("lake.json") else None
    facts = facts or ImportFacts()
    sources, problems = find_sources(os.fspath(folder), format, facts)
    facts = replace(facts, known_mpp=_known_mpp(existing, sources))
    lake = existing or create_lake(lake_uri, _new_config(sources, format, facts))
    summary = ImportResult(lake=lake.uri, format=format)
    for problem in problems:
        summary.note(problem)
    step = _Import(lake, format, facts, summary, on_slide)
    with writer_lease(lake.store, f"import {format}"):
        step.import_features(step.import_tiles(sources))
    summary.seconds = round(time.perf_counter() - start, 3)
    return summary


def _known_mpp(lake: Lake | None, sources: Sequence[SlideFiles]) -> Callable[[str], float | None]:
    """Return a look-up of the level-0 mpps of the slides that the lake has."""
    mpps: dict[str, float | None] = {}
    names = sorted({source.slide_id for source in sources}) if lake else []
    for start in range(0, len(names), LOOKED_UP):
        rows = slide_rows(lake, names[start : start + LOOKED_UP], ["mpp", "state"]) if lake else {}
        mpps |= {name: row["mpp"] for name, row in rows.items() if row["state"] == READY}
    return mpps.get


def _new_config(sources: Sequence[SlideFiles], format_name: str, facts: ImportFacts) -> LakeConfig:
    """Return the settings of a new lake for these files."""
    if FORMATS[format_name].keeps_columns and sources:
        config: LakeConfig = reader_of(format_name).config_of(sources)
        return config
    return config_for(_sizes(sources, format_name, facts))


def _sizes(
    sources: Sequence[SlideFiles], format_name: str, facts: ImportFacts
) -> set[tuple[int, float]]:
    """Return the distinct (tile side in pixels, mpp) of all readable files.

    Raises:
        InteropError: none of the files can be read.
    """
    sizes: set[tuple[int, float]] = set()
    reasons = []
    for source in sources:
        try:
            tiles = read_tiles(source, format_name, facts)
        except InteropError as error:
            reasons.append(str(error))
        else:
            sizes.add((tiles.tile_px, tiles.mpp))
    if reasons and not sizes:
        more = f" (and {len(reasons) - 1} more files)" if len(reasons) > 1 else ""
        msg = f"{reasons[0]}{more}"
        raise InteropError(msg)
    return sizes


@dataclass(frozen=True, kw_only=True)
class _Slide:
    """A readable slide: its tiles and files by the lake's mpps."""

    slide_id: str
    grids: dict[float, SlideTiles]
    sources: dict[float, list[SlideFiles]]

    @property
    def rows(self) -> int:
        return sum(len(tiles) for tiles in self.grids.values())


class _Import:
    """One import: the lake, the facts of the user, and the counts."""

    def __init__(
        self,
        lake: Lake,
        format_name: str,
        facts: ImportFacts,
        summary: ImportResult,
        on_slide: Callable[[str, str], None],
    ) -> None:
        self.lake, self.format, self.facts = lake, format_name, facts
        self.summary, self.on_slide = summary, on_slide

    # ------------------------------------------------------------------ tiles

    def import_tiles(self, sources: Sequence[SlideFiles]) -> list[_Slide]:
        """Add all slides to the lake; return the slides in the lake, without coordinates."""
        in_lake: list[_Slide] = []
        for batch in self._batches(sources):
            kept = self._commit_tiles(batch)
            in_lake += [replace(slide, grids={}) for slide in kept]
        self.summary.slides = len(in_lake)
        return in_lake

    def _batches(self, sources: Sequence[SlideFiles]) -> Iterator[list[_Slide]]:
        batch: list[_Slide] = []
        since = time.monotonic()
        by_slide = sorted(sources, key=lambda source: source.slide_id)
        for slide_id, group in itertools.groupby(by_slide, key=lambda source: source.slide_id):
            slide = self._readable_slide(slide_id, list(group))
            batch += [slide] if slide.grids else []
            full = len(batch) >= COMMIT_SLIDES or sum(s.rows for s in batch) >= ROWS_PER_FRAGMENT
            if batch and (full or time.monotonic() - since > COMMIT_S):
                yield batch
                batch, since = [], time.monotonic()
        if batch:
            yield batch

    def _readable_slide(self, slide_id: str, sources: Sequence[SlideFiles]) -> _Slide:
        slide = _Slide(slide_id=slide_id, grids={}, sources=defaultdict(list))
        for source in sources:
            try:
                tiles = read_tiles(source, self.format, self.facts)
                cells_of(tiles)
                mpp = lake_mpp(self.lake.config, tiles)
                if mpp in slide.grids:
                    order_of(tiles.xy, slide.grids[mpp].xy, source.shown(source.path))
            except LakeError as error:
                self.summary.note(problem_of(source, source.path, error))
                continue
            slide.grids.setdefault(mpp, tiles)
            slide.sources[mpp].append(source)
        return slide

    def _commit_tiles(self, batch: Sequence[_Slide]) -> list[_Slide]:
        """Commit the tiles that the lake lacks; return the slides that are in the lake now."""
        names = [slide.slide_id for slide in batch]
        lake_rows = {
            (row["slide_id"], mpp): row
            for mpp in self.lake.config.mpps
            for row in self.lake.tiles_of(mpp=mpp, slide_ids=names).to_dicts()
        }
        kept = [self._with_matching_grids(slide, lake_rows) for slide in batch]
        new_grids = {
            slide.slide_id: {
                m: t for m, t in slide.grids.items() if (slide.slide_id, m) not in lake_rows
            }
            for slide in kept
        }
        new_grids = {name: grids for name, grids in new_grids.items() if grids}
        if new_grids:
            self._add_slides(new_grids)
        for name in new_grids:
            self.on_slide(name, "tiles")
        return [slide for slide in kept if slide.grids]

    def _with_matching_grids(
        self, slide: _Slide, lake_rows: dict[tuple[str, float], Row]
    ) -> _Slide:
        """Return the slide without the grids that the lake has with other tiles."""
        grids = dict(slide.grids)
        for mpp, tiles in slide.grids.items():
            if (row := lake_rows.get((slide.slide_id, mpp))) is None:
                continue
            try:
                order_of(tiles.xy, tile_places(self.lake, row)[1], tiles.source)
            except LakeError as error:
                del grids[mpp]
                for source in slide.sources[mpp]:
                    self.summary.note(problem_of(source, source.path, error))
        kept = {mpp: slide.sources[mpp] for mpp in grids}
        return replace(slide, grids=grids, sources=kept)

    def _add_slides(self, new_grids: dict[str, dict[float, SlideTiles]]) -> None:
        committer, config = self.lake.committer, self.lake.config
        lake_rows = slide_rows(self.lake, list(new_grids))
        rows = [slide_row(self.format, grids) for grids in new_grids.values()]
        numbered = {row["slide_id"]: row for row in committer.register(rows)}
        cuts = []
        for name, grids in new_grids.items():
            row = numbered[name]
            if row["state"] == READY:
                # It has tiles at other mpps: what is known of it, pictures too, stays as it is.
                row = lake_rows[name]
            elif name in lake_rows:
                row["patient_id"] = lake_rows[name]["patient_id"] or row.get("patient_id")
            self.summary.new += row["state"] != READY
            made = {mpp: grid_of(row, tiles, mpp, config) for mpp, tiles in grids.items()}
            cuts.append(SlideCut(row=row, grids=made))
            for mpp, tiles in grids.items():
                count = self.summary.tiles.get(mpp_name(mpp), 0)
                self.summary.tiles[mpp_name(mpp)] = count + len(tiles)
        committer.commit_slides(cuts)
        self.lake = self.lake.refreshed()

    # ------------------------------------------------------------------ features

    def import_features(self, slides: Sequence[_Slide]) -> None:
        """Import the features of all teachers that the slides' files hold and the lake lacks."""
        for (mpp, teacher), slide_sources in self._sources_by_teacher(slides).items():
            step = TeacherImport(
                self.lake,
                mpp=mpp,
                teacher=teacher,
                format_name=self.format,
                facts=self.facts,
                on_problem=self.summary.note,
            )
            name = f"{teacher} at {mpp_name(mpp)}"
            for imported in step.run(slide_sources):
                self.summary.features[name] = self.summary.features.get(name, 0) + len(imported)
                for slide_id in imported:
                    self.on_slide(slide_id, teacher)
            self.lake = self.lake.refreshed()

    def _sources_by_teacher(
        self, slides: Sequence[_Slide]
    ) -> dict[tuple[float, str], dict[str, SlideFiles]]:
        sources_by_teacher: dict[tuple[float, str], dict[str, SlideFiles]] = defaultdict(dict)
        for slide in slides:
            for mpp, sources in slide.sources.items():
                for source in sources:
                    self._add_source(sources_by_teacher, mpp, source)
        return dict(sources_by_teacher)

    def _add_source(
        self,
        sources_by_teacher: dict[tuple[float, str], dict[str, SlideFiles]],
        mpp: float,
        source: SlideFiles,
    ) -> None:
        for teacher, path in source.features.items():
            first = sources_by_teacher[mpp, teacher].setdefault(source.slide_id, source)
            if first is not source:
                msg = (
                    f"{path} is a second file of '{teacher}' for this slide, beside "
                    f"{first.features[teacher]}; import one folder at a time"
                )
                self.summary.note(problem_of(source, path, InteropError(msg)))
