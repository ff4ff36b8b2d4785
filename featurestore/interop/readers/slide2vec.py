"""slide2vec runs: `tiles/<slide>.coordinates.{npz,meta.json}` and `tile_embeddings/<slide>.pt`.

Coordinates are hs2p's, with complete metadata: spacing, size of the tiles and of
the slide. The rows of an embedding have the order of the coordinates.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.interop.foreign_files import (
    agree,
    coordinates,
    feature_matrix,
    find_files,
    load_json,
    load_npz,
    load_pt,
    number,
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
from featurestore.messages import counted

LOOKS_FOR = "tiles/<slide>.coordinates.npz and tile_embeddings/<slide>.pt"
SUFFIXES = (".npz", ".pt")
NPZ, META, EMBEDDING_META = ".coordinates.npz", ".coordinates.meta.json", ".meta.json"
TILES, EMBEDDINGS = "tiles", "tile_embeddings"
OTHERS = ("slide_embeddings", "hierarchical_embeddings", "patient_embeddings", "slide_latents")

Key = tuple[Path, str, str]  # run, annotation (a folder, or none), slide


def is_named_so(path: Path) -> bool:
    """Whether a file is probably one of slide2vec's, by its name and folder."""
    return path.parent.name == EMBEDDINGS or path.name.endswith(NPZ)


def find(folder: Path, facts: ImportFacts) -> tuple[list[SlideFiles], list[Problem]]:
    """Return the slides of one or more runs, and the problems; each annotation has own tiles."""
    coords: dict[Key, Path] = {}
    meta: dict[Key, Path] = {}
    feature_files: dict[Key, Path] = {}
    problems = []
    for path in find_files(folder, ".npz", ".pt", ".json"):
        kind, key = _folder_and_key(path)
        if kind == TILES and path.name.endswith(NPZ):
            coords[key] = path
        elif kind == TILES and path.name.endswith(META):
            meta[key] = path
        elif kind == EMBEDDINGS and path.suffix in (".pt", ".npz"):
            feature_files.setdefault(key, path)
        elif kind in OTHERS and path.suffix in (".pt", ".npz"):
            problems.append(_not_tiles(path, kind))
    own = _encoders(feature_files)
    names = name_teachers(facts, folder, own, "slide2vec") if own else {}
    features: dict[Key, dict[str, Path]] = defaultdict(dict)
    for key, path in feature_files.items():
        if key[0] in names:
            features[key][names[key[0]]] = path
    keys = sorted({*coords, *meta, *features}, key=lambda key: (key[2], key))
    return [
        SlideFiles(
            slide_id=k[2], coords=coords.get(k), meta=meta.get(k), features=dict(features[k])
        )
        for k in keys
    ], problems


def _folder_and_key(path: Path) -> tuple[str, Key]:
    """Return the kind of a file's folder, and the run, annotation and slide of the file."""
    name = path.name
    for ending in (NPZ, META, EMBEDDING_META, path.suffix):
        if name.endswith(ending):
            name = name.removesuffix(ending)
            break
    kinds = (TILES, EMBEDDINGS, *OTHERS)
    if path.parent.name in kinds:
        return path.parent.name, (path.parent.parent, "", name)
    return path.parent.parent.name, (path.parent.parent.parent, path.parent.name, name)


def _not_tiles(path: Path, kind: str) -> Problem:
    reason = f"{path} is of {kind}; a lake keeps features of tiles"
    return Problem(path=str(path), slide_id=path.stem, reason=reason, failed=False)


def _encoders(feature_files: dict[Key, Path]) -> dict[Path, str | None]:
    """Return the encoder that each run names in the first of its metadata that can be read."""
    own: dict[Path, str | None] = {}
    for (run, _, _), path in feature_files.items():
        if own.get(run) is None:
            own[run] = _embedding_meta(path).get("encoder_name")
    return own


def _embedding_meta(path: Path) -> dict[str, Any]:
    beside = path.with_name(path.stem + EMBEDDING_META)
    try:
        return load_json(beside)
    except InteropError:
        # Only the encoder's name is needed; without it the user has to give one.
        return {}


def read_tiles(source: SlideFiles, facts: ImportFacts) -> SlideTiles:
    """Return the coordinates, size and mpp of one slide's tiles, from slide2vec's files.

    Raises:
        InteropError: coordinates or their metadata are missing, damaged, or do not agree.
    """
    if source.meta is None:
        msg = (
            f"{source.path}: no tiles/{source.slide_id}{META}; it holds the tiles' size and mpp, "
            "so import the folder of the whole run"
        )
        raise InteropError(msg)
    path, meta = source.meta, load_json(source.meta)
    tiling, slide = _meta_section(meta, "tiling", path), _meta_section(meta, "slide", path)
    xy = _coordinates(source, tiling)
    mpp = number(tiling, "requested_spacing_um", path)
    level0_mpp = number(slide, "base_spacing_um", path)
    agree("--mpp", facts.mpp, mpp, path)
    agree("--level0-mpp", facts.level0_mpp, level0_mpp, path)
    size = slide.get("dimensions")
    return SlideTiles(
        slide_id=source.slide_id,
        x=xy[:, 0],
        y=xy[:, 1],
        tile_px=_side(tiling, "requested_tile_size_px", path),
        tile_px_level0=_side(tiling, "tile_size_lv0", path),
        mpp=mpp,
        mpp_source="file",
        level0_mpp=level0_mpp,
        level0_mpp_source="file",
        width_px=int(size[0]) if size else None,
        height_px=int(size[1]) if size else None,
        source=str(source.coords or path),
        attrs={"image": _meta_section(meta, "provenance", path).get("image_path")},
    )


def _meta_section(meta: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    part = meta.get(name)
    if not isinstance(part, dict):
        msg = f"{path} has no part '{name}'; it must be hs2p's .coordinates.meta.json"
        raise InteropError(msg)
    return part


def _side(tiling: dict[str, Any], name: str, path: Path) -> int:
    return whole(number(tiling, name, path), name, path)


def _coordinates(source: SlideFiles, tiling: dict[str, Any]) -> Int64Array:
    count = tiling.get("n_tiles")
    if source.coords is None and count == 0:
        return np.zeros((0, 2), np.int64)
    if source.coords is None:
        msg = f"{source.path}: {count} tiles, but no tiles/{source.slide_id}{NPZ}"
        raise InteropError(msg)
    arrays = load_npz(source.coords)
    missing = {"x", "y"} - set(arrays)
    if missing or arrays["x"].shape != arrays["y"].shape or arrays["x"].ndim != 1:
        shapes = {name: array.shape for name, array in arrays.items()}
        msg = f"{source.coords} holds {shapes}; x and y of the same length are needed"
        raise InteropError(msg)
    xy = coordinates(np.stack([arrays["x"], arrays["y"]], axis=1), source.coords)
    if count not in (None, len(xy)):
        msg = f"{source.coords} has {counted(len(xy), 'tile')}, its metadata say {count}"
        raise InteropError(msg)
    return xy


def read_features(source: SlideFiles, teacher: str, tiles: SlideTiles) -> FloatArray:
    """Return features [N, D] of one encoder, in the order of the tiles.

    Raises:
        InteropError: the file is damaged, or has another number of rows.
    """
    path = source.features[teacher]
    if path.suffix == ".pt":
        return feature_matrix(load_pt(path), len(tiles), path)
    arrays = load_npz(path)
    if "features" not in arrays:
        msg = f"{path} has no array 'features'; it has: {', '.join(arrays)}"
        raise InteropError(msg)
    features = feature_matrix(arrays["features"], len(tiles), path)
    index = arrays.get("tile_index")
    if index is not None and not np.array_equal(index, np.arange(len(tiles))):
        msg = f"{path}: tile_index does not count from 0 to {len(tiles) - 1}"
        raise InteropError(msg)
    return features


def identity(source: SlideFiles, teacher: str) -> dict[str, Any]:
    """Return the encoder as the metadata name it."""
    name = _embedding_meta(source.features[teacher]).get("encoder_name")
    return {"encoder": name} if name else {"encoder": teacher}
