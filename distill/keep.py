"""What is kept of a run: the student's weights and card, or those of a student of features."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from safetensors.torch import save
from torch import nn

from distill.recipe import Recipe, TileStudent
from distill.student import student_card
from distill.task import Task
from distill.tile_task import TileTask
from featurestore import Lake
from ingest import FEATURE_CARD, licence_of, student_folder
from ingest.cards import card_json


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
    for file, part in parts.items():
        tensors = {key: value.contiguous().cpu() for key, value in part.state_dict().items()}
        lake.write_bytes(f"{folder}/{file}.safetensors", save(tensors))
    read, _ = recipe.levels_of(lake.config.mpps)
    if isinstance(recipe.student, TileStudent) and isinstance(task, TileTask):
        licences = {t: licence_of(lake.store, t) for t in recipe.teachers}
        card = student_card(recipe, config["student"], task.network.dim, licences, read)
        lake.write_bytes(f"{folder}/card.json", card_json(card))
    else:
        lake.write_json(f"{folder}/{FEATURE_CARD}", _feature_card(lake, config))
    lake.write_json(f"{folder}/report.json", report)


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
    """Of a student's weights."""
    return hashlib.sha256(lake.read_bytes(f"{student_folder(name)}/model.safetensors")).hexdigest()
