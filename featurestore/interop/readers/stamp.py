"""STAMP: `<out>/<extractor>[-<hash>]/<relative path>.h5`, coordinates in microns.

Each file holds coordinates and features of one extractor. Microns become pixels by the slide's
level-0 mpp, which STAMP does not store: the user names it, or the lake has it.
"""

import contextlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from featurestore.interop.aligned_rows import order_of
from featurestore.interop.foreign_files import (
    dataset,
    feature_matrix,
    find_files,
    number,
    opened_h5,
    plain_attrs,
    whole,
)
from featurestore.interop.foreign_slide import (
    FloatArray,
    ImportFacts,
    Int64Array,
    InteropError,
    Problem,
    SlideFiles,
    SlideTiles,
)
from featurestore.interop.teacher_names import name_teachers

LOOKS_FOR = "<extractor>/**/<slide>.h5 with the datasets feats and coords"
SUFFIXES = (".h5",)
NAMES = ("feats", "patch_embeddings")
# Files older than STAMP 2 say no unit: 224 px tiles of 256 um, coordinates in those pixels.
OLD_PX, OLD_UM = 224, 256.0


def is_named_so(path: Path) -> bool:
    """Whether a file is probably one of STAMP's: its names say nothing, so it is opened."""
    if path.suffix not in SUFFIXES:
        return False
    with contextlib.suppress(InteropError), opened_h5(path) as file:
        return NAMES[0] in file
    return False


def find(folder: Path, facts: ImportFacts) -> tuple[list[SlideFiles], list[Problem]]:
    """Return the slides of an output folder or one extractor's folder, and the problems."""
    problems: list[Problem] = []
    feature_files: dict[Path, list[Path]] = defaultdict(list)
    own: dict[Path, str | None] = {}
    for path in find_files(folder, ".h5"):
        try:
            attrs = _attrs(path)
        except InteropError as error:
            problems.append(Problem(path=str(path), slide_id=path.stem, reason=str(error)))
            continue
        if attrs is None:
            problems.append(_not_tiles(path))
            continue
        top = _extractor_folder(folder, path)
        feature_files[top].append(path)
        own[top] = own.get(top) or attrs.get("extractor")
    names = (
        name_teachers(facts, folder, {top: own[top] for top in feature_files}, "STAMP")
        if feature_files
        else {}
    )
    sources: dict[str, dict[str, Path]] = defaultdict(dict)
    for top, teacher in names.items():
        for path in feature_files[top]:
            if teacher in sources[path.stem]:
                problems.append(_second_file(path, sources[path.stem][teacher]))
            sources[path.stem].setdefault(teacher, path)
    found_sources = [SlideFiles(slide_id=name, features=f) for name, f in sorted(sources.items())]
    return found_sources, problems


def _extractor_folder(folder: Path, path: Path) -> Path:
    """Return the first folder below `folder` on the path, or `folder` for a file in it."""
    parts = path.relative_to(folder).parts
    return folder / parts[0] if len(parts) > 1 else folder


def _attrs(path: Path) -> dict[str, Any] | None:
    """Return the attributes of a file of tile features; None for a slide's or patient's vector."""
    with opened_h5(path) as file:
        attrs = plain_attrs(file)
        if attrs.get("feat_type", "tile") != "tile" or "encoder" in attrs:
            return None
        _features(file)
        return attrs


def _features(file: h5py.File) -> h5py.Dataset:
    for name in NAMES:
        if name in file:
            return dataset(file, name)
    return dataset(file, NAMES[0])


def _not_tiles(path: Path) -> Problem:
    reason = f"{path} is one vector of a slide or patient; a lake keeps features of tiles"
    return Problem(path=str(path), slide_id=path.stem, reason=reason, failed=False)


def _second_file(path: Path, first: Path) -> Problem:
    reason = (
        f"{path} has the same name and extractor as {first}; a slide has one name in a lake, so "
        "rename one, or import one folder at a time"
    )
    return Problem(path=str(path), slide_id=path.stem, reason=reason)


def read_tiles(source: SlideFiles, facts: ImportFacts) -> SlideTiles:
    """Return the coordinates, size and mpp of one slide's tiles, from STAMP's microns.

    Raises:
        InteropError: there are no coordinates, their unit is unknown, or the slide's mpp is.
    """
    path = next(iter(source.features.values()))
    slide_mpp = facts.slide_mpp(source.slide_id)
    if slide_mpp is None:
        msg = (
            f"{path}: STAMP's coordinates are microns; give --level0-mpp, the microns per pixel "
            "of the slides' level 0, or import into a lake that has the slide"
        )
        raise InteropError(msg)
    with opened_h5(path) as file:
        xy_um, tile_um, tile_px = _microns(file, path)
    tile_px, mpp, mpp_source = _tile(tile_um, tile_px, facts, path)
    xy = _pixels(xy_um, slide_mpp[0])
    return SlideTiles(
        slide_id=source.slide_id,
        x=xy[:, 0],
        y=xy[:, 1],
        tile_px=tile_px,
        tile_px_level0=max(1, round(tile_um / slide_mpp[0])),
        mpp=mpp,
        mpp_source=mpp_source,
        level0_mpp=slide_mpp[0],
        level0_mpp_source=slide_mpp[1],
        source=str(path),
    )


def _pixels(xy_um: npt.NDArray[np.float64], mpp: float) -> Int64Array:
    return np.round(xy_um / mpp).astype(np.int64)


def _microns(file: h5py.File, path: Path) -> tuple[npt.NDArray[np.float64], float, int | None]:
    """Return coordinates [N, 2] and a tile's side in microns, and its side in pixels or None."""
    if "coords" not in file:
        msg = f"{path} has no coords; a lake must know where a tile is, so extract it again"
        raise InteropError(msg)
    attrs = plain_attrs(file)
    microns = dataset(file, "coords")[:]
    if microns.ndim != 2 or microns.shape[1] != 2 or microns.dtype.kind not in "fiu":
        msg = f"{path}: coords are {microns.dtype} {microns.shape}; numbers (N, 2) are needed"
        raise InteropError(msg)
    coords = microns.astype(np.float64)
    if not np.isfinite(coords).all():
        msg = f"{path}: coords hold NaN or infinity"
        raise InteropError(msg)
    px = None
    if "tile_size_px" in attrs:
        px = whole(number(attrs, "tile_size_px", path), "tile_size_px", path)
    for name in ("tile_size", "tile_size_um"):
        if name in attrs and (attrs.get("unit") == "um" or name == "tile_size_um"):
            return coords, number(attrs, name, path), px
    if round(float(attrs.get("tile_size") or _stride(coords))) == OLD_PX and "unit" not in attrs:
        return coords / OLD_PX * OLD_UM, OLD_UM, px or OLD_PX
    msg = (
        f"{path}: the unit of its coordinates is not known: no tile_size_um, and their stride is "
        f"not that of old files ({OLD_PX}); extract it again with a newer STAMP"
    )
    raise InteropError(msg)


def _stride(coords: npt.NDArray[np.float64]) -> float:
    """Return the least step between two coordinates along an axis; 0 if there is none."""
    steps = [np.diff(np.unique(coords[:, axis])) for axis in (0, 1)]
    return float(min((step.min() for step in steps if step.size), default=0.0))


def _tile(
    tile_um: float, tile_px: int | None, facts: ImportFacts, path: Path
) -> tuple[int, float, str]:
    """Return the side of a tile in pixels, its mpp, and where these are from."""
    px = tile_px or facts.tile_px
    if px is not None:
        return px, tile_um / px, "file" if tile_px else "given"
    if facts.mpp is not None:
        return max(1, round(tile_um / facts.mpp)), facts.mpp, "given"
    msg = f"{path} says tiles of {tile_um:g} um but not of how many pixels; give --tile-px or --mpp"
    raise InteropError(msg)


def read_features(source: SlideFiles, teacher: str, tiles: SlideTiles) -> FloatArray:
    """Return features [N, D] of one extractor, in the order of the tiles.

    Raises:
        InteropError: the file is damaged, or is of other tiles.
    """
    path = source.features[teacher]
    with opened_h5(path) as file:
        xy_um, _, _ = _microns(file, path)
        features = feature_matrix(_features(file)[:], len(xy_um), path)
    order = order_of(_pixels(xy_um, tiles.level0_mpp or 1.0), tiles.xy, str(path))
    return features if order is None else features[order]


def identity(source: SlideFiles, teacher: str) -> dict[str, Any]:
    """Return the extractor and the code that ran it, as the file names them."""
    with opened_h5(source.features[teacher]) as file:
        attrs = plain_attrs(file)
    names = {"extractor": "encoder", "code_hash": "code_hash"}
    return {new: attrs[old] for old, new in names.items() if attrs.get(old)}
