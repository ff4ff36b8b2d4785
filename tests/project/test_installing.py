"""What is built is whole, and runs from an environment of its own in another folder."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import slidelake
from downstream import Plan
from downstream.splits.folds import nested_folds
from examples.cohort_patients import draw_patients
from examples.demo import QUICK
from slidelake import PACKAGES, PUBLIC
from tests.conftest import ROOT

SHIPPED = {*PACKAGES, "slidelake.py", "slidelake-stubs"}
USER_SCRIPT = ROOT / "tests" / "worlds" / "user_script.py"


@dataclass(frozen=True, kw_only=True)
class Built:
    """A source distribution, and the wheel that was built from nothing but it."""

    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build both with hatchling as it is here, so that no network is needed."""
    folder = tmp_path_factory.mktemp("built")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run([*build, "-t", "sdist"], cwd=ROOT, check=True, capture_output=True)
    sdist = next(folder.glob("*.tar.gz"))
    with tarfile.open(sdist) as file:
        file.extractall(folder, filter="data")
    source = folder / sdist.name.removesuffix(".tar.gz")
    subprocess.run([*build, "-t", "wheel"], cwd=source, check=True, capture_output=True)
    return Built(sdist=sdist, wheel=next(folder.glob("*.whl")))


def in_git() -> set[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


def test_the_source_distribution_is_the_checkout(built: Built) -> None:
    with tarfile.open(built.sdist) as file:
        names = {m.name.partition("/")[2] for m in file.getmembers() if m.isfile()}
    assert names - {"PKG-INFO"} == in_git()


def test_the_wheel_holds_every_file_of_the_packages(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
        metadata = next(name for name in file.namelist() if name.endswith("/METADATA"))
        needs = [line for line in file.read(metadata).decode().splitlines()
                 if line.startswith("Requires-Dist: scikit-survival")]  # fmt: skip
    assert names == {name for name in in_git() if name.partition("/")[0] in SHIPPED}
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert "examples/data/CMU-1-Small-Region.svs" in names
    assert [need.rpartition(";")[2].strip() for need in needs] == ["extra == 'survival'"]


def test_types_of_the_api_are_those_of_the_module() -> None:
    lines = (ROOT / "slidelake-stubs" / "__init__.pyi").read_text().splitlines()
    doors = {line.split()[3]: line.split()[1] for line in lines if line.startswith("from ")}
    assert doors.keys() == PUBLIC.keys()
    for name, module in doors.items():
        assert getattr(importlib.import_module(module), name) is getattr(slidelake, name)


def importing_slidelake(folder: Path, *places: Path) -> str:
    """Return the last line of what Python says when a script in a folder imports slidelake."""
    (folder / "use.py").write_text("import slidelake\n")
    done = subprocess.run(
        [sys.executable, "use.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("name", ["ingest.py", "ingest/__init__.py"])
def test_a_users_own_file_in_the_way_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    text = importing_slidelake(tmp_path, ROOT)
    place = tmp_path / name.removesuffix("/__init__.py")
    assert f"{place} has the name of slidelake's package 'ingest' and is found before it" in text
    assert "rename it, or run from another folder" in text


def test_another_distribution_in_the_way_is_named(tmp_path: Path) -> None:
    site, here = tmp_path / "site", tmp_path / "here"
    for folder in (site / "ingest", site / "other-1.0.dist-info", here):
        folder.mkdir(parents=True)
    (site / "ingest" / "__init__.py").write_text("")
    info = site / "other-1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "RECORD").write_text("ingest/__init__.py,,\n")
    text = importing_slidelake(here, site, ROOT)
    assert f"package 'ingest' comes from {site}/ingest/__init__.py, which is of other" in text
    assert "pip uninstall other" in text
    # or it was unpacked over ours, whose mark is gone then
    for package in set(PACKAGES) - {"ingest"}:
        (site / package).mkdir()
        (site / package / "__init__.py").write_text("")
        (site / package / "py.typed").write_text("")
    shutil.copy(ROOT / "slidelake.py", site)
    text = importing_slidelake(here, site)
    assert f"package 'ingest' in {site}/ingest is not slidelake's: other was installed over" in text


# ---------------------------------------------------------------------- in another environment


@dataclass(frozen=True, kw_only=True)
class Environment:
    """An environment that holds the wheel.

    Attributes:
        python: its interpreter.
        own: whether its packages were installed into it; else they are those of this one.
    """

    python: Path
    own: bool

    def run(self, *command: str, folder: Path, fails: bool = False) -> str:
        """Return what a command writes, run outside of the checkout."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
        program, *rest = command
        done = subprocess.run(
            [str(self.python.with_name(program)), *rest],
            cwd=folder,
            env={**kept, "SLIDELAKE_PROGRESS": "plain"},
            capture_output=True,
            text=True,
        )
        assert (done.returncode != 0) == fails, f"{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def environment(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Make an environment without the extra `survival`.

    Packages come from uv's cache, as `make setup` has filled it; where that does not do, those of
    this environment are shown to it by a .pth file.
    """
    folder = tmp_path_factory.mktemp("installed") / "env"
    uv = str(Path(sys.executable).with_name("uv"))
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(folder)], check=True)
    python = folder / "bin" / "python"
    install = [uv, "pip", "install", "-q", "--python", str(python), str(built.wheel)]
    whole = subprocess.run(
        [*install, "--offline", "-c", str(ROOT / "constraints.txt")], capture_output=True, text=True
    )
    if whole.returncode:
        subprocess.run([*install, "--no-deps", "--offline"], check=True)
        site_packages = next(path for path in sys.path if path.endswith("site-packages"))
        site = next((folder / "lib").glob("python*")) / "site-packages"
        (site / "theirs.pth").write_text(f"{site_packages}\n")
    print(f"packages of its own: {not whole.returncode} {whole.stderr[-400:]}")
    return Environment(python=python, own=not whole.returncode)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_runs_a_demo_from_another_folder(
    environment: Environment, tmp_path: Path
) -> None:
    environment.run("slidelake", "demo", "--quick", "lake", folder=tmp_path)
    report = json.loads((tmp_path / "lake" / "report.json").read_text())
    assert {"ingest", "extract", "distill", "mil"} <= set(report["stages"])
    assert set(report["mil"]) == {"efficientnet_lite0", "student"}
    assert (tmp_path / "lake" / "report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_wheel_says_what_is_missing_and_what_is_in_the_way(
    environment: Environment, tmp_path: Path
) -> None:
    where = "import slidelake; print(slidelake.__file__, slidelake.open_lake.__module__)"
    text = environment.run("python", "-c", where, folder=tmp_path)
    assert str(environment.python.parent.parent) in text
    assert str(ROOT) not in text
    if environment.own:
        (tmp_path / "labels.csv").write_text("slide_id,t,e\na,1,1\n")
        options = "survival lake --labels labels.csv --time t --event e --features x"
        text = environment.run("slidelake", *options.split(), folder=tmp_path, fails=True)
        assert text.startswith("slidelake: survival needs scikit-survival, which is not installed")
        assert "scikit-survival" not in environment.run("slidelake", "licences", folder=tmp_path)
    (tmp_path / "ingest.py").write_text("")
    (tmp_path / "use.py").write_text("import slidelake\n")
    text = environment.run("python", "use.py", folder=tmp_path, fails=True)
    assert f"{tmp_path / 'ingest.py'} has the name of slidelake's package 'ingest'" in text


def run_mypy(*arguments: str, python: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run mypy on files outside of the checkout, with the packages of an environment."""
    command = [sys.executable, "-m", "mypy", "--cache-dir", os.devnull]
    return subprocess.run(
        [*command, "--python-executable", str(python), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def check_with_pyright(folder: Path, python: Path, *, source: Path | None = None) -> None:
    """Check `script.py` of a folder with pyright's own settings, as an editor does.

    Args:
        folder: folder of the script.
        python: interpreter of the environment.
        source: folder of a checkout that is read before the environment.
    """
    settings = {
        "typeCheckingMode": "strict",
        "include": ["script.py"],
        "extraPaths": [] if source is None else [str(source)],
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", str(python)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_types_of_the_wheel_are_seen_by_a_type_checker(
    environment: Environment, tmp_path: Path
) -> None:
    modules = [*PACKAGES, "slidelake"]
    (tmp_path / "use.py").write_text("".join(f"import {name}\n" for name in modules))
    # what is imported is looked for and not read, which would take minutes
    done = run_mypy("--follow-imports=skip", "use.py", python=environment.python, folder=tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_users_script_passes_type_checkers_and_has_the_sample_slide(
    environment: Environment, tmp_path: Path
) -> None:
    shutil.copy(USER_SCRIPT, tmp_path / "script.py")
    check_with_pyright(tmp_path, environment.python)
    done = run_mypy("--strict", "script.py", python=environment.python, folder=tmp_path)
    assert done.returncode == 0, done.stdout
    where = "import slidelake as sl; print(sl.sample_slide())"
    slide = Path(environment.run("python", "-c", where, folder=tmp_path).strip())
    assert slide.is_relative_to(environment.python.parent.parent)
    assert slide.stat().st_size == 1_938_955


def test_a_users_script_passes_pyright(tmp_path: Path) -> None:
    shutil.copy(USER_SCRIPT, tmp_path / "script.py")
    check_with_pyright(tmp_path, Path(sys.executable), source=ROOT)


def test_pyright_sees_the_types_of_the_front_door(tmp_path: Path) -> None:
    script = "import slidelake as sl\nsl.open_lake(3)\nsl.nothing\nsl.Bag.nothing\n"
    (tmp_path / "script.py").write_text(script)
    with pytest.raises(AssertionError) as error:
        check_with_pyright(tmp_path, Path(sys.executable), source=ROOT)
    for line in ("script.py:2:14 - error", "script.py:3:4 - error", "script.py:4:8 - error"):
        assert line in str(error.value)


# ---------------------------------------------------------------------- without GPL

BLOCKED = """
import sys
sys.modules["sksurv"] = sys.modules["ecos"] = None
"""


def blocked(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in which neither scikit-survival nor ecos can be imported."""
    return subprocess.run(
        [sys.executable, "-c", BLOCKED + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_everything_but_survival_is_imported_without_gpl() -> None:
    code = """
import importlib, pathlib
folders = map(pathlib.Path, ("downstream", "commands", "examples"))
for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
    importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
from typer.testing import CliRunner
import slidelake
for command in ("mil", "survival", "probe", "report", "demo"):
    assert CliRunner().invoke(slidelake.app, [command, "--help"]).exit_code == 0, command
assert not [name for name, module in sys.modules.items() if name.startswith("sksurv") and module]
"""
    done = blocked(code)
    assert done.returncode == 0, done.stderr


def test_survival_without_its_extra_is_one_clear_line() -> None:
    code = """
sys.argv = "slidelake survival lake --labels l.csv --time t --event e --features x".split()
import slidelake
slidelake.main()
"""
    done = blocked(code)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        "slidelake: survival needs scikit-survival, which is not installed"
    )
    assert "pip install 'slidelake[survival]'" in done.stderr


def test_pages_without_the_extra_say_so() -> None:
    code = """
from types import SimpleNamespace
from downstream.report.views.views_outcomes import survival_sections
for section in survival_sections(SimpleNamespace(arms=[], result={"config": {}})):
    assert "slidelake[survival]" in section.notes[0], section
    assert not section.pictures
"""
    done = blocked(code)
    assert done.returncode == 0, done.stderr


def test_the_cohort_of_the_quick_demo_can_be_split() -> None:
    patients = draw_patients(QUICK.patients, QUICK.seed)
    labels = [patient.label for patient in patients]
    ids = [patient.patient_id for patient in patients]
    splits = nested_folds(ids, labels, folds=QUICK.folds, inner=Plan().inner, seed=QUICK.seed)
    assert all(split.train and split.validation and split.test for split in splits)
