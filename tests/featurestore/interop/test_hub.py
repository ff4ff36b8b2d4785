"""Cohorts passed on as Parquet and cards, to and from folders, buckets, web servers and a hub."""

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from polars.testing import assert_frame_equal

from featurestore import Lake, LakeConfig, annotate, create_lake, open_lake, set_patients
from featurestore.codecs.lance_quantising import quantise
from featurestore.errors import IdentityError, LakeError
from featurestore.interop import InteropError, Sharing, export_folder, import_folder
from featurestore.interop.hub import places, remote_outbox
from featurestore.interop.hub.hub_layout import TILES
from featurestore.licences import Licence
from featurestore.tables.lance_columns import ColumnWriter
from featurestore.tables.schema import IDENTITY_KEY, features_table
from tests.worlds.hub_server import Hub, hub, serving
from tests.worlds.interop_files import cut_short
from tests.worlds.s3 import Bucket
from tests.worlds.small_lake import add_slides, add_teacher, contents, values_of

__all__ = ["hub"]
MPPS = (0.5, 2.0)
# The hub's client hands httpx a file as `data`.
OF_THE_CLIENT = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
SLIDES = {"a": 5, "b": 3, "c/ %d?": 4}
STRICT = Licence(text="Lab only", forbids=("commercial use",))


def fill(folder: Path) -> Lake:
    """A lake of three slides at two mpps, and two columns: one of all tiles, one of some."""
    lake = create_lake(folder, LakeConfig(mpps=MPPS, stride_px=128))
    lake = add_teacher(add_slides(lake, SLIDES), "virchow2:cls+mean")
    patients = pl.DataFrame({"slide_id": ["a", "b"], "patient_id": ["P1", "P2"]})
    set_patients(lake, patients)
    lake = lake.refreshed()
    identity = {"weights_sha256": "ab" * 32, "where": "tissue > 0.5"}
    field = lake.committer.add_teacher(0.5, "some", 4, identity, STRICT)
    with ColumnWriter(lake.store, 0.5, field, 0) as writer:
        for row in lake.refreshed().tiles_of(mpp=0.5).iter_rows(named=True):
            keys = np.arange(row["tiles"])
            writer.add(row["slide"], keys[:2], values_of(keys[:2], 4))
            writer.absent(row["slide"], row["tiles"] - 2)
        file = writer.finish()
    lake.committer.commit_columns(0.5, [file])
    return lake.refreshed()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(fill(tmp_path_factory.mktemp("hub") / "source").uri)


@pytest.fixture
def source(made: Path, tmp_path: Path) -> Lake:
    """A copy of the lake, which a test may change."""
    shutil.copytree(made, tmp_path / "source")
    return open_lake(tmp_path / "source")


def bits(lake: Lake) -> dict[str, Any]:
    """All that a cohort's copy must have: rows, checksums, columns' identities and licences."""
    kept = contents(lake)
    slides = lake.slides().select("slide_id", "patient_id", "state").collect()
    kept["slides"] = slides.sort("slide_id").rows()
    for mpp in MPPS:
        names = ["slide_id", "teacher", "tiles", "crc32", "effective_mpp", "tile_px_level0"]
        names += ["grid_px_level0", "grid_width", "grid_height"]
        rows = lake.catalog().filter(pl.col("mpp") == mpp).select(names).collect()
        kept[f"tiles {mpp}"] = repr(kept[f"tiles {mpp}"])  # a NaN is no NaN's equal
        kept[f"catalog {mpp}"] = rows.sort("slide_id", "teacher").rows()
        schema = lake.table(features_table(mpp)).schema
        for teacher in lake.teachers(mpp=mpp):
            identity = schema.field(teacher).metadata[IDENTITY_KEY]
            kept[f"{teacher} {mpp}"] = identity, lake.licence(teacher, mpp=mpp)
    return {**kept, "config": lake.config}


def push(lake: Lake, url: str | Path, **options: Any) -> list[Any]:  # noqa: ANN401
    done = [export_folder(lake.uri, url, format="hub", mpp=mpp, **options) for mpp in MPPS]
    assert not [one.failed for one in done if one.failed]
    return done


def pull(lake: Path, url: str | Path) -> Lake:
    done = import_folder(lake, url, format="hub")
    assert (done.failed, done.left_out) == ([], [])
    return open_lake(lake)


def test_a_folder_keeps_every_bit(source: Lake, tmp_path: Path) -> None:
    push(source, tmp_path / "out")
    copy = pull(tmp_path / "copy", tmp_path / "out")
    assert bits(copy) == bits(source)
    assert copy.licence("some", mpp=0.5) == STRICT
    row = copy.slides().filter(pl.col("slide_id") == "a").collect().to_dicts()[0]
    assert json.loads(row["extra"])["exported_from"] == {"uri": "a.svs", "fingerprint": "test"}
    again = import_folder(copy.uri, tmp_path / "out", format="hub")
    assert (again.slides, again.new, again.features) == (3, 0, {})
    # The copy is exported to the same bytes, but for what says where its slides came from.
    push(copy, tmp_path / "out2")
    for path in sorted((tmp_path / "out").rglob("*.parquet")):
        assert (
            path.read_bytes()
            == (tmp_path / "out2" / path.relative_to(tmp_path / "out")).read_bytes()
        )


def test_files_are_plain_parquet_under_a_dataset_card(source: Lake, tmp_path: Path) -> None:
    push(source, tmp_path)
    card = DatasetCard.load(tmp_path / "README.md").data.to_dict()
    folders = {one["config_name"]: one["data_files"] for one in card["configs"]}
    assert list(folders) == [
        "tiles-mpp0.5", "tiles-mpp2.0", "some-mpp0.5", "virchow2%3Acls+mean-mpp0.5",
        "virchow2%3Acls+mean-mpp2.0",
    ]  # fmt: skip
    assert card["license"] == "other"
    files = fsspec.filesystem("file").glob(f"{tmp_path}/{folders['virchow2%3Acls+mean-mpp0.5']}")
    table = pl.read_parquet(files)
    expected = source.features("virchow2:cls+mean", mpp=0.5).sort("slide_id", "tile_id").collect()
    expected = expected.select("slide_id", "x", "y", features="virchow2:cls+mean")
    assert_frame_equal(table.sort("slide_id", "y", "x"), expected, check_dtypes=False)
    some = pl.read_parquet(tmp_path / "data" / "some-mpp0.5")
    assert len(some) == 2 * len(SLIDES), "a tile that was left out has no row"
    tiles = pq.read_table(tmp_path / "data" / f"{TILES}-mpp0.5" / "a.parquet")
    assert "tile_id" not in tiles.column_names, "its slide number tells the order of an ingest"
    kept = json.loads((tmp_path / "licences.json").read_text())["licences"]
    assert kept["some"] == STRICT.to_json()


def test_own_words_in_the_readme_stay(source: Lake, tmp_path: Path) -> None:
    push(source, tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text(f"{readme.read_text()}\nOf our hospital.\n")
    push(add_slides(source, {"new": 2}), tmp_path)
    assert readme.read_text().endswith("\nOf our hospital.\n")
    assert "\n4 slides in tiles of 256 px" in readme.read_text()


def test_a_later_column_joins_the_earlier_ones(source: Lake, tmp_path: Path) -> None:
    export = partial(export_folder, source.uri, tmp_path / "out", format="hub")
    export(mpp=0.5, teachers=["some"])
    first = pull(tmp_path / "copy", tmp_path / "out")
    assert list(first.teachers(mpp=0.5)) == ["some"]
    done = export(mpp=0.5, teachers=["virchow2:cls+mean"])
    assert done.files == 2 * len(SLIDES) + 2  # features and cards; README and index
    export(mpp=2.0)
    assert bits(pull(tmp_path / "copy", tmp_path / "out")) == bits(source)
    few = import_folder(
        tmp_path / "few", tmp_path / "out", format="hub", facts=_facts("some", mpp=0.5)
    )
    assert few.features == {"some at 0.5": 3}
    with pytest.raises(
        InteropError, match=r"no features of uni in .*there are: some, virchow2:cls"
    ):
        import_folder(tmp_path / "few", tmp_path / "out", format="hub", facts=_facts("uni"))


def _facts(*teachers: str, mpp: float | None = None) -> Any:  # noqa: ANN401
    from featurestore.interop import ImportFacts

    return ImportFacts(teachers=teachers, mpp=mpp)


def test_a_column_of_another_encoder_is_no_column_of_this_name(
    source: Lake, tmp_path: Path
) -> None:
    push(source, tmp_path / "out")
    other = create_lake(tmp_path / "other", source.config)
    for mpp in MPPS:
        other.committer.add_teacher(mpp, "some", 4, {"weights_sha256": "cd" * 32})
    with pytest.raises(IdentityError, match="some"):
        import_folder(other.uri, tmp_path / "out", format="hub")


def test_partial_columns_of_two_imports_stay_in_their_rows(source: Lake, tmp_path: Path) -> None:
    """The second writes the fragment's column anew, with the rows of the first."""
    export_folder(source.uri, tmp_path / "out", format="hub", mpp=0.5, teachers=["some"])
    index = json.loads((tmp_path / "out" / "cohort.json").read_text())
    card = json.loads((tmp_path / "out" / "cards" / "b.json").read_text())
    lost = (tmp_path / "out" / card["features"]["0.5"]["some"]["file"]).rename(tmp_path / "lost")
    assert "b" in index["slides"]
    first = import_folder(tmp_path / "copy", tmp_path / "out", format="hub")
    (failed,) = first.failed
    assert (failed["slide_id"], "is missing; run the export again" in failed["reason"]) == (
        "b",
        True,
    )
    lost.rename(tmp_path / "out" / card["features"]["0.5"]["some"]["file"])
    copy = pull(tmp_path / "copy", tmp_path / "out")
    assert_frame_equal(
        copy.features("some", mpp=0.5).sort("tile_id").collect(),
        source.features("some", mpp=0.5).sort("tile_id").collect(),
    )


def rewrite_card(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    card = json.loads((folder / "cards" / "a.json").read_text())
    change(card)
    (folder / "cards" / "a.json").write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: cut_short(out / "data" / "tiles-mpp0.5" / "a.parquet"),
         r"tiles-mpp0.5/a.parquet is not what was written \(SHA-256\)"),
        (lambda out: (out / "data" / "some-mpp0.5" / "a.parquet").unlink(),
         "some-mpp0.5/a.parquet is missing; run the export again"),
        (lambda out: rewrite_card(out, lambda card: card["facts"].clear()),
         r"cards/a.json is not what was written \(SHA-256\)"),
        (lambda out: (out / "cohort.json").unlink(), "has no cohort.json, which an export"),
        (lambda out: (out / "cohort.json").write_text("{}"), "is no file of the format hub"),
        (lambda out: (out / "cohort.json").write_text('{"layout": 2}'), "update slidelake"),
    ],
)  # fmt: skip
def test_what_is_not_as_it_was_written_is_refused(
    source: Lake, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    push_one = partial(export_folder, source.uri, tmp_path / "out", format="hub", mpp=0.5)
    push_one()
    damage(tmp_path / "out")
    try:
        done = import_folder(tmp_path / "copy", tmp_path / "out", format="hub")
    except InteropError as error:
        reasons = [str(error)]
    else:
        assert {one["slide_id"] for one in done.failed} == {"a"}
        reasons = [one["reason"] for one in done.failed]
    assert any(re.search(message, reason) for reason in reasons), reasons
    push_one()
    copy = pull(tmp_path / "copy", tmp_path / "out")
    names = ["some", "virchow2:cls+mean"]
    bags = [lake.bag("a", names, mpp=0.5) for lake in (source, copy)]
    assert np.array_equal(bags[0].features, bags[1].features)


def test_codes_stay_in_the_lake(source: Lake, tmp_path: Path) -> None:
    quantise(source, "virchow2:cls+mean", codec="int8", mpps=[0.5])
    lake = source.refreshed()
    name = "virchow2:cls+mean~int8"
    with pytest.raises(InteropError, match="holds codes; export its source, and quantise it there"):
        export_folder(lake.uri, tmp_path / "out", format="hub", mpp=0.5, teachers=[name])
    push(lake, tmp_path / "out")
    assert name not in json.loads((tmp_path / "out" / "cohort.json").read_text())["columns"]["0.5"]


def test_annotations_come_along_as_tables(source: Lake, tmp_path: Path) -> None:
    annotate(source, pl.DataFrame({"slide_id": ["a"], "grade": [3]}), "clinical")
    push(source.refreshed(), tmp_path / "out")
    table = pl.read_csv(tmp_path / "out" / "annotations" / "clinical.csv")
    assert table.rows() == [("a", 3)]


def test_a_pseudonymous_cohort_is_a_cohort(source: Lake, tmp_path: Path) -> None:
    key = tmp_path / "key.csv"
    push(source, tmp_path / "out", sharing=Sharing(deidentify=key))
    copy = pull(tmp_path / "copy", tmp_path / "out")
    names = {row["id"]: row["name"] for row in pl.read_csv(key).iter_rows(named=True)}
    patients = dict(copy.slides().select("slide_id", "patient_id").collect().rows())
    assert patients == {names["a"]: names["P1"], names["b"]: names["P2"], names["c/ %d?"]: None}
    with pytest.raises(InteropError, match="an export de-identified is there already"):
        push(source, tmp_path / "out")
    for slide_id in SLIDES:
        bags = [source.bag(slide_id, "some", mpp=0.5), copy.bag(names[slide_id], "some", mpp=0.5)]
        assert np.array_equal(bags[0].features, bags[1].features)


# ---------------------------------------------------------------------- other places


def test_a_bucket_keeps_every_bit(source: Lake, bucket: Bucket, tmp_path: Path) -> None:
    url = f"s3://{bucket.name}/a folder/cohort"
    push(source, url)
    push(source, tmp_path / "out")
    local = {str(p.relative_to(tmp_path / "out")): p.read_bytes()
             for p in (tmp_path / "out").rglob("*") if p.is_file()}  # fmt: skip
    assert {k.removeprefix("a folder/cohort/"): v for k, v in bucket.objects().items()} == local
    assert bits(pull(tmp_path / "copy", url)) == bits(source)
    assert [(one.files, one.complete) for one in push(source, url)] == [(0, 3)] * 2
    pulled = import_folder(f"s3://{bucket.name}/lake", url, format="hub")
    assert pulled.failed == []
    assert bits(open_lake(f"s3://{bucket.name}/lake")) == bits(source)


@pytest.mark.slow
@pytest.mark.servers
def test_a_real_bucket_keeps_every_bit(source: Lake, real_bucket: Bucket, tmp_path: Path) -> None:
    test_a_bucket_keeps_every_bit(source, real_bucket, tmp_path)


def test_any_file_system_of_fsspec(source: Lake, tmp_path: Path) -> None:
    push(source, "memory://cohort")
    assert bits(pull(tmp_path / "copy", "memory://cohort")) == bits(source)
    with pytest.raises(InteropError, match=r"nowhere://x can't be used: ValueError: Protocol"):
        push(source, "nowhere://x")
    with pytest.raises(InteropError, match="local folder, but for those of the format hub"):
        export_folder(source.uri, "memory://x", format="stamp", mpp=0.5)
    with pytest.raises(InteropError, match=r"memory://y has no cohort.json"):
        import_folder(tmp_path / "other", "memory://y", format="hub")
    assert not (tmp_path / "other").exists()


def web_folder(folder: Path) -> type[SimpleHTTPRequestHandler]:
    """Return a web server's handler of the files of a folder."""

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *words: Any) -> None:  # noqa: ANN401
            super().__init__(*words, directory=str(folder))

        def log_message(self, *_: object) -> None:
            pass

    return Quiet


def test_a_plain_web_server_is_read(source: Lake, tmp_path: Path) -> None:
    push(source, tmp_path / "out")

    with serving(web_folder(tmp_path)) as url:
        assert bits(pull(tmp_path / "copy", f"{url}/out")) == bits(source)
        with pytest.raises(InteropError, match="can only be read; write to s3://"):
            push(source, f"{url}/out")


def test_a_password_in_a_url_is_in_no_lake_and_no_message(source: Lake, tmp_path: Path) -> None:
    push(source, tmp_path / "out")

    with serving(web_folder(tmp_path)) as url:
        secret = url.replace("://", "://me:hush99@")
        lake = pull(tmp_path / "copy", f"{secret}/out")
        errors = []
        for work in (push, lambda one, at: pull(tmp_path / "other", at)):
            with pytest.raises(InteropError) as error:
                work(source, f"{secret}/nothing")
            errors.append(str(error.value))
    with pytest.raises(InteropError) as error:
        push(source, f"{secret}/out".replace("http", "nowhere"))
    errors.append(str(error.value))
    rows = lake.slides().collect().rows()
    assert not [text for text in (*errors, str(rows), str(lake.info())) if "hush99" in text]
    assert f"{url}/out/cards/" in str(rows)


@OF_THE_CLIENT
def test_a_hub_keeps_every_bit_in_few_commits(source: Lake, hub: Hub, tmp_path: Path) -> None:
    push(source, hub.url)
    push(source, tmp_path / "out")
    assert hub.files == {str(p.relative_to(tmp_path / "out")): p.read_bytes()
                         for p in (tmp_path / "out").rglob("*") if p.is_file()}  # fmt: skip
    assert len(hub.commits) == 4, "slides, then README and index, at each mpp"
    assert "cohort.json" in hub.commits[-1]
    assert "cohort.json" not in hub.commits[0]
    assert bits(pull(tmp_path / "copy", hub.url)) == bits(source)
    assert [(one.files, one.complete) for one in push(source, hub.url)] == [(0, 3)] * 2
    assert len(hub.commits) == 4
    assert bits(pull(tmp_path / "copy2", f"{hub.url}@main")) == bits(source)


@pytest.mark.slow
@OF_THE_CLIENT
def test_a_hub_that_refuses_is_gone_on_with(
    source: Lake, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit for each slide, and the hub takes only two: the next export commits the rest."""
    monkeypatch.setattr(places.HubPlace, "files_at_once", 3)
    hub.refuse_after = 2
    with pytest.raises(InteropError, match=r"can't be used: HfHubHTTPError.* too many commits"):
        push(source, f"{hub.url}/folder")
    some = dict(hub.files)
    assert some
    with pytest.raises(InteropError, match=r"has no cohort.json, which an export writes last"):
        import_folder(tmp_path / "copy", f"{hub.url}/folder", format="hub")
    hub.refuse_after = None
    push(source, f"{hub.url}/folder")
    written_again = {path for commit in hub.commits[2:] for path in commit} & set(some)
    assert not {path for path in written_again if path.endswith("mpp0.5/a.parquet")}
    assert bits(pull(tmp_path / "copy", f"{hub.url}/folder")) == bits(source)


def test_a_hub_without_the_data_set_says_what_to_do(source: Lake, hub: Hub) -> None:
    with pytest.raises(InteropError, match=r"no such data set, .*hf repo create"):
        push(source, "hf://datasets/lab/other")
    with pytest.raises(InteropError, match=r"names no data set on the hub; write hf://datasets/"):
        push(source, "hf://lab/model")


def test_a_killed_push_is_gone_on_with(
    source: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    published: list[str] = []
    publish = places.UrlPlace.publish

    def dying(self: places.UrlPlace, files: Any) -> None:  # noqa: ANN401
        published.extend(rel for _, rel in files)
        if len(published) == 7:
            raise Killed
        publish(self, files)

    monkeypatch.setattr(places.UrlPlace, "publish", dying)
    with pytest.raises(Killed):
        export_folder(source.uri, "memory://killed", format="hub", mpp=0.5)
    there = {rel for rel in published[:6] if rel.endswith("/a.parquet")}
    published.clear()
    published.extend([""] * 8)
    done = export_folder(source.uri, "memory://killed", format="hub", mpp=0.5)
    assert done.complete == 1
    assert len(there) == 3
    assert not there & set(published), "a slide whose card is there is not sent again"
    assert pull(tmp_path / "copy", "memory://killed").bag("a", "some", mpp=0.5)


def test_an_outbox_hands_over_before_the_disk_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_outbox, "BYTES_AT_ONCE", 10)
    place = places.UrlPlace("memory://outbox")
    monkeypatch.setattr(place, "files_at_once", 100)
    with remote_outbox.RemoteOutbox(place) as box:
        box.write_text("a", "123456")
        assert place.sizes() == {}
        box.write_text("b", "1234567")
        assert place.sizes() == {"a": 6, "b": 7}
        with pytest.raises(LakeError), box.file("c"):
            raise LakeError
    assert place.sizes() == {"a": 6, "b": 7}
