"""The parts of an AnnData of a slide's tiles, for the export and for `Lake.to_anndata`.

The names are those of SpatialData (`spatialdata_attrs`), of wsidata and lazyslide (`tile_spec`,
`slide_properties`) and of squidpy (`obsm["spatial"]`, `uns["spatial"]`).
"""

import importlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from featurestore.interop.foreign_slide import Int64Array, InteropError, SlideTiles

TILES, TISSUES = "tiles", "tissues"
#: The shapes that a table's rows describe, and the columns of `obs` that say so.
REGION = {"region": TILES, "region_key": "library_id", "instance_key": "tile_id"}

_PANDAS_TYPES = {
    pl.Int64: "Int64",
    pl.Boolean: "boolean",
    pl.Float64: "float64",
    pl.Float32: "float32",
}


def check_packages(*names: str) -> None:
    """Raise InteropError, with the extra to install, if a package of [anndata] is missing."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing = error.name or name
            msg = f"an AnnData needs '{missing}': install slidelake with its extra [anndata]"
            raise InteropError(msg) from error


def tile_obs(tiles: SlideTiles, tile_id: Int64Array, columns: pl.DataFrame) -> Any:  # noqa: ANN401
    """Return `obs`, a pandas frame with a row per tile.

    Args:
        tiles: tiles of the slide.
        tile_id: the tiles' numbers [N]; as text they are the index.
        columns: scores and annotations of the tiles, in the same order.
    """
    import pandas as pd

    count = len(tiles)
    return pd.DataFrame(
        {
            "tile_id": tile_id,
            "library_id": pd.Categorical([TILES] * count, categories=[TILES]),
            "slide_id": pd.Categorical([tiles.slide_id] * count, [tiles.slide_id]),
            "x": tiles.x,
            "y": tiles.y,
            **{column.name: _pandas_values(column) for column in columns},
        },
        index=tile_id.astype(str),
    )


def _pandas_values(column: pl.Series) -> Any:  # noqa: ANN401 - a pandas array, untyped
    """Return a column in a type that keeps missing values; other types become text."""
    import pandas as pd

    kind = _PANDAS_TYPES.get(type(column.dtype))
    if kind is None:
        return pd.Categorical(column.cast(pl.String).to_list())
    return pd.array(column.to_list(), kind)


def lake_facts(
    tiles: SlideTiles,
    identities: Mapping[str, Mapping[str, Any]],
    annotations: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return what `uns["slidelake"]` says of the tiles and their features.

    Args:
        tiles: tiles of the slide.
        identities: identity of each teacher's encoder; the first teacher's features are X.
        annotations: values of slide and patient annotations.
    """
    teacher = next(iter(identities), "")
    return {
        "teacher": teacher,
        "identity": json.dumps(identities.get(teacher, {}), sort_keys=True),
        "mpp": tiles.mpp,
        "tile_px": tiles.tile_px,
        "tile_px_level0": tiles.tile_px_level0,
        "annotations": json.dumps(annotations),
    }


def tile_spec(tiles: SlideTiles) -> dict[str, Any]:
    """Return the tiles' sizes, and the stride from one tile to the next, as wsidata names them."""
    shrink = tiles.tile_px_level0 / tiles.tile_px
    side = tiles.tile_px
    return {
        **dict.fromkeys(("height", "width"), side),
        **dict.fromkeys(("stride_height", "stride_width"), side - tiles.attrs.get("overlap", 0)),
        "mpp": tiles.mpp,
        "ops_level": 0,
        "ops_downsample": shrink,
        "base_level": 0,
        "base_downsample": shrink,
        "tissue_name": TISSUES,
    }


def centres(tiles: SlideTiles) -> npt.NDArray[np.float64]:
    """Return the tiles' centres in level-0 pixels, float64 [N, 2] as (x, y)."""
    return (tiles.xy + tiles.tile_px_level0 / 2).astype(np.float64)
