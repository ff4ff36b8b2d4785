"""TRIDENT jobs: `<job>/<mag>x_<px>px_<ov>px_overlap/{patches,features_<encoder>}/*.h5`.

One job holds several grids, each with several encoders. Its files hold all but the slide's true
mpp: they count in magnifications, and 10 / magnification is the mpp that is meant.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featurestore.interop.aligned_rows import order_of
from featurestore.interop.foreign_files import (
    agree,
    coordinates,
    dataset,
    feature_matrix,
    find_files,
    load_pt,
    number,
    opened_h5,
    plain_attrs,
    whole,
)
from featurestore.interop.foreign_slide import (
    FloatArray,
    ImportFacts,
    InteropError,
    Problem,
    SlideFiles,
    SlideTiles,
)
from featurestore.interop.teacher_names import name_teachers

LOOKS_FOR = "*/patches/<slide>_patches.h5 and */features_<encoder>/<slide>.h5"
SUFFIXES = (".h5", ".pt")
FEATURES, SLIDE_FEATURES, PATCHES = "features_", "slide_features_", "_patches.h5"
MPP_SOURCE = "10 / magnification"


def is_named_so(path: Path) -> bool:
    """Whether a file is probably one of TRIDENT's, by its name and folder."""
    return path.name.endswith(PATCHES) or path.parent.name.startswith(FEATURES)


def find(folder: Path, facts: ImportFacts) -> tuple[list[SlideFiles], list[Problem]]:
    """Return the slides of a job, a grid or a folder of features, and the files with problems."""
    coords: dict[tuple[Path, str], Path] = {}
    feature_files: dict[Path, dict[str, Path]] = defaultdict(dict)
    problems = []
    for path in find_files(folder, ".h5", ".pt"):
        parent = path.parent
        if parent.name == "patches" and path.name.endswith(PATCHES):
            coords[parent.parent, path.name.removesuffix(PATCHES)] = path
        elif parent.name.startswith(FEATURES) and path.stem not in feature_files[parent]:
            feature_files[parent][path.stem] = path
        elif parent.name.startswith(SLIDE_FEATURES):
            problems.append(_not_tiles(path))
    own = {parent: parent.name.removeprefix(FEATURES) for parent in feature_files}
    names = name_teachers(facts, folder, own, "TRIDENT") if feature_files else {}
    features: dict[tuple[Path, str], dict[str, Path]] = defaultdict(dict)
    for parent, teacher in names.items():
        for slide_id, path in feature_files[parent].items():
            features[parent.parent, slide_id][teacher] = path
    keys = sorted({*coords, *features}, key=lambda key: (key[1], key[0]))
    return [_source(key, coords.get(key), features[key]) for key in keys], problems


def _source(key: tuple[Path, str], coords: Path | None, features: Mapping[str, Path]) -> SlideFiles:
    grid, slide_id = key
    tissue = grid.parent / "contours_geojson" / f"{slide_id}.geojson"
    return SlideFiles(
        slide_id=slide_id,
        coords=coords,
        features=dict(features),
        tissue=tissue if tissue.is_file() else None,
    )


def _not_tiles(path: Path) -> Problem:
    reason = f"{path} is one vector of the whole slide; a lake keeps features of tiles"
    return Problem(path=str(path), slide_id=path.stem, reason=reason, failed=False)


def read_tiles(source: SlideFiles, facts: ImportFacts) -> SlideTiles:
    """Return the coordinates, size and mpp of one slide's tiles, from TRIDENT's files.

    Raises:
        InteropError: no file of the slide holds coordinates, or their attributes are incomplete.
    """
    path = source.coords or _first_h5(source)
    with opened_h5(path) as file:
        coords = dataset(file, "coords")
        attrs, xy = plain_attrs(coords), coordinates(coords[:], path)
    target = number(attrs, "target_magnification", path)
    patch_px = whole(number(attrs, "patch_size", path), "patch_size", path)
    nominal = 10 / target
    agree("--mpp", facts.mpp, nominal, path)
    slide_mpp = facts.slide_mpp(source.slide_id)
    if slide_mpp is None and "level0_magnification" in attrs:
        slide_mpp = 10 / number(attrs, "level0_magnification", path), MPP_SOURCE
    return SlideTiles(
        slide_id=source.slide_id,
        x=xy[:, 0],
        y=xy[:, 1],
        tile_px=patch_px,
        tile_px_level0=_side(attrs, patch_px, target, facts, path),
        mpp=nominal,
        mpp_source=MPP_SOURCE,
        level0_mpp=slide_mpp[0] if slide_mpp else None,
        level0_mpp_source=slide_mpp[1] if slide_mpp else None,
        width_px=_pixels(attrs.get("level0_width")),
        height_px=_pixels(attrs.get("level0_height")),
        tissue_geojson=source.tissue.read_text() if source.tissue else None,
        source=str(path),
        attrs={"overlap": attrs.get("overlap", 0)},
    )


def _first_h5(source: SlideFiles) -> Path:
    for path in source.features.values():
        if path.suffix == ".h5":
            return path
    msg = (
        f"{source.path}: no coordinates of '{source.slide_id}'; its features are .pt files, so "
        "patches/<slide>_patches.h5 is needed"
    )
    raise InteropError(msg)


def _side(
    attrs: dict[str, Any], patch_px: int, target: float, facts: ImportFacts, path: Path
) -> int:
    if "patch_size_level0" in attrs:
        return whole(number(attrs, "patch_size_level0", path), "patch_size_level0", path)
    if facts.tile_px_level0 is not None:
        return facts.tile_px_level0
    if "level0_magnification" in attrs:
        return int(patch_px * number(attrs, "level0_magnification", path) // target)
    msg = (
        f"{path} has neither patch_size_level0 nor level0_magnification; give --tile-px-level0, "
        "the side of a tile in level-0 pixels"
    )
    raise InteropError(msg)


def _pixels(size: object) -> int | None:
    return int(size) if isinstance(size, int | float) and size > 0 else None


def read_features(source: SlideFiles, teacher: str, tiles: SlideTiles) -> FloatArray:
    """Return features [N, D] of one teacher, in the order of the tiles.

    Raises:
        InteropError: the file is damaged, or is of other tiles.
    """
    path = source.features[teacher]
    if path.suffix == ".pt":
        return feature_matrix(load_pt(path), len(tiles), path)
    with opened_h5(path) as file:
        xy = coordinates(dataset(file, "coords")[:], path)
        features = feature_matrix(dataset(file, "features")[:], len(xy), path)
    order = order_of(xy, tiles.xy, str(path))
    return features if order is None else features[order]


def identity(source: SlideFiles, teacher: str) -> dict[str, Any]:
    """Return the encoder as the files name it."""
    path = source.features[teacher]
    own = path.parent.name.removeprefix(FEATURES)
    if path.suffix == ".h5":
        with opened_h5(path) as file:
            own = plain_attrs(dataset(file, "features")).get("encoder") or own
    return {"encoder": own}
