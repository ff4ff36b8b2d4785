"""How a lake's readers and its committer grow with the number of slides.

    python -m benchmarks.scale --slides 1000 --slides 10000 --slides 100000 --slides 500000

Each lake has two mpps and one teacher. Its tables are real: as many rows of `slides` and `catalog`,
and as many fragments of the features tables, as that many slides of 6,000 tiles would make (42
slides a fragment), but with 2 tiles a slide and 4-d vectors. They are loaded in bulk by the same
row builders, as after `compact`; shards are not there. On top of that, real commits are timed.
"""

import datetime as dt
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import lance
import numpy as np
import polars as pl
import pyarrow as pa
import typer
from lance import LanceOperation

from featurestore import (
    ColumnWriter,
    GridCut,
    Lake,
    LakeConfig,
    SlideCut,
    create_lake,
    open_lake,
    tile_ids,
    tiles_table,
)
from featurestore.commits.cuts import tiles_row
from featurestore.commits.lance_ledger import versions_property
from featurestore.tables.checksums import features_crc32, with_row_crc32
from featurestore.tables.lance_tables import commit, open_table, write_fragment
from featurestore.tables.schema import (
    CATALOG,
    CATALOG_SCHEMA,
    SLIDES,
    SLIDES_SCHEMA,
    features_table,
)

MPPS = (0.5, 2.0)
PER_FRAGMENT = 42
TILES, DIM = 2, 4
FILLED = "filled"
RESULTS = Path(__file__).parent / "results"


def tiles_of(slide: int, mpp: float) -> pa.Table:
    """Return the rows of a slide's tiles."""
    at = np.arange(TILES)
    zeros = np.zeros(TILES, np.int32)
    columns = {
        "tile_id": tile_ids(slide, mpp, zeros, at),
        "slide": np.full(TILES, slide, np.int32),
        "slide_id": [f"slide-{slide:07d}"] * TILES,
        "grid_y": zeros,
        "grid_x": at.astype(np.int32),
        "y": zeros,
        "x": (at * 256).astype(np.int32),
        "tissue": np.ones(TILES, np.float32),
    }
    return tiles_table(mpp, 256, columns).replace_schema_metadata(None)


def cut_of(slide: int) -> SlideCut:
    """Return a slide as a worker would return it, without pixels."""
    grids = {
        mpp: GridCut(
            tiles=tiles_of(slide, mpp),
            shard=None,
            effective_mpp=mpp,
            tile_px_level0=256,
            grid_px_level0=256,
            grid_width=TILES,
            grid_height=1,
        )
        for mpp in MPPS
    }
    return SlideCut(row=row_of(slide), grids=grids)


def row_of(slide: int) -> dict[str, Any]:
    """Return a row of the table `slides`."""
    name = f"slide-{slide:07d}"
    return {"slide": slide, "slide_id": name, "uri": f"{name}.svs", "fingerprint": "x"}


def fill(uri: str, slides: int) -> None:
    """Load a lake in bulk: `slides`, features with a teacher, catalog."""
    lake = create_lake(uri, LakeConfig(mpps=MPPS))
    store = lake.store
    rows = [{**row_of(slide), "state": "ready"} for slide in range(slides)]
    for start in range(0, slides, 1 << 14):
        load(lake, SLIDES, SLIDES_SCHEMA, rows[start : start + (1 << 14)])
    for mpp in MPPS:
        field = lake.committer.add_teacher(mpp, "t", DIM, {"weights": "random"})
        fragments = [
            features(lake, mpp, field, range(first, min(first + PER_FRAGMENT, slides)))
            for first in range(0, slides, PER_FRAGMENT)
        ]
        rel = features_table(mpp)
        head = open_table(store, rel)
        commit(
            store, rel, LanceOperation.Append(fragments), read_version=head.version, properties={}
        )
    catalog = [
        {**row, "fragment": slide // PER_FRAGMENT, "row_start": slide % PER_FRAGMENT * TILES}
        for slide in range(slides)
        for row in catalog_rows(cut_of(slide))
    ]
    for start in range(0, len(catalog), 1 << 20):
        load(lake, CATALOG, CATALOG_SCHEMA, catalog[start : start + (1 << 20)])
    for rel in (SLIDES, CATALOG):
        open_table(store, rel).optimize.optimize_indices()
    lake.committer.register([row_of(slides)])  # a commit that names all versions
    lake.refreshed().snapshot(FILLED)


def load(lake: Lake, rel: str, schema: pa.Schema, rows: list[dict[str, Any]]) -> None:
    """Append rows as one fragment."""
    table = pa.Table.from_pylist([{n: r.get(n) for n in schema.names} for r in rows], schema=schema)
    new = write_fragment(lake.store, rel, with_row_crc32(table))
    properties = versions_property(lake.store, lake.config) if rel == CATALOG else {}
    head = open_table(lake.store, rel)
    commit(
        lake.store,
        rel,
        LanceOperation.Append(new),
        read_version=head.version,
        properties=properties,
    )


def features(lake: Lake, mpp: float, field: pa.Field, slides: range) -> lance.FragmentMetadata:
    """Write a fragment of slides with the teacher's column; tiles and features are in one file."""
    table = pa.concat_tables([tiles_of(slide, mpp) for slide in slides])
    values = pa.array(np.ones(table.num_rows * DIM, np.float16))
    column = pa.FixedSizeListArray.from_arrays(values, type=field.type)
    return write_fragment(lake.store, features_table(mpp), table.append_column(field, column))[0]


def catalog_rows(cut: SlideCut) -> Iterator[dict[str, Any]]:
    """Return the catalog rows of a slide's tiles and of its teacher, at each mpp."""
    crc = features_crc32(np.ones((TILES, DIM), np.float16))
    for mpp, grid in cut.grids.items():
        tiles = tiles_row(cut.row, mpp, grid, 0)
        yield tiles
        teacher = {k: tiles[k] for k in ("slide", "slide_id", "mpp", "tiles")}
        yield {**teacher, "teacher": "t", "crc32": crc}


def timed(work: Callable[[], Any], rounds: int = 5) -> float:
    """Return the median milliseconds of some calls."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(seconds), 2)


def measure(uri: str, slides: int) -> dict[str, Any]:
    """Return the milliseconds of a reader's and a committer's steps, and the reader's memory."""
    lake = open_lake(uri, version=FILLED)  # a kept lake has grown since
    names = [f"slide-{slide:07d}" for slide in np.random.default_rng(0).integers(0, slides, 40)]
    picked = iter(names * 4)
    figures: dict[str, Any] = {"slides": slides}
    figures["open_ms"] = timed(lambda: open_lake(uri))
    figures["first_bag_ms"] = timed(
        lambda: open_lake(uri, version=FILLED).bag(next(picked), "t", mpp=0.5)
    )
    figures["bag_ms"] = timed(lambda: lake.bag(next(picked), "t", mpp=0.5), rounds=20)
    figures["find_ms"] = timed(lambda: lake.tiles_of(mpp=0.5, slide_ids=[next(picked)]), rounds=20)
    figures["find_100_ms"] = timed(lambda: lake.tiles_of(mpp=0.5, slide_ids=names))
    figures["head_ms"] = timed(lambda: lake.features("t", mpp=0.5).head(5).collect())
    figures["list_ms"] = timed(lambda: lake.tiles_of(mpp=0.5), rounds=2)
    next(iter(lake.stream("t", mpp=0.5, slide_ids=names)))  # imports and first reads
    figures["plan_epoch_ms"] = timed(lambda: next(iter(lake.stream("t", mpp=0.5))), rounds=2)
    figures["reader_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    lake = open_lake(uri)
    first = lake.slides().select(pl.col("slide").max()).collect().item() + 1
    at = iter(range(first, first + 10_000))

    def add() -> None:
        cuts = [cut_of(next(at)) for _ in range(64)]
        lake.committer.register([cut.row for cut in cuts])
        lake.committer.commit_slides(cuts)

    figures["register_and_commit_64_ms"] = timed(add, rounds=5)
    figures["commit_teacher_ms"] = timed(lambda: add_column(lake), rounds=3)
    return figures


def add_column(lake: Lake) -> None:
    """Commit a teacher's column of one more fragment."""
    fresh = lake.refreshed()
    field = lake.committer.add_teacher(0.5, "later", DIM, {"weights": "later"})
    done = fresh.committer.ledger
    table = fresh.table(features_table(0.5))
    number = next(n for n in table.fragment_ids() if not done.slides_in(0.5, "later", n))
    rows = [row for row in done.rows_in(0.5, number) if row["teacher"] is None]
    writer = ColumnWriter(lake.store, 0.5, field, number)
    for row in rows:
        ids = tiles_of(row["slide"], 0.5)["tile_id"].to_numpy()
        writer.add(row["slide"], ids, np.ones((TILES, DIM), np.float32))
    lake.committer.commit_columns(0.5, [writer.finish()])


def main(
    slides: Annotated[list[int], typer.Option(help="Sizes to try.")],
    keep: Annotated[str, typer.Option(help="Folder to make the lakes in; kept.")] = "",
    child: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Print and store one line per size; each size is measured in its own process."""
    if child:
        typer.echo(json.dumps(measure(child, slides[0])))
        return
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        for size in slides:
            uri = str(Path(keep or scratch) / f"lake-{size}")
            start = time.perf_counter()
            if not Path(uri).exists():
                fill(uri, size)
            typer.echo(f"{size} slides: filled in {time.perf_counter() - start:.0f} s", err=True)
            command = [
                sys.executable,
                "-m",
                "benchmarks.scale",
                "--slides",
                str(size),
                "--child",
                uri,
            ]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            lines.append(json.loads(done.stdout.splitlines()[-1]))
            typer.echo(json.dumps(lines[-1]))
    document = {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.processor() or platform.machine()}, {platform.system()}",
        "pylance": lance.__version__,
        "lines": lines,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "scale.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
