"""The front door shows itself: names, examples, errors, and commands that start at once."""

import ast
import importlib
import inspect
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import slidelake
from featurestore import Lake
from tests.conftest import ROOT, made_once
from tests.worlds.examples_folder import make_folder, without_ray
from tests.worlds.user_script import main as run_user_script

#: Methods of public classes that the packages of slidelake call, and no user.
PLUMBING = {
    "Annotation": {"as_dict", "at", "of"},
    "ExtractResult": {"add_made", "count_slides"},
    "Lake": {
        *("catalog_rows", "check_teacher", "committer", "content_key", "encoded", "exists"),
        "features_of",
        *("first_reads", "is_pinned", "known_mpp", "places_of", "read_bytes", "read_json"),
        *("row_reader", "slide_rows", "store", "table", "tiles_of", "version_of"),
        *("write_bytes", "write_json"),
    },
    "Recipe": {"levels_of", "needs", "student_as"},
}
#: Errors that no public name raises: they are caught inside, or belong to commands alone.
INTERNAL_ERRORS = {
    *("AbstentionError", "AttentionError", "DiedError", "HttpStatusError", "NoSlidesError"),
    "PartDamageError",
    *(
        "MilError",
        "NewerFormatError",
        "NotATileError",
        "NotFiniteError",
        "NotNativeError",
        "NotPushedError",
    ),
    *("RunError", "ShortReadError", "SpecError", "TableError", "UndefinedMetricError"),
    "UnreadableError",
}


@pytest.fixture(scope="session")
def examples_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that examples in docstrings are copies of. Not to be changed."""
    return made_once(tmp_path_factory, "examples", make_folder)


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, which has imported nothing."""
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def check_python(code: str, folder: Path) -> None:
    """Run code that asserts in a process of its own."""
    done = run_python(code, folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_completion_offers_the_public_names_and_imports_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, slidelake as sl\n"
        "before = set(sys.modules)\n"
        "assert dir(sl) == sl.__all__ == sorted(sl.PUBLIC), dir(sl)\n"
        "assert set(sys.modules) == before\n"
        "heavy = {'torch', 'ray', 'lance', 'polars', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    check_python(code, tmp_path)


def test_public_names_are_what_the_module_says() -> None:
    for name, module in slidelake.PUBLIC.items():
        assert getattr(slidelake, name) is getattr(importlib.import_module(module), name)


def test_a_misspelt_name_is_answered_with_a_similar_one(tmp_path: Path) -> None:
    done = run_python("import slidelake as sl; sl.opne_lake", tmp_path)
    last = "AttributeError: module 'slidelake' has no attribute 'opne_lake'. Did you mean: "
    assert done.stderr.splitlines()[-1] == f"{last}'open_lake'?"


def public_methods(name: str, cls: type) -> Iterator[tuple[str, str]]:
    """Yield the public methods and properties that a class defines, with their docstrings."""
    for attribute, member in vars(cls).items():
        if attribute.startswith("_") or attribute in PLUMBING.get(name, ()):
            continue
        member = getattr(member, "__func__", None) or member  # a class method's function
        is_property = hasattr(member, "fget") or hasattr(member, "func")
        if inspect.isfunction(member) or is_property:
            yield f"{name}.{attribute}", inspect.getdoc(member) or ""


def test_every_public_name_and_method_has_an_example() -> None:
    docs = {name: inspect.getdoc(getattr(slidelake, name)) or "" for name in slidelake.__all__}
    classes = {name: getattr(slidelake, name) for name in docs if name[0].isupper()}
    for name, cls in classes.items():
        docs |= dict(public_methods(name, cls))
    assert len(docs) > 100
    without = [name for name, doc in docs.items() if ">>> " not in doc or "+SKIP" in doc]
    assert without == []


def test_plumbing_is_there() -> None:
    for name, methods in PLUMBING.items():
        cls = getattr(slidelake, name)
        instance_names = set(Lake.__init__.__code__.co_names) if cls is Lake else set()
        assert methods <= {*dir(cls), *vars(cls), *instance_names}


def error_classes() -> set[str]:
    """Return the names of all classes of ours that end in `Error`."""
    return {
        node.name
        for package in slidelake.PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error")
    }


def test_errors_that_users_can_meet_are_at_the_front_door() -> None:
    at_the_door = {name for name in slidelake.__all__ if name.endswith("Error")}
    assert at_the_door | INTERNAL_ERRORS == error_classes()
    assert not at_the_door & INTERNAL_ERRORS


def test_the_sample_slide_is_the_one_that_is_described() -> None:
    slide = Path(slidelake.sample_slide())
    assert slide.suffix == ".svs"
    size = f"{slide.stat().st_size:,} bytes"
    assert size in (slide.parent / "README.md").read_text()
    for fact in ("CC0 1.0", "1.9 MB"):
        assert fact in (slidelake.sample_slide.__doc__ or "")


def test_a_users_script_runs(
    examples_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(examples_folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    with without_ray():
        run_user_script()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "{'1.0': 17}"
    assert lines[1] == "13 312"
    assert lines[-2] == "True"
    assert "no-such-lake does not exist" in lines[-1]


# ---------------------------------------------------------------------- cold start

QUICK = """
import sys
from typer.testing import CliRunner
import slidelake
for words in (
    ["info", "my-lake"],
    ["ls", "my-lake"],
    ["query", "my-lake", "SELECT count(*) FROM tiles_mpp0_5"],
    ["runs", "my-lake"],
    ["snapshot", "my-lake", "first"],
    ["teachers", "my-lake"],
    ["rename", "my-lake", "student", "pupil"],
    ["drop", "my-lake", "--teacher", "pupil"],
):
    done = CliRunner().invoke(slidelake.app, words)
    assert done.exit_code == 0, (words, done.output, done.exception)
    heavy = {"pandas", "torch", "ray", "matplotlib", "sklearn", "scipy", "timm", "cv2"}
    assert not heavy & set(sys.modules), (words, heavy & set(sys.modules))
assert "lance" in sys.modules and "polars" in sys.modules
"""
PANDAS_AFTER = """
import pandas, polars, pyarrow
table = pyarrow.table({"a": [1, 2]})
assert isinstance(table.to_pandas(), pandas.DataFrame)
assert pyarrow.array(pandas.Series([1.0, None])).null_count == 1
assert polars.DataFrame(table).to_pandas().shape == (2, 1)
"""


def test_quick_commands_load_no_pandas_and_leave_it_usable(
    examples_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(examples_folder, tmp_path, dirs_exist_ok=True)
    check_python(QUICK + PANDAS_AFTER, tmp_path)
