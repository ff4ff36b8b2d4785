"""One worker of a distillation: its batches, its checkpoints, and the student that it writes.

This is not in `distill.train.ray_train`, so that the driver does not import timm (10 s), and not in
`distill.train.ray_worker`, so that a worker of this machine alone does not import Ray.
Checkpoints are files of the lake, so a run continues on any machine that can read the lake.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load
from torch import nn

from cluster import Placement
from distill.errors import DistillError
from distill.evaluate.measures.embedding_measures import MUCH_WORSE
from distill.evaluate.measures.fidelity import Fidelity, combined_fidelity
from distill.recipes.recipe import Recipe
from distill.students.saved_student import write_student
from distill.students.student_table import make_task
from distill.students.task import SECOND, SecondStudent, TrainingTask
from distill.targets.norms import read_norms
from distill.train.batches import Feed
from distill.train.distill_run import DistillRun, second_name
from distill.train.loop import Loop, NotFiniteError, State, TrainingStep, measure
from distill.train.run_log import (
    Recorder,
    curve_picture,
    epochs_of,
    json_lines,
    tensorboard_events,
)
from featurestore import Lake, mpp_name, open_lake
from featurestore.storage import json_bytes, read_named, read_sealed, reading, sealed

STATUS_S = 2.0
HELD_OUT_TILES = 256


# Long, with eight parameters: the whole of a worker, from its settings to the student.
def work(
    run: DistillRun,
    *,
    placement: Placement,
    checkpoint_s: float,
    rank: int = 0,
    world: int = 1,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - it does not change
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    cache_pixels_gb: float = 0.0,
) -> None:
    """Train as one worker from the last checkpoint to the end, and write the student.

    Args:
        run: the run with student, recipe and slides.
        placement: size of this worker, and of all others.
        checkpoint_s: least number of seconds between checkpoints.
        rank: number of this worker.
        world: number of all workers.
        device: device of this worker.
        wrap: function that lets workers exchange gradients; None for one worker.
        cache_pixels_gb: greatest size of the file of decoded tiles; 0 for none.
    """
    recipe = run.recipe
    torch.set_num_threads(placement.threads)
    torch.manual_seed(recipe.seed)
    lake = open_lake(run.lake, version=run.lake_version)
    settings = read_sealed(lake.store, run.config_path)
    norms = read_norms(read_named(lake.store, run.norms_path, settings))
    initial = read_named(lake.store, run.initial_path, settings) if run.initial else None
    norms_there = {key: norm.to(device) for key, norm in norms.items()}
    task = make_task(lake, recipe, norms_there, initial)
    state = State.fresh(task.to(device), recipe.schedule)
    if lake.exists(run.checkpoint_path):
        with reading(lake.store, f"{run.checkpoint_path} can't be read"):
            state.load(lake.read_bytes(run.checkpoint_path))
    if recipe.schedule.compile:
        task.compile_student()
    rows = {part: _chosen_rows(lake, run, part, settings) for part in ("train", "held_out")}
    feed = Feed(
        lake=lake,
        recipe=recipe,
        slide_ids=run.train,
        rows=rows["train"],
        cache_pixels_gb=cache_pixels_gb,
    )
    streams = feed.training(rank=rank, world=world)
    model = wrap(task) if wrap else task
    loop = Loop(recipe, state, streams, device=device, model=model, rank=rank)
    held = Feed(lake=lake, recipe=recipe, slide_ids=run.held_out, rows=rows["held_out"])
    records = None
    if rank == 0:
        records = RunRecords(lake, run, loop, held, placement=placement, checkpoint_s=checkpoint_s)
    try:
        loop.run(records.after if records else lambda _: None)
    except NotFiniteError as error:
        # All workers come here at the same step; a retry would, too.
        if error.tiles or rank == 0:
            _write_error(lake, run, error)
        return
    if records:
        records.end()


def _chosen_rows(
    lake: Lake, run: DistillRun, part: str, settings: dict[str, Any]
) -> dict[float, npt.NDArray[np.int64]]:
    """Return the row numbers of the training or held-out tiles that are seen, by mpp."""
    if not run.tiles:
        return {}
    arrays = load(read_named(lake.store, run.tiles_path, settings))
    names = {mpp: f"{part}.{mpp_name(mpp)}" for mpp in lake.config.mpps}
    return {mpp: arrays[name] for mpp, name in names.items() if name in arrays}


def _write_error(lake: Lake, run: DistillRun, error: NotFiniteError) -> None:
    """Write the error of a run; an error that names tiles is never overwritten."""
    if error.tiles or not lake.exists(run.error_path):
        lake.write_json(run.error_path, {"message": str(error), "tiles": list(error.tiles)})


class RunRecords:
    """Writes records, checkpoints, measurements and the student, in the first worker alone.

    Args:
        lake: the lake at the run's version.
        run: the run with student, recipe and slides.
        loop: the training loop.
        held: the held-out tiles.
        placement: the processes that train.
        checkpoint_s: least number of seconds between checkpoints.
    """

    def __init__(
        self,
        lake: Lake,
        run: DistillRun,
        loop: Loop,
        held: Feed,
        *,
        placement: Placement,
        checkpoint_s: float,
    ) -> None:
        self._lake, self._run, self._loop = lake, run, loop
        self._checkpoint_s = checkpoint_s
        self._held = held.measuring(mixed_up=True)
        self._all_held = held.measuring()
        self._recorder = Recorder(loop.state.lines, steps=loop.steps, workers=placement.workers)
        self._placement = placement
        self._epoch = loop.epoch
        self._checkpoint_time = time.monotonic()
        self._tiles, self._waited_s = 0, 0.0
        self._write_status({})

    @property
    def _task(self) -> TrainingTask:
        return self._loop.state.task

    def after(self, step: TrainingStep) -> None:
        """Add a step to the log; write a checkpoint when due, and measure after each epoch."""
        self._recorder.add(step, epoch=(step.number - 1) // self._loop.epoch_steps + 1)
        self._tiles += step.tiles * self._placement.workers
        self._waited_s += step.waited_s
        epoch_done = self._loop.epoch > self._epoch
        if epoch_done:
            self._epoch = self._loop.epoch
            device = self._loop.device
            fidelity = measure(self._task, self._held, device=device, tiles=HELD_OUT_TILES)
            by_mpp = _by_mpp_name(fidelity)
            self._recorder.measured(by_mpp, step=step.number, epoch=self._epoch)
        if time.monotonic() - self._status_time > STATUS_S or epoch_done:
            self._write_status(step.losses)
        if time.monotonic() - self._checkpoint_time > self._checkpoint_s:
            self._write_checkpoint()

    def _write_status(self, losses: dict[str, float]) -> None:
        self._status_time = time.monotonic()
        line = {"step": self._loop.state.step, "steps": self._loop.steps, "losses": losses}
        line |= {"epoch": self._epoch, "tiles": self._tiles, "waited_s": round(self._waited_s, 3)}
        self._lake.write_json(self._run.status_path, line)

    def _write_checkpoint(self) -> None:
        self._lake.write_bytes(self._run.checkpoint_path, self._loop.state.to_bytes())
        self._checkpoint_time = time.monotonic()
        # After the checkpoint: lines are never ahead of the step from which a run continues.
        self._write_lines()

    def _write_lines(self) -> None:
        lines, run = self._recorder.lines, self._run
        if not lines:
            return
        self._lake.write_bytes(run.lines_path, json_lines(lines))
        self._lake.write_bytes(run.events_path, tensorboard_events(lines))
        title = f"{run.student}: {run.run}"
        self._lake.write_bytes(run.curve_path, curve_picture(lines, title=title))

    def _seal(self) -> None:
        """Write the checksums of the run's files, which change no more, into its settings."""
        lake, run = self._lake, self._run
        # A checkpoint holds its own checksums, and may be deleted.
        kept = [run.norms_path, *([run.initial_path] if run.initial else [])]
        kept += [run.tiles_path] if run.tiles else []
        kept += [run.lines_path, run.events_path, run.curve_path] if self._recorder.lines else []
        files = {run.name_of(path): lake.read_bytes(path) for path in kept}
        lake.write_bytes(run.config_path, json_bytes(sealed(run.to_json(), files)))

    def end(self) -> None:
        """Measure all held-out tiles and write the student; its report is written last."""
        state, run = self._loop.state, self._run
        self._write_checkpoint()
        self._seal()
        state.finish()
        fidelity = measure(self._task, self._all_held, device=self._loop.device)
        sizes = self._per_size()
        report = {
            "student": run.student,
            "recipe": asdict(run.recipe),
            "run": run.run,
            "lake_version": run.lake_version,
            "steps": state.step,
            **({"initial": dict(run.initial)} if run.initial else {}),
            **({"tiles": dict(run.tiles)} if run.tiles else {}),
            **({"classes": dict(run.classes)} if run.classes else {}),
            "parameters": sum(p.numel() for p in self._task.student.parameters()),
            "train_slides": len(run.train),
            "held_out_slides": list(run.held_out),
            **_fidelity(fidelity, run.recipe),
            **({"fidelity_per_size": sizes, "switching": switching(sizes)} if sizes else {}),
            **_speed(state.lines),
            "history": epochs_of(state.lines),
            "train_seconds": round(state.seconds, 3),
            **asdict(self._placement),
            "cpus": os.cpu_count(),
        }
        if (second := self._task.second_student) is not None:
            self._write_second(second, report, fidelity)
        write_student(
            self._lake,
            self._task,
            report,
            name=run.student,
            recipe=run.recipe,
            identities=run.identities,
            initial=run.initial,
        )

    def _write_second(
        self,
        second: SecondStudent,
        report: Mapping[str, Any],
        fidelity: Mapping[str, Mapping[float, Fidelity]],
    ) -> None:
        """Write the second student of mutual distillation, with its own fidelity."""
        run = self._run
        recipe = replace(run.recipe, student=second.settings)
        own = {
            name.removesuffix(SECOND): parts
            for name, parts in fidelity.items()
            if name.endswith(SECOND)
        }
        second_report = {
            **report,
            "student": second_name(run.student),
            "recipe": asdict(recipe),
            "parameters": sum(p.numel() for p in second.kept_parts["model"].parameters()),
            "beside": run.student,
            **_fidelity(own, recipe),
        }
        for name in ("initial", "fidelity_per_size", "switching"):
            second_report.pop(name, None)
        write_student(
            self._lake,
            second,
            second_report,
            name=second_name(run.student),
            recipe=recipe,
            identities=run.identities,
        )

    def _per_size(self) -> dict[str, dict[str, Any]]:
        """Return the fidelity at each side of the input, by prediction and mpp.

        A student that has features of another kind at another size tells so here.
        """
        sizes = {}
        for side_px in self._task.sizes:
            with self._task.at_size(side_px):
                fidelity = measure(self._task, self._all_held, device=self._loop.device)
            sizes[str(side_px)] = _by_mpp_name(fidelity)
        return sizes


def switching(sizes: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return where each teacher is predicted best and worst over sides of the input and mpps.

    A student that has other features at another size or mpp is far worse there.

    Args:
        sizes: fidelity by side in pixels, teacher and mpp.

    Returns:
        By teacher `best` and `worst` (side in pixels, mpp, centred cosine), the `gap` of the
        cosines, and whether the gap is as large as `evaluate` flags it.
    """
    places: dict[str, list[tuple[float, str, str]]] = {}
    for side_px, fidelity in sizes.items():
        for name, by_mpp in fidelity.items():
            for mpp, part in by_mpp.items():
                places.setdefault(name, []).append((part["centred"], side_px, mpp))
    answers = {}
    for name, ranked in places.items():
        best, worst = max(ranked), min(ranked)
        ends = {
            key: {"centred": centred, "side_px": int(side_px), "mpp": mpp}
            for key, (centred, side_px, mpp) in (("best", best), ("worst", worst))
        }
        gap = best[0] - worst[0]
        answers[name] = {**ends, "gap": round(gap, 5), "flagged": gap > MUCH_WORSE}
    return answers


def _by_mpp_name(
    fidelity: Mapping[str, Mapping[float, Fidelity]],
) -> dict[str, dict[str, Any]]:
    """Return the fidelity as JSON, by prediction and name of the mpp."""
    return {
        name: {mpp_name(mpp): part.to_dict() for mpp, part in parts.items()}
        for name, parts in fidelity.items()
    }


def _fidelity(
    fidelity: Mapping[str, Mapping[float, Fidelity]], recipe: Recipe
) -> dict[str, dict[str, Any]]:
    """Return the fidelity of teachers, of other predictions, and of all of them at each mpp."""
    whole = {name: combined_fidelity(dict(parts)) for name, parts in fidelity.items()}
    return {
        "fidelity": {name: means for name, means in whole.items() if name in recipe.teachers},
        "fidelity_under": {
            name: means for name, means in whole.items() if name not in recipe.teachers
        },
        "fidelity_per_mpp": _by_mpp_name(fidelity),
    }


def _speed(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean `data_wait` and `tiles_per_s` over all lines but the first, the warm-up."""
    steps = [line for line in lines if "losses" in line]
    steps = steps[1:] or steps
    if not steps:
        msg = "a run of no steps has no speed"
        raise DistillError(msg)
    return {
        name: round(sum(line[name] for line in steps) / len(steps), 4)
        for name in ("data_wait", "tiles_per_s")
    }
