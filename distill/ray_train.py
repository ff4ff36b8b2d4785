"""Distillation on Ray Train: any number of workers, a checkpoint per epoch, a student at the end.

The loop itself is `distill.train`, the worker around it `distill.ray_worker`. A run's name is a
hash of all that decides its result, so the same command goes on where it was killed.
"""

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from cluster import progress, ray_session
from distill.errors import DistillError
from distill.recipes import Recipe
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
from ingest import student_folder

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
    version: int | str | None = None,
) -> dict[str, Any]:
    """Fit the moments of teachers on the slides of all patients that are not held out.

    Moments that are kept for the same slides already are not fitted again. `version` is that of the
    lake, or a snapshot.
    """
    start = time.perf_counter()
    lake = open_lake(lake_uri, version=version)
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
    version: int | str | None = None,
    address: str | None = None,
) -> dict[str, Any]:
    """Train a student from pixels and cached features, and put it into the lake.

    Args:
        lake_uri: the lake; every tile must have every teacher's features.
        recipe: what to train and how.
        name: of the student; it is run by `extract` under this name.
        workers: processes that train together.
        version: of the lake, or a snapshot; the newest if None.
        address: a Ray cluster; a local Ray is started if None.

    Returns:
        The student's report, also kept in its folder: recipe, steps, fidelity per teacher on
        held-out patients beside the mean-feature baseline, history, seconds.

    Raises:
        DistillError: features are missing, or another student has this name.
    """
    lake = open_lake(lake_uri, version=version)
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
        for mpp in recipe.mpps_of(lake.config.mpps):
            if not there.get((teacher, mpp)):
                msg = (
                    f"recipe '{recipe.name}' needs features of '{teacher}' for every tile at mpp "
                    f"{mpp_name(mpp)}: run slidelake extract {lake.uri} --teacher {teacher}"
                )
                raise DistillError(msg)


def _config(lake: Lake, recipe: Recipe, name: str) -> Config:
    train, held = split_slides(lake, holdout=recipe.holdout, seed=recipe.seed)
    identities = {
        f"{teacher}@{mpp}": identity_of(lake.table(features_table(mpp)).schema.field(teacher))
        for teacher in recipe.teachers
        for mpp in recipe.mpps_of(lake.config.mpps)
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
        _work,
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


def _work(config: Config) -> None:
    from distill.ray_worker import work

    work(config)


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
