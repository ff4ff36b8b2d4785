"""Which index finds near tiles fast and well: time to build, time of a query, recall, bytes.

    python -m benchmarks.search --tiles 100000 --dim 1536

A lake of generated slides in a temporary folder. Features have the structure of embeddings: 64
kinds of tissue in 24 hidden causes, a shift for each slide, a nonlinear map, noise and a common
offset. Queries are tiles of the lake, one at a time as the command asks them; the truth is numpy's,
over all tiles in float32. Left out of the clock: making the lake, opening it, a first query of each
arm. The page cache is warm.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import polars as pl
import typer

from benchmarks.report import table, write_report
from benchmarks.store_lake import MPP, add_teacher, make_lake, slide_sizes
from downstream.retrieval.recall import recall_at_k, sample_tiles
from featurestore import Lake
from featurestore.query import lance_nearest
from featurestore.query.lance_nearest import SearchedColumn, index_name, nearest
from featurestore.tables.schema import features_table

Float16Array = npt.NDArray[np.float16]

TEACHER = "teacher"
K = 12
CAUSES, KINDS = 24, 64
MEAN_TILES = 6000

# Kind, and a function of the width that gives its settings.
INDEXES: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "IVF_FLAT": ("IVF_FLAT", lambda _: {}),
    "IVF_SQ": ("IVF_SQ", lambda _: {}),
    "IVF_PQ": ("IVF_PQ", lambda dim: {"num_sub_vectors": dim // 16}),
    "IVF_RQ 1 bit": ("IVF_RQ", lambda _: {"num_bits": 1}),
    "IVF_RQ": ("IVF_RQ", lambda _: {}),
    "IVF_HNSW_SQ": ("IVF_HNSW_SQ", lambda _: {}),
}
REFINES = {"IVF_FLAT": (1,), "IVF_SQ": (5,), "IVF_HNSW_SQ": (5,)}
MORE_REFINES = (5, 20, 50)


def embeddings(sizes: list[int], dim: int, seed: int) -> list[Float16Array]:
    """Return features [N, dim] of each slide."""
    rng = np.random.default_rng(seed)
    kinds = rng.normal(size=(KINDS, CAUSES)).astype(np.float32)
    matrix = rng.normal(size=(CAUSES, dim)).astype(np.float32) / 4
    offset = rng.normal(size=dim).astype(np.float32) / 2
    parts = []
    for tiles in sizes:
        shares = rng.dirichlet(np.full(KINDS, 0.2))
        centres = kinds[rng.choice(KINDS, tiles, p=shares)]
        causes = centres + 0.3 * rng.normal(size=CAUSES) + 0.5 * rng.normal(size=(tiles, CAUSES))
        vectors = np.tanh(causes.astype(np.float32) @ matrix) + offset
        noise = rng.standard_normal((tiles, dim), np.float32)
        parts.append((vectors + 0.15 * noise).astype(np.float16))
    return parts


def truth(
    features: Float16Array,
    tile_id: npt.NDArray[np.int64],
    query: Float16Array,
) -> pl.DataFrame:
    """Return the K + 1 nearest tiles of each query by numpy, in the form of `Lake.nearest`."""
    unit = features.astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    query_features = query.astype(np.float32)
    query_features /= np.linalg.norm(query_features, axis=1, keepdims=True)
    distance = 1 - query_features @ unit.T
    at = np.argsort(distance, axis=1)[:, : K + 1]
    return pl.DataFrame(
        {
            "query": np.repeat(np.arange(len(query)), K + 1),
            "tile_id": tile_id[at].ravel(),
            "distance": np.take_along_axis(distance, at, axis=1).ravel(),
        }
    )


def ask(index: SearchedColumn, query: Float16Array) -> tuple[pl.DataFrame, list[float]]:
    """Return the nearest tiles, one query after the other, and the milliseconds of each."""
    nearest(index, query[:1], K + 1)
    frames, times = [], []
    for number, one in enumerate(query):
        begun = time.perf_counter()
        frame = nearest(index, one[None], K + 1)
        times.append(1000 * (time.perf_counter() - begun))
        frames.append(frame.with_columns(query=pl.lit(number)))
    return pl.concat(frames), times


def measure(lake: Lake, name: str | None, dim: int, expected: "Truth") -> list[dict[str, Any]]:
    """Return the lines of one kind of index, or of the exact search."""
    line: dict[str, Any] = {"index": name or "none", "build_s": None, "share": None}
    base = lake.table(features_table(MPP))
    if name is not None:
        kind, parameters = INDEXES[name][0], INDEXES[name][1](dim)
        begun = time.perf_counter()
        base = base.create_index(
            TEACHER, kind, name=index_name(TEACHER), metric="cosine", replace=True, **parameters
        )
        line["build_s"] = time.perf_counter() - begun
        size = base.describe_indices()[0].total_size_bytes
        line["share"] = size / expected.bytes
    lines = []
    for refine in REFINES.get(name, MORE_REFINES) if name else (None,):
        lance_nearest.REFINE = refine or lance_nearest.REFINE
        index = SearchedColumn(store=lake.store, table=base, teacher=TEACHER, exact=name is None)
        nearest_tiles, times = ask(index, expected.query)
        recall = recall_at_k(nearest_tiles, expected.true, expected.tile_id, K)
        lines.append(
            {
                **line,
                "refine": refine,
                "query_ms": float(np.median(times)),
                "slowest_ms": float(np.max(times)),
                "recall": float(recall.mean()),
                "worst": float(recall.min()),
            }
        )
        print(lines[-1], flush=True)
    return lines


class Truth:
    """Return queries of a lake and their true neighbours."""

    def __init__(self, lake: Lake, features: Float16Array, queries: int) -> None:
        self.bytes = features.nbytes
        self.tile_id, self.query = sample_tiles(lake, TEACHER, mpp=MPP, n=queries, seed=7)
        keys = lake.tiles(mpp=MPP).select("tile_id").collect()["tile_id"].to_numpy()
        self.true = truth(features, keys, self.query)


def main(
    tiles: Annotated[int, typer.Option(help="About this number of tiles.")] = 100_000,
    dim: Annotated[int, typer.Option(help="Values of an embedding.")] = 1536,
    queries: Annotated[int, typer.Option(help="Tiles that are asked for.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the data.")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="Kinds of indexes.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write the report to.")] = None,
) -> None:
    """Measure the exact search and each kind of index."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = slide_sizes(max(1, tiles // MEAN_TILES), MEAN_TILES, seed)
        lake = make_lake(Path(folder) / "lake", sizes, with_pixels=0, seed=seed)
        values = embeddings(sizes, dim, seed)
        add_teacher(lake, TEACHER, values)
        lake = lake.refreshed()
        expected = Truth(lake, np.concatenate(values), queries)
        lines = measure(lake, None, dim, expected)
        for name in only or INDEXES:
            lines += measure(lake, name, dim, expected)
    settings = {"tiles": sum(sizes), "dim": dim, "queries": queries, "k": K, "seed": seed}
    print(table(lines))
    if out is not None:
        print(write_report(out, lines, settings, name=f"search-{dim}"))


if __name__ == "__main__":
    typer.run(main)
