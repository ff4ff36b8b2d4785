"""CLAM: `patches/<slide>.h5` with coordinates, `<features>/{h5_files,pt_files}/<slide>.{h5,pt}`.

The patches name the level on which they were cut, the features name nothing: neither holds the
mpp nor the encoder. The user has to name both.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

from featurestore.interop.aligned_rows import order_of
from featurestore.interop.foreign_files import (
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

LOOKS_FOR = "patches/<slide>.h5 and <features>/h5_files/<slide>.h5 or pt_files/<slide>.pt"
SUFFIXES = (".h5", ".pt")
H5, PT, PATCHES = "h5_files", "pt_files", "patches"
OWN_PX = "slidelake_tile_px"
# A wrong level is off by a factor of two or more; scanners differ by a few per cent.
MPP_AGREES = 0.2


def is_named_so(path: Path) -> bool:
    """Whether a file is probably one of CLAM's, by its folder."""
    return path.parent.name in (PATCHES, H5, PT)


def find(folder: Path, facts: ImportFacts) -> tuple[list[SlideFiles], list[Problem]]:
    """Return the slides of a folder of patches, features or both, and the files with problems."""
    coords: dict[str, Path] = {}
    feature_files: dict[Path, dict[str, Path]] = defaultdict(dict)
    problems = []
    for path in find_files(folder, ".h5", ".pt"):
        parent = path.parent
        if parent.name == PATCHES and path.suffix == ".h5" and not path.stem.endswith("_patches"):
            if path.stem in coords:
                problems.append(_second_file(path, coords[path.stem]))
            coords.setdefault(path.stem, path)
        elif (parent.name, path.suffix) in ((H5, ".h5"), (PT, ".pt")):
            # h5_files sorts first, and holds coordinates beside the features.
            feature_files[parent.parent].setdefault(path.stem, path)
    names = (
        name_teachers(facts, folder, dict.fromkeys(feature_files), "CLAM") if feature_files else {}
    )
    features: dict[str, dict[str, Path]] = defaultdict(dict)
    for parent, teacher in names.items():
        for slide_id, path in feature_files[parent].items():
            if teacher in features[slide_id]:
                problems.append(_second_file(path, features[slide_id][teacher]))
            features[slide_id].setdefault(teacher, path)
    return [
        SlideFiles(
            slide_id=slide_id, coords=coords.get(slide_id), features=dict(features[slide_id])
        )
        for slide_id in sorted({*coords, *features})
    ], problems


def _second_file(path: Path, first: Path) -> Problem:
    reason = f"{path} is a second file of this slide beside {first}; import one folder at a time"
    return Problem(path=str(path), slide_id=path.stem, reason=reason)


def read_tiles(source: SlideFiles, facts: ImportFacts) -> SlideTiles:
    """Return the coordinates, size and mpp of one slide's tiles, from CLAM's files.

    Raises:
        InteropError: no file of the slide holds coordinates, or the tile size or the mpp is not
            known.
    """
    path = source.coords or _features_h5(source)
    with opened_h5(path) as file:
        coords = dataset(file, "coords")
        attrs, xy = plain_attrs(coords), coordinates(coords[:], path)
    tile_px, side = _sizes(attrs, facts, path)
    mpp, mpp_source = _mpp(source.slide_id, side / tile_px, facts, path)
    slide_mpp = facts.slide_mpp(source.slide_id) or (mpp * tile_px / side, mpp_source)
    size = attrs.get("level_dim") if attrs.get("patch_level") == 0 else None
    return SlideTiles(
        slide_id=source.slide_id,
        x=xy[:, 0],
        y=xy[:, 1],
        tile_px=tile_px,
        tile_px_level0=side,
        mpp=mpp,
        mpp_source=mpp_source,
        level0_mpp=slide_mpp[0],
        level0_mpp_source=slide_mpp[1],
        width_px=int(size[0]) if size else None,
        height_px=int(size[1]) if size else None,
        source=str(path),
        attrs={name: attrs[name] for name in ("patch_level",) if name in attrs},
    )


def _features_h5(source: SlideFiles) -> Path:
    for path in source.features.values():
        if path.suffix == ".h5":
            return path
    msg = (
        f"{source.path}: no coordinates of '{source.slide_id}'; pt_files hold none, so "
        "patches/<slide>.h5 or h5_files/<slide>.h5 is needed"
    )
    raise InteropError(msg)


def _sizes(attrs: dict[str, Any], facts: ImportFacts, path: Path) -> tuple[int, int]:
    """Return the side of a tile in its own pixels, and in level-0 pixels."""
    shrunk = attrs.get("custom_downsample", 1)
    both = facts.tile_px is not None and facts.tile_px_level0 is not None
    if "patch_size" not in attrs or (shrunk != 1 and both):
        return _given_sizes(facts, path)
    if shrunk != 1:
        msg = (
            f"{path}: custom_downsample is {shrunk}, and tools differ in whether patch_size is "
            "meant before or after it; give --tile-px and --tile-px-level0"
        )
        raise InteropError(msg)
    patch_px = whole(number(attrs, "patch_size", path), "patch_size", path)
    # An export of a lake: patches of level 0, which were made smaller to this side.
    tile_px = whole(number(attrs, OWN_PX, path), OWN_PX, path) if OWN_PX in attrs else patch_px
    downsample = attrs.get("downsample", [1.0, 1.0] if attrs.get("patch_level") == 0 else None)
    if isinstance(downsample, list) and downsample and min(downsample) > 0:
        return tile_px, round(patch_px * float(downsample[0]))
    if facts.tile_px_level0 is not None:
        return tile_px, facts.tile_px_level0
    msg = f"{path}: no downsample of the patches' level; give --tile-px-level0"
    raise InteropError(msg)


def _given_sizes(facts: ImportFacts, path: Path) -> tuple[int, int]:
    side, tile_px = facts.tile_px_level0, facts.tile_px
    if side is not None and tile_px is None and facts.mpp and facts.level0_mpp:
        tile_px = round(side * facts.level0_mpp / facts.mpp)
    if side is not None and tile_px is not None:
        return tile_px, side
    msg = (
        f"{path} does not say how large its patches are: import a folder that also holds "
        "patches/<slide>.h5, or give --tile-px and --tile-px-level0, the side of a patch in its "
        "own pixels and in those of level 0"
    )
    raise InteropError(msg)


def _mpp(slide_id: str, downsample: float, facts: ImportFacts, path: Path) -> tuple[float, str]:
    slide_mpp = facts.slide_mpp(slide_id)
    if slide_mpp is None:
        if facts.mpp is not None:
            return facts.mpp, "given"
        msg = "CLAM files do not say their mpp; give --mpp, the microns per pixel of the patches"
        raise InteropError(msg)
    by_level = slide_mpp[0] * downsample
    if facts.mpp is None:
        return by_level, "level-0 mpp x downsample"
    if abs(facts.mpp / by_level - 1) > MPP_AGREES:
        msg = (
            f"{path}: patches of {by_level:.4g} mpp by the slide's level-0 mpp and their size, "
            f"but --mpp {facts.mpp} was given"
        )
        raise InteropError(msg)
    return facts.mpp, "given"


def read_features(source: SlideFiles, teacher: str, tiles: SlideTiles) -> FloatArray:
    """Return features [N, D] of one teacher, in the order of the tiles.

    A .pt file holds no coordinates: CLAM writes its rows in the order of the coordinates.

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
    """Return the encoder's name as the user gave it: CLAM's files name none."""
    return {"encoder": teacher} if teacher in source.features else {}
