"""Requests and bytes of ingest, extract, stream and commits on a bucket that is 30 ms away.

    python -m benchmarks.bucket

The S3 server is moto, or the one of `--server`, on loopback; a proxy before it delays each answer
and counts requests and bytes. Both run on the same cores as what is measured. What a Ray worker
does is done here without Ray: cutting a slide, running an encoder over a fragment. Rates are
against the same work on a local lake, in turns in one run; the clock leaves out Ray's start, the
loading of networks and, of extract, the commit, whose requests are in a line of their own.
"""

import functools
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import typer

from benchmarks.report import RESULTS, Line, table, write_report
from featurestore import Lake, LakeConfig, create_lake, open_lake, vacuum
from featurestore.keep.lance_copy import copy_lake
from featurestore.read.stream_tiles import Pixels, TileBatch
from ingest import find_teachers
from ingest.cut import cut_slide
from ingest.select.sources import fingerprint
from ingest.teachers.extract_plan import plan
from ingest.teachers.extractor import Extractor
from ingest.teachers.work.units import Outcome, Unit
from tests.worlds.s3 import SERVER, Bucket, Request, new_bucket
from tests.worlds.wide_slide import write_wide_slide

MPPS = (0.5, 2.0)
ENCODER = Path(__file__).parents[1] / "examples" / "own_encoder.py"
COLUMN = "colour-moments"


@contextmanager
def distant_bucket(latency_ms: float, server: str) -> Iterator[Bucket]:
    """Yield an empty bucket behind a proxy that delays requests; the environment leads there."""
    words = [sys.executable, "-P", str(SERVER), *([server] if server else [])]
    with (
        pytest.MonkeyPatch.context() as environment,
        subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            ports = process.stdout.readline().split()
            direct, proxy = (f"http://127.0.0.1:{port}" for port in ports)
            bucket = new_bucket((server or direct, proxy), environment)
            environment.setenv("AWS_ENDPOINT_URL", proxy)
            bucket.faults.set(rates={"delayed": 1.0}, delay_s=latency_ms / 1e3)
            yield bucket
        finally:
            process.stdin.close()


def kind_of(request: Request) -> str:
    """Return what a request is for: its method, or LIST, and the folder of the lake.

    >>> kind_of(Request("GET", "/b/lake/tiles/mpp0.5/000001-ab.tar", {}, "", 0))
    'GET tiles'
    """
    place = urlsplit(request.target)
    query = parse_qs(place.query)
    listed = query.get("prefix", [""])[0]
    path = listed if "list-type" in query else unquote(place.path)
    folder = re.search(r"(?:^|/)(tiles|features|slides|catalog|leases|annotations|runs)", path)
    method = "LIST" if "list-type" in query else request.method
    return f"{method} {folder[1] if folder else 'files'}"


class Counted:
    """Requests of pieces of work.

    Args:
        bucket: the bucket behind the proxy.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._faults = bucket.faults
        self.lines: list[dict[str, Any]] = []

    def run(self, title: str, work: Callable[[], Any], *, per: int, unit: str) -> Any:  # noqa: ANN401
        """Do some work; keep a line with its requests and bytes for each of `per` units."""
        self._faults.forget()
        start = time.perf_counter()
        outcome = work()
        seconds = time.perf_counter() - start
        seen = self._faults.seen
        received = sum(request.sent for request in seen)
        sent = sum(int(request.headers.get("content-length", 0)) for request in seen)
        kinds = Counter(kind_of(request) for request in seen)
        self.lines.append(
            {
                "work": title,
                "requests": len(seen),
                "per": f"{len(seen) / per:.3g} a {unit}",
                "kB received": round(received / 1e3, 1),
                "kB sent": round(sent / 1e3, 1),
                "seconds": round(seconds, 2),
                "most of them": ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(4)),
            }
        )
        typer.echo(table(self.lines[-1:]).splitlines()[-1])
        return outcome


def slides_in(folder: Path, slides: int, columns: int, rows: int) -> list[dict[str, Any]]:
    """Return the rows to register of the same slide under several names."""
    first = write_wide_slide(folder / "slide-0.svs", columns=columns, rows=rows)
    paths = [first, *(folder / f"slide-{number}.svs" for number in range(1, slides))]
    for path in paths[1:]:
        path.symlink_to(first)
    size, mark = fingerprint(str(first))
    return [
        {"slide_id": path.stem, "uri": str(path), "bytes": size, "fingerprint": mark}
        for path in paths
    ]


def fill(uri: str, rows: list[dict[str, Any]], counted: Counted) -> Lake:
    """Return a new lake with the slides, made as an ingest makes it."""
    count = len(rows)
    lake: Lake = counted.run(
        "make a lake", lambda: create_lake(uri, LakeConfig(mpps=MPPS)), per=1, unit="lake"
    )
    named = counted.run(
        "ingest, driver: register", lambda: lake.committer.register(rows), per=count, unit="slide"
    )
    cuts = counted.run(
        "ingest, workers: cut",
        lambda: [cut_slide(lake.store, lake.config, row) for row in named],
        per=count,
        unit="slide",
    )
    counted.run(
        "ingest, driver: one commit",
        lambda: lake.committer.commit_slides(cuts),
        per=count,
        unit="slide",
    )
    reason = [
        {**rows[0], "slide_id": f"bad-{n}", "uri": f"bad-{n}", "slide": count + n, "reason": "-"}
        for n in range(count)
    ]
    counted.run(
        "ingest, driver: failures", lambda: lake.committer.fail(reason), per=count, unit="failure"
    )
    return lake.refreshed()


class Encoding:
    """The work of one actor of `extract`, with its network loaded once."""

    def __init__(self, threads: int) -> None:
        self._extractor, self._threads = Extractor(), threads

    def __call__(self, lake: Lake, units: list[Unit]) -> list[Outcome]:
        """Return the outcomes of all units; their files are not committed."""
        teachers = pickle.dumps(list(find_teachers(lake.store, [str(ENCODER)])))
        settings = {"teachers": teachers, "store": lake.uri, "device": "cpu"}
        outcomes: list[Outcome] = []
        for unit in units:
            item = {"unit": pickle.dumps(unit), "threads": self._threads, **settings}
            outcomes.append(pickle.loads(self._extractor(item)["outcome"]))
            if outcomes[-1].reason:
                raise RuntimeError(outcomes[-1].reason)
        return outcomes


def extract(
    near: Lake, far: Lake, counted: Counted, *, rounds: int, threads: int
) -> tuple[Line, Lake]:
    """Return an encoder's rate over a bucket's tiles against a folder's, and the filled lake."""
    encode = Encoding(threads)
    slides = far.tiles_of(mpp=MPPS[0]).height
    tiles = int(far.tiles_of(mpp=MPPS[0])["tiles"].sum())

    def planned(lake: Lake) -> list[Unit]:
        return plan(lake, find_teachers(lake.store, [str(ENCODER)]), [MPPS[0]])

    near_units = planned(near)
    units = counted.run("extract, driver: plan", lambda: planned(far), per=slides, unit="slide")
    outcomes = counted.run("extract, workers", lambda: encode(far, units), per=tiles, unit="tile")
    near_outcomes = encode(near, near_units)
    seconds: dict[str, list[float]] = {"far": [], "near": []}
    for _ in range(rounds):
        for name, lake, work in (("far", far, units), ("near", near, near_units)):
            start = time.perf_counter()
            encode(lake, work)
            seconds[name].append(time.perf_counter() - start)
    files = [file for outcome in outcomes for file in outcome.files]
    counted.run(
        "extract, driver: one commit",
        lambda: far.committer.commit_columns(MPPS[0], files),
        per=slides,
        unit="slide",
    )
    near_files = [file for outcome in near_outcomes for file in outcome.files]
    near.committer.commit_columns(MPPS[0], near_files)
    title = f"extract of {tiles:,} tiles by a small encoder"
    line = Line.of(title, "from a folder", seconds, ("far", "near"), 0.85)
    return line.at(tiles, "tiles"), far.refreshed()


def read(tile_stream: Iterable[TileBatch]) -> int:
    """Read an epoch of a stream; return the number of its tiles."""
    return sum(len(batch.tile_id) for batch in tile_stream)


def stream(near: Lake, far: Lake, counted: Counted, *, rounds: int, threads: int) -> list[Line]:
    """Count what epochs of streams cost, and time decoded streams against a folder's."""
    lines = []
    arms: list[tuple[str, Pixels, bool]] = [
        ("features, shuffled", "none", True),
        ("pixels and features, shuffled", "uint8", True),
        ("pixels and features, in order", "uint8", False),
    ]
    for title, pixels, shuffle in arms:
        streams = {
            name: lake.stream(COLUMN, mpp=MPPS[0], pixels=pixels, shuffle=shuffle, threads=threads)
            for name, lake in (("far", open_lake(far.uri)), ("near", open_lake(near.uri)))
        }
        tiles = streams["far"].tiles
        for epoch in ("first epoch", "later epoch"):
            work = f"stream of {title}, {epoch}"
            counted.run(work, functools.partial(read, streams["far"]), per=tiles, unit="tile")
        read(streams["near"])
        seconds: dict[str, list[float]] = {"far": [], "near": []}
        for _ in range(rounds):
            for name, tile_stream in streams.items():
                start = time.perf_counter()
                read(tile_stream)
                seconds[name].append(time.perf_counter() - start)
        line = Line.of(f"stream of {title}", "from a folder", seconds, ("far", "near"))
        lines.append(line.at(tiles, "tiles"))
    return lines


def main(
    slides: int = 3,
    columns: Annotated[int, typer.Option(help="Copies of the real slide side by side.")] = 4,
    rows: Annotated[int, typer.Option(help="And one below the other.")] = 3,
    latency_ms: float = 30.0,
    rounds: int = 3,
    threads: int = 2,
    server: Annotated[str, typer.Option(help="An S3 server's URL; moto without.")] = "",
    out: Annotated[Path, typer.Option(help="folder of the results")] = RESULTS,
) -> None:
    """Print the tables and write them as JSON."""
    folder = Path(tempfile.mkdtemp(prefix="slidelake-bench-"))
    try:
        with distant_bucket(latency_ms, server) as bucket:
            counted = Counted(bucket)
            far = fill(bucket.uri, slides_in(folder, slides, columns, rows), counted)
            copy_lake(far.uri, folder / "near")
            near = open_lake(folder / "near")
            line, far = extract(near, far, counted, rounds=rounds, threads=threads)
            lines = [line, *stream(near, far, counted, rounds=rounds, threads=threads)]
            counted.run("vacuum", lambda: vacuum(far, keep=2), per=1, unit="lake")
            counted.run("open the lake", lambda: open_lake(far.uri), per=1, unit="lake")
            tiles = int(far.tiles_of(mpp=MPPS[0])["tiles"].sum())
    finally:
        shutil.rmtree(folder)
    typer.echo(table(counted.lines))
    for line in lines:
        typer.echo(line.text())
    settings = {
        "slides": slides,
        "tiles": tiles,
        "latency_ms": latency_ms,
        "rounds": rounds,
        "threads": threads,
        "server": "moto" if not server else "of --server",
        "requests": counted.lines,
    }
    typer.echo(f"-> {write_report(out, lines, settings, name='bucket')}")


if __name__ == "__main__":
    typer.run(main)
