"""Distillation on Ray Train: any number of workers, a checkpoint per epoch, a student at the end.

The loop itself is `distill.train`; here are the workers, the checkpoints and the files. A run's
name is a hash of all that decides its result, so the same command goes on where it was killed.
"""

import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cluster import progress, ray_session
from distill.data import Plan, TileSet
from distill.errors import DistillError
from distill.fidelity import combined
from distill.recipes import Recipe
from distill.student import Student, student_card
from distill.targets import Standardiser
from distill.train import Norms, State, measure, train_epoch
from featurestore import (
    Lake,
    fit_stats,
    holdout_patients,
    mpp_name,
    open_lake,
    patient_of,
    read_stats,
)
from featurestore.schema import features_table, identity_of
from ingest import find_card, student_folder
from ingest.encoder import card_json

CHECKPOINT = "state.pt"
Config = dict[str, Any]


def split_slides(lake: Lake, *, holdout: float, seed: int) -> tuple[list[str], list[str]]:
    """Ready slides to train on, and those of the held-out patients."""
    slides = patient_of(lake.slides().collect()).sort("slide_id")
    slides = slides.filter(slides["state"] == "ready")
    held = holdout_patients(slides, share=holdout, seed=seed)
    out = slides["patient"].is_in(sorted(held))
    return slides.filter(~out)["slide_id"].to_list(), slides.filter(out)["slide_id"].to_list()


def stats(
    lake_uri: str,
    teachers: Sequence[str],
    *,
    holdout: float = 0.25,
    seed: int = 0,
) -> dict[str, Any]:
    """Fit the moments of teachers on the slides of all patients that are not held out.

    Moments that are kept for the same slides already are not fitted again.
    """
    start = time.perf_counter()
    lake = open_lake(lake_uri)
    train, held = split_slides(lake, holdout=holdout, seed=seed)
    wanted = [(name, mpp) for name in teachers for mpp in lake.config.mpps]
    missing = [(n, m) for n, m in wanted if read_stats(lake, n, mpp=m, slide_ids=train) is None]
    if missing:
        with progress("stats", total=len(missing) * len(train), unit="slides") as bar:
            for name, mpp in missing:
                fit_stats(
                    lake,
                    name,
                    mpp=mpp,
                    slide_ids=train,
                    on_slide=lambda tiles: bar.advance(1, tiles=tiles),
                )
    return {
        "teachers": list(teachers),
        "slides": len(train),
        "held_out_slides": held,
        "fitted": len(missing),
        "lake_version": lake.version,
        "seconds": round(time.perf_counter() - start, 3),
    }


def distill(
    lake_uri: str,
    recipe: Recipe,
    *,
    name: str = "student",
    workers: int = 1,
    address: str | None = None,
) -> dict[str, Any]:
    """Train a student from pixels and cached features, and put it into the lake.

    Args:
        lake_uri: the lake; every tile must have every teacher's features.
        recipe: what to train and how.
        name: of the student; it is run by `extract` under this name.
        workers: processes that train together.
        address: a Ray cluster; a local Ray is started if None.

    Returns:
        The student's report, also kept in its folder: recipe, steps, fidelity per teacher on
        held-out patients beside the mean-feature baseline, history, seconds.

    Raises:
        DistillError: features are missing, or another student has this name.
    """
    lake = open_lake(lake_uri)
    _check(lake, recipe, name)
    config = _config(lake, recipe, name)
    report_path = f"{student_folder(name)}/report.json"
    if lake.exists(report_path):
        report: dict[str, Any] = lake.read_json(report_path)
        if report["run"] == config["run"]:
            return report
        msg = f"a student '{name}' is there from other data or settings; choose another --name"
        raise DistillError(msg)
    stats(lake_uri, recipe.teachers, holdout=recipe.holdout, seed=recipe.seed)
    start = time.perf_counter()
    lake.write_json(f"runs/{config['run']}/config.json", config)
    with ray_session(address=address):
        _fit(lake, config, recipe, workers)
    report = lake.read_json(report_path)
    report["seconds"] = round(time.perf_counter() - start, 3)
    lake.write_json(report_path, report)
    return report


def _check(lake: Lake, recipe: Recipe, name: str) -> None:
    """Refuse a run that the lake can't feed, before it starts."""
    if name in recipe.teachers:
        msg = f"a student can't have the name of its teacher '{name}'"
        raise DistillError(msg)
    there = {(f["teacher"], f["mpp"]): f["complete"] for f in lake.info()["features"]}
    for teacher in recipe.teachers:
        for mpp in _mpps(lake, recipe):
            if not there.get((teacher, mpp)):
                msg = (
                    f"recipe '{recipe.name}' needs features of '{teacher}' for every tile at mpp "
                    f"{mpp_name(mpp)}: run slidelake extract {lake.uri} --teacher {teacher}"
                )
                raise DistillError(msg)


def _mpps(lake: Lake, recipe: Recipe) -> list[float]:
    return [lake.known_mpp(mpp) for mpp in recipe.mpps or lake.config.mpps]


def _config(lake: Lake, recipe: Recipe, name: str) -> Config:
    train, held = split_slides(lake, holdout=recipe.holdout, seed=recipe.seed)
    identities = {
        f"{teacher}@{mpp}": identity_of(lake.table(features_table(mpp)).schema.field(teacher))
        for teacher in recipe.teachers
        for mpp in _mpps(lake, recipe)
    }
    decided = {
        "student": name,
        "recipe": asdict(recipe),
        "teachers": identities,
        "train": train,
        "held_out": held,
    }
    text = json.dumps(decided, sort_keys=True)
    run = f"distill-{recipe.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return {**decided, "lake": lake.uri, "lake_version": lake.version, "run": run}


def _fit(lake: Lake, config: Config, recipe: Recipe, workers: int) -> None:
    import ray
    from ray.train import CheckpointConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    gpus = int(ray.cluster_resources().get("GPU", 0))
    cpus = int(ray.cluster_resources().get("CPU", 1))
    trainer = TorchTrainer(
        work,
        train_loop_config={**config, "threads": max(1, cpus // workers)},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus >= workers),
        run_config=RunConfig(
            name=config["run"],
            storage_path=lake.store.url("runs"),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    with _followed(lake, config["run"], recipe.epochs):
        trainer.fit()


@contextmanager
def _followed(lake: Lake, run: str, epochs: int) -> Iterator[None]:
    """Show the epochs that the first worker writes down while the workers run."""
    done = threading.Event()

    def follow() -> None:
        seen = 0
        with progress("distill", total=epochs, unit="epochs") as bar:
            last = False
            while not last:
                last = done.wait(1.0)
                history = read_history(lake, run)
                if len(history) > seen:
                    bar.advance(len(history) - seen)
                    seen = len(history)
                    bar.note(f"epoch {seen}: {_told(history[-1])}")

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        done.set()
        follower.join()


def _told(epoch: dict[str, Any]) -> str:
    return ", ".join(f"{name} loss {loss:.3f}" for name, loss in epoch["loss"].items())


def read_history(lake: Lake, run: str) -> list[dict[str, Any]]:
    """What a run wrote after each epoch."""
    path = f"runs/{run}/history.json"
    history: list[dict[str, Any]] = lake.read_json(path) if lake.exists(path) else []
    return history


# ---------------------------------------------------------------------- inside a worker


def work(config: Config) -> None:
    """One worker: go on from the last checkpoint, train to the end, write the student."""
    import ray.train
    from ray.train.torch import prepare_model

    recipe = _recipe_of(config)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config["threads"])
    torch.manual_seed(recipe.seed)
    lake = open_lake(config["lake"])
    sets, held, norms = _data(lake, config, recipe)
    student = Student(recipe, {t: lake.teachers(mpp=sets[0].mpp)[t] for t in recipe.teachers})
    student.to(memory_format=torch.channels_last)
    state = _resumed(student, recipe)
    model = prepare_model(student) if world > 1 else student
    state.model = model
    plan = Plan(
        sizes=tuple(len(tiles) for tiles in sets),
        batch_tiles=recipe.batch_tiles,
        seed=recipe.seed,
        rank=rank,
        world=world,
    )
    started = time.perf_counter()
    while state.epoch < recipe.epochs:
        loss = train_epoch(state, recipe, sets, norms, plan)
        state.history.append({"epoch": state.epoch, "step": state.step, "loss": loss})
        state.model = student
        _checkpoint(state, lake, config["run"], rank)
        state.model = model
    if rank == 0:
        seconds = time.perf_counter() - started
        found = measure(student, held, norms, recipe.teachers)
        _write_student(lake, config, student, state, found, seconds)


def _recipe_of(config: Config) -> Recipe:
    fields = config["recipe"]
    return Recipe(
        **{**fields, "teachers": tuple(fields["teachers"]), "mpps": tuple(fields["mpps"])}
    )


def _data(lake: Lake, config: Config, recipe: Recipe) -> tuple[list[TileSet], list[TileSet], Norms]:
    train, held = (
        [
            TileSet(lake, config[part], mpp=mpp, teachers=recipe.teachers, input_px=recipe.input_px)
            for mpp in _mpps(lake, recipe)
        ]
        for part in ("train", "held_out")
    )
    norms = {}
    for tiles in train:
        for teacher in recipe.teachers:
            moments = read_stats(lake, teacher, mpp=tiles.mpp, slide_ids=config["train"])
            if moments is None:
                msg = f"no statistics of '{teacher}' at mpp {tiles.mpp} for this run's slides"
                raise DistillError(msg)
            norms[teacher, tiles.mpp] = Standardiser.from_moments(moments)
    return train, held, norms


def _resumed(student: Student, recipe: Recipe) -> State:
    import ray.train

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
    import ray.train

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
    from safetensors.torch import save

    recipe, folder = _recipe_of(config), student_folder(config["student"])
    licences = {t: find_card(lake.store, t).licence for t in recipe.teachers}
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
