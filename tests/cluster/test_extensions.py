"""A user's files that add to tables: run once, run by workers, and refused with a reason."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import ExtensionError, extend, extension_sha256, extensions, ray_map
from tests.worlds.command_lines import Slidelake


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    loaded, modules = dict(extensions._loaded), set(sys.modules)
    yield
    extensions._loaded.clear()
    extensions._loaded.update(loaded)
    for name in {name for name in sys.modules if name.startswith("own_")} - modules:
        del sys.modules[name]


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_file_is_run_once_and_again_when_it_has_changed(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    text = f"with open({str(runs)!r}, 'a') as file:\n    file.write('+')\n"
    path = write(tmp_path, "own_table.py", text)
    extend(path)
    extend(str(path))
    assert runs.read_text() == "+"
    first = extension_sha256("own_table:Thing")
    extend(write(tmp_path, "own_table.py", f"{text}VALUE = 2\n"))
    assert runs.read_text() == "++"
    assert sys.modules["own_table"].VALUE == 2
    assert first is not None
    assert extension_sha256("own_table:Thing") not in (None, first)
    assert extension_sha256("downstream.mil.aggregators.pooling:Abmil") is None


def test_a_file_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    extend(write(tmp_path, "own_table.py", "VALUE = 1"))
    with pytest.raises(ExtensionError, match=r"own_table.py can't be run: ZeroDivisionError"):
        extend(write(tmp_path, "own_table.py", "VALUE = 2\n1 / 0"))
    assert sys.modules["own_table"].VALUE == 1
    with pytest.raises(ExtensionError, match="SyntaxError"):
        extend(write(tmp_path, "own_other.py", "def"))
    assert "own_other" not in sys.modules


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("numpy.py", "name of another module, numpy"),
        ("distill.py", "name of another module, distill"),
        ("json.py", "name of another module, json"),
        ("__main__.py", "name of another module"),
        ("own-table.py", "letters, digits and _"),
        ("own_table.txt", "ends in .py"),
    ],
)
def test_names_that_are_taken_or_none_are_refused(tmp_path: Path, name: str, reason: str) -> None:
    modules = dict(sys.modules)
    with pytest.raises(ExtensionError, match=reason):
        extend(write(tmp_path, name, ""))
    assert sys.modules == modules


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    extend(write(tmp_path, "own_table.py", "VALUE = 1"))
    with pytest.raises(ExtensionError, match="have one name"):
        extend(write(tmp_path / "other", "own_table.py", "VALUE = 2"))


def test_a_file_that_can_be_imported_too_is_no_other_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "own_table.py", "VALUE = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    extend(path)
    import own_table  # type: ignore[import-not-found]

    assert own_table is sys.modules["own_table"]


def test_the_command_names_a_file_that_is_not_there(slidelake: Slidelake) -> None:
    answer = slidelake("--extend", "nowhere.py", "licences", code=2)
    assert "nowhere.py can't be read" in answer.stderr


def _value_in_worker(times: int) -> int:
    value: int = sys.modules["own_table"].VALUE
    return value * times


def test_workers_run_the_files_and_need_no_copy(tmp_path: Path, ray_up: None) -> None:
    path = write(tmp_path, "own_table.py", "VALUE = 7")
    extend(path)
    path.unlink()
    assert dict(ray_map(_value_in_worker, [1, 2], num_cpus=0.5)) == {0: 7, 1: 14}
