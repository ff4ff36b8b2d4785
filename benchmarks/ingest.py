"""Slide to shard on one core: ours against openslide, PIL and tarfile, in one run.

    python -m benchmarks.ingest --slide SLIDE.svs --rounds 3

Our arm is all that an ingest does with a slide: open it, compare tiles with openslide, find tissue,
score tiles, cut, write shard, index and thumbnail. The peer's is less: it is told which tiles to
cut, reads each with `read_region`, puts it on white, encodes it with PIL at quality 90 and appends
it with its JSON to a tar; it cuts every 4th tile and its rate counts. Arms take turns; a ratio is
the median over rounds of the ratio inside a round. The process is pinned to one core.
"""

import io
import json
import os
import shutil
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import openslide
import typer
from PIL import Image

from benchmarks.report import Line, write_report
from featurestore import LakeConfig, create_lake
from ingest.cut import cut_slide
from ingest.grid import Grid, plan_grids
from ingest.readers.open_slide import open_slide
from ingest.select.sources import fingerprint

REAL = Path(__file__).parent.parent / "examples" / "data" / "CMU-1-Small-Region.svs"
PEER_EVERY = 4
PEER = "openslide + PIL + tarfile"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case of a cut: mpp, side of the tiles, copied or encoded, and the least ratio."""

    title: str
    mpp: float
    tile_px: int
    copied: bool
    target: float


def ours(slide: Path, case: Case, folder: Path) -> tuple[float, npt.NDArray[np.int64]]:
    """Return the tiles per second of `cut_slide`, and the cells (y, x) that it cut."""
    shutil.rmtree(folder, ignore_errors=True)
    copied = (case.mpp,) if case.copied else ()
    config = LakeConfig(mpps=(case.mpp,), tile_px=case.tile_px, passthrough=copied)
    lake = create_lake(folder, config)
    size, mark = fingerprint(str(slide))
    row = {"slide": 0, "slide_id": "a", "uri": str(slide), "fingerprint": mark, "bytes": size}
    start = time.perf_counter()
    cut = cut_slide(lake.store, config, row)
    seconds = time.perf_counter() - start
    tiles = cut.grids[case.mpp].tiles
    cells = np.stack([tiles["grid_y"].to_numpy(), tiles["grid_x"].to_numpy()], axis=1)
    return len(cells) / seconds, cells


def peer(slide: Path, grid: Grid, cells: npt.NDArray[np.int64], folder: Path) -> float:
    """Return the tiles per second of the usual loop."""
    start = time.perf_counter()
    with openslide.OpenSlide(slide) as file, tarfile.open(folder / "peer.tar", "w") as tar:
        level = file.get_best_level_for_downsample(grid.side_px / grid.tile_px * 1.01)
        side = round(grid.side_px / file.level_downsamples[level])
        for y, x in cells.tolist():
            at = (x * grid.side_px, y * grid.side_px)
            tile = file.read_region(at, level, (side, side))
            rgb = Image.new("RGB", tile.size, "white")
            rgb.paste(tile, mask=tile.getchannel("A"))
            if side != grid.tile_px:
                rgb = rgb.resize((grid.tile_px, grid.tile_px), Image.Resampling.BOX)
            jpeg = io.BytesIO()
            rgb.save(jpeg, "JPEG", quality=90, subsampling=0)
            _append(tar, f"{y}_{x}.jpg", jpeg.getvalue())
            _append(tar, f"{y}_{x}.json", json.dumps({"x": at[0], "y": at[1]}).encode())
    return len(cells) / (time.perf_counter() - start)


def _append(tar: tarfile.TarFile, name: str, jpeg: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(jpeg)
    tar.addfile(member, io.BytesIO(jpeg))


def measure(slide: Path, case: Case, rounds: int, folder: Path) -> Line:
    """Return the report line of one case."""
    with open_slide(str(slide), reader="openslide") as reader:
        grid = plan_grids(reader.size_px, reader.mpp, case.tile_px, {case.mpp: 1})[case.mpp]
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    _, cells = ours(slide, case, folder / "lake")
    for _ in range(rounds):
        rates["ours"].append(ours(slide, case, folder / "lake")[0])
        rates["peer"].append(peer(slide, grid, cells[::PEER_EVERY], folder))
    seconds = {name: [1 / rate for rate in tile_rates] for name, tile_rates in rates.items()}
    title = f"{slide.stem}: {case.title}, {len(cells):,} tiles"
    return Line.of(title, PEER, seconds, ("ours", "peer"), case.target).at(1, "tiles")


def cases(slide: Path) -> list[Case]:
    """Return the cases: tiles copied, tiles encoded, and tiles reduced to an mpp between levels."""
    with open_slide(str(slide)) as reader:
        native = reader.stored_tile_px(0.5)
    native_levels = [
        Case(title="224 px at 0.5 mpp, encoded", mpp=0.5, tile_px=224, copied=False, target=3),
        Case(title="256 px at 1.0 mpp, reduced", mpp=1.0, tile_px=256, copied=False, target=4),
    ]
    if native:
        title = f"{native} px at 0.5 mpp, copied"
        native_levels.insert(0, Case(title=title, mpp=0.5, tile_px=native, copied=True, target=15))
    return native_levels


def main(
    slide: Annotated[list[Path], typer.Option(help="Tiled JPEG slides near 0.5 mpp.")],
    rounds: int = 3,
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path(__file__).parent
    / "results",
) -> None:
    """Print the table and write it as JSON."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    lines = []
    with tempfile.TemporaryDirectory(prefix="slidelake-bench-") as folder:
        for path in (*slide, REAL):
            for case in cases(path):
                line = measure(path, case, rounds, Path(folder))
                typer.echo(line.text())
                lines.append(line)
    typer.echo(f"-> {write_report(out, lines, {'rounds': rounds}, name='ingest')}")


if __name__ == "__main__":
    typer.run(main)
