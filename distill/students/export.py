"""Export of a student for use without slidelake: weights, card, ONNX, and a README with code."""

import json
import tempfile
from pathlib import Path
from typing import Any

import jinja2
from safetensors.torch import load

from distill.errors import DistillError
from featurestore import Lake, check_licences, open_lake
from ingest import find_card, sees_features, student_folder
from ingest.teachers import build, student_file
from ingest.teachers.cards import Card

TEMPLATES = Path(__file__).parent / "templates"
KEPT = ("model.safetensors", "card.json", "report.json")


def export_student(
    lake_uri: str, name: str, folder: str, *, onnx: bool = False, permission: str | None = None
) -> dict[str, Any]:
    """Write a student into a new folder.

    Args:
        lake_uri: the lake.
        name: name of a student that reads pixels.
        folder: path of the new folder, which appears when all files are complete.
        onnx: whether the network is written as ONNX too, and its output compared with torch's.
        permission: who permitted what a teacher's licence forbids; written to `permission.txt`.

    Returns:
        `student`, its name, `files`, the names of its files, and `licence`, in words.

    Raises:
        DistillError: there is no such student, it reads no pixels, or the folder exists already.
        TeacherError: the ONNX network gives other numbers.
        LicenceError: the licence of a teacher forbids to share models trained on its outputs.
    """
    lake, target = open_lake(lake_uri), Path(folder).absolute()
    _check_export(lake, name, target)
    card = find_card(lake.store, name)
    check_licences({name: card.terms}, "sharing students", permission=permission)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".slidelake-", dir=target.parent) as scratch:
        student_path = Path(scratch) / "student"
        student_path.mkdir()
        for file in KEPT:
            (student_path / file).write_bytes(student_file(lake.store, name, file))
        if onnx:
            _write_onnx(student_path, card)
        if permission is not None:
            (student_path / "permission.txt").write_text(permission.strip() + "\n")
        (student_path / "README.md").write_text(_readme_text(student_path, card, onnx=onnx))
        student_path.replace(target)
    files = sorted(path.name for path in target.iterdir())
    return {"student": name, "files": files, "licence": str(card.terms)}


def _check_export(lake: Lake, name: str, target: Path) -> None:
    if not lake.exists(f"{student_folder(name)}/report.json"):
        student_names = ", ".join(lake.store.names("students")) or "none"
        msg = f"no finished student '{name}' in {lake.uri}; there are: {student_names}"
        raise DistillError(msg)
    if sees_features(lake.store, name):
        msg = f"'{name}' sees features of the lake, not pixels: it has no use without the lake"
        raise DistillError(msg)
    if target.exists():
        msg = f"{target} is there already; name a new folder"
        raise DistillError(msg)


def _write_onnx(student_path: Path, card: Card) -> None:
    from ingest.teachers import export_onnx

    model = build(card.architecture, card.input_px, card.arguments)
    model.load_state_dict(load((student_path / "model.safetensors").read_bytes()))
    export_onnx(model, card, student_path / "model.onnx")


def _readme_text(student_path: Path, card: Card, *, onnx: bool) -> str:
    text = (TEMPLATES / "student.md.j2").read_text()
    template = jinja2.Environment(autoescape=False, keep_trailing_newline=True).from_string(text)
    report = json.loads((student_path / "report.json").read_text())
    return template.render(card=card, report=report, onnx=onnx)
