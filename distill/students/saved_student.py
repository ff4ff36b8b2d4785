"""What is kept of a run: the student's weights and card, or those of a student of features."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from safetensors.torch import save
from torch import nn

from distill.recipes.recipe import Recipe, TileStudent
from distill.students.student import student_card
from distill.students.task import Task
from distill.students.tile_task import TileTask
from featurestore import Lake
from featurestore.storage import json_bytes, sealed
from ingest import FEATURE_CARD, licence_of, student_folder
from ingest.teachers.cards.card import card_json
from ingest.teachers.student_files import WEIGHTS, student_file


def write_student(
    lake: Lake, config: Mapping[str, Any], task: Task, report: Mapping[str, Any]
) -> None:
    """Put a student into the lake; its report comes last: without one it is not finished.

    Args:
        lake: where to.
        config: of the run.
        task: trained.
        report: of the run.
    """
    recipe: Recipe = config["recipe"]
    folder = student_folder(config["student"])
    parts: dict[str, nn.Module] = {"model": task.student}
    if isinstance(heads := getattr(task, "heads", None), nn.Module):
        parts["heads"] = heads
    files = {f"{name}.safetensors": _weights(part) for name, part in parts.items()}
    read, _ = recipe.levels_of(lake.config.mpps)
    if isinstance(recipe.student, TileStudent) and isinstance(task, TileTask):
        licences = {t: licence_of(lake.store, t) for t in recipe.teachers}
        card = student_card(recipe, config["student"], task.network.dim, licences, read)
        files["card.json"] = card_json(card)
    else:
        files[FEATURE_CARD] = json_bytes(_feature_card(lake, config))
    for name, data in files.items():
        lake.write_bytes(f"{folder}/{name}", data)
    lake.write_json(f"{folder}/report.json", sealed(report, files))


def _weights(part: nn.Module) -> bytes:
    state = part.state_dict().items()
    weights: bytes = save({key: value.contiguous().cpu() for key, value in state})
    return weights


def _feature_card(lake: Lake, config: Mapping[str, Any]) -> dict[str, Any]:
    """How a student of features is run: what it sees, and at which mpps."""
    recipe: Recipe = config["recipe"]
    read, under = recipe.levels_of(lake.config.mpps)
    if isinstance(recipe.student, TileStudent):
        msg = f"recipe '{recipe.name}' trains a student of pixels"
        raise TypeError(msg)
    return {
        "name": config["student"],
        "kind": type(recipe.student).__name__,
        "dim": recipe.student.width,
        "recipe": asdict(recipe),
        "teachers": list(recipe.teachers),
        "identities": config["identities"],
        "mpps": list(read),
        "levels": [*read, *under],
        "licences": {t: licence_of(lake.store, t) for t in recipe.teachers},
    }


def kept_hash(lake: Lake, name: str) -> str:
    """Return the SHA-256 of a student's weights, which are what was written.

    Raises:
        DamageError: they are not.
    """
    return hashlib.sha256(student_file(lake.store, name, WEIGHTS)).hexdigest()
