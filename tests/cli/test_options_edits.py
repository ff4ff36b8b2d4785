"""Each option of the commands that bring a lake back, copy it, and edit what it holds."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from featurestore import open_lake
from tests.worlds import command_worlds
from tests.worlds.command_lines import Answer, CommandLine, Output, Places, command_line
from tests.worlds.small_lake import contents

Run = Callable[..., Answer]

RESTORE = command_line("restore {lake} --at 4 --json")
COPY = command_line("copy {lake} {tmp}/copy --at 4 --quiet --json")
QUERY = command_line(
    "query {lake} 'SELECT slide_id, grade FROM slides JOIN clinical USING (slide_id) ORDER BY 1' "
    "--table clinical={tmp}/clinical.csv --json"
)
CHECKSUMS = command_line("repair {lake} --checksums --json")
REPAIR_TRY = command_line("repair {lake} --dry-run --json")
REPAIR_YES = command_line("repair {lake} --yes --json")
REGIONS = "annotate {lake} {tmp}/regions.csv --name region --mpp 0.5 --json"
ANNOTATE = command_line(REGIONS)
ANNOTATE_AGAIN = command_line(REGIONS + " --replace")
ANNOTATE_CASES = command_line("annotate {lake} {tmp}/cases.csv --name grade --distinct-ids --json")
TCGA = command_line("annotate {lake} --tcga-patients --json")
RENAME = command_line("rename {lake} a TCGA-AB-1234-01Z-00-DX1 --what slide --json")
DROP_SLIDE = command_line("drop {lake} --slide a --json")
DROP_TEACHER = command_line("drop {lake} --teacher t --json")
DROP_ANNOTATION = command_line("drop {lake} --annotation region --json")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a lake of three slides and a teacher."""
    return command_worlds.two_fragments(tmp_path_factory.mktemp("edits"))


@pytest.fixture
def lake(made: Path, tmp_path: Path) -> Path:
    """Return a copy of that lake, to be changed."""
    shutil.copytree(made, tmp_path / "lake")
    return tmp_path / "lake"


@pytest.fixture
def run(capsys: Output, lake: Path, tmp_path: Path) -> Run:
    """Run a line on this lake."""

    def run(line: CommandLine, *, code: int | None = 0) -> Answer:
        return line.run(capsys, Places({"lake": lambda: lake, "tmp": lambda: tmp_path}), code=code)

    return run


def slides(lake: Path) -> set[str]:
    """Names of the slides that a lake has now."""
    return set(open_lake(lake).slides().collect()["slide_id"])


def test_restore_and_copy_bring_back_a_version(run: Run, lake: Path, tmp_path: Path) -> None:
    old = contents(open_lake(lake, version=4))
    assert run(COPY).value["version"] == 4
    assert contents(open_lake(tmp_path / "copy")) == old
    assert run(RESTORE).value["equal_to"] == 4
    assert contents(open_lake(lake)) == old


def test_query_joins_a_table_of_the_users(run: Run, tmp_path: Path) -> None:
    (tmp_path / "clinical.csv").write_text("slide_id,grade\na,high\nc,low\n")
    assert run(QUERY).value["rows"] == [["a", "high"], ["c", "low"]]


def test_repair_adds_checksums(run: Run) -> None:
    assert set(run(CHECKSUMS).value["checksums"].values()) == {0}  # a new lake has them


def test_repair_asks_before_it_drops_most_of_a_lake(run: Run, lake: Path) -> None:
    (row,) = open_lake(lake).tiles_of(mpp=0.5, slide_ids=["c"]).iter_rows(named=True)
    (lake / row["shard"]).unlink()
    before = contents(open_lake(lake))
    assert run(REPAIR_TRY, code=None).value["slides"] == []
    assert contents(open_lake(lake)) == before
    assert run(REPAIR_YES, code=None).value["slides"] == ["c"]


def test_annotations_are_made_replaced_and_dropped(run: Run, lake: Path, tmp_path: Path) -> None:
    for line, label in ((ANNOTATE, "T"), (ANNOTATE_AGAIN, "S")):
        (tmp_path / "regions.csv").write_text(
            f"slide_id,x,y,mark\na,0,0,{label}\na,256,0,{label}\n"
        )
        assert run(line).value["met"] == 2
        marks = open_lake(lake).tiles(mpp=0.5).collect()["region"]
        assert set(marks.drop_nulls()) == {label}
    run(DROP_ANNOTATION)
    assert open_lake(lake).info()["annotations"] == []


def test_slides_whose_names_differ_by_case_are_two(run: Run, tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("slide_id,grade\na,high\nA,low\n")
    assert run(ANNOTATE_CASES).value["unmet"] == ["A"]


def test_patients_are_read_off_the_barcode_of_a_renamed_slide(run: Run, lake: Path) -> None:
    assert run(RENAME).value["what"] == "slide"
    assert run(TCGA).value["set"] == 1
    patients = open_lake(lake).slides().collect()["patient_id"].drop_nulls().to_list()
    assert patients == ["TCGA-AB-1234"]


def test_slides_and_teachers_are_dropped(run: Run, lake: Path) -> None:
    run(DROP_SLIDE)
    assert slides(lake) == {"b", "c"}
    run(DROP_TEACHER)
    assert open_lake(lake).teachers(mpp=0.5) == {}
