"""Files beside the tables and indexes of shards: checked where they are loaded, and by verify."""

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import lance
import numpy as np
import pytest
import torch
from safetensors.numpy import save

from distill.students.saved_student import kept_hash
from featurestore import (
    DamageError,
    Lake,
    ShardReader,
    fit_stats,
    open_lake,
    read_phi_s,
    read_stats,
    repair,
    verify,
)
from featurestore.keep.verify.damage import FILE, SHARD_INDEX
from featurestore.keep.verify.file_checks import FILE_CHECKS
from featurestore.shards.shard_index import index_path
from featurestore.storage.sealed_json import json_bytes, read_sealed, sealed
from featurestore.tables.schema import CATALOG
from ingest.teachers.cards.card import Card, card_json
from ingest.teachers.find_teacher import find_card, weights_of
from ingest.teachers.student_files import student_file
from tests.conftest import ROOT
from tests.worlds.small_lake import add_teacher, contents, cut

SLIDES = ["a", "b"]
GREY = (0.5, 0.5, 0.5)


def damaged(lake: Lake) -> list[tuple[str, str | None]]:
    return [(one.part, one.path) for one in verify(open_lake(lake.uri)).damage]


def add_all(lake: Lake) -> dict[str, int]:
    """Add the checksums as `repair --checksums` does."""
    return {check.name: check.add(open_lake(lake.uri)) for check in FILE_CHECKS}


def flips_of(path: Path, count: int = 40) -> list[bytes]:
    """Return a file with one bit flipped in each of some places, cut, empty and with zeros."""
    file_bytes = path.read_bytes()
    flips = []
    for at in np.linspace(0, len(file_bytes) - 1, count).astype(int).tolist():
        flipped = bytearray(file_bytes)
        flipped[at] ^= 1 << at % 8
        flips.append(bytes(flipped))
    return [
        *flips,
        file_bytes[:-1],
        file_bytes[: len(file_bytes) // 2],
        b"",
        bytes(len(file_bytes)),
    ]


# ---------------------------------------------------------------------- statistics


@pytest.fixture
def fitted(small: Lake) -> Lake:
    """Return the small lake with a teacher and its statistics."""
    lake = add_teacher(small, "t")
    fit_stats(lake, "t", mpp=0.5, slide_ids=SLIDES)
    return lake


def stats_file(lake: Lake, name: str) -> str:
    (path,) = (one.path for one in lake.store.walk("stats") if one.path.endswith(name))
    return path


READS: dict[str, Callable[[Lake], object]] = {
    "moments.safetensors": lambda lake: read_stats(lake, "t", mpp=0.5, slide_ids=SLIDES),
    "phi_s.safetensors": lambda lake: read_phi_s(lake, "t", mpp=0.5, slide_ids=SLIDES),
    "card.json": lambda lake: read_phi_s(lake, "t", mpp=0.5, slide_ids=SLIDES),
}


@pytest.mark.parametrize("name", READS)
def test_damaged_statistics_are_refused(fitted: Lake, name: str) -> None:
    rel = stats_file(fitted, name)
    path = Path(fitted.store.path(rel))
    whole = json.loads(path.read_bytes()) if name == "card.json" else None
    for file_bytes in flips_of(path):
        path.write_bytes(file_bytes)
        try:
            same = whole is not None and json.loads(file_bytes) == whole
        except ValueError:
            same = False
        if same:
            continue  # blanks between the words of a card mean nothing
        with pytest.raises(DamageError, match=rel):
            READS[name](fitted)
    assert (FILE, rel) in damaged(fitted)
    path.unlink()
    if name == "card.json":
        assert READS[name](fitted) is None  # without their card statistics are not there
    else:
        with pytest.raises(DamageError, match=f"{rel} can't be read"):
            READS[name](fitted)
        assert damaged(fitted) == [(FILE, rel)]


def test_verify_counts_statistics_without_checksums_and_they_can_be_given(fitted: Lake) -> None:
    """An early release wrote none; a file that is named already is not vouched for."""
    card = stats_file(fitted, "card.json")
    card_fields = read_sealed(fitted.store, card)
    early = {k: v for k, v in card_fields.items() if k not in {"checksums", "card_crc32"}}
    fitted.write_bytes(card, json_bytes(early))
    assert verify(open_lake(fitted.uri)).unchecked["files of statistics"] == 3
    assert READS["moments.safetensors"](fitted) is not None
    assert add_all(fitted)["files of statistics"] == 3
    assert read_sealed(fitted.store, card) == card_fields
    assert "files of statistics" not in verify(open_lake(fitted.uri)).unchecked
    moments = Path(fitted.store.path(stats_file(fitted, "moments.safetensors")))
    moments.write_bytes(moments.read_bytes()[:-8] + bytes(8))
    assert add_all(fitted)["files of statistics"] == 0
    assert damaged(fitted) == [(FILE, stats_file(fitted, "moments.safetensors"))]


# ---------------------------------------------------------------------- students


def write_student(lake: Lake, *, early: bool = False) -> None:
    """A student's files as the training loop leaves them; its weights are never loaded here."""
    card = Card(name="s", architecture="x", dim=4, input_px=64, mean=GREY, std=GREY)
    files = {
        "model.safetensors": save({"w": np.arange(100, dtype=np.float32)}),
        "heads.safetensors": save({"h": np.arange(10, dtype=np.float32)}),
        "card.json": card_json(card),
    }
    for name, file_bytes in files.items():
        lake.write_bytes(f"students/s/{name}", file_bytes)
    report = {"student": "s", "fidelity": {"t": {"cosine": 0.25}}}
    lake.write_bytes(
        "students/s/report.json", json_bytes(report if early else sealed(report, files))
    )


def loaded(lake: Lake) -> Card:
    """Whatever reads a student's files."""
    card = find_card(lake.store, "s")
    with weights_of(lake.store, card):
        kept_hash(lake, "s")
    student_file(lake.store, "s", "heads.safetensors")
    return card


@pytest.mark.parametrize(
    "name", ["model.safetensors", "heads.safetensors", "card.json", "report.json"]
)
def test_a_damaged_student_is_refused_with_its_file(small: Lake, name: str) -> None:
    write_student(small)
    card = loaded(small)
    path = Path(small.store.path(f"students/s/{name}"))
    whole = path.read_bytes()
    for file_bytes in flips_of(path):
        path.write_bytes(file_bytes)
        try:
            same = name == "report.json" and json.loads(file_bytes) == json.loads(whole)
        except ValueError:
            same = False
        if not same:
            with pytest.raises(DamageError, match=f"students/s/{name}"):
                loaded(small)
    assert damaged(small) == [(FILE, f"students/s/{name}")]
    path.write_bytes(whole)
    assert loaded(small) == card
    assert not damaged(small)


def test_early_students_are_counted_and_can_be_given_checksums(small: Lake) -> None:
    write_student(small, early=True)
    card = loaded(small)
    assert verify(open_lake(small.uri)).unchecked["files of students"] == 4
    assert add_all(small)["files of students"] == 4
    assert loaded(small) == card
    assert not verify(open_lake(small.uri)).unchecked
    report = read_sealed(small.store, "students/s/report.json")
    assert report["fidelity"] == {"t": {"cosine": 0.25}}
    model = Path(small.store.path("students/s/model.safetensors"))
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    with pytest.raises(DamageError, match=r"students/s/model.safetensors is not what was written"):
        loaded(small)


# ---------------------------------------------------------------------- trainings


def torch_opens(path: Path) -> bool:
    """Whether PyTorch reads the file; its reader of zip archives refuses more than Python's."""
    try:
        torch.load(path, weights_only=True)
    except RuntimeError:
        return False
    return True


def test_a_damaged_checkpoint_is_named_or_gives_what_was_written(small: Lake) -> None:
    """An unfinished training has no checksum beside its checkpoint: the file holds its own."""
    path = Path(small.store.path("runs/distill-x/checkpoint.pt"))
    path.parent.mkdir(parents=True)
    tensors = {"a": torch.arange(400.0), "b": torch.ones(3, 5)}
    torch.save(tensors, path)
    written, refused = path.read_bytes(), 0
    assert not verify(small).damage
    for file_bytes in flips_of(path):
        path.write_bytes(file_bytes)
        named = damaged(small)
        assert named in ([], [(FILE, "runs/distill-x/checkpoint.pt")])
        refused += len(named)
        if not named and torch_opens(path):
            torch.testing.assert_close(torch.load(path, weights_only=True), tensors)
    assert refused > 20
    path.write_bytes(written)
    assert not verify(small).damage


def test_norms_of_an_early_training_can_be_given_checksums(small: Lake) -> None:
    small.write_json("runs/distill-x/config.json", {"student": "x"})
    norms = Path(small.store.path("runs/distill-x/norms.safetensors"))
    norms.write_bytes(save({"mean": np.ones(3)}))
    assert add_all(small)["files of runs"] == 2  # the settings have one for themselves
    assert not damaged(small)
    for file_bytes in flips_of(norms):
        norms.write_bytes(file_bytes)
        assert damaged(small) == [(FILE, "runs/distill-x/norms.safetensors")]


# ---------------------------------------------------------------------- indexes of shards


def test_verify_finds_a_flipped_index_and_repair_makes_it_again(small: Lake) -> None:
    lake = add_teacher(small, "t")
    before = contents(lake)
    row = lake.tiles_of(mpp=0.5, slide_ids=["a"]).row(0, named=True)
    rel = index_path(row["shard"])
    path = Path(lake.store.path(rel))
    whole, places = path.read_bytes(), []
    offsets = ShardReader.of(lake.store, row).index.offset.tobytes()
    at = whole.index(offsets)
    for flipped in (at, at + 3, at + len(offsets) - 8, len(whole) - 5):
        file_bytes = bytearray(whole)
        file_bytes[flipped] ^= 2
        path.write_bytes(file_bytes)
        places.append(damaged(lake))
    assert places == [[(SHARD_INDEX, rel)]] * 4
    done = repair(open_lake(lake.uri), verify(open_lake(lake.uri)))
    assert done.rebuilt == [f"index of {row['shard']}"]
    assert path.read_bytes() == whole
    assert not damaged(lake)
    assert contents(open_lake(lake.uri)) == before


def early_lake(folder: Path) -> Lake:
    """Return a lake of the first release, without a catalog column for index checksums."""
    with tarfile.open(ROOT / "tests/data/format1.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    return open_lake(folder / "lake")


def test_an_early_lake_is_counted_and_its_indexes_can_be_given_checksums(tmp_path: Path) -> None:
    lake = early_lake(tmp_path)
    before = contents(lake)
    shards = lake.catalog().collect().drop_nulls("shard").height
    assert "index_crc32" not in lake.table(CATALOG).schema.names
    verdict = verify(lake)
    assert verdict.ok
    assert verdict.unchecked["indexes of shards"] == shards
    row = lake.tiles_of(mpp=2.0, slide_ids=["c"]).row(0, named=True)
    # Without a checksum the index is compared with the tar.
    path = Path(lake.store.path(index_path(row["shard"])))
    whole = path.read_bytes()
    keys = ShardReader.of(lake.store, row).index.tile_id.tobytes()
    path.write_bytes(whole.replace(keys, keys[:-16] + keys[-8:-4] + b"\1\0\0\0" + keys[-8:]))
    assert (SHARD_INDEX, index_path(row["shard"])) in damaged(lake)
    path.write_bytes(whole)
    assert add_all(lake)["indexes of shards"] == shards
    after = open_lake(lake.uri)
    assert contents(after) == before
    assert verify(after).ok
    assert not verify(after).unchecked
    assert after.tiles_of(mpp=2.0)["index_crc32"].null_count() == 0
    assert contents(open_lake(lake.uri, version=lake.version)) == before


def test_an_early_lake_can_be_added_to(tmp_path: Path) -> None:
    lake = early_lake(tmp_path)
    rows = lake.catalog().collect().height
    (row,) = lake.committer.register([{"slide_id": "new", "uri": "new.svs"}])
    lake.committer.commit_slides([cut(lake, row["slide"], "new", 4)])
    after = open_lake(lake.uri)
    assert after.catalog().collect().height == rows + len(lake.config.mpps)
    crc32 = after.tiles_of(mpp=0.5)
    assert crc32.filter(crc32["slide_id"] == "new")["index_crc32"].null_count() == 0
    assert verify(after).ok


def test_an_early_release_can_add_to_a_lake_of_today(small: Lake) -> None:
    """Its rows lack the column, which Lance reads as null."""
    shutil.copytree(small.uri, f"{small.uri}-2")
    rows = small.table(CATALOG).to_table()
    early = rows.drop_columns(["index_crc32"]).slice(0, 1)
    lance.write_dataset(early, f"{small.uri}-2/{CATALOG}", mode="append")
    catalog = lance.dataset(f"{small.uri}-2/{CATALOG}").to_table()
    assert catalog["index_crc32"].null_count == 1
    assert catalog.num_rows == rows.num_rows + 1
