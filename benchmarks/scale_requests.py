"""How many requests a reader, and a run again, make to a bucket as the lake grows.

    python -m benchmarks.scale_requests --slides 100 --slides 400 --slides 1600

A bucket on loopback (moto behind a proxy that counts). The lakes' tables are real, made by real
commits of 64 slides and then compacted; slides are objects of a few bytes, which are listed and
never opened; shards are not there.
"""

import contextlib
import datetime as dt
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import typer

from benchmarks.scale import DIM, cut_of, row_of, tiles_of
from downstream.cohorts.cohort import keep_slides, patient_table
from downstream.cohorts.label_tables import load_labels
from downstream.run.feature_bags import feature_identity, slides_with_tiles
from featurestore import ColumnWriter, LakeConfig, compact, create_lake, open_lake
from featurestore.keep.lance_upkeep import upkeep
from featurestore.tables.schema import features_table
from ingest.ray_ingest import ingest
from ingest.select.listed_files import list_files
from tests.worlds.examples_folder import without_ray
from tests.worlds.s3 import SERVER, Bucket, new_bucket

RESULTS = Path(__file__).parent / "results"
CONFIG = LakeConfig(mpps=(0.5, 2.0))
AT_ONCE = 64


@contextlib.contextmanager
def counted_bucket() -> Iterator[Bucket]:
    """A bucket behind the proxy."""
    with (
        subprocess.Popen(
            [sys.executable, "-P", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
        pytest.MonkeyPatch.context() as environment,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        moto, proxy = process.stdout.readline().split()
        bucket = new_bucket((f"http://127.0.0.1:{moto}", f"http://127.0.0.1:{proxy}"), environment)
        environment.setenv("AWS_ENDPOINT_URL", bucket.faults.url)
        bucket.faults.set()
        yield bucket
        process.stdin.close()


def fill(bucket: Bucket, slides: int) -> None:
    """Put slides into the bucket, and a lake of them with a teacher."""
    folder = f"s3://{bucket.name}/slides"
    with contextlib.closing(bucket.client) as client:
        for slide in range(slides):
            client.put_object(Bucket=bucket.name, Key=f"slides/slide-{slide:07d}.svs", Body=b"-")
    uris = [f"{folder}/slide-{slide:07d}.svs" for slide in range(slides)]
    listed = list_files(uris, {})
    lake = create_lake(bucket.uri, CONFIG)
    for first in range(0, slides, AT_ONCE):
        cuts = []
        for slide in range(first, min(first + AT_ONCE, slides)):
            cut = cut_of(slide)
            cut.row.update(uri=uris[slide], listing_mark=listed[uris[slide]].mark)
            cuts.append(cut)
        lake.committer.register([row_of(cut.row["slide"]) | cut.row for cut in cuts])
        lake.committer.commit_slides(cuts)
    compact(lake.refreshed())
    for mpp in CONFIG.mpps:
        field = lake.committer.add_teacher(mpp, "t", DIM, {"weights": "random"})
        fresh = lake.refreshed()
        for fragment in fresh.table(features_table(mpp)).fragment_ids():
            writer = ColumnWriter(lake.store, mpp, field, fragment)
            for row in fresh.tiles_of(mpp=mpp).sort("row_start").iter_rows(named=True):
                ids = tiles_of(row["slide"], mpp)["tile_id"].to_numpy()
                writer.add(row["slide"], ids, np.ones((row["tiles"], DIM), np.float32))
            lake.committer.commit_columns(mpp, [writer.finish()])


def plan_mil(uri: str, labels: str) -> None:
    """Do what `mil` does before its first fold."""
    lake = open_lake(uri)
    table = load_labels(labels)
    cohort = patient_table(lake.slides(), table, ["grade"])
    cohort = keep_slides(cohort, slides_with_tiles(lake, mpp=0.5))
    feature_identity(lake, cohort.slide_ids, "t", mpp=0.5)


def again(bucket: Bucket) -> None:
    """Ingest the same folder again."""
    with without_ray():
        outcome = ingest(bucket.uri, [f"s3://{bucket.name}/slides"], CONFIG)
    assert outcome.new == 0


def measure(bucket: Bucket, slides: int) -> dict[str, Any]:
    """Return the numbers of requests of each step."""
    with tempfile.TemporaryDirectory() as scratch:
        labels = Path(scratch) / "labels.csv"
        names = [f"slide-{n:07d}" for n in range(slides)]
        pl.DataFrame(
            {"slide_id": names, "patient_id": names, "grade": ["a", "b"] * (slides // 2)}
        ).write_csv(labels)
        steps: dict[str, Callable[[], object]] = {
            "open": lambda: open_lake(bucket.uri),
            "a bag": lambda: open_lake(bucket.uri).bag("slide-0000007", "t", mpp=0.5),
            "info": lambda: (open_lake(bucket.uri).info(), upkeep(open_lake(bucket.uri))),
            "mil, planned": lambda: plan_mil(bucket.uri, str(labels)),
            "ingest, again, and the page": lambda: again(bucket),
            "ingest, again": lambda: again(bucket),
        }
        figures: dict[str, Any] = {"slides": slides}
        for name, step in steps.items():
            bucket.faults.forget()
            step()
            seen = bucket.faults.seen
            figures[name] = {"requests": len(seen), "MB": round(sum(r.sent for r in seen) / 1e6, 2)}
    return figures


def main(slides: Annotated[list[int], typer.Option(help="Sizes to try; even numbers.")]) -> None:
    """Print and store one line per size."""
    lines = []
    for size in slides:
        with counted_bucket() as bucket:
            fill(bucket, size)
            lines.append(measure(bucket, size))
        typer.echo(json.dumps(lines[-1]))
    date = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    document = {"date": date, "pyarrow": pa.__version__, "lines": lines}
    (RESULTS / "scale_requests.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
