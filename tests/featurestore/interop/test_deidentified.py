"""Exports without names: no byte of them holds an id, a path or a text that a user planted."""

import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import zarr

from featurestore import Lake, annotate, open_lake, rename, set_patients
from featurestore.interop import WRITABLE, InteropError, Sharing, export_folder
from tests.conftest import TEACHERS

SLIDE, PATIENT, CLINICIAN, MRN = "SMITH-JOHN-1954", "Smith, John", "Dr Mueller", 77123456
PLANTED = (SLIDE, PATIENT, CLINICIAN, str(MRN), "SMITH", "Smith", "Mueller")


@pytest.fixture
def named(lake_copy: Path) -> Lake:
    """A lake whose slide, patient, annotations and column's query carry names."""
    lake = open_lake(lake_copy)
    first = lake.slides().filter(pl.col("state") == "ready").sort("slide_id").collect()
    rename(lake, first["slide_id"][0], SLIDE)
    lake = lake.refreshed()
    patients = pl.DataFrame({"slide_id": [SLIDE], "patient_id": [PATIENT]})
    set_patients(lake, patients, replace_old=True)
    table = pl.DataFrame({"slide_id": [SLIDE], "clinician": [CLINICIAN], "mrn": [MRN]})
    annotate(lake.refreshed(), table, "clinical")
    return lake.refreshed()


def texts(folder: Path) -> Iterator[str]:
    """Every path below a folder, every byte of its files, and what is compressed in them."""
    for path in sorted(folder.rglob("*")):
        yield str(path.relative_to(folder))
        if path.is_file():
            yield path.read_bytes().decode("latin-1")
            if path.suffix == ".parquet":
                table = pq.read_table(path)
                yield f"{table.schema} {table.schema.metadata} {table.to_pydict()}"
            if path.suffix == ".h5":
                with h5py.File(path) as file:
                    shown: list[str] = []
                    file.visititems(
                        lambda name, node, s=shown: s.append(f"{name} {dict(node.attrs)}")
                    )
                    yield f"{shown} {dict(file.attrs)}"
        if path.suffix == ".zarr":
            yield from _zarr_texts(zarr.open_group(path / "tables", mode="r"))


def _zarr_texts(group: zarr.Group) -> Iterator[str]:
    yield str(dict(group.attrs))
    for name, node in group.members(max_depth=None):
        yield f"{name} {dict(node.attrs)}"
        if isinstance(node, zarr.Array):
            yield str(np.asarray(node[...]).tolist()) if node.dtype.kind in "OUST" else ""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n == "anndata" else []) for n in WRITABLE]
)
def test_no_name_is_in_any_byte(named: Lake, tmp_path: Path, name: str) -> None:
    out, key = tmp_path / "Smith" / "out", tmp_path / "key.csv"
    export = partial(export_folder, named.uri, format=name, mpp=0.5)
    export(tmp_path / "open")
    assert any(SLIDE in text for text in texts(tmp_path / "open")), "the search finds what is there"
    done = export(out, sharing=Sharing(deidentify=key))
    assert done.written > 0
    for text in texts(out):
        assert not [word for word in (*PLANTED, str(tmp_path)) if word in text]
    assert not (out / "annotations").exists()
    slides = pl.read_csv(key).filter(pl.col("kind") == "slide")
    assert set(slides["id"]) == set(named.slides().collect()["slide_id"])
    patients = pl.read_csv(out / "patients.csv")
    assert set(patients["slide_id"]) == set(slides["name"])
    assert patients["patient_id"].drop_nulls().n_unique() == (
        named.slides().collect()["patient_id"].drop_nulls().n_unique()
    )
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_the_names_are_random_and_stay_with_the_key(named: Lake, tmp_path: Path) -> None:
    export = partial(export_folder, named.uri, format="stamp", mpp=0.5, teachers=[TEACHERS[0]])
    key, out = tmp_path / "key.csv", tmp_path / "out"
    first = export(out, sharing=Sharing(deidentify=key))
    files = {path: path.read_bytes() for path in out.rglob("*.h5")}
    again = export(out, sharing=Sharing(deidentify=key))
    assert (again.written, again.complete) == (0, first.written)
    rename(open_lake(named.uri), SLIDE, "another")
    export(out, sharing=Sharing(deidentify=key))
    assert len(pl.read_csv(key)) == len(named.slides().collect()) + len(
        set(named.slides().collect()["patient_id"].drop_nulls())
    ) + 1  # fmt: skip
    assert len(list(out.rglob("*.h5"))) == len(files) + 1
    export(tmp_path / "out2", sharing=Sharing(deidentify=tmp_path / "key2.csv"))
    names = {path.name for path in files}
    assert not names & {path.name for path in (tmp_path / "out2").rglob("*.h5")}


def test_the_key_lies_outside_the_export_and_is_a_key(named: Lake, tmp_path: Path) -> None:
    out, labels = tmp_path / "out", tmp_path / "labels.csv"
    with pytest.raises(InteropError, match="keep the key apart from it"):
        export_folder(
            named.uri, out, format="stamp", mpp=0.5, sharing=Sharing(deidentify=out / "key.csv")
        )
    labels.write_text("slide_id,label\na,b\n")
    with pytest.raises(InteropError, match="is no key of pseudonyms: its columns are slide_id"):
        export_folder(named.uri, out, format="stamp", mpp=0.5, sharing=Sharing(deidentify=labels))
    assert labels.read_text() == "slide_id,label\na,b\n"
    assert not out.exists()
