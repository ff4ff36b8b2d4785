"""A slide's file that a listing tells again is not read, and one that has changed is."""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from featurestore import LakeConfig, create_lake, open_lake, verify
from featurestore.tables.schema import SLIDES, SLIDES_SCHEMA
from ingest.errors import InputError
from ingest.ray_ingest import IngestResult, ingest
from ingest.select import named_slides
from ingest.select.known_files import known_files
from ingest.select.listed_files import list_files
from ingest.select.points_in_time import point_in_time
from ingest.select.slides_to_cut import dry_run
from ingest.select.sources import fingerprint
from tests.conftest import REAL_SLIDE
from tests.worlds.examples_folder import without_ray
from tests.worlds.s3 import Bucket

CONFIG = LakeConfig(mpps=(2.0,))
Run = Callable[..., IngestResult]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files of which both ends were read."""
    names: list[str] = []

    def counted(uri: str) -> tuple[int, str]:
        names.append(Path(uri).name)
        return fingerprint(uri)

    monkeypatch.setattr(named_slides, "fingerprint", counted)
    return names


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("a.svs", "b.svs"):
        shutil.copyfile(REAL_SLIDE, folder / name)
    (folder / "bad.svs").write_bytes(REAL_SLIDE.read_bytes()[:5000])
    return folder


@pytest.fixture
def run(tmp_path: Path, slides: Path) -> Run:
    def run(*inputs: Path, **options: Any) -> IngestResult:  # noqa: ANN401
        with without_ray():
            chosen = [str(path) for path in inputs or (slides,)]
            return ingest(str(tmp_path / "lake"), chosen, CONFIG, **options)

    return run


def marks(lake: Path) -> dict[str, str]:
    rows = open_lake(lake).slides().select("slide_id", "listing_mark").collect()
    return dict(rows.iter_rows())


def test_what_the_lake_knows_is_not_read_again(
    run: Run, slides: Path, read: list[str], tmp_path: Path
) -> None:
    """Ready and failed slides alike; a new file and a changed one are read."""
    first = run()
    assert (first.ready, first.new, sorted(read)) == (2, 3, ["a.svs", "b.svs", "bad.svs"])
    status = (slides / "a.svs").stat()
    assert marks(tmp_path / "lake")["a"] == f"{status.st_size}-{status.st_mtime_ns}"
    read.clear()
    version = open_lake(tmp_path / "lake").version
    again = run()
    assert (again.ready, len(again.failed), again.new, read) == (2, 1, 0, [])
    assert open_lake(tmp_path / "lake").version == version
    assert dry_run(str(tmp_path / "lake"), [str(slides)], CONFIG, {}, cores=1).slides == 0
    assert read == []
    shutil.copyfile(REAL_SLIDE, slides / "c.svs")
    (slides / "bad.svs").write_bytes(REAL_SLIDE.read_bytes())  # now it has arrived whole
    assert (run().ready, sorted(read)) == (4, ["bad.svs", "c.svs"])


def test_a_touched_file_is_read_once_and_learnt(
    run: Run, slides: Path, read: list[str], tmp_path: Path
) -> None:
    run()
    for name in ("a.svs", "bad.svs"):
        os.utime(slides / name, (1, 1))
    read.clear()
    touched = run()
    assert (touched.new, touched.facts, touched.notes) == (0, 0, [])
    assert sorted(read) == ["a.svs", "bad.svs"]
    assert marks(tmp_path / "lake")["a"].endswith("-1000000000")
    read.clear()
    assert (run().new, read) == (0, [])
    assert verify(open_lake(tmp_path / "lake")).ok


def test_other_content_of_the_same_size_and_time_needs_check_content(
    run: Run, slides: Path, read: list[str]
) -> None:
    """The one thing that a listing can't tell; docs/ingest.md names it."""
    run()
    path = slides / "a.svs"
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    read.clear()
    assert (run().new, read) == (0, [])
    assert run(check_content=True).replaced == ["a"]
    assert sorted(read) == ["a.svs", "b.svs", "bad.svs"]


def test_a_file_at_another_place_is_read(
    run: Run, slides: Path, read: list[str], tmp_path: Path
) -> None:
    run(slides / "a.svs")
    shutil.copytree(slides, tmp_path / "moved")
    read.clear()
    run(tmp_path / "moved" / "a.svs")
    assert read == ["a.svs"]
    (row,) = open_lake(tmp_path / "lake").slides().collect().to_dicts()
    assert row["uri"] == str(tmp_path / "moved" / "a.svs")
    assert known_files(open_lake(tmp_path / "lake"))["a"].is_done


def test_a_lake_of_an_earlier_slidelake_learns_the_marks(
    run: Run, slides: Path, read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = SLIDES_SCHEMA.remove(SLIDES_SCHEMA.get_field_index("listing_mark"))
    with monkeypatch.context() as context:
        for module in ("opening", "commits.lance_commit", "lake"):
            context.setattr(f"featurestore.{module}.SLIDES_SCHEMA", old)
        create_lake(tmp_path / "lake", CONFIG)
        run()
    assert "listing_mark" not in open_lake(tmp_path / "lake").table(SLIDES).schema.names
    assert known_files(open_lake(tmp_path / "lake")) == {}
    read.clear()
    assert (run().new, len(read)) == (0, 3)
    read.clear()
    assert (run().new, read) == (0, [])
    assert verify(open_lake(tmp_path / "lake")).ok


def test_since_takes_what_has_changed_or_arrived(
    run: Run, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.svs", "bad.svs"):
        os.utime(slides / name, (1e9, 1e9))
    # That a file was written now is its ctime; a listing of a bucket has none.
    monkeypatch.setattr(
        named_slides,
        "list_files",
        lambda uris, listing: {
            uri: type(file)(mark=file.mark, changed_s=Path(uri).stat().st_mtime)
            for uri, file in list_files(uris, listing).items()
        },
    )
    outcome = run(since="2020-01-01")
    assert (outcome.ready, outcome.failed) == (1, [])
    assert outcome.notes[0].startswith("2 slides have not changed since 2020-01-01T00:00")
    assert run(since="1h", only=["a"]).ready == 0
    with pytest.raises(InputError, match="'yesterday' is no time; give a date"):
        run(since="yesterday")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 910.0), ("1.5m", 910.0), ("1970-01-01T00:10:00Z", 600.0), (" 10M ", 400.0)],
)
def test_points_in_time(text: str, seconds: float) -> None:
    assert point_in_time(text, now_s=1000.0) == seconds


def test_the_arrival_of_a_file_counts_though_its_time_is_old(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    path.write_bytes(b"x")
    os.utime(path, (1, 1))
    file = list_files([str(path), f"file://{path}", f"{path}#2", str(tmp_path)], {})
    assert list(file) == [str(path), f"file://{path}", f"{path}#2"]
    assert len(set(file.values())) == 1
    assert file[str(path)].changed_s == path.stat().st_ctime


@pytest.mark.slow
def test_a_buckets_listing_is_all_that_is_asked(
    faulty: Bucket, read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder, a few named files, and a manifest of many: no object is read, few requests."""
    monkeypatch.setattr("ingest.select.listed_files.MANY_OF_A_FOLDER", 4)
    names = [f"s{n}.svs" for n in range(6)]
    with contextlib.closing(faulty.client) as client:
        for name in names:
            client.put_object(Bucket=faulty.name, Key=f"in/{name}", Body=REAL_SLIDE.read_bytes())
    root, lake = f"s3://{faulty.name}/in", tmp_path / "lake"
    manifest = tmp_path / "m.csv"
    manifest.write_text("uri\n" + "".join(f"{root}/{name}\n" for name in names))
    with without_ray():
        assert ingest(str(lake), [root], CONFIG).ready == 6
        assert marks(lake)["s0"].startswith(f"{REAL_SLIDE.stat().st_size}-")
        read.clear()
        for inputs, most in (([root], 4), ([str(manifest)], 2), ([f"{root}/s1.svs"], 1)):
            faulty.faults.forget()
            assert ingest(str(lake), inputs, CONFIG).new == 0
            seen = [request.method for request in faulty.faults.seen]
            assert (read, len(seen) <= most) == ([], True), (inputs, seen)
    with contextlib.closing(faulty.client) as client:
        client.put_object(Bucket=faulty.name, Key="in/s3.svs", Body=REAL_SLIDE.read_bytes() + b"x")
    with without_ray():
        assert ingest(str(lake), [root], CONFIG).replaced == ["s3"]
    assert read == ["s3.svs"]
    frame = open_lake(lake).slides().filter(pl.col("slide_id") == "s3").collect()
    assert frame["fingerprint"][0] == fingerprint(f"{root}/s3.svs")[1]
