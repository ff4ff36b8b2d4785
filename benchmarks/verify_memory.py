"""Memory of `verify` and `repair` at several sizes of a lake.

    python -m benchmarks.verify_memory --slides 20000 --slides 80000
    python -m benchmarks.verify_memory --slides 4000 --slides 16000 --sample 1

Each lake has two mpps and two teachers, a picture of 4 kB in every row of `slides`, and names of
shards in the catalog; 250 slides lie in a fragment. It is loaded in bulk, with 2 tiles a slide. By
default rows of all tables are compared and no slide is read in full, so no shards are needed; with
`--sample 1` every slide is, and the catalog names no shards. The peak of each run is that of a
process of its own; `first` is its memory once everything is imported.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import lance
import numpy as np
import pyarrow as pa
import typer
from lance import LanceOperation

from benchmarks.scale import DIM, MPPS, TILES, load, row_of
from featurestore import Lake, LakeConfig, create_lake, tile_ids, tiles_table
from featurestore.keep.repairing import plan_repair, repair
from featurestore.keep.verify.lance_checking import check_lake, lake_to_mend
from featurestore.tables.checksums import features_crc32, tiles_crc32
from featurestore.tables.lance_tables import commit, open_table, write_fragment
from featurestore.tables.schema import (
    CATALOG,
    CATALOG_SCHEMA,
    SLIDES,
    SLIDES_SCHEMA,
    features_table,
)

TEACHERS = ("t", "u")
PER_FRAGMENT = 250
AT_ONCE = 4_000
PICTURE = bytes(range(256)) * 16


def fill(uri: str, slides: int, *, shards: bool) -> None:
    """Load a lake in bulk."""
    lake = create_lake(uri, LakeConfig(mpps=MPPS))
    sums: dict[float, list[int]] = {}
    for mpp in MPPS:
        fields = [lake.committer.add_teacher(mpp, name, DIM, {"by": name}) for name in TEACHERS]
        starts = range(0, slides, PER_FRAGMENT)
        ranges = [range(start, min(start + PER_FRAGMENT, slides)) for start in starts]
        sums[mpp] = []
        parts = [features(lake, mpp, fields, some, sums[mpp]) for some in ranges]
        rel = features_table(mpp)
        version = open_table(lake.store, rel).version
        operation = LanceOperation.Append(parts)
        commit(lake.store, rel, operation, read_version=version, properties={})
    for start in range(0, slides, AT_ONCE):
        some = range(start, min(start + AT_ONCE, slides))
        rows = [{**row_of(n), "state": "ready", "thumbnail": PICTURE} for n in some]
        load(lake, SLIDES, SLIDES_SCHEMA, rows)
        catalog = [
            row for n in some for mpp in MPPS for row in catalog_rows(n, mpp, sums[mpp][n], shards)
        ]
        load(lake, CATALOG, CATALOG_SCHEMA, catalog)
    for rel in (SLIDES, CATALOG):
        open_table(lake.store, rel).optimize.optimize_indices()
    lake.committer.register([row_of(slides)])  # a commit that names all versions


def features(
    lake: Lake, mpp: float, fields: list[pa.Field], slides: range, sums: list[int]
) -> lance.FragmentMetadata:
    """Write a fragment of slides with both teachers' columns; `sums` gets checksums of tiles."""
    at = np.arange(TILES)
    zeros = np.zeros(TILES * len(slides), np.int32)
    columns = {
        "tile_id": np.concatenate([tile_ids(slide, mpp, at * 0, at) for slide in slides]),
        "slide": np.repeat(np.array(slides, np.int32), TILES),
        "slide_id": [name for slide in slides for name in [row_of(slide)["slide_id"]] * TILES],
        "grid_y": zeros,
        "grid_x": np.tile(at, len(slides)).astype(np.int32),
        "y": zeros,
        "x": np.tile(at * 256, len(slides)).astype(np.int32),
    }
    table = tiles_table(mpp, 256, columns).replace_schema_metadata(None)
    sums += [tiles_crc32(table.slice(n * TILES, TILES)) for n in range(len(slides))]
    for field in fields:
        values = pa.array(np.ones(table.num_rows * DIM, np.float16))
        column = pa.FixedSizeListArray.from_arrays(values, type=field.type)
        table = table.append_column(field, column)
    return write_fragment(lake.store, features_table(mpp), table)[0]


def catalog_rows(slide: int, mpp: float, crc32: int, shards: bool) -> list[dict[str, Any]]:  # noqa: FBT001
    """Return the catalog rows of one slide at one mpp: its tiles and its teachers."""
    row = {
        "slide": slide,
        "slide_id": row_of(slide)["slide_id"],
        "mpp": mpp,
        "tiles": TILES,
        "fragment": slide // PER_FRAGMENT,
        "row_start": slide % PER_FRAGMENT * TILES,
    }
    tiles = {**row, "crc32": crc32, "effective_mpp": mpp, "grid_width": TILES, "grid_height": 1}
    if shards:
        tiles["shard"] = f"tiles/mpp{mpp}/{slide:06d}-0123456789abcdef.tar"
        tiles |= {"shard_bytes": 10240, "shard_crc32": slide, "index_crc32": slide}
    ones = features_crc32(np.ones((TILES, DIM), np.float16))
    return [tiles, *({**row, "teacher": name, "crc32": ones} for name in TEACHERS)]


def memory_mb() -> int:
    """Return this process's peak memory; `getrusage` would count its parent's."""
    status = Path("/proc/self/status").read_text()
    return round(int(status.partition("VmHWM:")[2].split()[0]) / 1024)


def measure(uri: str, slides: int, sample: float, *, mend: bool) -> dict[str, Any]:
    """Verify a lake, then repair it, in this process."""
    first, start = memory_mb(), time.process_time()
    verdict = check_lake(uri, sample=sample)
    line = {"slides": slides, "sample": sample, "first_mb": first, "verify_mb": memory_mb()}
    line["cpu_s"] = round(time.process_time() - start, 1)
    line["damage"] = len(verdict.damage)
    if mend:
        lake = lake_to_mend(uri)
        repair(lake, verdict, plan=plan_repair(lake, verdict))
        line["repair_mb"] = memory_mb()
    return line


def main(
    slides: Annotated[list[int], typer.Option(help="Sizes to try.")],
    sample: Annotated[float, typer.Option(help="Share of slides read in full.")] = 0.0,
    keep: Annotated[str, typer.Option(help="Folder to make the lakes in; kept.")] = "",
    mend: Annotated[bool, typer.Option(help="Repair too.")] = False,  # noqa: FBT002
    child: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Print one line per size, and megabytes for each thousand slides between first and last."""
    if child:
        typer.echo(json.dumps(measure(child, slides[0], sample, mend=mend)))
        return
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        for size in slides:
            uri = str(Path(keep or scratch) / f"lake-{size}-{sample}")
            if not Path(uri).exists():
                fill(uri, size, shards=not sample)
            command = [sys.executable, "-m", "benchmarks.verify_memory", "--slides", str(size)]
            command += ["--sample", str(sample), "--child", uri, *(["--mend"] if mend else [])]
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ
            )
            lines.append(json.loads(done.stdout.splitlines()[-1]))
            typer.echo(json.dumps(lines[-1]))
    if len(lines) > 1:
        more = lines[-1]["slides"] - lines[0]["slides"]
        slope = (lines[-1]["verify_mb"] - lines[0]["verify_mb"]) / more * 1000
        typer.echo(f"{slope:.2f} MB for each thousand slides")


if __name__ == "__main__":
    typer.run(main)
