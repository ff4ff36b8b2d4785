"""Files of other tools, written with plain h5py, torch and numpy as those tools write them.

Nothing of the package's own writers is used: names, shapes, types, chunks and attributes are those
seen in real output of CLAM, TRIDENT, STAMP and slide2vec.
"""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]

SIDE = 512  # level-0 pixels of a 256 px tile at 20 x of a 40 x scan


def two_contours(side: int = SIDE) -> Int64Array:
    """Tiles [21, 2] of two contours, whose grids begin anywhere and overlap by a few pixels."""
    first = grid(4, 3, side) + np.array([1030, 517])
    second = grid(3, 3, side) + np.array([1030 + 4 * side - 8, 600])
    return np.concatenate([second, first])


def grid(columns: int, rows: int, side: int = SIDE) -> Int64Array:
    """Tiles [columns * rows, 2] side by side, column after column."""
    x, y = np.meshgrid(np.arange(columns), np.arange(rows), indexing="ij")
    return (np.stack([x, y], axis=-1).reshape(-1, 2) * side).astype(np.int64)


def values(tiles: int, dim: int, seed: int = 0) -> Float32Array:
    """Features [tiles, dim]."""
    rng = np.random.default_rng([seed, tiles, dim])
    return rng.standard_normal((tiles, dim)).astype(np.float32)


# ---------------------------------------------------------------------- TRIDENT


def trident_attrs(slide: str, **other: Any) -> dict[str, Any]:  # noqa: ANN401
    return {
        "patch_size": 256,
        "patch_size_level0": SIDE,
        "level0_magnification": 40,
        "target_magnification": 20,
        "overlap": 0,
        "name": slide,
        "savetodir": "job/20x_256px_0px_overlap",
        "level0_width": 20000,
        "level0_height": 12000,
        **other,
    }


def trident_patches(grid_folder: Path, slide: str, xy: Int64Array, **attrs: Any) -> Path:  # noqa: ANN401
    path = grid_folder / "patches" / f"{slide}_patches.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        coords = file.create_dataset("coords", data=xy, maxshape=(None, 2), chunks=(1, 2))
        coords.attrs.update(trident_attrs(slide, **attrs))
    return path


def trident_features(
    grid_folder: Path,
    slide: str,
    xy: Int64Array,
    encoder: str,
    features: Float32Array,
    **attrs: Any,  # noqa: ANN401
) -> Path:
    path = grid_folder / f"features_{encoder}" / f"{slide}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    chunks = (1, *features.shape[1:])
    with h5py.File(path, "w") as file:
        embeddings = file.create_dataset(
            "features", data=features, maxshape=(None, *features.shape[1:]), chunks=chunks
        )
        embeddings.attrs.update({"name": slide, "savetodir": str(path.parent), "encoder": encoder})
        coords = file.create_dataset("coords", data=xy, maxshape=(None, 2), chunks=(1, 2))
        coords.attrs.update(trident_attrs(slide, **attrs))
    return path


def trident_tissue(job: Path, slide: str) -> dict[str, Any]:
    """A polygon with a hole, as geopandas writes it."""
    rings = [
        [[1000.0, 500.0], [9000.5, 500.0], [9000.5, 6000.0], [1000.0, 6000.0], [1000.0, 500.0]],
        [[2000.0, 900.0], [2000.0, 1500.0], [2600.0, 1500.0], [2600.0, 900.0], [2000.0, 900.0]],
    ]
    tissue = {
        "type": "FeatureCollection",
        "name": slide,
        "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}},
        "features": [
            {
                "type": "Feature",
                "properties": {"tissue_id": 0},
                "geometry": {"type": "Polygon", "coordinates": rings},
            }
        ],
    }
    path = job / "contours_geojson" / f"{slide}.geojson"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tissue))
    return tissue


# ---------------------------------------------------------------------- CLAM


def clam_patches(folder: Path, slide: str, xy: Int64Array, **other: Any) -> Path:  # noqa: ANN401
    path = folder / "patches" / f"{slide}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    attrs = {
        "patch_size": 256,
        "patch_level": 1,
        "downsample": np.array([2.0, 2.0]),
        "downsampled_level_dim": np.array([10000, 6000]),
        "level_dim": np.array([10000, 6000]),
        "name": slide,
        "save_path": str(path.parent),
        **other,
    }
    with h5py.File(path, "w") as file:
        coords = file.create_dataset("coords", data=xy, maxshape=(None, 2), chunks=(1, 2))
        coords.attrs.update(attrs)
    return path


def clam_features(folder: Path, slide: str, xy: Int64Array, features: Float32Array) -> None:
    for kind in ("h5_files", "pt_files"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "h5_files" / f"{slide}.h5", "w") as file:
        shape = (None, features.shape[1])
        rows = (32, features.shape[1])
        file.create_dataset("features", data=features, maxshape=shape, chunks=rows)
        file.create_dataset("coords", data=xy.astype(np.int32), maxshape=(None, 2), chunks=(32, 2))
    torch.save(torch.from_numpy(features), folder / "pt_files" / f"{slide}.pt")


# ---------------------------------------------------------------------- STAMP


def stamp(
    folder: Path,
    slide: str,
    xy_um: npt.NDArray[np.floating | np.integer],
    features: npt.NDArray[np.floating],
    **other: Any,  # noqa: ANN401
) -> Path:
    """A file of STAMP 2.4, or of an older one: an attribute given as None is left out."""
    attrs = {
        "stamp_version": "2.4.0",
        "extractor": "virchow2",
        "unit": "um",
        "tile_size_um": 256.0,
        "tile_size_px": 224,
        "code_hash": "0123abcd",
        "feat_type": "tile",
        **other,
    }
    path = folder / f"{slide}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["coords"] = xy_um.astype(np.float32)
        file["feats"] = features.astype(np.float16)
        file.attrs.update({name: value for name, value in attrs.items() if value is not None})
    return path


# ---------------------------------------------------------------------- slide2vec


def slide2vec_tiles(run: Path, slide: str, xy: Int64Array, **tiling: Any) -> None:  # noqa: ANN401
    """Coordinates as hs2p writes them: sorted by x, then y."""
    folder = run / "tiles"
    folder.mkdir(parents=True, exist_ok=True)
    if len(xy):
        np.savez_compressed(
            folder / f"{slide}.coordinates.npz",
            tile_index=np.arange(len(xy), dtype=np.int32),
            x=xy[:, 0],
            y=xy[:, 1],
            tissue_fractions=np.full(len(xy), 0.5, np.float32),
        )
    meta = {
        "provenance": {"sample_id": slide, "image_path": f"/data/{slide}.svs", "mask_path": None},
        "slide": {
            "dimensions": [20000, 12000],
            "base_spacing_um": 0.2525,
            "level_downsamples": [1.0, 4.0],
        },
        "tiling": {
            "requested_tile_size_px": 256,
            "requested_spacing_um": 0.5,
            "read_level": 0,
            "tile_size_lv0": SIDE,
            "step_px_lv0": SIDE,
            "overlap": 0.0,
            "n_tiles": len(xy),
            **tiling,
        },
        "segmentation": {},
        "filtering": {},
        "artifact": {"coordinate_space": "level0_px", "tile_order": "x_then_y"},
    }
    (folder / f"{slide}.coordinates.meta.json").write_text(json.dumps(meta))


def slide2vec_features(
    run: Path, slide: str, features: npt.NDArray[np.floating], *, kind: str = "pt"
) -> Path:
    folder = run / "tile_embeddings"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{slide}.{kind}"
    if kind == "pt":
        torch.save(torch.from_numpy(features), path)
    else:
        np.savez_compressed(path, features=features, tile_index=np.arange(len(features)))
    metadata = {"sample_id": slide, "encoder_name": "prost40m", "encoder_level": "tile"}
    (folder / f"{slide}.meta.json").write_text(json.dumps(metadata))
    return path


def cut_short(path: Path) -> None:
    """Leave the first half of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
