"""A second ingest that gives other facts or settings than the slides were cut with; one file as two
slides; links, macOS's files and masks that are of no slide."""

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

import slidelake
from featurestore import Lake, LakeConfig, SlideCut, create_lake, open_lake, verify
from featurestore.tables.schema import SLIDES, SLIDES_SCHEMA
from ingest.cut import cut_or_reason
from ingest.errors import InputError, SlideError
from ingest.ray_ingest import IngestResult, ingest
from ingest.select.cut_settings import CutSettings
from ingest.select.named_slides import IngestOptions, find_named_slides
from ingest.select.slides_to_cut import Todo, dry_run, sort_out
from ingest.select.sources import fingerprint, resolve, split_duplicates
from tests.conftest import REAL_SLIDE, ROOT
from tests.worlds.small_lake import add_teacher

CONFIG = LakeConfig(mpps=(2.0,))
WIDTH, HEIGHT = 2220, 2967
EXAMPLE = str(ROOT / "examples" / "own_segmenter.py")


def run(lake: Lake, *inputs: Path | str, cut: bool = True, **options: Any) -> Todo:  # noqa: ANN401
    """Do what an ingest does, in this process; a run that is killed does not cut."""
    named = find_named_slides([str(path) for path in inputs], options)  # type: ignore[arg-type]
    todo = sort_out(lake.committer.register(named.rows), options, named.tissue_by)  # type: ignore[arg-type]
    assert not todo.failed
    if todo.facts:
        lake.committer.update_slides(todo.facts)
    for one in [cut_or_reason(lake.store, CONFIG, row) for row in todo.cut] if cut else []:
        assert isinstance(one, SlideCut), one
        lake.committer.commit_slides([one])
    return todo


def row(lake: Lake, slide_id: str = "a") -> dict[str, Any]:
    rows = open_lake(lake.uri).slides().filter(pl.col("slide_id") == slide_id).collect()
    return rows.row(0, named=True)


def tiles(lake: Lake, slide_id: str = "a") -> set[tuple[int, int]]:
    frame = open_lake(lake.uri).tiles(mpp=2.0).filter(pl.col("slide_id") == slide_id).collect()
    return set(frame.select("grid_y", "grid_x").iter_rows())


def shard(lake: Lake, slide_id: str = "a") -> str:
    (path,) = open_lake(lake.uri).tiles_of(mpp=2.0, slide_ids=[slide_id])["shard"].to_list()
    return str(path)


def box_mask(path: Path, left: int, top: int, right: int, bottom: int) -> Path:
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    return path


def manifest(path: Path, text: str) -> Path:
    path.write_text(text.replace("FILE", str(REAL_SLIDE)))
    return path


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return create_lake(tmp_path / "lake", CONFIG)


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    path = tmp_path / "slides" / "a.svs"
    path.parent.mkdir()
    shutil.copyfile(REAL_SLIDE, path)
    return path


# ------------------------------------------------------------------ facts


def test_facts_of_a_manifest_are_updated_in_one_commit_and_nothing_is_cut(
    lake: Lake, tmp_path: Path
) -> None:
    first = manifest(tmp_path / "m.csv", "uri,slide_id,patient_id,site,stain\nFILE,a,P1,A,HE\n")
    run(lake, first)
    before, version = row(lake), open_lake(lake.uri).version
    second = manifest(tmp_path / "n.csv", "uri,slide_id,patient_id,site,age\nFILE,a,P2,B,61\n")
    todo = run(lake, second)
    assert (todo.cut, list(todo.facts)) == ([], ["a"])
    assert todo.notes("updated") == ["1 slide: facts updated (age, patient_id, site)"]
    after = row(lake)
    assert after["patient_id"] == "P2"
    assert json.loads(after["extra"]) == {"site": "B", "stain": "HE", "age": 61}
    same = set(before) - {"patient_id", "extra", "row_crc32"}
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert lake.refreshed().pictures("a")["thumbnail"]
    assert verify(lake.refreshed()).damage == []
    assert open_lake(lake.uri, version=version).slides().collect()["patient_id"][0] == "P1"
    again = open_lake(lake.uri).version
    assert run(lake, second).facts == {}
    assert open_lake(lake.uri).version == again


def test_empty_cells_and_plain_paths_take_no_fact_away(lake: Lake, tmp_path: Path) -> None:
    run(lake, manifest(tmp_path / "m.csv", "uri,slide_id,patient_id,site\nFILE,a,P1,A\n"))
    todo = run(lake, manifest(tmp_path / "n.csv", "uri,slide_id,patient_id,site\nFILE,a,,\n"))
    assert (todo.cut, todo.facts) == ([], {})
    assert (row(lake)["patient_id"], row(lake)["extra"]) == ("P1", '{"site": "A"}')


def test_slide_that_a_killed_run_left_keeps_its_facts_and_settings(
    lake: Lake, slide: Path, tmp_path: Path
) -> None:
    mask = box_mask(tmp_path / "masks" / "a.geojson", 0, 0, 1024, 1024)
    text = f"uri,patient_id,mpp,site\n{slide},P1,0.25,A\n"
    (tmp_path / "m.csv").write_text(text)
    run(lake, tmp_path / "m.csv", cut=False, masks=str(mask.parent), pen_veto=False)
    run(lake, slide)
    made = row(lake)
    assert (made["state"], made["patient_id"], made["extra"]) == ("ready", "P1", '{"site": "A"}')
    assert (made["mpp"], made["mpp_source"]) == (0.25, "given")
    assert made["why"].endswith("a.geojson says")
    kept = CutSettings.from_json(made["cut_with"])
    assert (kept.mpp, kept.mask, kept.pen_veto) == (0.25, str(mask), False)


def test_slide_that_moved_is_found_at_its_new_place(lake: Lake, slide: Path) -> None:
    run(lake, slide)
    moved = slide.rename(slide.parent / "b.svs").parent / "sub"
    moved.mkdir()
    (slide.parent / "b.svs").rename(moved / "a.svs")
    todo = run(lake, moved)
    assert (todo.cut, todo.fact_names) == ([], {"uri"})
    (moved / "a.svs").write_bytes(REAL_SLIDE.read_bytes() + b"scanned again")
    assert len(run(lake, moved).cut) == 1


# ------------------------------------------------------------------ settings


def test_another_mpp_cuts_a_slide_again_and_the_same_one_does_not(
    lake: Lake, slide: Path, tmp_path: Path
) -> None:
    run(lake, slide)
    add_teacher(lake.refreshed(), "t")
    old, was, version = tiles(lake), shard(lake), open_lake(lake.uri).version
    (tmp_path / "m.csv").write_text(f"uri,mpp\n{slide},0.25\n")
    todo = run(lake, tmp_path / "m.csv")
    assert todo.again == {"a": "mpp 0.499, now 0.25"}
    assert shard(lake) != was
    assert 0 < len(tiles(lake)) < len(old)
    assert row(lake)["mpp"] == 0.25
    assert open_lake(lake.uri, version=version).tiles(mpp=2.0).collect().height == len(old)
    assert open_lake(lake.uri).features_of("t", mpp=2.0).height == 0
    # As it was, if nothing is given: not the file's own mpp again.
    assert run(lake, slide).cut == []
    assert run(lake, slide, mpp_override=0.25).cut == []
    assert verify(lake.refreshed()).damage == []
    # What was given is given otherwise.
    assert run(lake, slide, mpp_override=0.5).again == {"a": "mpp 0.25, now 0.5"}


def test_mpp_for_slides_that_lack_one_leaves_those_that_have_their_own(
    lake: Lake, slide: Path
) -> None:
    run(lake, slide)
    todo = run(lake, slide, mpp_override=0.5)  # 0.499 is cut in the same way
    assert (todo.cut, todo.stopped) == ([], [])
    (stopped,) = run(lake, slide, mpp_override=0.25).stopped
    assert (
        "cut at 0.499 mpp, which its file says, and --mpp-override says 0.25" in (stopped["reason"])
    )
    assert run(lake, slide, mpp_override=0.25, replace=True).again == {"a": "mpp 0.499, now 0.25"}


def test_a_cut_again_that_is_killed_before_its_commit_is_done_by_the_next_run(
    lake: Lake, slide: Path
) -> None:
    run(lake, slide)
    assert len(run(lake, slide, cut=False, mpp_override=0.25, replace=True).cut) == 1
    assert row(lake)["mpp"] == 0.499
    run(lake, slide, mpp_override=0.25, replace=True)
    assert row(lake)["mpp"] == 0.25
    assert run(lake, slide, mpp_override=0.25, replace=True).cut == []


def test_a_mask_that_is_new_or_drawn_anew_cuts_a_slide_again(
    lake: Lake, slide: Path, tmp_path: Path
) -> None:
    run(lake, slide)
    folder, was = tmp_path / "masks", shard(lake)
    box_mask(folder / "a.geojson", 0, 0, 1024, 1024)
    todo = run(lake, slide, masks=str(folder))
    assert todo.again == {"a": f"no mask, now {folder}/a.geojson"}
    assert (tiles(lake), shard(lake) != was) == ({(0, 0)}, True)
    assert run(lake, slide, masks=str(folder)).cut == []
    assert run(lake, slide).cut == []
    one = shard(lake)
    box_mask(folder / "a.geojson", 0, 1024, 1024, 2048)
    todo = run(lake, slide, masks=str(folder))
    assert "with another content" in todo.again["a"]
    assert (tiles(lake), shard(lake) != one) == ({(1, 0)}, True)


def test_a_mask_that_is_gone_is_asked_for_and_not_passed_over(
    lake: Lake, slide: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "masks"
    box_mask(folder / "a.geojson", 0, 0, 1024, 1024)
    run(lake, slide, masks=str(folder))
    (folder / "a.geojson").rename(folder / "b.geojson")
    shutil.copyfile(slide, slide.parent / "b.svs")
    todo = run(lake, slide.parent, masks=str(folder))
    (stopped,) = todo.stopped
    assert stopped["slide"] == "a"
    assert "--masks has none for it now" in stopped["reason"]
    assert tiles(lake) == {(0, 0)}
    todo = run(lake, slide, tissue="standard")
    assert "a.geojson, now none" in todo.again["a"]
    assert len(tiles(lake)) > 1


def test_another_way_to_find_tissue_and_the_veto_cut_a_slide_again(lake: Lake, slide: Path) -> None:
    run(lake, slide)
    assert run(lake, slide, tissue="standard", pen_veto=True).cut == []  # what it was
    assert run(lake, slide, tissue="none").again == {"a": "tissue by standard, now by none"}
    assert tiles(lake) == {(y, x) for y in range(3) for x in range(3)}
    assert run(lake, slide).cut == []
    assert (
        run(lake, slide, tissue=EXAMPLE)
        .again["a"]
        .startswith("tissue by none, now by colour-and-shade (")
    )
    assert run(lake, slide, tissue=EXAMPLE).cut == []
    run(lake, slide, tissue="standard")
    assert run(lake, slide, pen_veto=False).again == {"a": "pen left out, now kept"}


def test_slide_that_waits_for_a_segmenter_says_so(lake: Lake, slide: Path) -> None:
    run(lake, slide, cut=False, tissue=EXAMPLE)
    (stopped,) = run(lake, slide).stopped
    assert "its tissue was to be found by colour-and-shade (" in stopped["reason"]
    assert len(run(lake, slide, tissue="fixed").cut) == 1


def test_a_mask_of_an_earlier_scan_is_not_taken_for_a_new_one(
    lake: Lake, slide: Path, tmp_path: Path
) -> None:
    box_mask(tmp_path / "masks" / "a.geojson", 0, 0, 1024, 1024)
    run(lake, slide, masks=str(tmp_path / "masks"), mpp_override=0.25)
    slide.write_bytes(REAL_SLIDE.read_bytes() + b"scanned again")
    (stopped,) = run(lake, slide).stopped
    assert "was drawn on the earlier scan" in stopped["reason"]
    run(lake, slide, masks=str(tmp_path / "masks"))
    assert (row(lake)["mpp"], row(lake)["mpp_source"]) == (0.499, "file")


def test_dry_run_says_what_would_change(lake: Lake, slide: Path, tmp_path: Path) -> None:
    run(lake, slide)
    (tmp_path / "m.csv").write_text(f"uri,patient_id\n{slide},P1\n")
    options: IngestOptions = {"mpp_override": 0.25, "replace": True}
    plan = dry_run(lake.uri, [str(slide)], CONFIG, options, cores=1)
    assert plan.notes == ["a would be cut again: mpp 0.499, now 0.25"]
    plan = dry_run(lake.uri, [str(tmp_path / "m.csv")], CONFIG, {}, cores=1)
    assert plan.notes == ["1 slide: facts would be updated (patient_id)"]
    # A patient's name that is mended is not next to that of another patient.
    run(lake, tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text(f"uri,patient_id\n{slide},p1\n")
    plan = dry_run(lake.uri, [str(tmp_path / "m.csv")], CONFIG, {}, cores=1)
    assert plan.notes == ["1 slide: facts would be updated (patient_id)"]


def test_slides_of_an_earlier_slidelake_are_left_unless_replaced(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their table has no such column: it is added, and what is not known counts as not changed."""
    old = SLIDES_SCHEMA.remove(SLIDES_SCHEMA.get_field_index("cut_with"))
    with monkeypatch.context() as context:
        for module in ("opening", "commits.lance_commit", "lake"):
            context.setattr(f"featurestore.{module}.SLIDES_SCHEMA", old)
        lake = create_lake(tmp_path / "old", CONFIG)
        run(lake, slide)
    assert "cut_with" not in lake.refreshed().table(SLIDES).schema.names
    assert row(lake)["state"] == "ready"
    todo = run(lake, slide, tissue="none")
    assert (todo.cut, todo.unknown) == ([], ["a"])
    assert "--replace cuts them again" in todo.notes("updated")[0]
    assert len(run(lake, slide, tissue="none", replace=True).cut) == 1
    assert CutSettings.from_json(row(lake)["cut_with"]).tissue == "none"
    assert run(lake, slide, tissue="none").cut == []


def test_command_says_sizes_and_times_that_are_not_nothing(slide: Path, tmp_path: Path) -> None:
    box_mask(tmp_path / "masks" / "a.geojson", 0, 0, 1024, 1024)
    words = ["ingest", str(tmp_path / "new"), str(slide), "--mpp", "2.0", "--dry-run"]
    masked = [*words, "--tissue", "fixed", "--masks", str(tmp_path / "masks"), "--pen-veto"]
    done = CliRunner().invoke(slidelake.app, masked)
    assert done.exit_code == 0, done.output
    assert "1 slide to cut (1 looked at): about 1 tile at 2.0 mpp" in done.output
    assert re.search(r"\d+\.\d kB of shards; about \d+\.\d s on \d+ cores", done.output)
    run(create_lake(tmp_path / "new", CONFIG), slide)
    done = CliRunner().invoke(slidelake.app, words)
    assert "no slides to cut; nothing was written" in done.output
    done = CliRunner().invoke(slidelake.app, [*words, "--tissue", "hsv"])
    assert "--tissue hsv given; it is one of standard, " in str(done.exception)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_up")
def test_ingest_itself_does_what_is_changed(slide: Path, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(f"uri,patient_id\n{slide},P1\n")

    def ingested(**options: Any) -> IngestResult:  # noqa: ANN401
        return ingest(str(tmp_path / "made"), [str(tmp_path / "m.csv")], CONFIG, **options)

    assert (ingested().new, ingested().new) == (1, 0)
    (tmp_path / "m.csv").write_text(f"uri,patient_id\n{slide},P2\n")
    result = ingested(tissue=EXAMPLE)
    assert (result.new, result.replaced, result.facts) == (1, [], 0)
    assert list(result.again) == ["a"]
    lake = open_lake(tmp_path / "made")
    assert row(lake)["patient_id"] == "P2"
    (tmp_path / "m.csv").write_text(f"uri,patient_id\n{slide},P3\n")
    result = ingested()
    assert (result.new, result.facts) == (0, 1)
    assert result.notes == ["1 slide: facts updated (patient_id)"]
    (tmp_path / "m.csv").write_text(f"uri,patient_id,mpp\n{slide},P3,7\n")
    assert "give that --tissue FILE.py again" in ingested().failed[0]["reason"]
    failed = ingested(tissue=EXAMPLE)
    assert (
        "cutting it again (mpp 0.499, now 7) failed, its earlier tiles stay"
        in (failed.failed[0]["reason"])
    )
    assert row(lake)["state"] == "ready"


# ------------------------------------------------------------------ one file, two slides


def test_one_file_with_two_masks_is_two_slides(lake: Lake, tmp_path: Path) -> None:
    """Two sections on one glass."""
    text = "uri,slide_id,patient_id\nFILE,left,P1\nFILE,right,P2\n"
    table = manifest(tmp_path / "m.csv", text)
    box_mask(tmp_path / "masks" / "left.geojson", 0, 0, 1024, HEIGHT)
    box_mask(tmp_path / "masks" / "right.geojson", 1024, 0, WIDTH, HEIGHT)
    run(lake, table, masks=str(tmp_path / "masks"))
    assert tiles(lake, "left") == {(y, 0) for y in range(3)}
    assert tiles(lake, "right") == {(y, x) for y in range(3) for x in (1, 2)}
    assert [row(lake, name)["patient_id"] for name in ("left", "right")] == ["P1", "P2"]
    assert row(lake, "left")["fingerprint"] == row(lake, "right")["fingerprint"]
    assert shard(lake, "left") != shard(lake, "right")
    assert run(lake, table, masks=str(tmp_path / "masks")).cut == []
    # The file's own name is no third slide.
    assert [source.slide_id for source in resolve([str(REAL_SLIDE), str(table)])] == [
        "left",
        "right",
    ]


def test_one_file_as_two_slides_without_masks_is_told(tmp_path: Path) -> None:
    table = manifest(tmp_path / "m.csv", "uri,slide_id\nFILE,left\nFILE,right\nFILE,right\n")
    named = find_named_slides([str(table)], {})
    assert [one["slide_id"] for one in named.rows] == ["left", "right"]
    assert named.notes[0].startswith("left, right are one file, cut in the same way")


def test_a_slide_named_twice_with_other_facts_is_refused(tmp_path: Path) -> None:
    text = "uri,slide_id,patient_id,site\nFILE,a,P1,A\nFILE,a,P2,A\n"
    named = find_named_slides([str(manifest(tmp_path / "m.csv", text))], {})
    assert "'a' is named twice, and differs in patient_id" in named.stopped[0]["reason"]
    first, later = split_duplicates(resolve([str(tmp_path / "m.csv")]))
    assert ([s.patient_id for s in first], [s.patient_id for s in later]) == (["P1"], ["P2"])


# ------------------------------------------------------------------ folders and masks


def test_linked_folders_are_followed_once_and_files_of_macos_left_out(tmp_path: Path) -> None:
    for name in ("study/a.svs", "study/._a.svs", "disk/deep/b.tiff", "disk/._b.tiff"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "study" / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "deep" / "back").symlink_to(tmp_path / "study")  # a circle
    notes: list[str] = []
    sources = resolve([str(tmp_path / "study")], note=notes.append)
    assert [source.slide_id for source in sources] == ["a", "b"]
    assert notes == ["2 files of macOS left out: ._a.svs, ..."]
    named = find_named_slides([f"{tmp_path}/study/*"], {})
    assert [one["slide_id"] for one in named.rows] == ["a", "b"]
    assert named.stopped == []  # a.svs is reached by the link back, too
    (tmp_path / "link").symlink_to(tmp_path / "study")
    assert len(resolve([str(tmp_path / "link")])) == 2
    with pytest.raises(SlideError, match="is no slide but what macOS keeps beside one"):
        fingerprint(str(tmp_path / "study" / "._a.svs"))


def test_folder_that_can_not_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("study/a.svs", "study/shut/b.svs"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    scandir = os.scandir

    def refusing(path: str) -> Any:  # noqa: ANN401 - root may read every folder
        if str(path).endswith("shut"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    notes: list[str] = []
    sources = resolve([str(tmp_path / "study")], note=notes.append)
    assert [source.slide_id for source in sources] == ["a"]
    (note,) = notes
    assert note.startswith(f"folder {tmp_path}/study/shut can't be read: Permission denied")


def test_masks_that_match_no_slide_are_told(slide: Path, tmp_path: Path) -> None:
    box_mask(tmp_path / "masks" / "A.geojson", 0, 0, 9, 9)
    with pytest.raises(InputError, match=r"no mask in .* is of one of the slides"):
        find_named_slides([str(slide)], {"masks": str(tmp_path / "masks")})
    box_mask(tmp_path / "masks" / "a.geojson", 0, 0, 9, 9)
    named = find_named_slides([str(slide)], {"masks": str(tmp_path / "masks")})
    assert named.notes == ["1 mask matches no slide: A"]
