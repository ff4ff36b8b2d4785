"""What many small ingests leave on the disk, and what compact and vacuum free of it.

    python -m benchmarks.versions --ingests 450

Each ingest is one slide with 3 tiles at one mpp, registered and committed as the job does it; no
slide is decoded. An automatic vacuum would keep all that is younger than a week: here it is asked
as if the week were over.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.report import RESULTS, table, write_report
from featurestore import (
    GridCut,
    Lake,
    LakeConfig,
    ShardWriter,
    SlideCut,
    compact,
    create_lake,
    free_old_versions,
    open_lake,
    tile_ids,
    tiles_table,
    vacuum,
)
from featurestore.tables.schema import shard_path

TILES, MPP = 3, 0.5


def ingest_one(lake: Lake, number: int) -> None:
    """Register and commit one slide."""
    row = {"slide_id": f"s{number}", "uri": f"s{number}.svs", "fingerprint": "x"}
    (registered,) = lake.committer.register([row])
    slide, at = registered["slide"], np.arange(TILES)
    ids = tile_ids(slide, MPP, np.zeros_like(at), at)
    with ShardWriter(lake.store, shard_path(MPP, slide, "x")) as writer:
        for key in ids.tolist():
            writer.add(key, b"\xff\xd8", {})
    columns: dict[str, Any] = {name: np.zeros(TILES, np.int32) for name in ("grid_y", "y")}
    columns |= {name: at.astype(np.int32) for name in ("grid_x", "x")}
    columns |= {"tile_id": ids, "slide": np.full(TILES, slide, np.int32)}
    columns["slide_id"] = [row["slide_id"]] * TILES
    grid = GridCut(
        tiles=tiles_table(MPP, 256, columns),
        shard=writer.shard,
        effective_mpp=MPP,
        tile_px_level0=256,
        grid_px_level0=256,
        grid_width=TILES,
        grid_height=1,
    )
    lake.committer.commit_slides([SlideCut(row={**row, "slide": slide}, grids={MPP: grid})])


def sizes(moment: str, folder: Path) -> dict[str, Any]:
    """Return the megabytes of a lake, and of its lists and transactions."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    history = [path for path in files if path.parent.name in ("_versions", "_transactions")]
    return {
        "after": moment,
        "lake MB": round(sum(path.stat().st_size for path in files) / 1e6, 1),
        "lists and transactions MB": round(sum(p.stat().st_size for p in history) / 1e6, 1),
        "files": len(files),
        "versions": len(list((folder / "catalog.lance" / "_versions").glob("*.manifest"))),
    }


def main(
    ingests: Annotated[int, typer.Option(help="How many.")] = 450,
    out: Annotated[Path, typer.Option(help="Where the result goes.")] = RESULTS,
) -> None:
    """Measure one lake after each step."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "lake")
        lake = create_lake(path, LakeConfig(mpps=(MPP,)))
        for number in range(ingests):
            ingest_one(lake, number)
        lines = [sizes(f"{ingests} ingests", path)]
        free_old_versions(open_lake(path), days=0.0)
        lines.append(sizes("--auto-vacuum, a week later", path))
        compact(open_lake(path))
        vacuum(open_lake(path))
        lines.append(sizes("compact, vacuum", path))
    typer.echo(table(lines))
    write_report(out, lines, {"ingests": ingests, "tiles": TILES}, name="versions")


if __name__ == "__main__":
    typer.run(main)
