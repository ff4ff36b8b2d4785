"""A whole `slidelake ingest` of slides behind a server with latency, against the same from a disk.

    python -m benchmarks.ingest_remote --slide SLIDE.svs --slides 8 --latency-ms 30

The server is on loopback and answers HTTP with ranges, each answer that much later; its own work is
on the same cores. The time is of the whole command, Ray's start included. Bytes are those that the
server sent, over those of the files: for all mpps, and for 2.0 mpp alone.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.report import RESULTS, Line, write_report
from tests.worlds.slide_server import SlideServer, slide_server


def ingest(inputs: list[str], mpp: float, folder: Path) -> float:
    """Return the seconds of the command that writes a new lake."""
    lake = folder / "lake"
    shutil.rmtree(lake, ignore_errors=True)
    command = [sys.executable, "-m", "slidelake", "ingest", str(lake), *inputs, "--mpp", str(mpp)]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def share(server: SlideServer, urls: list[str], mpp: float, folder: Path) -> float:
    """Return the share of the files' bytes that the server sends."""
    before = server.sent
    ingest(urls, mpp, folder)
    return (server.sent - before) / sum(len(slide_bytes) for slide_bytes in server.files.values())


def main(
    slide: Annotated[Path, typer.Option(help="A slide near 0.5 mpp with a pyramid.")],
    slides: int = 8,
    latency_ms: float = 30.0,
    rounds: int = 2,
    out: Annotated[Path, typer.Option(help="folder of the results")] = RESULTS,
) -> None:
    """Print the table and write it as JSON."""
    slide_bytes = slide.read_bytes()
    seconds: dict[str, list[float]] = {"remote": [], "local": []}
    with tempfile.TemporaryDirectory() as scratch, slide_server() as server:
        folder = Path(scratch)
        server.latency_s = latency_ms / 1e3
        names = [f"{slide.stem}-{number}{slide.suffix}" for number in range(slides)]
        server.files = {f"/{name}": slide_bytes for name in names}
        urls = [f"{server.url}/{name}" for name in names]
        local = [folder / name for name in names]
        for path in local:
            path.symlink_to(slide.absolute())
        for _ in range(rounds):
            seconds["local"].append(ingest([str(path) for path in local], 0.5, folder))
            seconds["remote"].append(ingest(urls, 0.5, folder))
            typer.echo({name: round(travelled[-1], 1) for name, travelled in seconds.items()})
        shares = {mpp: share(server, urls, mpp, folder) for mpp in (0.5, 2.0)}
    # The ratio of a line is the peer's time over ours: a disk is as fast as it gets, so below 1.
    title = f"ingest of {slides} slides of {len(slide_bytes) / 1e6:.0f} MB, {latency_ms:g} ms away"
    lines = [Line.of(title, "from a disk", seconds, ("remote", "local"), 1 / 1.3)]
    for (mpp, travelled), most in zip(shares.items(), (1.02, 0.15), strict=True):
        title = f"bytes that travel for {mpp} mpp"
        lines.append(
            Line(title=title, peer="the files", ratio=travelled, target=most, met=travelled <= most)
        )
    for line in lines:
        typer.echo(line.text())
    settings = {"slides": slides, "latency_ms": latency_ms, "seconds": seconds}
    typer.echo(f"-> {write_report(out, lines, settings, name='ingest-remote')}")


if __name__ == "__main__":
    typer.run(main)
