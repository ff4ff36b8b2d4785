"""Manifests: paths relative to the manifest, ids as text, cells that are named."""

import json
from pathlib import Path

import pandas as pd
import pytest

from featurestore import LakeConfig, create_lake, open_lake
from ingest.errors import InputError
from ingest.ray_ingest import ingest
from ingest.select.manifests import read_manifest
from ingest.select.slides_to_cut import dry_run
from ingest.select.sources import resolve


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of slides; the working folder is another one."""
    for name in ("in/a.svs", "in/b.SVS", "in/deep/c.tiff", "in/notes.txt", "d.svs", "e.svs"):
        path = tmp_path / "study" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return tmp_path / "study"


def manifest(study: Path, text: str, name: str = "m.csv") -> str:
    (study / name).write_text(text)
    return str(study / name)


@pytest.mark.parametrize("relative", [False, True])
def test_folders_globs_and_files_are_relative_to_the_manifest(
    study: Path, monkeypatch: pytest.MonkeyPatch, *, relative: bool
) -> None:
    path = manifest(study, "uri,patient_id,site\nin,007,A\n*.svs,8,B\n")
    if relative:
        monkeypatch.chdir(study)
        path = "m.csv"
    sources = resolve([path])
    rows = [(s.slide_id, s.uri, s.patient_id, s.extra) for s in sources]
    assert rows == [
        ("a", f"{study}/in/a.svs", "007", {"site": "A"}),
        ("b", f"{study}/in/b.SVS", "007", {"site": "A"}),
        ("c", f"{study}/in/deep/c.tiff", "007", {"site": "A"}),
        ("d", f"{study}/d.svs", "8", {"site": "B"}),
        ("e", f"{study}/e.svs", "8", {"site": "B"}),
    ]


def test_a_row_of_no_slide_is_kept_to_fail(study: Path) -> None:
    path = manifest(study, "uri,slide_id\nnone*.svs,\nd.svs,D\n")
    assert [(s.slide_id, s.uri) for s in resolve([path])] == [
        ("none*", f"{study}/none*.svs"),
        ("D", f"{study}/d.svs"),
    ]


def test_one_slide_id_for_several_slides_is_refused(study: Path) -> None:
    path = manifest(study, "uri,slide_id\nd.svs,D\nin,X\n")
    with pytest.raises(InputError, match=r"row 3: .*in are 3 slides, and slide_id 'X' can be one"):
        resolve([path])
    path = manifest(study, "uri,slide_id\nin/deep,X\n")
    assert [s.slide_id for s in resolve([path])] == ["X"]


@pytest.mark.parametrize("form", ["csv", "semicolon", "tsv", "xlsx", "parquet"])
def test_manifests_in_every_form(study: Path, form: str) -> None:
    rows = {"URI ": ["d.svs", "e.svs"], "Slide ID": ["0012", "12"], "case_id": ["1.10", "1.1"],
            "mpp": ["0.25", ""], "batch": ["007", "x"], "age": ["61", "7"]}  # fmt: skip
    frame = pd.DataFrame(rows)
    name = {"semicolon": "m.csv"}.get(form, f"m.{form}")
    if form == "semicolon":
        frame["mpp"] = ["0,25", ""]
        frame.to_csv(
            study / name, sep=";", index=False, lineterminator="\r\n", encoding="utf-8-sig"
        )
    elif form in {"csv", "tsv"}:
        frame.to_csv(study / name, sep="," if form == "csv" else "\t", index=False)
    else:
        frame["mpp"], frame["age"] = [0.25, None], [61, 7]
        (frame.to_excel if form == "xlsx" else frame.to_parquet)(study / name)
    one, two = resolve([str(study / name)])
    assert (one.slide_id, one.patient_id, one.mpp) == ("0012", "1.10", 0.25)
    assert (two.slide_id, two.patient_id, two.mpp) == ("12", "1.1", None)
    assert [json.loads(json.dumps(s.extra)) for s in (one, two)] == [
        {"batch": "007", "age": 61},
        {"batch": "x", "age": 7},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uri,mpp\nd.svs,0.25\ne.svs,fine\n", r"row 3, column 'mpp': 'fine' is no number"),
        ('uri,mpp\nd.svs,"0,25"\n', r"row 2, column 'mpp': '0,25' has a decimal comma"),
        ("uri,mpp\nd.svs,0\n", r"row 2, column 'mpp': 0; microns per pixel are more than 0"),
        ("uri,slide_id\nd.svs,D\n,E\n", "row 3 has no uri"),
        ("path\nd.svs\n", "needs a column 'uri'; it has path"),
        ("uri,slide_id\nd.svs,D\ne.svs,d\n", r"'D' \(row 2\) and 'd' \(row 3\) differ by case"),
        ("uri,patient_id\nd.svs,P\ne.svs,P \n", "column 'patient_id': 'P' .* differ by blanks"),
        ("uri,Site\nd.svs,UKE\ne.svs,Uke\n", "column 'Site': 'UKE' and 'Uke' differ by case"),
        ("uri,case_id,patient_id\nd.svs,1,2\n", "case_id, patient_id, each of which may hold"),
        ("uri,slide_id\nd.svs\n", "row 2: 1 cell, but the header has 2"),
    ],
)
def test_wrong_cells_are_named(study: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve([manifest(study, text)])
    if "differ by" in message:
        assert len(resolve([str(study / "m.csv")], distinct_ids=True)) == 2


def test_a_comment_may_be_written_as_one_likes(study: Path) -> None:
    rows = read_manifest(manifest(study, "uri,note,batch\nd.svs,ok,12.10\ne.svs,OK,3\n"))
    extra = [row.extra for row in rows]
    assert extra == [{"note": "ok", "batch": "12.10"}, {"note": "OK", "batch": "3"}]


def test_names_that_are_near_those_of_the_lake_are_refused(study: Path, tmp_path: Path) -> None:
    uri = str(tmp_path / "lake")
    lake = create_lake(uri, LakeConfig(tile_px=256, mpps=(0.5,)))
    old = {"slide_id": "D1", "patient_id": "P1", "uri": "d.svs", "fingerprint": None}
    lake.committer.register([old])
    path = manifest(study, "uri,slide_id,patient_id\ne.svs,E1,p1\n")
    with pytest.raises(InputError, match="patients: 'p1' and 'P1' of the lake differ by case only"):
        dry_run(uri, [path], lake.config, {}, cores=1)
    path = manifest(study, "uri,slide_id,patient_id\ne.svs,d1,P2\n")
    with pytest.raises(InputError, match="slides: 'd1' and 'D1' of the lake differ by case only"):
        ingest(uri, [path], lake.config)
    assert open_lake(uri).slides().collect().height == 1
    plan = dry_run(uri, [path], lake.config, {"distinct_ids": True}, cores=1)
    assert [failed["slide"] for failed in plan.failed] == ["d1"]  # it is no slide
