"""One worker of a distillation: its data, its checkpoints, and the student that it writes.

Apart from `distill.ray_train`, so that the driver does not import timm (10 s) to start it.
"""

import itertools
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train.torch import prepare_model
from safetensors.torch import save

from distill.data import held_out_streams, training_streams
from distill.errors import DistillError
from distill.fidelity import combined
from distill.recipes import Recipe
from distill.student import Student, student_card
from distill.targets import Standardiser
from distill.train import Norms, State, measure, train_epoch
from featurestore import Lake, mpp_name, open_lake, read_stats
from ingest import licence_of, student_folder
from ingest.cards import card_json

CHECKPOINT = "state.pt"
Config = dict[str, Any]


def work(config: Config) -> None:
    """One worker: go on from the last checkpoint, train to the end, write the student."""
    recipe = _recipe_of(config)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config["threads"])
    torch.manual_seed(recipe.seed)
    lake = open_lake(config["lake"], version=config["lake_version"])
    streams = training_streams(lake, recipe, config["train"], rank=rank, world=world)
    norms = _norms(lake, config, recipe, [stream.mpp for stream in streams])
    student = Student(recipe, {t: lake.teachers(mpp=streams[0].mpp)[t] for t in recipe.teachers})
    student.to(memory_format=torch.channels_last)
    state = _resumed(student, recipe)
    model = prepare_model(student) if world > 1 else student
    state.model = model
    started = time.perf_counter()
    while state.epoch < recipe.epochs:
        loss = train_epoch(state, recipe, streams, norms)
        state.history.append({"epoch": state.epoch, "step": state.step, "loss": loss})
        state.model = student
        _checkpoint(state, lake, config["run"], rank)
        state.model = model
    if rank == 0:
        seconds = time.perf_counter() - started
        held = held_out_streams(lake, recipe, config["held_out"])
        found = measure(student, recipe, held, norms)
        _write_student(lake, config, student, state, found, seconds)


def _recipe_of(config: Config) -> Recipe:
    fields = config["recipe"]
    return Recipe(
        **{**fields, "teachers": tuple(fields["teachers"]), "mpps": tuple(fields["mpps"])}
    )


def _norms(lake: Lake, config: Config, recipe: Recipe, mpps: Sequence[float]) -> Norms:
    norms = {}
    for mpp, teacher in itertools.product(mpps, recipe.teachers):
        moments = read_stats(lake, teacher, mpp=mpp, slide_ids=config["train"])
        if moments is None:
            msg = f"no statistics of '{teacher}' at mpp {mpp} for this run's slides"
            raise DistillError(msg)
        norms[teacher, mpp] = Standardiser.from_moments(moments)
    return norms


def _resumed(student: Student, recipe: Recipe) -> State:
    optimiser = torch.optim.AdamW(
        student.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    state = State(model=student, optimiser=optimiser)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            state.load((Path(folder) / CHECKPOINT).read_bytes())
    return state


def _checkpoint(state: State, lake: Lake, run: str, rank: int) -> None:
    if rank != 0:
        ray.train.report({})
        return
    with tempfile.TemporaryDirectory(prefix="slidelake-") as folder:
        (Path(folder) / CHECKPOINT).write_bytes(state.to_bytes())
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"epoch": state.epoch}, checkpoint=checkpoint)
    # After the checkpoint: the history then never tells of an epoch that a restart repeats.
    lake.write_json(f"runs/{run}/history.json", state.history)


def _write_student(
    lake: Lake,
    config: Config,
    student: Student,
    state: State,
    found: dict[str, Any],
    seconds: float,
) -> None:
    recipe, folder = _recipe_of(config), student_folder(config["student"])
    licences = {t: licence_of(lake.store, t) for t in recipe.teachers}
    card = student_card(recipe, config["student"], student.dim, licences)
    for file, part in (("model", student.trunk), ("heads", student.heads)):
        tensors = {key: value.contiguous() for key, value in part.state_dict().items()}
        lake.write_bytes(f"{folder}/{file}.safetensors", save(tensors))
    lake.write_bytes(f"{folder}/card.json", card_json(card))
    # The report comes last: a student without one is not finished, and the run goes on.
    lake.write_json(
        f"{folder}/report.json",
        {
            "student": config["student"],
            "recipe": config["recipe"],
            "run": config["run"],
            "lake_version": config["lake_version"],
            "steps": state.step,
            "parameters": sum(p.numel() for p in student.trunk.parameters()),
            "train_slides": len(config["train"]),
            "held_out_slides": config["held_out"],
            "fidelity": {teacher: combined(parts) for teacher, parts in found.items()},
            "fidelity_per_mpp": {
                teacher: {mpp_name(mpp): part.to_dict() for mpp, part in parts.items()}
                for teacher, parts in found.items()
            },
            "history": state.history,
            "train_seconds": round(seconds, 3),
            "cpus": os.cpu_count(),
        },
    )
