"""The formats that can be read and written, and one way to read any of them."""

import importlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType

from featurestore.interop.foreign_files import find_files
from featurestore.interop.foreign_slide import (
    FloatArray,
    ImportFacts,
    InteropError,
    Problem,
    SlideFeatures,
    SlideFiles,
    SlideTiles,
)

_READERS, _WRITERS = "featurestore.interop.readers", "featurestore.interop.writers"
LOOKED_AT = 100  # files that a hint about the format may look at


@dataclass(frozen=True, kw_only=True)
class Format:
    """The modules that read and write a format, imported when they are used.

    A reader has `LOOKS_FOR` (its files in words), `SUFFIXES` (their endings), `is_named_so`
    (whether a file is probably of this format, for a hint), `find`, `read_tiles`, `read_features`
    and `identity`; a writer has `export_slide`, which writes a slide's files through an `Outbox`
    and returns how many it wrote. The signatures are those of `readers/stamp.py` and
    `writers/geojson_out.py`.

    Attributes:
        reader: dotted name of the module that reads; None if the format is only written.
        writer: dotted name of the module that writes; None if the format is only read.
        writes_features: whether teachers' features are written; if not, none are read.
        writes_tiles: whether tiles are always written, which needs one mpp, or only on request.
        keeps_columns: whether its files keep a lake's columns whole (identity, licence, scores of
            tiles, tiles that a teacher left out), and are written to and read from any URL. Its
            writer has `check_earlier` and `export_cohort` too, its reader `config_of` and
            `licence`.
    """

    reader: str | None = None
    writer: str | None = None
    writes_features: bool = True
    writes_tiles: bool = True
    keeps_columns: bool = False


FORMATS = {
    "trident": Format(reader=f"{_READERS}.trident", writer=f"{_WRITERS}.trident_out"),
    "clam": Format(reader=f"{_READERS}.clam", writer=f"{_WRITERS}.clam_out"),
    "stamp": Format(reader=f"{_READERS}.stamp", writer=f"{_WRITERS}.stamp_out"),
    "slide2vec": Format(reader=f"{_READERS}.slide2vec"),
    "hub": Format(reader=f"{_READERS}.hub", writer=f"{_WRITERS}.hub_out", keeps_columns=True),
    "anndata": Format(writer=f"{_WRITERS}.anndata_out"),
    "geojson": Format(writer=f"{_WRITERS}.geojson_out", writes_features=False, writes_tiles=False),
}
READABLE = tuple(name for name, modules in FORMATS.items() if modules.reader)
WRITABLE = tuple(name for name, modules in FORMATS.items() if modules.writer)
"""The formats of slidelake itself; a user's own file may add to `FORMATS` later."""


def reader_of(name: str) -> ModuleType:
    """Return the module that reads a format.

    Raises:
        InteropError: there is no such format, or it is only written.
    """
    module = FORMATS[name].reader if name in FORMATS else None
    if module is None:
        readable = [other for other, modules in FORMATS.items() if modules.reader]
        msg = f"format '{name}' can't be imported; those that can: {', '.join(readable)}"
        raise InteropError(msg)
    return importlib.import_module(module)


def writer_of(name: str) -> ModuleType:
    """Return the module that writes a format.

    Raises:
        InteropError: there is no such format, or it is only read.
    """
    module = FORMATS[name].writer if name in FORMATS else None
    if module is None:
        writable = [other for other, modules in FORMATS.items() if modules.writer]
        msg = f"format '{name}' can't be exported; those that can: {', '.join(writable)}"
        raise InteropError(msg)
    return importlib.import_module(module)


def find_sources(
    folder: str | Path, name: str, facts: ImportFacts
) -> tuple[list[SlideFiles], list[Problem]]:
    """Return the slides under a folder by their files' names, and the files with problems.

    Raises:
        InteropError: no such folder, or nothing of this format in it; other formats of which
            there is something are named.
    """
    reader = reader_of(name)
    if "://" in str(folder) and FORMATS[name].keeps_columns:
        sources: list[SlideFiles] = reader.find(str(folder), facts)[0]
        return sources, []
    root = Path(folder).expanduser().absolute()
    if not root.is_dir():
        msg = f"{folder} is no folder; give the folder that {name} wrote to"
        raise InteropError(msg)
    sources_and_problems: tuple[list[SlideFiles], list[Problem]] = reader.find(root, facts)
    others = (
        [] if sources_and_problems[0] else [other for other in looks_like(root) if other != name]
    )
    if others or not any(
        (sources_and_problems[0], *(problem.failed for problem in sources_and_problems[1]))
    ):
        hint = f"; it looks like {' or '.join(others)}: give --format {others[0]}" if others else ""
        msg = f"nothing of the format {name} under {root}: looked for {reader.LOOKS_FOR}{hint}"
        raise InteropError(msg)
    return sources_and_problems


def looks_like(root: Path) -> list[str]:
    """Return the formats that the first files under a folder have the names of, for a hint."""
    readers = {name: reader_of(name) for name, modules in FORMATS.items() if modules.reader}
    suffixes = {suffix for reader in readers.values() for suffix in reader.SUFFIXES}
    files = itertools.islice(find_files(root, *suffixes), LOOKED_AT)
    first = (
        next((name for name, reader in readers.items() if reader.is_named_so(path)), None)
        for path in files
    )
    return list(dict.fromkeys(name for name in first if name))


def read_tiles(source: SlideFiles, name: str, facts: ImportFacts) -> SlideTiles:
    """Return the tiles of a source; see the format's module."""
    tiles: SlideTiles = reader_of(name).read_tiles(source, facts)
    return tiles


def read_features(source: SlideFiles, name: str, teacher: str, tiles: SlideTiles) -> FloatArray:
    """Return features [N, D] of a source, in the order of `tiles`; see the format's module."""
    features: FloatArray = reader_of(name).read_features(source, teacher, tiles)
    return features


def read_folder(
    folder: str | Path,
    name: str,
    *,
    on_problem: Callable[[Problem], None],
    facts: ImportFacts | None = None,
) -> Iterator[SlideFeatures]:
    """Yield all slides of a folder, one at a time in memory; report problems to `on_problem`.

    A slide with readable tiles has the features of all of its readable teachers.

    Args:
        folder: folder that the tool wrote; subfolders are searched.
        name: name of the format, an entry of `READABLE`.
        on_problem: called for each file that is not taken, with the reason.
        facts: facts that the files lack.

    Raises:
        InteropError: no such folder, nothing of this format in it, or a teacher has no name.
    """
    facts = facts or ImportFacts()
    sources, problems = find_sources(folder, name, facts)
    for problem in problems:
        on_problem(problem)
    for source in sources:
        try:
            tiles = read_tiles(source, name, facts)
        except InteropError as error:
            on_problem(problem_of(source, source.path, error))
            continue
        features = {}
        for teacher, path in source.features.items():
            try:
                features[teacher] = read_features(source, name, teacher, tiles)
            except InteropError as error:
                on_problem(problem_of(source, path, error))
        tile_fields = {field.name: getattr(tiles, field.name) for field in fields(tiles)}
        yield SlideFeatures(**tile_fields, features=features)


def problem_of(source: SlideFiles, path: Path, error: Exception) -> Problem:
    """Return an error as the problem of one file."""
    return Problem(
        path=source.shown(path), slide_id=source.slide_id, reason=" ".join(str(error).split())
    )
