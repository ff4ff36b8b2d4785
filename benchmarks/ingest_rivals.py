"""A whole `slidelake ingest` against hs2p and wsi-patching, each as its users run it, on 2 workers.

    python -m benchmarks.ingest_rivals --slide SLIDE.svs --venv VENV

VENV is a folder with hs2p, wsi-patching, cucim-cu12 and PyTurboJPEG installed beside their own
dependencies. Each tool gets several copies of the slide under other names; what counts is the
time of the whole command: start, tissue, tiles at 0.5 mpp, and tars. hs2p reads with cuCIM and
encodes with libjpeg-turbo, its fastest settings; wsi-patching has PNG alone and no tissue search
of a whole slide, so it cuts all tiles and drops those of low contrast. Ours starts and stops Ray.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.report import Line, write_report

if TYPE_CHECKING:
    from collections.abc import Callable

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
    start = time.perf_counter()
    with log.open("w") as out:
        done = subprocess.run(command, stdout=out, stderr=out, cwd=folder, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        typer.echo(log.read_text()[-3000:], err=True)
        raise typer.Exit(1)
    return seconds


def ours(slides: list[Path], venv: Path, folder: Path) -> float:
    """Return the seconds of `slidelake ingest` into a new lake."""
    lake = folder / "lake"
    shutil.rmtree(lake, ignore_errors=True)
    command = [sys.executable, "-m", "slidelake", "ingest", str(lake), *map(str, slides)]
    return run([*command, "--tile-px", "native"], folder)


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
    slide: Annotated[Path, typer.Option(help="A tiled JPEG slide at 0.5 mpp.")],
    venv: Annotated[Path, typer.Option(help="Where the others are installed.")],
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
    seconds: dict[str, list[float]] = {name: [] for name in tools}
    with tempfile.TemporaryDirectory(prefix="slidelake-bench-") as scratch:
        folder = Path(scratch)
        copies = [folder / f"{slide.stem}-{number}{slide.suffix}" for number in range(slides)]
        for copy in copies:
            copy.symlink_to(slide.absolute())
        for _ in range(rounds):
            for name, tool in tools.items():
                seconds[name].append(tool(copies, venv, folder))
                typer.echo(f"{name}: {seconds[name][-1]:.1f} s")
    lines = [
        Line.of(f"slidelake ingest of {slides} slides", name, seconds, ("ours", name), 3.0)
        for name in seconds
        if name != "ours"
    ]
    for line in lines:
        typer.echo(line.text())
    settings = {"rounds": rounds, "slides": slides, "seconds": seconds}
    typer.echo(f"-> {write_report(out, lines, settings, name='ingest-rivals')}")


if __name__ == "__main__":
    typer.run(main)
