"""One worker of a distillation: its data, its checkpoints, and the student that it writes.

Apart from `distill.train.ray_train`, so that the driver does not import timm (10 s) to start it.
Checkpoints are files of the lake, so a run goes on from wherever the lake is, with its credentials.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import ray.train
import torch
from ray.train.torch import get_device, prepare_model

from distill.errors import DistillError
from distill.evaluate.measures.fidelity import Fidelity, combined
from distill.recipes.recipe import Recipe
from distill.students.recipe_task import make_task
from distill.students.saved_student import write_student
from distill.students.task import Task
from distill.targets.norms import read_norms
from distill.train.batches import Feed
from distill.train.loop import Loop, NotFiniteError, State, Step, measure
from distill.train.ray_train import ERROR, NORMS, STATUS
from distill.train.run_log import (
    Recorder,
    curve_picture,
    epochs_of,
    json_lines,
    tensorboard_events,
)
from featurestore import Lake, mpp_name, open_lake

CHECKPOINT = "checkpoint.pt"
STATUS_S = 2.0
HELD_OUT_TILES = 256
Config = dict[str, Any]


def work(config: Config) -> None:
    """One worker: go on from the last checkpoint, train to the end, write the student."""
    recipe: Recipe = config["recipe"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config["threads"])
    torch.manual_seed(recipe.seed)
    lake, device = open_lake(config["lake"], version=config["lake_version"]), get_device()
    kept = read_norms(lake.read_bytes(_rel(config, NORMS)))
    norms = {key: norm.to(device) for key, norm in kept.items()}
    task = make_task(lake, recipe, norms).to(device)
    state = State.fresh(task, recipe.schedule)
    if lake.exists(_rel(config, CHECKPOINT)):
        state.load(lake.read_bytes(_rel(config, CHECKPOINT)))
    if recipe.schedule.compile:
        task.student.compile()
    streams = Feed(lake=lake, recipe=recipe, slide_ids=config["train"]).training(
        rank=rank, world=world
    )
    # Running statistics of the first worker are kept; no step looks at them, so none are sent.
    wrapped = {"broadcast_buffers": False}
    model = prepare_model(task, parallel_strategy_kwargs=wrapped) if world > 1 else task
    loop = Loop(recipe, state, streams, device=device, model=model, rank=rank)
    held = Feed(lake=lake, recipe=recipe, slide_ids=config["held_out"])
    keeper = Keeper(lake, config, loop, held, device, workers=world) if rank == 0 else None
    try:
        loop.run(keeper.after if keeper else lambda _: None)
    except NotFiniteError as error:
        # All workers come here at the same step; a retry would, too.
        if error.tiles or rank == 0:
            _tell(lake, config, error)
        return
    if keeper:
        keeper.end()


def _rel(config: Config, name: str) -> str:
    return f"runs/{config['run']}/{name}"


def _tell(lake: Lake, config: Config, error: NotFiniteError) -> None:
    """Write down what went wrong; that of a worker that knows its tiles is never overwritten."""
    path = _rel(config, ERROR)
    if error.tiles or not lake.exists(path):
        lake.write_json(path, {"message": str(error), "tiles": list(error.tiles)})


class Keeper:
    """What the first worker does beside training: records, checkpoints, measures, writes.

    Args:
        lake: at the run's version.
        config: of the run.
        loop: that trains.
        held: the held-out tiles.
        device: where the task is.
        workers: that train.
    """

    def __init__(
        self,
        lake: Lake,
        config: Config,
        loop: Loop,
        held: Feed,
        device: torch.device,
        *,
        workers: int,
    ) -> None:
        self._lake, self._config, self._loop, self._device = lake, config, loop, device
        self._held = held.measuring(mixed_up=True)
        self._all_held = held.measuring()
        self._recorder = Recorder(loop.state.lines, steps=loop.steps, workers=workers)
        self._epoch = loop.epoch
        self._kept = time.monotonic()
        self._status({})

    @property
    def _task(self) -> Task:
        return self._loop.state.task

    def after(self, step: Step) -> None:
        """After each step: a line, from time to time a checkpoint, after an epoch a measurement."""
        self._recorder.add(step, epoch=(step.number - 1) // self._loop.epoch_steps + 1)
        epoch_done = self._loop.epoch > self._epoch
        if epoch_done:
            self._epoch = self._loop.epoch
            found = measure(self._task, self._held, device=self._device, tiles=HELD_OUT_TILES)
            self._recorder.measured(_told(found), step=step.number, epoch=self._epoch)
        if time.monotonic() - self._told > STATUS_S or epoch_done:
            self._status(step.losses)
        if time.monotonic() - self._kept > self._config["checkpoint_s"]:
            self._checkpoint()

    def _status(self, losses: dict[str, float]) -> None:
        self._told = time.monotonic()
        line = {"step": self._loop.state.step, "steps": self._loop.steps, "losses": losses}
        self._lake.write_json(_rel(self._config, STATUS), {**line, "epoch": self._epoch})

    def _checkpoint(self) -> None:
        self._lake.write_bytes(_rel(self._config, CHECKPOINT), self._loop.state.to_bytes())
        self._kept = time.monotonic()
        # After the checkpoint: what is told is never ahead of where a run goes on.
        self._write_lines()

    def _write_lines(self) -> None:
        lines, config = self._recorder.lines, self._config
        if not lines:
            return
        self._lake.write_bytes(_rel(config, "metrics.jsonl"), json_lines(lines))
        events = _rel(config, "tensorboard/events.out.tfevents.slidelake")
        self._lake.write_bytes(events, tensorboard_events(lines))
        title = f"{config['student']}: {config['run']}"
        self._lake.write_bytes(_rel(config, "curve.png"), curve_picture(lines, title=title))

    def end(self) -> None:
        """Measure on all held-out tiles and write the student; its report comes last."""
        state = self._loop.state
        self._checkpoint()
        state.finish()
        found = measure(self._task, self._all_held, device=self._device)
        recipe: Recipe = self._config["recipe"]
        report = {
            "student": self._config["student"],
            "recipe": asdict(recipe),
            "run": self._config["run"],
            "lake_version": self._config["lake_version"],
            "steps": state.step,
            "parameters": sum(p.numel() for p in self._task.student.parameters()),
            "train_slides": len(self._config["train"]),
            "held_out_slides": self._config["held_out"],
            **_fidelity(found, recipe),
            **_speed(state.lines),
            "history": epochs_of(state.lines),
            "train_seconds": round(state.seconds, 3),
            "workers": self._recorder.workers,
            "cpus": os.cpu_count(),
            "device": str(self._device),
        }
        write_student(self._lake, self._config, self._task, report)


def _told(found: Mapping[str, Mapping[float, Fidelity]]) -> dict[str, dict[str, Any]]:
    return {
        name: {mpp_name(mpp): part.to_dict() for mpp, part in parts.items()}
        for name, parts in found.items()
    }


def _fidelity(
    found: Mapping[str, Mapping[float, Fidelity]], recipe: Recipe
) -> dict[str, dict[str, Any]]:
    """By teacher, over all mpps and at each; what else was predicted, apart."""
    whole = {name: combined(dict(parts)) for name, parts in found.items()}
    return {
        "fidelity": {name: value for name, value in whole.items() if name in recipe.teachers},
        "fidelity_under": {
            name: value for name, value in whole.items() if name not in recipe.teachers
        },
        "fidelity_per_mpp": _told(found),
    }


def _speed(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Over the recorded steps but the first line, in which memory and threads are warmed up."""
    steps = [line for line in lines if "losses" in line]
    steps = steps[1:] or steps
    if not steps:
        msg = "a run of no steps has no speed"
        raise DistillError(msg)
    return {
        name: round(sum(line[name] for line in steps) / len(steps), 4)
        for name in ("data_wait", "tiles_per_s")
    }
