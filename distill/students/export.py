"""Export of a student for use without slidelake: weights, card, ONNX, and a README with code."""

import json
import tempfile
from pathlib import Path
from typing import Any

import jinja2
from safetensors.torch import load

from distill.errors import DistillError
from featurestore import Lake, open_lake
from ingest import find_card, sees_features, student_folder
from ingest.teachers import build, student_file
from ingest.teachers.cards import Card

TEMPLATES = Path(__file__).parent / "templates"
KEPT = ("model.safetensors", "card.json", "report.json")


def export_student(lake_uri: str, name: str, folder: str, *, onnx: bool = False) -> dict[str, Any]:
    """Write a student into a new folder.

    Args:
        lake_uri: the lake.
        name: of a student that sees pixels.
        folder: where to; it appears when all is there.
        onnx: whether the network is written as ONNX too, and compared with torch's numbers.

    Returns:
        The student and the names of its files.

    Raises:
        DistillError: there is no such student, it sees no pixels, or the folder is there already.
        TeacherError: the ONNX network gives other numbers.
    """
    lake, target = open_lake(lake_uri), Path(folder).absolute()
    _check(lake, name, target)
    card = find_card(lake.store, name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".slidelake-", dir=target.parent) as scratch:
        made = Path(scratch) / "student"
        made.mkdir()
        for file in KEPT:
            (made / file).write_bytes(student_file(lake.store, name, file))
        if onnx:
            _onnx(made, card)
        (made / "README.md").write_text(_readme(made, card, onnx=onnx))
        made.replace(target)
    return {"student": name, "files": sorted(path.name for path in target.iterdir())}


def _check(lake: Lake, name: str, target: Path) -> None:
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


def _onnx(made: Path, card: Card) -> None:
    from ingest.teachers import export_onnx

    model = build(card.architecture, card.input_px, card.arguments)
    model.load_state_dict(load((made / "model.safetensors").read_bytes()))
    export_onnx(model, card, made / "model.onnx")


def _readme(made: Path, card: Card, *, onnx: bool) -> str:
    text = (TEMPLATES / "student.md.j2").read_text()
    template = jinja2.Environment(autoescape=False, keep_trailing_newline=True).from_string(text)
    report = json.loads((made / "report.json").read_text())
    return template.render(card=card, report=report, onnx=onnx)
