"""What is kept of a run: the student's weights and card, or those of a student of features."""

from collections.abc import Mapping
from typing import Any

from safetensors.torch import save
from torch import nn

from distill.recipe import Recipe, TileStudent
from distill.student import student_card
from distill.task import Task
from distill.tile_task import TileTask
from featurestore import Lake
from ingest import licence_of, student_folder
from ingest.cards import card_json

FEATURES = "features.json"


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
    licences = {t: licence_of(lake.store, t) for t in recipe.teachers}
    read, _ = recipe.levels_of(lake.config.mpps)
    if isinstance(recipe.student, TileStudent) and isinstance(task, TileTask):
        card = student_card(recipe, config["student"], task.network.dim, licences, read)
        lake.write_bytes(f"{folder}/card.json", card_json(card))
    else:
        about = {"name": config["student"], "recipe": report["recipe"], "licences": licences}
        about |= {"mpps": list(read), "teachers": config["identities"]}
        lake.write_json(f"{folder}/{FEATURES}", about)
    lake.write_json(f"{folder}/report.json", report)
