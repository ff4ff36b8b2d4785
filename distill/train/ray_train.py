"""Distillation on Ray Train: any number of workers, a student at the end.

The loop itself is `distill.train.loop`, the worker around it `distill.train.ray_worker`. A run's
name is a hash of all inputs that determine it, so the same command continues a killed run.
"""

import os
import pickle
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import polars as pl
from safetensors.numpy import save

from cluster import (
    GOES_ON,
    ClusterError,
    ClusterLostError,
    JobWatch,
    Placement,
    WorkerSettings,
    announced,
    load_extensions,
    loaded_extensions,
    lost_part,
    node_shapes,
    noted_nodes,
    place,
    print_note,
    progress,
    ray_session,
)
from distill.errors import DistillError
from distill.recipes.recipe import Recipe
from distill.recipes.recipe_columns import check
from distill.recipes.student_settings import TileStudent
from distill.targets.missing_stats import fit_missing
from distill.targets.norms import fit_norms
from distill.train.distill_run import DistillRun, plan_run, second_name
from distill.train.tile_choice import choice_lines, choose_tiles
from distill.train.train_here import fit_here, place_here
from featurestore import Lake, LakeError, ResultDict, mpp_name, open_lake, tile_parts
from featurestore.storage import (
    check_zip,
    json_bytes,
    read_named,
    read_sealed,
    resealed,
    sealed,
)
from ingest import student_folder

if TYPE_CHECKING:
    from distill.train.initial_weights import InitialWeights

CHECKPOINT_S = 60.0
RETRIES = 3
#: Variables of the driver that hold for the workers on all nodes.
PASSED_ON = ("SLIDELAKE_PIXEL_CACHE",)


# Long for its documentation: the public function of a whole stage.
def distill(
    lake_uri: str,
    recipe: Recipe,
    *,
    name: str = "student",
    workers: WorkerSettings = WorkerSettings(workers=1),  # noqa: B008 - it is frozen
    slides: Sequence[str] | None = None,
    version: int | str | None = None,
    checkpoint_s: float = CHECKPOINT_S,
    address: str | None = None,
    permission: str | None = None,
    cache_pixels_gb: float = 0.0,
) -> dict[str, Any]:
    """Train a student from cached features, and pixels if it reads any, and write it into the lake.

    If the driver or a worker was killed, the run continues at the tile after its last checkpoint.

    Args:
        lake_uri: the lake; every tile must have every teacher's features.
        recipe: recipe of the training.
        name: name of the student; `extract` runs it by this name.
        workers: number of processes that train together, their device and size; 1 if open.
        slides: slides that are split into training and held-out slides; all ready slides if None.
        version: version of the lake, or a snapshot; the newest if None.
        checkpoint_s: least number of seconds between checkpoints.
        address: address of a Ray cluster; a local Ray is started if None.
        permission: who permitted what a teacher's licence forbids, in words that are recorded.
        cache_pixels_gb: GB of decoded tiles that each machine keeps on a disk for later epochs and
            runs; 0 for none. See `Lake.stream`.

    Returns:
        The student's report, also kept in its folder: recipe, steps, fidelity per teacher on
        held-out patients beside the mean-feature baseline, data_wait (share of the time),
        tiles_per_s, seconds, licences of the teachers.

    Raises:
        ClusterError: the cluster does not hold all workers at once, or they share a GPU.
        DistillError: features are missing, another student has this name, a slide is not in the
            lake, the workers can't share a step equally, or the loss is not finite.
        LicenceError: the licence of a teacher forbids to train models on its outputs.

    Examples:
        >>> recipe = sl.make_recipe("agglomerate", ("uni2_h", "gigapath"), epochs=5)
        >>> sl.distill("my-lake", recipe, name="small")
        Traceback (most recent call last):
            ...
        distill.errors.DistillError: recipe 'agglomerate' needs features of 'gigapath' ...
    """
    lake = open_lake(lake_uri, version=version)
    _check_name(lake, recipe, name)
    check(lake, recipe)
    initial = _initial_weights(lake, recipe)
    run = plan_run(
        lake,
        recipe,
        student=name,
        slides=slides,
        workers=workers.workers or 1,
        initial=None if initial is None else initial.record(),
        permission=permission,
    )
    if lake.exists(run.report_path):
        report = read_sealed(lake.store, run.report_path)
        if report["run"] == run.run:
            return ResultDict(report, name=f"student {name}", uri=lake.uri)
        msg = f"a student '{name}' is there from other data or settings; choose another --name"
        raise DistillError(msg)
    _check_second_name(lake, run)
    for line in choice_lines(run.tiles):
        print_note("distill", line)
    start = time.perf_counter()
    local = place_here(workers, address)
    with nullcontext() if local else ray_session(address=address):
        placement = local or place(workers, node_shapes(), most=1, together=True)
        _check_gpus(placement)
        _prepare(lake, run, initial, address=address, workers=workers)
        if local:
            _fit_here(lake, run, local, checkpoint_s, cache_pixels_gb)
        else:
            _fit(lake, run, placement, checkpoint_s, cache_pixels_gb)
    facts = {"seconds": round(time.perf_counter() - start, 3), **_slide_facts(lake, run)}
    facts |= {"licences": run.to_json()["licences"], "permission": permission}
    second = f"{student_folder(second_name(name))}/report.json"
    for path in [run.report_path, *([second] if lake.exists(second) else [])]:
        report = resealed({**read_sealed(lake.store, path), **facts})
        if report["run"] == run.run:
            lake.write_json(path, report)
    report = read_sealed(lake.store, run.report_path)
    return ResultDict(report, name=f"student {name}", uri=lake.uri)


def _slide_facts(lake: Lake, run: DistillRun) -> dict[str, Any]:
    """Return which slides and patients a student was trained on."""
    used = pl.col("slide_id").is_in([*run.train, *run.held_out])
    patients = lake.slides().filter(used).select("slide_id", "patient_id").collect()
    trained = patients.filter(pl.col("slide_id").is_in(list(run.train)))
    return {
        "slides_without_patient": patients["patient_id"].null_count(),
        "train_slide_ids": sorted(run.train),
        "train_patients": sorted(set(trained["patient_id"].drop_nulls())),
    }


def _check_gpus(placement: Placement) -> None:
    """Refuse workers that share a GPU: NCCL, by which they exchange gradients, does.

    Raises:
        ClusterError: several workers would share a GPU.
    """
    if placement.workers > 1 and 0 < placement.gpus_per_worker < 1:
        msg = (
            f"{placement}: workers that train together need a GPU each; give --workers 1, or "
            "--gpus-per-worker 1"
        )
        raise ClusterError(msg)


def _check_name(lake: Lake, recipe: Recipe, name: str) -> None:
    """Refuse a student's name that a teacher has.

    Raises:
        DistillError: a teacher has this name.
    """
    teacher_names = {f["teacher"] for f in lake.info()["features"]}
    if name in recipe.teachers or (
        name in teacher_names and not lake.exists(f"{student_folder(name)}/report.json")
    ):
        msg = f"'{name}' is a teacher with features in {lake.uri}; choose another --name"
        raise DistillError(msg)


def _check_second_name(lake: Lake, run: DistillRun) -> None:
    """Refuse a run whose second student would have the name of another student.

    Raises:
        DistillError: there is a student of this name, of another run.
    """
    name = second_name(run.student)
    path = f"{student_folder(name)}/report.json"
    if any(term.kind == "mutual" for term in run.recipe.terms) and lake.exists(path):
        if read_sealed(lake.store, path)["run"] == run.run:
            return
        msg = (
            f"the second student's name '{name}' is there already, from another run; choose "
            "another --name"
        )
        raise DistillError(msg)


def _initial_weights(lake: Lake, recipe: Recipe) -> "InitialWeights | None":
    """Return the weights from which a student starts; None if they are random.

    Raises:
        DistillError: there are no such weights, or they do not fit the student.
    """
    if not getattr(recipe.student, "init", ""):
        return None
    # timm takes seconds to import, which a run from random weights need not pay here.
    from distill.train.initial_weights import find_initial_weights

    return find_initial_weights(lake.store, recipe.student_as(TileStudent))


def _prepare(
    lake: Lake,
    run: DistillRun,
    initial: "InitialWeights | None",
    *,
    address: str | None,
    workers: WorkerSettings,
) -> None:
    """Fit the statistics that are missing, and write the norms and the settings of the run.

    Raises:
        DamageError: the norms or the checkpoint of an earlier try are not what was written.
    """
    needs = run.recipe.needs(lake.config.mpps)
    # At the very version that the workers read, so that these are the features they will get.
    fit_missing(lake, needs, run.train, address=address, cpus_per_worker=workers.cpus_per_worker)
    if lake.exists(run.checkpoint_path):
        check_zip(lake.store, run.checkpoint_path)
    if lake.exists(run.norms_path) and lake.exists(run.config_path):
        norms = read_named(lake.store, run.norms_path, read_sealed(lake.store, run.config_path))
    else:
        norms = fit_norms(lake, run.recipe.targets, needs, run.train)
        lake.write_bytes(run.norms_path, norms)
    kept = {run.name_of(run.norms_path): norms}
    if initial is not None:
        kept[run.name_of(run.initial_path)] = initial.content
        lake.write_bytes(run.initial_path, initial.content)
    if run.tiles:
        rows = _rows_file(lake, run)
        kept[run.name_of(run.tiles_path)] = rows
        lake.write_bytes(run.tiles_path, rows)
    lake.write_bytes(run.config_path, json_bytes(sealed(run.to_json(), kept)))


def _rows_file(lake: Lake, run: DistillRun) -> bytes:
    """Return the file of the row numbers of the tiles that are seen, in training and held out."""
    parts = {
        "train": choose_tiles(lake, run.recipe, run.train),
        "held_out": choose_tiles(lake, run.recipe, run.held_out, held_out=True),
    }
    file: bytes = save(
        {
            f"{part}.{mpp_name(mpp)}": chosen.rows
            for part, by_mpp in parts.items()
            for mpp, chosen in by_mpp.items()
        }
    )
    return file


def _fit_here(
    lake: Lake, run: DistillRun, placement: Placement, checkpoint_s: float, cache_pixels_gb: float
) -> None:
    """Train in a child process of this machine, and raise the error that stopped it."""
    _remove_old_status(lake, run)
    with _progress_shown(lake, run, note=f"{placement}, in a process of this machine"):
        fit_here(run, placement, checkpoint_s, cache_pixels_gb)
    _raise_error(lake, run)


def _fit(
    lake: Lake, run: DistillRun, placement: Placement, checkpoint_s: float, cache_pixels_gb: float
) -> None:
    """Train on Ray, and raise the error that stopped the workers."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    from distill.train.ray_gloo import NodeTorchConfig

    each = {"CPU": placement.cpus_per_worker, "GPU": placement.gpus_per_worker}
    _remove_old_status(lake, run)
    # In bytes, since Ray's own actor, which has no user's file, would read a user's class too.
    settings = {"run": run, "placement": placement, "checkpoint_s": checkpoint_s}
    settings |= {"cache_pixels_gb": cache_pixels_gb}
    with tempfile.TemporaryDirectory(prefix="slidelake-") as folder, announced(placement):
        trainer = TorchTrainer(
            _work,
            train_loop_config={
                "extensions": loaded_extensions(),
                "settings": pickle.dumps(settings),
                "environ": {name: os.environ[name] for name in PASSED_ON if name in os.environ},
            },
            torch_config=NodeTorchConfig(),
            scaling_config=ScalingConfig(
                num_workers=placement.workers,
                use_gpu=placement.device == "cuda",
                resources_per_worker={name: number for name, number in each.items() if number},
            ),
            # Checkpoints are files of the lake; Ray's own notes are of no use after the run.
            run_config=RunConfig(
                name=run.run,
                storage_path=folder,
                failure_config=FailureConfig(max_failures=RETRIES),
            ),
        )
        with _progress_shown(lake, run, note=str(placement)), _nodes_noted(placement):
            try:
                trainer.fit()
            except TrainingFailedError as error:
                raise _worker_error(error) from error
    _raise_error(lake, run)


def _work(config: dict[str, Any]) -> None:
    """Train as one worker of Ray."""
    from distill.train.ray_worker import work

    os.environ.update(config["environ"])
    load_extensions(config["extensions"])
    work(**pickle.loads(config["settings"]))


def _worker_error(error: Exception) -> Exception:
    """Return the error that ended a training, with the number of tries where workers failed.

    Ray tries again where a worker failed; an error of its controller ends a training at once.
    """
    failures = list(getattr(error, "worker_failures", {}).values())
    failures += [cause] if (cause := getattr(error, "controller_failure", None)) else []
    tries = f"{RETRIES + 1} times" if hasattr(error, "worker_failures") else "once"
    for failure in failures:
        for one in _causes(failure):
            if isinstance(one, DistillError | LakeError):
                return DistillError(f"a worker failed {tries}: {one}")
            if (fault := lost_part(one)) is not None:
                return ClusterLostError(f"training failed {tries}: {fault}; {GOES_ON}")
    return DistillError(f"training failed {tries}: {str(error).splitlines()[-1]}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its cause, the cause of that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def _remove_old_status(lake: Lake, run: DistillRun) -> None:
    """Remove the error and the progress of an earlier try."""
    paths = [run.error_path, run.status_path]
    lake.store.remove([path for path in paths if lake.exists(path)])


def _raise_error(lake: Lake, run: DistillRun) -> None:
    """Raise the error that stopped the workers at a step that would stop them again."""
    if not lake.exists(run.error_path):
        return
    error = lake.read_json(run.error_path)
    raise DistillError(error["message"] + _slides_text(lake, error["tiles"]))


def _slides_text(lake: Lake, tiles: Sequence[int]) -> str:
    """Return the names of the slides of some tiles, as the end of a message."""
    if not tiles:
        return ""
    numbers = {int(tile_parts(tile)[0]) for tile in tiles}
    names = lake.slides().filter(pl.col("slide").is_in(sorted(numbers))).collect()["slide_id"]
    return f"; slides {', '.join(sorted(names))}"


def _nodes_noted(placement: Placement) -> AbstractContextManager[None]:
    """Note lost nodes, and a lack of room for the workers, also before the first step."""
    return noted_nodes(partial(print_note, "distill"), placement, together=True)


@contextmanager
def _progress_shown(lake: Lake, run: DistillRun, *, note: str) -> Iterator[None]:
    """Show the steps that the first worker records while the workers run."""
    done = threading.Event()
    follower = threading.Thread(
        target=_follow, args=(lake, run.status_path, done, note), daemon=True
    )
    follower.start()
    try:
        yield
    finally:
        done.set()
        follower.join()


def _follow(lake: Lake, path: str, done: threading.Event, note: str) -> None:
    """Advance a progress bar by the status file, until the workers are done."""
    while not lake.exists(path):
        if done.wait(1.0):
            return
    before = lake.read_json(path)
    step, epoch, last = before["step"], before["epoch"], False
    with progress("distill", total=before["steps"], unit="steps", initial=step) as bar:
        bar.note(note)
        watch = JobWatch("distill", lake.uri, bar)
        while not last:
            last = done.wait(1.0)
            status = lake.read_json(path)
            steps = max(0, status["step"] - step)
            bar.advance(steps)
            # Both start again at 0 in a worker that was started again.
            tiles, waited_s = (status[name] - before[name] for name in ("tiles", "waited_s"))
            watch.steps(steps, tiles=max(0, tiles), waited_s=max(0.0, waited_s))
            before = status
            step = max(step, status["step"])
            if status["epoch"] > epoch:
                epoch = status["epoch"]
                bar.note(f"epoch {epoch}: {_losses_text(status['losses'])}")
                watch.epoch(epoch, status["losses"])


def _losses_text(losses: dict[str, float]) -> str:
    """Return losses as text for a note."""
    return ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
