"""Imports go one way, doors are what they say, and heavy libraries stay behind their modules."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAY_IMPORT = {
    "cluster": set(),
    "featurestore": set(),
    "ingest": {"cluster", "featurestore"},
    "downstream": {"cluster", "featurestore", "ingest"},
    "distill": {"cluster", "featurestore", "ingest", "downstream"},
}
OURS = {*MAY_IMPORT, "commands", "examples", "slidelake"}
#: Imports between root packages that name a module instead of a folder: (importer, module).
PAST_DOORS: set[tuple[str, str]] = set()
#: What no door loads; the door of layers is the one that only code of networks imports.
HEAVY = {"torch", "ray", "openslide", "matplotlib"}
HEAVY_DOORS = {"downstream.mil.layers"}
HOLDERS = {
    "ray": re.compile(r"(.*/ray_\w+|slidelake)\.py"),
    "lance": re.compile(r"featurestore/((\w+/)*lance_\w+|lake)\.py"),
    "openslide": re.compile(r"ingest/readers/openslide_\w+\.py"),
}


def modules(package: str) -> Iterator[tuple[Path, set[str]]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        yield path.relative_to(ROOT), imported(path)


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package: str) -> None:
    modules_of_package = list(modules(package))
    assert modules_of_package
    for path, names in modules_of_package:
        wrong = (names & OURS) - MAY_IMPORT[package] - {package}
        assert not wrong, f"{path} imports {wrong}"


@pytest.mark.parametrize("library", HOLDERS)
def test_heavy_libraries_stay_in_modules_named_for_them(library: str) -> None:
    for package in MAY_IMPORT:
        for path, names in modules(package):
            if library in names:
                assert HOLDERS[library].fullmatch(path.as_posix()), f"{path} imports {library}"


def doors() -> list[str]:
    """Return the dotted name of each folder that has an `__all__`."""
    folders = [path.parent for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py")]
    return [
        ".".join(folder.relative_to(ROOT).parts)
        for folder in sorted(set(folders))
        if "\n__all__ = " in (folder / "__init__.py").read_text()
    ]


DOORS = doors()


@pytest.mark.parametrize("name", DOORS)
def test_door_is_sorted_and_complete(name: str) -> None:
    door = importlib.import_module(name)
    names = door.__all__
    assert names == sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    assert all(hasattr(door, name) for name in names)
    tree = ast.parse((ROOT / name.replace(".", "/") / "__init__.py").read_text())
    # a door that imports its names on use lists them for type checkers, under a condition
    lazy = [inner for node in tree.body if isinstance(node, ast.If) for inner in node.body]
    imported_names = {
        alias.asname or alias.name
        for node in (*tree.body, *lazy)
        if isinstance(node, ast.ImportFrom) and node.module != "typing"
        for alias in node.names
    }
    assert imported_names == set(names)
    assert {*getattr(door, "MODULES", names)} == set(names)


@pytest.mark.parametrize("package", [*MAY_IMPORT, "examples"])
def test_imports_between_packages_go_through_doors(package: str) -> None:
    past_doors = set()
    for path in sorted((ROOT / package).rglob("*.py")):
        importer = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = {(node.module, alias.name) for alias in node.names}
            elif isinstance(node, ast.Import):
                names = {(alias.name, "") for alias in node.names}
            else:
                continue
            past_doors |= {
                (importer, module)
                for module, name in names
                if module.partition(".")[0] in MAY_IMPORT.keys() - {package}
                and not (module in DOORS and name in importlib.import_module(module).__all__)
            }
    assert past_doors == {pair for pair in PAST_DOORS if pair[0].startswith(f"{package}.")}


def test_doors_load_nothing_heavy() -> None:
    code = (
        "import importlib, sys\n"
        f"for name in {sorted(set(DOORS) - HEAVY_DOORS)}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = {HEAVY} & set(sys.modules)\n"
        "    assert not heavy, (name, heavy)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_public_python_api_is_there() -> None:
    import slidelake

    assert slidelake.__all__ == sorted(slidelake.PUBLIC)
    for name in slidelake.__all__:
        assert callable(getattr(slidelake, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        slidelake.nothing  # noqa: B018


def test_command_starts_without_heavy_imports() -> None:
    code = (
        "import sys, slidelake; heavy = {'torch', 'ray', 'lance', 'polars', 'numpy', 'openslide'}; "
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_foreign_package_is_named(tmp_path: Path) -> None:
    import slidelake

    with pytest.raises(ImportError, match=r"cluster has the name of slidelake's package 'cluster'"):
        slidelake.check_packages(tmp_path)


IN_THE_WAY = {
    "a script's neighbour": ("ingest.py", "use.py", "ingest.py has the name"),
    "the script itself": ("downstream.py", "downstream.py", "downstream.py has the name"),
    "a folder beside it": ("cluster/__init__.py", "use.py", "cluster has the name"),
    "imported before": ("examples.py", "use.py", "examples.py has the name"),
}


@pytest.mark.parametrize("case", IN_THE_WAY)
def test_a_file_that_hides_a_package_is_named(tmp_path: Path, case: str) -> None:
    name, script, message = IN_THE_WAY[case]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    first = "import examples\n" if case == "imported before" else ""
    (tmp_path / script).write_text(first + "import slidelake\n")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {tmp_path}/{message} of slidelake's package")
    assert "rename it, or run from another folder" in last


def test_another_distribution_is_named(tmp_path: Path) -> None:
    (tmp_path / "downstream").mkdir()
    (tmp_path / "downstream" / "__init__.py").write_text("")
    info = tmp_path / "downstream-0.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: downstream\nVersion: 0.2\n")
    (info / "RECORD").write_text("downstream/__init__.py,,\ndownstream-0.2.dist-info/RECORD,,\n")
    done = subprocess.run(
        [sys.executable, "-c", "import slidelake"],
        cwd=ROOT.parent,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert "which is of downstream and hides slidelake's own" in last
    assert "pip uninstall downstream" in last


def test_a_package_that_was_installed_over_ours_is_named(tmp_path: Path) -> None:
    for name in ("slidelake.py", "cluster/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", "import slidelake"], cwd=tmp_path, capture_output=True, text=True
    )
    last = done.stderr.strip().splitlines()[-1]
    assert f"package 'cluster' in {tmp_path}/cluster is not slidelake's" in last


def test_readme_commands_exist() -> None:
    import typer.main

    import slidelake

    commands = set(typer.main.get_command(slidelake.app).commands)  # type: ignore[attr-defined]
    docs = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    used = {
        name
        for path in docs
        for name in re.findall(r"^\s*(?:\$ )?slidelake ([a-z]+)", path.read_text(), re.M)
    }
    assert used
    assert used <= commands
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named_targets = {
        name
        for path in [*docs, ROOT / "CONTRIBUTING.md"]
        for name in re.findall(r"^\s*(?:\$ )?make ([a-z-]+)", path.read_text(), re.M)
    }
    assert {"demo", "test"} <= named_targets <= targets


def test_nothing_in_the_repository_names_a_registry_or_this_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    wrong = re.compile(
        r"index[-_]url|/simple\b|" + re.escape(str(Path.home()) + "/") + r"|/wo" + r"rk/"
    )
    for name in set(listed) - {"tests/project/test_architecture.py"}:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".txt", ".yaml", ".j2", ""} and path.is_file():
            assert not wrong.search(path.read_text()), name


def test_the_page_of_the_architecture_names_every_folder() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    folders = {
        path.parent.name
        for package in (*MAY_IMPORT, "commands")
        for path in (ROOT / package).glob("*/__init__.py")
    }
    assert len(folders) > 30
    assert {name for name in folders if not re.search(rf"\b{name}/", page)} == set()
