"""The whole way at 3,000, 30,000 and 300,000 slides: ingest, extract, compact, verify, info, mil.

    python -m benchmarks.scale_run --slides 3000 --folder /tmp/scale-3000
    python -m benchmarks.scale_run --slides 300000 --folder /tmp/scale --only ingest

What is real: every slide is a file with bytes of its own, opened, surveyed, cut into a shard, and
committed; every command is the one that users run, in a process of its own. What is simulated:
a slide is one tile of 256 px (about 5 kB), so that 300,000 fit on a disk; all have the same
picture, and differ in their description; the encoder returns constants; the patients are drawn.
Of the slides 1 in 20 is cut off in the middle and 1 in 20 is blank: they fail.

Each step is a line of the file of results, which is written after it; steps that have a line are
not run again. Memory is the peak of the command's own process (the driver), without its workers;
`driver_cpu_s` is of that process, `cpu_s` of all processes of the command.
"""

import ctypes
import datetime as dt
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import cv2
import numpy as np
import pyarrow as pa
import typer
from lance import LanceOperation

from benchmarks.scale import load
from examples.slide_writer import TILE_PX, Page, encode_tile, shared_tables, write_tiff
from featurestore import Lake, LakeConfig, ShardWriter, SlideCut, create_lake, tile_ids
from featurestore.commits.cuts import tiles_row
from featurestore.tables.checksums import features_crc32
from featurestore.tables.lance_tables import commit, open_table, write_fragment
from featurestore.tables.schema import (
    CATALOG,
    CATALOG_SCHEMA,
    SLIDES,
    SLIDES_SCHEMA,
    features_table,
)
from ingest.cut import cut_or_reason
from ingest.select.listed_files import list_files
from ingest.select.named_slides import find_named_slides
from ingest.select.slides_to_cut import sort_out
from ingest.select.sources import fingerprint

RESULTS = Path(__file__).parent / "results"
MARK = b"scale-0000000"
SLIDES_A_FOLDER = 1000
LATE = 100  # slides that arrive after the ingest
DIM = 16
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
ORPHANS_S = 10.0
ENCODER = '''"""An encoder that returns a constant."""

import torch
from torch import nn

from slidelake import Card

CARD = Card(
    name="constant",
    architecture="constant",
    dim=16,
    input_px=32,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    licence="Apache-2.0",
    source="benchmarks/scale_run.py",
)


class Constant(nn.Module):
    def forward(self, x_BCHW):
        steps = torch.arange(16, device=x_BCHW.device) + x_BCHW.mean(dim=(1, 2, 3))[:, None]
        return steps / 16


def build():
    return Constant()
'''


@dataclass(frozen=True, kw_only=True)
class Place:
    """The folder of one run: slides, lake, tables, results.

    Attributes:
        folder: the folder.
        slides: number of slides.
    """

    folder: Path
    slides: int

    @property
    def lake(self) -> str:
        """Return the folder of the lake."""
        return str(self.folder / "lake")

    def slide(self, number: int) -> Path:
        """Return the path of a slide."""
        part = self.folder / "slides" / f"{number // SLIDES_A_FOLDER:04d}"
        return part / f"s{number:07d}.svs"


# ---------------------------------------------------------------------- what is measured


def picture() -> np.typing.NDArray[np.uint8]:
    """Return a tile with tissue in its middle and glass around it."""
    rng = np.random.default_rng(0)
    pixels = np.full((TILE_PX, TILE_PX, 3), 242, np.uint8)
    tissue = np.zeros((TILE_PX, TILE_PX), np.uint8)
    cv2.circle(tissue, (128, 128), 110, 1, -1)
    cells = cv2.blur(rng.integers(0, 90, (TILE_PX, TILE_PX), np.uint8), (9, 9))
    pink = np.stack([225 - cells, 120 + 0 * cells, 190 - cells // 2], axis=-1)
    pixels[tissue > 0] = pink[tissue > 0]
    return pixels


def template(pixels: np.typing.NDArray[np.uint8]) -> bytes:
    """Return a slide of one tile whose description holds `MARK`."""
    text = f"Aperio Image Library\r\n{TILE_PX}x{TILE_PX} |MPP = 0.5000|Filename = {MARK.decode()}"
    page = Page(
        width_px=TILE_PX,
        height_px=TILE_PX,
        mpp=0.5,
        description=text,
        chunks=[encode_tile(pixels)],
        tables=shared_tables(),
    )
    with BytesIO() as stream:
        write_tiff(stream, [page])
        return stream.getvalue()


def make_slides(place: Place, numbers: range) -> None:
    """Write slides; 1 in 20 is cut off, 1 in 20 shows glass alone."""
    good, blank = template(picture()), template(np.full((TILE_PX, TILE_PX, 3), 242, np.uint8))
    for number in numbers:
        path = place.slide(number)
        if number % SLIDES_A_FOLDER == 0 or number == numbers.start:
            path.parent.mkdir(parents=True, exist_ok=True)
        content = (blank if number % 20 == 7 else good).replace(MARK, b"scale-%07d" % number)
        path.write_bytes(content[: len(content) // 2] if number % 20 == 13 else content)


def all_slides(place: Place) -> None:
    """Write all slides that are there from the start, once."""
    if not (place.folder / "made").exists():
        make_slides(place, range(place.slides))
        (place.folder / "made").write_text("")


def late_slides(place: Place) -> None:
    """Write the slides that arrive late."""
    make_slides(place, range(place.slides, place.slides + LATE))


def labels(place: Place) -> Path:
    """Write the table of a study with one target."""
    path = place.folder / "labels.csv"
    rows = (f"s{n:07d},p{n // 2:07d},{'ab'[n // 2 % 2]}" for n in range(place.slides))
    path.write_text("slide_id,patient_id,grade\n" + "\n".join(rows) + "\n")
    return path


PLAN_MIL = """
import sys
from downstream.run import run_study as module
from downstream.run.study_spec import FeatureOptions, LabelOptions, StudySpec

lake, labels = sys.argv[1:]
spec = StudySpec(
    kind="mil",
    labels=LabelOptions(table=labels, target=("grade",)),
    features=FeatureOptions(names=("constant",), mpps=(0.5,)),
)


def planned(_, study, *__):
    print(len(study.patients))
    raise SystemExit


module.execute, module.save_spec = planned, lambda *_: None
module.run_study(lake, spec)
"""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command of the run.

    Attributes:
        name: name of the step.
        arguments: arguments of `slidelake`, or of Python.
        before: what is done before, without being measured.
        codes: exit codes of a run that went well: 1 where slides fail.
        module: the program that is run.
        real: whether it needs slides that were really cut.
        loaded: whether it needs features that differ, as the loaded lake has them.
    """

    name: str
    arguments: Callable[[Place], list[str]]
    before: Callable[[Place], object] = lambda _: None
    codes: tuple[int, ...] = (0,)
    module: tuple[str, ...] = ("-m", "slidelake")
    real: bool = False
    loaded: bool = False


def ingest(place: Place, *more: str) -> list[str]:
    """Return the arguments of an ingest of all slides."""
    return ["ingest", place.lake, str(place.folder / "slides"), "--mpp", "0.5", "-q", *more]


def encoder(place: Place) -> None:
    """Write the encoder that returns constants."""
    (place.folder / "constant.py").write_text(ENCODER)


STEPS = (
    Step(
        name="ingest --dry-run",
        arguments=lambda place: ingest(place, "--dry-run"),
        before=all_slides,
        codes=(0, 1),
        real=True,
    ),
    Step(name="ingest", arguments=ingest, codes=(0, 1), real=True),
    Step(name="ingest, again", arguments=ingest, codes=(0, 1)),
    Step(
        name="ingest --since, none new",
        arguments=lambda place: ingest(place, "--since", "1s"),
        before=lambda _: time.sleep(2),
        codes=(0, 1),
    ),
    Step(name="info", arguments=lambda place: ["info", place.lake]),
    Step(
        name="extract",
        arguments=lambda place: [
            *("extract", place.lake, "--teacher", str(place.folder / "constant.py"), "-q"),
        ],
        before=encoder,
        real=True,
    ),
    Step(name="compact", arguments=lambda place: ["compact", place.lake]),
    Step(
        name="verify --sample", arguments=lambda place: ["verify", place.lake, "--sample", "0.01"]
    ),
    Step(name="info, after", arguments=lambda place: ["info", place.lake]),
    Step(
        name="stats --tiles 10000",
        arguments=lambda place: [
            *("stats", place.lake, "--teacher", "constant", "--tiles", "10000"),
        ],
        loaded=True,
    ),
    Step(
        name="mil, planned",
        arguments=lambda place: [PLAN_MIL, place.lake, str(labels(place))],
        module=("-c",),
    ),
    Step(name="ingest, 100 new", arguments=ingest, before=late_slides, codes=(0, 1)),
)


# ---------------------------------------------------------------------- a lake without its ingest

FRAGMENT_SLIDES = 42  # of 6,000 tiles, as 250,000 make a fragment
LOADED_AT_ONCE = 1 << 13


def fill(place: Place, *, shards: bool = False) -> None:
    """Load the lake that an ingest and an extract of the slides would have made, without shards.

    With shards there are no features: a lake for an extract. Rows of `slides` are those of one
    slide that is really cut, with the pictures, under other names and with the marks of the very
    files; 1 in 10 has failed. Fragments hold 42 slides, as they do where slides have 6,000 tiles.
    """
    lake = create_lake(place.lake, LakeConfig(mpps=(0.5,)))
    cut = _one_cut(place)
    ready = [number for number in range(place.slides) if number % 20 not in (7, 13)]
    for start in range(0, place.slides, LOADED_AT_ONCE):
        numbers = range(start, min(start + LOADED_AT_ONCE, place.slides))
        load(
            lake, SLIDES, SLIDES_SCHEMA, [_slide_row(place, number, cut.row) for number in numbers]
        )
    if shards:
        _load_shards(place, lake, cut, ready)
        return
    field = lake.committer.add_teacher(0.5, "constant", DIM, {"weights": "constant"})
    tiles, rel = cut.grids[0.5].tiles, features_table(0.5)
    groups = [ready[at : at + FRAGMENT_SLIDES] for at in range(0, len(ready), FRAGMENT_SLIDES)]
    fragments, catalog, rng = [], list[dict[str, Any]](), np.random.default_rng(0)
    for fragment, members in enumerate(groups):
        table = pa.concat_tables([_tiles_of(tiles, number) for number in members])
        drawn = rng.normal(size=(len(members), DIM)).astype(np.float16)
        column = pa.FixedSizeListArray.from_arrays(pa.array(drawn.reshape(-1)), type=field.type)
        table = table.replace_schema_metadata(None).append_column(field, column)
        fragments += write_fragment(lake.store, rel, table)
        for at, number in enumerate(members):
            catalog += _catalog_rows(cut, number, fragment, at, features_crc32(drawn[at : at + 1]))
    _commit_loaded(lake, fragments, catalog)


def _load_shards(place: Place, lake: Lake, cut: SlideCut, ready: list[int]) -> None:
    """Load the tiles of the ready slides, each with a shard; nothing is synced to the disk."""
    tiles, rel, jpeg = cut.grids[0.5].tiles, features_table(0.5), _jpeg()
    fragments, catalog = [], list[dict[str, Any]]()
    with mock.patch.object(os, "fsync"):
        for at in range(0, len(ready), FRAGMENT_SLIDES):
            members = ready[at : at + FRAGMENT_SLIDES]
            table = pa.concat_tables([_tiles_of(tiles, number) for number in members])
            fragments += write_fragment(lake.store, rel, table.replace_schema_metadata(None))
            for row, number in enumerate(members):
                with ShardWriter(lake.store, f"tiles/mpp0.5/{number:06d}-0.tar") as shard:
                    shard.add(int(table["tile_id"][row].as_py()), jpeg, {})
                own = _tiles_of(tiles, number)
                grid = replace(cut.grids[0.5], tiles=own, shard=shard.shard)
                slide = {**cut.row, "slide": number, "slide_id": f"s{number:07d}"}
                fragment = at // FRAGMENT_SLIDES
                catalog.append({**tiles_row(slide, 0.5, grid, row), "fragment": fragment})
    _commit_loaded(lake, fragments, catalog)


def _jpeg() -> bytes:
    pixels = cv2.cvtColor(picture(), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def _commit_loaded(lake: Lake, fragments: list[Any], catalog: list[dict[str, Any]]) -> None:
    rel = features_table(0.5)
    version = open_table(lake.store, rel).version
    commit(lake.store, rel, LanceOperation.Append(fragments), read_version=version, properties={})
    for start in range(0, len(catalog), 1 << 18):
        load(lake, CATALOG, CATALOG_SCHEMA, catalog[start : start + (1 << 18)])
    for table_rel in (SLIDES, CATALOG):
        open_table(lake.store, table_rel).optimize.optimize_indices()
    with lake.committer.exclusive():
        lake.committer.apply([])  # a commit that names all versions


def _one_cut(place: Place) -> SlideCut:
    with tempfile.TemporaryDirectory() as folder:
        lake = create_lake(folder, LakeConfig(mpps=(0.5,)))
        named = find_named_slides([str(place.slide(0))], {})
        (row,) = sort_out(lake.committer.register(named.rows), {}, None).cut
        cut = cut_or_reason(lake.store, lake.config, row)
    if not isinstance(cut, SlideCut):
        raise SystemExit(cut["reason"])
    return cut


def _slide_row(place: Place, number: int, row: dict[str, Any]) -> dict[str, Any]:
    path = place.slide(number)
    size, mark = fingerprint(str(path))
    own = {"slide": number, "slide_id": path.stem, "uri": str(path), "bytes": size}
    own |= {"fingerprint": mark, "listing_mark": list_files([str(path)], {})[str(path)].mark}
    if number % 20 in (7, 13):
        return {**own, "state": "failed", "reason": "no tissue", "cut_with": row["cut_with"]}
    return {**row, **own, "state": "ready"}


def _tiles_of(tiles: pa.Table, number: int) -> pa.Table:
    """Return the only tile of a slide: one that was cut, under the number of another."""
    key = tile_ids(number, 0.5, np.zeros(1, int), np.zeros(1, int))
    own = {"tile_id": key, "slide": [number], "slide_id": [f"s{number:07d}"]}
    for name, column in own.items():
        at = tiles.schema.get_field_index(name)
        tiles = tiles.set_column(
            at, tiles.schema.field(at), pa.array(column, tiles.schema.field(at).type)
        )
    return tiles


def _catalog_rows(
    cut: SlideCut, number: int, fragment: int, at: int, crc: int
) -> list[dict[str, Any]]:
    grid = replace(cut.grids[0.5], tiles=_tiles_of(cut.grids[0.5].tiles, number), shard=None)
    row = {**cut.row, "slide": number, "slide_id": f"s{number:07d}"}
    tiles = {**tiles_row(row, 0.5, grid, at), "fragment": fragment}
    names = ("slide", "slide_id", "mpp", "tiles", "row_start", "fragment")
    return [tiles, {**{name: tiles[name] for name in names}, "teacher": "constant", "crc32": crc}]


# ---------------------------------------------------------------------- measuring


def peak_mb(pid: int) -> int:
    """Return the peak of a process's resident memory so far, 0 once it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in text.splitlines() if line.startswith("VmHWM")]
    return int(lines[0].split()[1]) // 1024 if lines else 0


def own_cpu_s(pid: int) -> float:
    """Return the seconds of processor time of a process without its children, 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def adopt_orphans() -> None:
    """Become the parent of processes whose parent ends: their time is then counted, too."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def wait_for_orphans() -> None:
    """Wait for adopted processes that end within some seconds."""
    until = time.monotonic() + ORPHANS_S
    while time.monotonic() < until:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            time.sleep(0.1)


def objects(lake: str) -> int:
    """Return the number of files of a lake."""
    return sum(len(files) for _, _, files in os.walk(lake))


def run_step(step: Step, place: Place) -> dict[str, Any]:
    """Run a step; return its seconds, its CPU seconds, the driver's memory and the objects."""
    step.before(place)
    command = [sys.executable, *step.module, *step.arguments(place)]
    log = place.folder / "log.txt"
    adopt_orphans()
    before, peak, driver_s = os.times(), 0, 0.0
    start = time.perf_counter()
    with log.open("ab") as out:
        out.write(f"\n== {step.name}\n".encode())
        out.flush()
        process = subprocess.Popen(command, stdout=out, stderr=out)
        while process.poll() is None:
            peak = max(peak, peak_mb(process.pid))
            driver_s = max(driver_s, own_cpu_s(process.pid))
            time.sleep(0.1)
    seconds = time.perf_counter() - start
    wait_for_orphans()
    after = os.times()
    if process.returncode not in step.codes:
        msg = f"{step.name} ended with {process.returncode}; see {log}"
        raise SystemExit(msg)
    return {
        "step": step.name,
        "slides": place.slides,
        "seconds": round(seconds, 1),
        "driver_cpu_s": round(driver_s, 1),
        "cpu_s": round(
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system,
            1,
        ),
        "driver_mb": peak,
        "objects": objects(place.lake),
        "load": round(os.getloadavg()[0], 1),
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def main(
    slides: Annotated[int, typer.Option(help="Number of slides.")],
    folder: Annotated[Path, typer.Option(help="Folder of slides and lake; 40 kB a slide.")],
    only: Annotated[list[str] | None, typer.Option(help="Steps to run; all if none.")] = None,
    *,
    filled: Annotated[bool, typer.Option(help="Load the lake: no ingest, no extract.")] = False,
    shards: Annotated[bool, typer.Option(help="Load a lake with shards: for extract.")] = False,
    delete: Annotated[bool, typer.Option(help="Delete slides and lake in the end.")] = False,
) -> None:
    """Run all steps that have no line yet, and write a line after each."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = "_shards" if shards else "_filled" if filled else ""
    place = Place(folder=folder, slides=slides)
    path = RESULTS / f"scale_run{kind}_{slides}.json"
    if (filled or shards) and not Path(place.lake).exists():
        all_slides(place)
        fill(place, shards=shards)
    RESULTS.mkdir(exist_ok=True)
    document: dict[str, Any] = (
        json.loads(path.read_text())
        if path.exists()
        else {
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
            "cores_used": len(os.sched_getaffinity(0)),
            "lines": [],
        }
    )
    for step in STEPS:
        done = {line["step"] for line in document["lines"]}
        unfit = step.real if filled else step.loaded
        if step.name in done or (only and step.name not in only) or unfit:
            continue
        document["lines"].append(run_step(step, place))
        typer.echo(json.dumps(document["lines"][-1]))
        path.write_text(json.dumps(document, indent=1) + "\n")
    if delete:
        shutil.rmtree(folder)


if __name__ == "__main__":
    typer.run(main)
