"""The files of a finished student: weights, card, and last the report."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from safetensors.torch import save
from torch import nn

from distill.recipes.recipe import Recipe
from distill.students.student_kind import TrainedStudent
from distill.students.student_table import kind_of
from distill.students.task import KeptStudent
from featurestore import Lake, Licence, licence_from_json
from featurestore.storage import sealed
from ingest import column_licences, student_folder
from ingest.teachers import WEIGHTS, student_file


def write_student(
    lake: Lake,
    task: KeptStudent,
    report: Mapping[str, Any],
    *,
    name: str,
    recipe: Recipe,
    identities: Mapping[str, Any],
    initial: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write a student into the lake; without its report, which is written last, it is not finished.

    Args:
        lake: the lake that gets the student.
        task: the trained task.
        report: report of the run.
        name: name of the student.
        recipe: recipe of the training.
        identities: identity of each column of the training, by `TEACHER@MPP`.
        initial: facts of the weights that the training started from; empty for random ones.
    """
    folder = student_folder(name)
    read, under = recipe.levels_of(lake.config.mpps)
    licences = column_licences(lake, recipe.teachers)
    if initial:
        licences[initial["source"]] = _licence_of_copy(licence_from_json(initial["licence"]))
    student = TrainedStudent(
        name=name,
        recipe=recipe,
        task=task,
        identities=identities,
        mpps=read,
        under=under,
        licences=licences,
        initial=initial,
    )
    files = {f"{part}.safetensors": _weights(module) for part, module in task.kept_parts.items()}
    files |= kind_of(recipe).keep(student)
    for file, content in files.items():
        lake.write_bytes(f"{folder}/{file}", content)
    lake.write_json(f"{folder}/report.json", sealed(report, files))


def _licence_of_copy(licence: Licence) -> Licence:
    """Return the licence that weights leave to a student that started from them.

    Such a student is a changed copy: who may not share those may not share it.
    """
    if "sharing derivatives" not in licence.forbids:
        return licence
    if "sharing students" in licence.forbids:
        return licence
    return replace(licence, forbids=(*licence.forbids, "sharing students"))


def _weights(part: nn.Module) -> bytes:
    """Return a module's state as a safetensors file."""
    state = part.state_dict().items()
    weights: bytes = save({key: tensor.contiguous().cpu() for key, tensor in state})
    return weights


def kept_hash(lake: Lake, name: str) -> str:
    """Return the SHA-256 of a student's weights, checked against the sealed report.

    Raises:
        DamageError: the weights are not the ones that were written.
    """
    return hashlib.sha256(student_file(lake.store, name, WEIGHTS)).hexdigest()
