"""Command lines as jobs need them: which words are paths, what travels, what is refused."""

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import typer
from typer.exceptions import TyperException

import slidelake
from cluster import ClusterError
from commands.installation.job_paths import SHARED, JobPaths, shared_folders
from commands.installation.job_words import job_words, value_places
from commands.options.command_paths import field_path_kinds, path_kinds
from commands.options.path_kind import PathKind

if TYPE_CHECKING:
    from typer.core import TyperCommand, TyperGroup

APP = cast("TyperGroup", typer.main.get_command(slidelake.app))
COMMANDS = cast("dict[str, TyperCommand]", APP.commands)
LAKE = "s3://lab/lake"
#: Words in the description of a parameter that stand for a file or folder.
FILE_WORDS = re.compile(r"\b(DIR|FILE|OUT|DEST|LAKE|SLIDES)\b|[Tt]able \(|CSV")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a user's, which is the working directory."""
    monkeypatch.delenv(SHARED, raising=False)
    home = tmp_path / "home"
    (home / "masks").mkdir(parents=True)
    (home / "slides").mkdir()
    (home / "my-lake").mkdir()
    for name in ("labels.csv", "my_encoder.py", "splits.json", "masks/a.png", "slides/a.svs"):
        (home / name).write_text("")
    (home / "remote.csv").write_text("uri,slide_id\ns3://lab/a.svs,a\ns3://lab/b.svs,b\n")
    (home / "mixed.csv").write_text("uri,slide_id\ns3://lab/b.svs,b\nslides/a.svs,a\n")
    monkeypatch.chdir(home)
    return home


def moved(*words: str, **options: Any) -> tuple[list[str], JobPaths]:  # noqa: ANN401
    """The words of a job elsewhere, and what travels."""
    paths = JobPaths(**{"same_machine": False, **options})
    return job_words(APP, list(words), paths), paths


def test_files_that_options_name_travel_and_their_paths_are_replaced(here: Path) -> None:
    words, paths = moved(
        "mil", LAKE, "--labels", "labels.csv", "--target", "labels.csv", "--features", "uni2_h",
        "--splits=splits.json", "--set", "labels.slide_table=labels.csv", "--seed", "1",
    )  # fmt: skip
    assert words == [
        "mil", LAKE, "--labels", "submitted/labels.csv", "--target", "labels.csv", "--features",
        "uni2_h", "--splits=submitted/splits.json", "--set",
        "labels.slide_table=submitted/labels.csv", "--seed", "1",
    ]  # fmt: skip
    assert paths.files == {
        "submitted/labels.csv": here / "labels.csv",
        "submitted/splits.json": here / "splits.json",
    }


def test_own_python_files_travel_and_names_of_teachers_do_not(here: Path) -> None:
    (here / "uni2_h").mkdir()  # weights as from the hub, beside the work
    words, paths = moved(
        "--extend", "my_encoder.py", "extract", LAKE, "--teacher", "uni2_h", "--teacher",
        str(here / "my_encoder.py"), "--weights", "s3://lab/weights",
    )  # fmt: skip
    assert words == [
        "--extend", "submitted/my_encoder.py", "extract", LAKE, "--teacher", "uni2_h", "--teacher",
        "submitted/my_encoder.py", "--weights", "s3://lab/weights",
    ]  # fmt: skip
    assert paths.files == {"submitted/my_encoder.py": here / "my_encoder.py"}
    words, paths = moved("extract", LAKE, "--teacher", "my_encoder.py:patches25@L2")
    assert words[-1] == "submitted/my_encoder.py:patches25@L2"
    assert paths.files == {"submitted/my_encoder.py": here / "my_encoder.py"}


def test_masks_and_manifests_of_urls_travel(here: Path) -> None:
    words, paths = moved(
        "ingest", LAKE, "remote.csv", "s3://lab/c.svs", "--masks", "masks", "--tissue", "cells"
    )
    assert words == [
        "ingest", LAKE, "submitted/remote.csv", "s3://lab/c.svs", "--masks", "submitted/masks",
        "--tissue", "cells",
    ]  # fmt: skip
    assert set(paths.files.values()) == {here / "remote.csv", here / "masks"}


def test_tables_of_queries_travel_by_their_names(here: Path) -> None:
    words, paths = moved("query", LAKE, "SELECT 1", "--table", "mine=labels.csv", "--out", "x.csv")
    assert words[3:] == ["--table", "mine=submitted/labels.csv", "--out", "x.csv"]
    assert paths.outputs == {"x.csv": here / "x.csv"}


def test_outputs_come_back_to_where_the_user_wants_them(here: Path) -> None:
    words, paths = moved("runs", LAKE, "--out", "results/runs.csv")
    assert (words, paths.outputs) == (
        ["runs", LAKE, "--out", "runs.csv"],
        {"runs.csv": here / "results" / "runs.csv"},
    )
    words, paths = moved("export", LAKE, "out", "--format", "trident")
    assert (words[:3], paths.outputs) == (["export", LAKE, "out"], {"out": here / "out"})
    words, paths = moved("attention", LAKE, "run", "slide7")  # it writes somewhere all the same
    assert words == ["attention", "--out", "attention", LAKE, "run", "slide7"]
    assert paths.outputs == {"attention": here / "attention"}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["ingest", LAKE, "slides"], "slides do not travel"),
        (["ingest", LAKE, "slides/*.svs"], "slides do not travel"),
        (["ingest", LAKE, "gone.svs"], "slides do not travel"),
        (["ingest", LAKE, "slides/a.svs#2"], "slides do not travel"),
        (["ingest", LAKE, "mixed.csv"], r"a\.svs \(manifest .*, row 3\).*slides do not travel"),
        (["ingest", "my-lake", "s3://lab/a.svs"], "a lake does not travel"),
        (["ingest", "new-lake", "s3://lab/a.svs"], "a lake does not travel"),
        (["copy", LAKE, "copy-of-lake"], "a lake does not travel"),
        (["extract", LAKE, "--teacher", "uni2_h", "--weights", "masks"], "weights do not travel"),
    ],
)
@pytest.mark.usefixtures("here")
def test_what_can_not_travel_is_refused_with_the_remedy(words: list[str], why: str) -> None:
    with pytest.raises(ClusterError, match=f"{why}.*--shared"):
        moved(*words)


@pytest.mark.usefixtures("here")
def test_absolute_paths_that_only_the_cluster_has_are_left() -> None:
    line = ["ingest", "/cluster/lake", "/cluster/slides", "--masks", "/cluster/masks"]
    assert moved(*line)[0] == line


def test_paths_that_all_nodes_see_are_made_absolute(here: Path) -> None:
    words, paths = moved("ingest", "my-lake", "slides", "--masks", "masks", shared=[here])
    assert words == ["ingest", f"{here}/my-lake", f"{here}/slides", "--masks", f"{here}/masks"]
    assert not paths.files
    line = ["runs", "my-lake", "--out", "x.csv"]
    words, paths = moved(*line, same_machine=True)
    assert words == ["runs", f"{here}/my-lake", "--out", f"{here}/x.csv"]
    assert not paths.outputs
    labels = ["mil", LAKE, "--labels", "lake:grade", "--target", "g", "--features", "u"]
    assert moved(*labels, same_machine=True)[0] == labels  # an annotation's name is no path


def test_shared_folders_are_the_options_or_the_environments(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shared_folders([]) == []
    monkeypatch.setenv(SHARED, f"{here}/masks:{here}/slides")
    assert shared_folders([]) == [here / "masks", here / "slides"]
    assert shared_folders(["my-lake"]) == [here / "my-lake"]
    with pytest.raises(ClusterError, match="no folder on this machine"):
        shared_folders(["gone"])


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["mill", LAKE], "No such command 'mill'"),
        (["info", LAKE, "--deep"], "No such option: --deep"),
        (["ingest", LAKE], "Missing argument 'SLIDES...'"),
        (["submit", "info", LAKE], "no job for a cluster"),
        (["jobs"], "no job for a cluster"),
    ],
)
def test_a_mistake_in_the_command_is_found_before_it_is_sent(words: list[str], why: str) -> None:
    with pytest.raises(TyperException) as caught:
        moved(*words)
    assert why in caught.value.format_message()


def test_places_of_values_are_those_of_the_parser() -> None:
    """Flags have none; `-k 3`, `-k3`, `--x=y`, words after `--`, and an argument that takes all."""
    search, score = COMMANDS["search"], COMMANDS["score"]
    words = ["lake", "-k", "3", "--exact", "-k4", "--out=a.html", "--like", "s:1,2"]
    assert [(one.name, one.index, one.start) for one in value_places(search, words)] == [
        ("count", 2, 0), ("count", 4, 2), ("out", 5, 6), ("like", 7, 0), ("lake", 0, 0),
    ]  # fmt: skip
    words = ["lake", "a", "--drop", "--", "-b"]
    assert [(one.name, one.index) for one in value_places(score, words)] == [
        ("lake", 0), ("names", 1), ("names", 4),
    ]  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"submit", "jobs"}))
def test_each_option_that_is_said_to_be_a_file_is_marked_as_one(name: str) -> None:
    callback: Any = COMMANDS[name].callback
    kinds = path_kinds(callback.options_type)
    for parameter in COMMANDS[name].params:
        text = f"{parameter.metavar or ''} {getattr(parameter, 'help', '') or ''}"
        annotation = inspect.signature(callback).parameters[str(parameter.name)].annotation
        if FILE_WORDS.search(text) or "Path" in str(annotation):
            assert str(parameter.name) in kinds, f"slidelake {name} {parameter.name}: {text}"


def test_kinds_are_read_from_groups_and_from_fields_of_settings() -> None:
    mil: Any = COMMANDS["mil"].callback
    build: Any = COMMANDS["build"].callback
    assert field_path_kinds(mil.options_type) == {
        "labels.table": PathKind.FILES,
        "labels.slide_table": PathKind.FILES,
        "labels.test_table": PathKind.FILES,
        "folds.file": PathKind.FILES,
    }
    assert path_kinds(build.options_type)["masks"] is PathKind.FILES
    assert path_kinds(build.options_type)["weights"] is PathKind.WEIGHTS
