"""Distillation on Ray Train: any number of workers, a student at the end.

The loop itself is `distill.train.loop`, the worker around it `distill.train.ray_worker`. A run's
name is a hash of all that decides its result, so the same command goes on where it was killed.
"""

import hashlib
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import polars as pl

from cluster import progress, ray_session
from distill.errors import DistillError
from distill.recipes.recipe import Recipe
from distill.recipes.recipe_columns import check
from distill.targets.missing_stats import fit_missing, split_slides
from distill.targets.norms import fit_norms
from featurestore import Lake, LakeError, mpp_name, open_lake, tile_parts
from featurestore.storage import read_sealed, resealed
from ingest import student_folder

CHECKPOINT_S = 60.0
RETRIES = 3
STATUS, ERROR, NORMS = "status.json", "error.json", "norms.safetensors"
Config = dict[str, Any]


def distill(
    lake_uri: str,
    recipe: Recipe,
    *,
    name: str = "student",
    workers: int = 1,
    slides: Sequence[str] | None = None,
    version: int | str | None = None,
    checkpoint_s: float = CHECKPOINT_S,
    address: str | None = None,
) -> dict[str, Any]:
    """Train a student from cached features, and pixels if it sees any, and put it into the lake.

    A run that was killed, driver or worker, goes on at the next tile after its last checkpoint.

    Args:
        lake_uri: the lake; every tile must have every teacher's features.
        recipe: what to train and how.
        name: of the student; it is run by `extract` under this name.
        workers: processes that train together.
        slides: to train on and to hold out from; all that are ready if None.
        version: of the lake, or a snapshot; the newest if None.
        checkpoint_s: seconds between checkpoints, at least.
        address: a Ray cluster; a local Ray is started if None.

    Returns:
        The student's report, also kept in its folder: recipe, steps, fidelity per teacher on
        held-out patients beside the mean-feature baseline, data_wait (share of the time),
        tiles_per_s, seconds.

    Raises:
        DistillError: features are missing, another student has this name, a slide is not in the
            lake, or the loss is not finite.
    """
    lake = open_lake(lake_uri, version=version)
    _check_name(lake, recipe, name)
    check(lake, recipe)
    config = _config(lake, recipe, name, slides)
    report_path = f"{student_folder(name)}/report.json"
    if lake.exists(report_path):
        report = read_sealed(lake.store, report_path)
        if report["run"] == config["run"]:
            return report
        msg = f"a student '{name}' is there from other data or settings; choose another --name"
        raise DistillError(msg)
    start = time.perf_counter()
    # At the very version that the workers read, so that these are the features they will see.
    fit_missing(lake, recipe.needs(lake.config.mpps), config["train"])
    norms = f"runs/{config['run']}/{NORMS}"
    if not lake.exists(norms):
        needs = recipe.needs(lake.config.mpps)
        lake.write_bytes(norms, fit_norms(lake, recipe.targets, needs, config["train"]))
    kept = {key: value for key, value in config.items() if key != "recipe"}
    lake.write_json(f"runs/{config['run']}/config.json", {**kept, "recipe": asdict(recipe)})
    with ray_session(address=address):
        _fit(lake, {**config, "checkpoint_s": checkpoint_s}, workers)
    report = read_sealed(lake.store, report_path)
    report["seconds"] = round(time.perf_counter() - start, 3)
    report = resealed(report)
    lake.write_json(report_path, report)
    return report


def _check_name(lake: Lake, recipe: Recipe, name: str) -> None:
    taken = {f["teacher"] for f in lake.info()["features"]}
    if name in recipe.teachers or (
        name in taken and not lake.exists(f"{student_folder(name)}/report.json")
    ):
        msg = f"'{name}' is a teacher with features in {lake.uri}; choose another --name"
        raise DistillError(msg)


def _config(lake: Lake, recipe: Recipe, name: str, slides: Sequence[str] | None) -> Config:
    train, held = split_slides(lake, holdout=recipe.holdout, seed=recipe.split_seed, slides=slides)
    identities = {
        f"{teacher}@{mpp_name(mpp)}": lake.identity(teacher, mpp=mpp)
        for teacher, mpp in recipe.needs(lake.config.mpps)
    }
    decided = {
        "student": name,
        "recipe": asdict(recipe),
        "identities": identities,
        "train": train,
        "held_out": held,
    }
    text = json.dumps(decided, sort_keys=True)
    run = f"distill-{recipe.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return {
        **decided,
        "recipe": recipe,
        "lake": lake.uri,
        "lake_version": lake.version,
        "run": run,
    }


def _fit(lake: Lake, config: Config, workers: int) -> None:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    gpus = int(ray.cluster_resources().get("GPU", 0))
    cpus = int(ray.cluster_resources().get("CPU", 1))
    _forget(lake, config)
    with tempfile.TemporaryDirectory(prefix="slidelake-") as folder:
        trainer = TorchTrainer(
            _work,
            train_loop_config={**config, "threads": max(1, cpus // workers)},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus >= workers),
            # Checkpoints are files of the lake; Ray's own notes are of no use after the run.
            run_config=RunConfig(
                name=config["run"],
                storage_path=folder,
                failure_config=FailureConfig(max_failures=RETRIES),
            ),
        )
        with _followed(lake, config["run"]):
            try:
                trainer.fit()
            except TrainingFailedError as error:
                raise _explained(error) from error
    _raise_error(lake, config)


def _work(config: Config) -> None:
    from distill.train.ray_worker import work

    work(config)


def _explained(error: Exception) -> Exception:
    """What a worker raised, if it is one of ours; it was tried again several times."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, DistillError | LakeError):
                return DistillError(f"a worker failed {RETRIES + 1} times: {cause}")
            cause = cause.__cause__
    return DistillError(f"training failed {RETRIES + 1} times: {str(error).splitlines()[-1]}")


def _error_path(config: Config) -> str:
    return f"runs/{config['run']}/{ERROR}"


def _forget(lake: Lake, config: Config) -> None:
    """Remove what an earlier try told."""
    paths = [_error_path(config), f"runs/{config['run']}/{STATUS}"]
    lake.store.remove([path for path in paths if lake.exists(path)])


def _raise_error(lake: Lake, config: Config) -> None:
    """Raise what stopped the workers at a step that would stop them again."""
    if not lake.exists(_error_path(config)):
        return
    found = lake.read_json(_error_path(config))
    raise DistillError(found["message"] + _slides_of(lake, found["tiles"]))


def _slides_of(lake: Lake, tiles: Sequence[int]) -> str:
    if not tiles:
        return ""
    numbers = {int(tile_parts(tile)[0]) for tile in tiles}
    names = lake.slides().filter(pl.col("slide").is_in(sorted(numbers))).collect()["slide_id"]
    return f"; slides {', '.join(sorted(names))}"


@contextmanager
def _followed(lake: Lake, run: str) -> Iterator[None]:
    """Show the steps that the first worker writes down while the workers run."""
    done = threading.Event()
    follower = threading.Thread(target=_follow, args=(lake, run, done), daemon=True)
    follower.start()
    try:
        yield
    finally:
        done.set()
        follower.join()


def _follow(lake: Lake, run: str, done: threading.Event) -> None:
    path = f"runs/{run}/{STATUS}"
    while not lake.exists(path):
        if done.wait(1.0):
            return
    status = lake.read_json(path)
    seen, epoch, last = status["step"], status["epoch"], False
    with progress("distill", total=status["steps"], unit="steps", initial=seen) as bar:
        while not last:
            last = done.wait(1.0)
            status = lake.read_json(path)
            bar.advance(max(0, status["step"] - seen))
            seen = max(seen, status["step"])
            if status["epoch"] > epoch:
                epoch = status["epoch"]
                bar.note(f"epoch {epoch}: {_told(status['losses'])}")


def _told(losses: dict[str, float]) -> str:
    return ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
