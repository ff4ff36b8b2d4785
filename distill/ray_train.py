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
)
from featurestore.stats import read_card
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
    mpps: Sequence[float] | None = None,
    holdout: float = 0.25,
    seed: int = 0,
    version: int | str | None = None,
) -> dict[str, Any]:
    """Fit moments and PHI-S of teachers on the slides of all patients that are not held out.

    What is kept for the same features of the same slides already is not fitted again.

    Args:
        lake_uri: the lake.
        teachers: columns of features.
        mpps: of the tiles; None takes all at which a teacher has a column.
        holdout: share of the patients that is left out.
        seed: another seed leaves out others.
        version: of the lake, or a snapshot; the newest if None.

    Returns:
        The numbers of slides and of sets `fitted` now, and `sets`: what is kept for each teacher
        and mpp, with its `path` in the lake, `rows`, and the `lake_version` that it saw.

    Raises:
        LakeError: a training slide lacks features of a teacher; it is named.
    """
    start = time.perf_counter()
    lake = open_lake(lake_uri, version=version)
    train, held = split_slides(lake, holdout=holdout, seed=seed)
    wanted = [(name, mpp) for name in teachers for mpp in _mpps_of(lake, name, mpps)]
    cards = {pair: read_card(lake, pair[0], mpp=pair[1], slide_ids=train) for pair in wanted}
    missing = [pair for pair, card in cards.items() if card is None]
    _fit_all(lake, missing, train)
    for name, mpp in missing:
        cards[name, mpp] = read_card(lake, name, mpp=mpp, slide_ids=train)
    return {
        "teachers": list(teachers),
        "slides": len(train),
        "held_out_slides": held,
        "fitted": len(missing),
        "sets": [_told_set(card, new=pair in missing) for pair, card in cards.items() if card],
        "lake_version": lake.version,
        "seconds": round(time.perf_counter() - start, 3),
    }


def _mpps_of(lake: Lake, teacher: str, mpps: Sequence[float] | None) -> list[float]:
    """The asked mpps, or those at which the teacher has a column.

    Raises:
        LakeError: there is none, or the lake has no tiles at an mpp.
    """
    asked = lake.config.mpps if mpps is None else [lake.known_mpp(mpp) for mpp in mpps]
    there = [mpp for mpp in asked if teacher in lake.teachers(mpp=mpp)]
    if mpps is not None or not there:
        for mpp in asked:
            lake.check_teacher(teacher, mpp=mpp)
    return there


def _fit_all(lake: Lake, missing: Sequence[tuple[str, float]], train: Sequence[str]) -> None:
    if not missing:
        return
    tiles = sum(int(lake.tiles_of(mpp=mpp, slide_ids=train)["tiles"].sum()) for _, mpp in missing)
    with progress("stats", total=tiles, unit="tiles") as bar:
        for name, mpp in missing:
            fit_stats(lake, name, mpp=mpp, slide_ids=train, on_tiles=bar.advance)
            bar.note(f"{name} at {mpp_name(mpp)} mpp fitted")


def _told_set(card: dict[str, Any], *, new: bool) -> dict[str, Any]:
    told = {key: card[key] for key in ("teacher", "mpp", "path", "key", "lake_version")}
    return {**told, "rows": card["n"], "slides": len(card["slides"]), "new": new}


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
    # At the very version that the workers read, so that these are the features they will see.
    stats(
        lake_uri,
        recipe.teachers,
        mpps=recipe.mpps_of(lake.config.mpps),
        holdout=recipe.holdout,
        seed=recipe.seed,
        version=lake.version,
    )
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
            some = {"where", "share"} & set(lake.identity(teacher, mpp=mpp))
            if some:
                msg = (
                    f"recipe '{recipe.name}' needs '{teacher}' for every tile at mpp "
                    f"{mpp_name(mpp)}; it was run on some of them (--{', --'.join(sorted(some))})"
                )
                raise DistillError(msg)


def _config(lake: Lake, recipe: Recipe, name: str) -> Config:
    train, held = split_slides(lake, holdout=recipe.holdout, seed=recipe.seed)
    identities = {
        f"{teacher}@{mpp}": lake.identity(teacher, mpp=mpp)
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
