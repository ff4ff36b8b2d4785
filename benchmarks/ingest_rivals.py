"""A whole `slidelake ingest` against hs2p and wsi-patching, each as its users run it, on 2 workers.

    python -m benchmarks.ingest_rivals --slide SLIDE.svs --venv VENV
    python -m benchmarks.ingest_rivals --size 40000x30000 --slides 200 --rounds 1

The second makes its slide, from tiles of a real one. Beside rivals stands `share`: the time that
one core alone takes for each slide (8 of them, cut one after the other in this process, the cache
warm), times the slides, over all cores and the wall time of the whole command. `share without the
start` leaves out what passes until the first slide is being cut.

VENV is a folder with hs2p, wsi-patching, cucim-cu12 and PyTurboJPEG installed beside their own
dependencies. Each tool gets several copies of the slide under other names; what counts is the
time of the whole command: start, tissue, tiles at 0.5 mpp, and tars. hs2p reads with cuCIM and
encodes with libjpeg-turbo, its fastest settings; wsi-patching has PNG alone and no tissue search
of a whole slide, so it cuts all tiles and drops those of low contrast. Ours starts and stops Ray.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.report import Line, write_report

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).resolve().parent.parent
HS2P = """csv: {csv}
output_dir: {out}
save_tiles: true
speed: {{num_workers: 2, jpeg_backend: turbojpeg}}
tiling: {{backend: cucim, mask_backend: openslide}}
"""
WSI_PATCHING = """
import sys
from pathlib import Path
from wsi_patching import LowContrastBackgroundFilter, PatchExtractor, PNGEncoder, WSIGrid
from wsi_patching import WebDatasetWriter
if __name__ == "__main__":
    (
        WSIGrid(slides=sys.argv[2:], resolution=0, unit="level", use_gpu=False)
        .then(PatchExtractor(tile_size=256, stride=256))
        .then(LowContrastBackgroundFilter())
        .then(PNGEncoder())
        .to(WebDatasetWriter(Path(sys.argv[1])))
    ).materialize(num_workers=2)
"""


def run(command: list[str], folder: Path) -> float:
    """Return the seconds of a command; its output goes to a file, which is shown on failure."""
    log = folder / "log.txt"
    environment = {**os.environ, "PYTHONPATH": str(HERE), "SLIDELAKE_PROGRESS": "json"}
    start = time.perf_counter()
    with log.open("w") as out:
        done = subprocess.run(
            command, stdout=out, stderr=out, cwd=folder, env=environment, check=False
        )
    seconds = time.perf_counter() - start
    if done.returncode:
        typer.echo(log.read_text()[-3000:], err=True)
        raise typer.Exit(1)
    return seconds


def ours(slides: list[Path], venv: Path, folder: Path) -> float:
    """Return the seconds of `slidelake ingest` into a new lake."""
    lake = folder / "lake"
    shutil.rmtree(lake, ignore_errors=True)
    command = [sys.executable, "-m", "slidelake", "ingest", str(lake), str(slides[0].parent)]
    begun = datetime.now(UTC)
    seconds = run([*command, "--tile-px", "native"], folder)
    FIRST_S.append(first_cut_s(folder / "log.txt", begun))
    shutil.rmtree(lake)
    return seconds


#: Seconds from each of our commands to its first slide being cut.
FIRST_S: list[float] = []


def first_cut_s(log: Path, begun: datetime) -> float:
    """Return the seconds from a command's start to the first slide being cut, by its events."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    first = next(line for line in lines if line["event"] == "slide")
    return (datetime.fromisoformat(first["at"]) - begun).total_seconds() - float(first["seconds"])


def one_core_s(slide: Path, folder: Path, *, times: int = 8) -> float:
    """Return the seconds of one core for a slide, cut in this process; the first is not counted."""
    from featurestore import LakeConfig, create_lake
    from ingest.cut import cut_slide
    from ingest.select.named_slides import find_named_slides
    from ingest.select.new_lake_settings import settings
    from ingest.select.slides_to_cut import sort_out

    config: LakeConfig = settings(str(folder / "one"), [str(slide)], {}, tile_px="native")
    lake = create_lake(folder / "one", config)
    named = find_named_slides([str(slide)], {})
    (row,) = sort_out(lake.committer.register(named.rows), {}).cut
    seconds = []
    for _ in range(times + 1):
        start = time.perf_counter()
        cut_slide(lake.store, config, row)
        seconds.append(time.perf_counter() - start)
    shutil.rmtree(folder / "one")
    return sum(seconds[1:]) / times


def make_slide(path: Path, width: int, height: int) -> None:
    """Write a slide of this size, whose tiles are those of the real one again and again."""
    import cv2
    import numpy as np
    import openslide

    from examples.slide_writer import TILE_PX, aperio_pages, encode_tile, write_tiff

    with openslide.OpenSlide(HERE / "examples" / "data" / "CMU-1-Small-Region.svs") as slide:
        across, down = (px // TILE_PX * TILE_PX for px in slide.dimensions)
        one = np.asarray(slide.read_region((0, 0), 0, (across, down)).convert("RGB"))
    tiles = [
        [
            encode_tile(np.ascontiguousarray(one[y : y + TILE_PX, x : x + TILE_PX]))
            for x in range(0, across, TILE_PX)
        ]
        for y in range(0, down, TILE_PX)
    ]
    streams = [
        tiles[y % len(tiles)][x % len(tiles[0])]
        for y in range(-(-height // TILE_PX))
        for x in range(-(-width // TILE_PX))
    ]
    reduced = []
    for by in (4, 16):
        small = cv2.resize(one, (across // by, down // by), interpolation=cv2.INTER_AREA)
        copies = (-(-height // down), -(-width // across), 1)
        reduced.append(np.tile(small, copies)[: height // by, : width // by])
    with path.open("wb") as file:
        write_tiff(file, aperio_pages("large", (width, height), 0.5, streams, reduced))


def hs2p(slides: list[Path], venv: Path, folder: Path) -> float:
    """Return the seconds of `hs2p` with tars."""
    out, csv, config = folder / "hs2p", folder / "slides.csv", folder / "hs2p.yaml"
    shutil.rmtree(out, ignore_errors=True)
    rows = [f"{path.stem},{path},\n" for path in slides]
    csv.write_text("sample_id,image_path,mask_path\n" + "".join(rows))
    config.write_text(HS2P.format(csv=csv, out=out))
    seconds = run([str(venv / "bin" / "hs2p"), str(config)], folder)
    if len(list(out.rglob("*.tar"))) != len(slides):
        typer.echo((folder / "log.txt").read_text()[-3000:], err=True)
        raise typer.Exit(1)
    return seconds


def wsi_patching(slides: list[Path], venv: Path, folder: Path) -> float:
    """Return the seconds of wsi-patching, by a script as in its documentation."""
    out, script = folder / "wsi", folder / "wsi.py"
    shutil.rmtree(out, ignore_errors=True)
    script.write_text(WSI_PATCHING)
    command = [str(venv / "bin" / "python"), str(script), str(out), *map(str, slides)]
    return run(command, folder)


def main(
    slide: Annotated[Path | None, typer.Option(help="A tiled JPEG slide at 0.5 mpp.")] = None,
    venv: Annotated[Path | None, typer.Option(help="Where the others are installed.")] = None,
    size: Annotated[str, typer.Option(help="Size of a slide to make, as 40000x30000.")] = "",
    slides: int = 8,
    rounds: int = 3,
    skip: Annotated[list[str] | None, typer.Option(help="hs2p or wsi-patching")] = None,
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path(__file__).parent
    / "results",
) -> None:
    """Print seconds and ratios, and write them as JSON."""
    tools: dict[str, Callable[[list[Path], Path, Path], float]] = {
        "ours": ours,
        "hs2p": hs2p,
        "wsi-patching": wsi_patching,
    }
    tools = {name: tool for name, tool in tools.items() if name not in (skip or [])}
    if venv is None:
        tools = {"ours": ours}
    seconds: dict[str, list[float]] = {name: [] for name in tools}
    with tempfile.TemporaryDirectory(prefix="slidelake-bench-") as scratch:
        folder = Path(scratch)
        if slide is None:
            slide = folder / "made.svs"
            width, height = map(int, (size or "40000x30000").split("x"))
            make_slide(slide, width, height)
        (folder / "in").mkdir()
        copies = [folder / "in" / f"{slide.stem}-{n}{slide.suffix}" for n in range(slides)]
        for copy in copies:
            copy.symlink_to(slide.absolute())
        core_s = one_core_s(slide, folder)
        for _ in range(rounds):
            for name, tool in tools.items():
                seconds[name].append(tool(copies, venv or folder, folder))
                typer.echo(f"{name}: {seconds[name][-1]:.1f} s")
    lines = [
        Line.of(f"slidelake ingest of {slides} slides", name, seconds, ("ours", name), 3.0)
        for name in seconds
        if name != "ours"
    ]
    for line in lines:
        typer.echo(line.text())
    least = core_s * slides / (os.cpu_count() or 1)
    shares = [least / wall for wall in seconds["ours"]]
    without = [least / (wall - s) for wall, s in zip(seconds["ours"], FIRST_S, strict=True)]
    typer.echo(f"one core: {core_s:.2f} s a slide; to the first slide being cut: {FIRST_S}")
    typer.echo(f"share: {shares}; share without the start: {without}")
    settings = {"rounds": rounds, "slides": slides, "seconds": seconds, "core_s": core_s,
                "first_s": FIRST_S, "share": shares, "share_without_start": without}  # fmt: skip
    typer.echo(f"-> {write_report(out, lines, settings, name='ingest-rivals')}")


if __name__ == "__main__":
    typer.run(main)
