"""The files of a finished student: its weights, its card, and last its report."""

import hashlib
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save
from torch import nn

from distill.recipes.recipe import Recipe
from distill.students.student_kind import TrainedStudent
from distill.students.student_table import kind_of
from distill.students.task import TrainingTask
from featurestore import Lake
from featurestore.storage import sealed
from ingest import licence_of, student_folder
from ingest.teachers import WEIGHTS, student_file


def write_student(
    lake: Lake,
    task: TrainingTask,
    report: Mapping[str, Any],
    *,
    name: str,
    recipe: Recipe,
    identities: Mapping[str, Any],
) -> None:
    """Put a student into the lake; its report comes last: without one it is not finished.

    Args:
        lake: where to.
        task: trained.
        report: of the run.
        name: of the student.
        recipe: it was trained by.
        identities: identity of each column that it was trained on, by `TEACHER@MPP`.
    """
    folder = student_folder(name)
    read, under = recipe.levels_of(lake.config.mpps)
    student = TrainedStudent(
        name=name,
        recipe=recipe,
        task=task,
        identities=identities,
        mpps=read,
        under=under,
        licences={teacher: licence_of(lake.store, teacher) for teacher in recipe.teachers},
    )
    files = {f"{part}.safetensors": _weights(module) for part, module in task.kept_parts.items()}
    files |= kind_of(recipe).keep(student)
    for file, content in files.items():
        lake.write_bytes(f"{folder}/{file}", content)
    lake.write_json(f"{folder}/report.json", sealed(report, files))


def _weights(part: nn.Module) -> bytes:
    """Return a module's state as a safetensors file."""
    state = part.state_dict().items()
    weights: bytes = save({key: tensor.contiguous().cpu() for key, tensor in state})
    return weights


def kept_hash(lake: Lake, name: str) -> str:
    """Return the SHA-256 of a student's weights, checked against what was written.

    Raises:
        DamageError: they are not.
    """
    return hashlib.sha256(student_file(lake.store, name, WEIGHTS)).hexdigest()
