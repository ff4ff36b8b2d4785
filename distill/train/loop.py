"""The training loop of one worker in plain torch, without Ray and without a lake.

All random draws, those of dropout included, depend on the seed, the step, its part and the worker
alone, so that a run that continues from a checkpoint has the same draws as an undisturbed run.

Shape letters: B samples.
"""

import contextlib
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from distill.errors import DistillError
from distill.evaluate.measures.fidelity import Fidelity
from distill.losses.weighting import self_paced_weights
from distill.recipes.recipe import Recipe, Schedule
from distill.students.task import TrainingTask, on_device
from distill.train.batches import mixed
from distill.train.ema import Ema, average_running_statistics
from distill.train.mosaics import MosaicStream
from featurestore import TileBatch
from featurestore.read import Stream

LISTED = 8
#: Distinguishes the seeds of a network's own draws from those of views and terms.
NETWORK_DRAWS = 1


@dataclass(kw_only=True)
class State:
    """The state of a training, as a checkpoint holds it.

    Attributes:
        task: the student with its heads, terms and moving averages.
        optimiser: AdamW over the task's parameters.
        average: moving average that is kept instead of the student, if the recipe has one.
        step: number of optimiser steps that are done.
        lines: lines of the log so far.
        seconds: seconds of training, over all tries.
    """

    task: TrainingTask
    optimiser: torch.optim.Optimizer
    average: Ema | None = None
    step: int = 0
    lines: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def fresh(cls, task: TrainingTask, schedule: Schedule) -> "State":
        """Return the state of step 0."""
        average = Ema(task.student, lambda _: schedule.ema) if schedule.ema else None
        return cls(task=task, optimiser=make_optimiser(task, schedule), average=average)

    def to_bytes(self) -> bytes:
        """Return the state as a file, which `load` reads without unpickling objects."""
        file = io.BytesIO()
        average = None if self.average is None else self.average.state_dict()
        kept = {
            "task": self.task.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": average,
            "step": self.step,
            "lines": self.lines,
            "seconds": self.seconds,
        }
        torch.save(kept, file)
        return file.getvalue()

    def load(self, file: bytes) -> None:
        """Load the state from a checkpoint's file."""
        kept = torch.load(io.BytesIO(file), weights_only=True, map_location="cpu")
        self.task.load_state_dict(kept["task"])
        self.optimiser.load_state_dict(kept["optimiser"])
        if self.average is not None:
            self.average.load_state_dict(kept["average"])
        self.step, self.lines, self.seconds = kept["step"], kept["lines"], kept["seconds"]

    def finish(self) -> None:
        """Put the moving average, if there is one, in the student's place."""
        if self.average is not None:
            self.task.student.load_state_dict(self.average.module.state_dict())


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """The record of an optimiser step.

    Attributes:
        number: number of the step, from 1.
        losses: mean over the step's tiles of each weighted term.
        gradient: norm of the gradient before clipping.
        rate: the learning rate.
        tiles: number of tiles of this worker.
        waited_s: seconds of waiting for data.
        seconds: seconds of the whole step.
    """

    number: int
    losses: dict[str, float]
    gradient: float
    rate: float
    tiles: int
    waited_s: float
    seconds: float


def make_optimiser(task: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    """Return AdamW without weight decay of biases and norms."""
    trained = [p for p in task.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": schedule.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=schedule.learning_rate)


def learning_rate(schedule: Schedule, step: int, steps: int) -> float:
    """Return a step's learning rate: linear warm-up, then cosine decay to zero at the last step."""
    warmup = max(1, round(schedule.warmup_share * steps))
    if step < warmup:
        return schedule.learning_rate * (step + 1) / warmup
    decay = 1 + math.cos(math.pi * (step - warmup) / (steps - warmup))
    return schedule.learning_rate * 0.5 * decay


def pace(schedule: Schedule, step: int, steps: int) -> float:
    """Return the share of a step's tiles that count: growing to 1 in the first half of the run.

    >>> [pace(Schedule(self_paced=0.5), step, 100) for step in (0, 25, 50, 99)]
    [0.5, 0.75, 1.0, 1.0]
    """
    return min(1.0, schedule.self_paced + (1 - schedule.self_paced) * 2 * step / steps)


def seed_of(seed: int, *place: int) -> int:
    """Return a seed for one place of a run, independent of those of all other places."""
    (word,) = np.random.SeedSequence([seed, *place]).generate_state(1, np.uint64).tolist()
    return int(word) >> 1


def generator_of(seed: int, *place: int) -> torch.Generator:
    """Return a generator for one place of a run, independent of earlier draws."""
    return torch.Generator().manual_seed(seed_of(seed, *place))


class Loop:
    """Trains a task on streams to the end of its schedule.

    Args:
        recipe: recipe of the run.
        state: state from which training continues.
        streams: streams of this worker, one for each mpp.
        device: device of the task.
        model: the module that is called: the task, or a wrapper for several workers.
        rank: rank of this worker.

    Raises:
        DistillError: there are too few tiles for one step.
    """

    def __init__(
        self,
        recipe: Recipe,
        state: State,
        streams: Sequence[Stream | MosaicStream],
        *,
        device: torch.device | str = "cpu",
        model: nn.Module | None = None,
        rank: int = 0,
    ) -> None:
        self.recipe, self.state, self._streams = recipe, state, streams
        self.device, self._rank = torch.device(device), rank
        self._model = model or state.task
        parts = sum(stream.steps for stream in streams)
        self.epoch_steps = parts // recipe.schedule.accumulate
        if self.epoch_steps < 1:
            msg = (
                f"{parts} batches an epoch are too few for steps of {recipe.schedule.accumulate} "
                "parts; take fewer parts, smaller batches or more slides"
            )
            raise DistillError(msg)
        self.steps = self.epoch_steps * recipe.schedule.epochs

    @property
    def epoch(self) -> int:
        """Return the number of epochs that are done."""
        return self.state.step // self.epoch_steps

    def run(self, after: Callable[[TrainingStep], None]) -> None:
        """Train from the state's step to the end; `after` is called with each step.

        Raises:
            DistillError: a loss or a gradient is not finite; the tiles are named.
        """
        while self.state.step < self.steps:
            done = self.state.step % self.epoch_steps
            first = done * self.recipe.schedule.accumulate
            batches = mixed(self._streams, epoch=self.epoch, seed=self.recipe.seed, first=first)
            with contextlib.closing(batches):  # type: ignore[type-var]
                for _ in range(done, self.epoch_steps):
                    after(self._step(batches))

    def _step(self, batches: Iterator[TileBatch]) -> TrainingStep:
        state, schedule = self.state, self.recipe.schedule
        start = time.perf_counter()
        self._model.train()
        rate = learning_rate(schedule, state.step, self.steps)
        for group in state.optimiser.param_groups:
            group["lr"] = rate
        state.optimiser.zero_grad(set_to_none=True)
        parts = [self._part(batches, number) for number in range(schedule.accumulate)]
        trained = [p for group in state.optimiser.param_groups for p in group["params"]]
        gradient = float(nn.utils.clip_grad_norm_(trained, schedule.clip))
        self._refuse_not_finite(gradient, [key for part in parts for key in part.broken])
        state.optimiser.step()
        average_running_statistics(state.task)
        state.task.after_step(state.step)
        if state.average is not None:
            state.average.update(state.task.student, state.step)
        state.step += 1
        seconds = time.perf_counter() - start
        state.seconds += seconds
        return TrainingStep(
            number=state.step,
            losses=_means([part.losses for part in parts]),
            gradient=gradient,
            rate=rate,
            tiles=sum(part.tiles for part in parts),
            waited_s=sum(part.waited_s for part in parts),
            seconds=seconds,
        )

    def _part(self, batches: Iterator[TileBatch], number: int) -> "_Part":
        start = time.perf_counter()
        batch = next(batches)
        waited_s = time.perf_counter() - start
        schedule = self.recipe.schedule
        place = (self.state.step, number, self._rank)
        generator = generator_of(self.recipe.seed, *place)
        # Dropout and drop path draw from torch's own generator, which no checkpoint holds.
        torch.manual_seed(seed_of(self.recipe.seed, *place, NETWORK_DRAWS))
        with self._without_sync(number):
            with self._autocast():
                losses = self._model(on_device(batch, self.device), generator)
            total_B = torch.stack(list(losses.values())).sum(dim=0)
            broken = (~torch.isfinite(total_B.detach())).nonzero()[:, 0].tolist()
            if (share := pace(schedule, self.state.step, self.steps)) < 1:
                total_B = total_B * self_paced_weights(total_B, share)
            # The common gradient becomes NaN, so that all workers stop together.
            total = total_B.mean() if not broken else total_B.mean() * math.nan
            (total / schedule.accumulate).backward()  # type: ignore[no-untyped-call]
        means = torch.stack([loss.detach().float().mean() for loss in losses.values()]).tolist()
        return _Part(
            losses=dict(zip(losses, means, strict=True)),
            tiles=len(batch.tile_id),
            waited_s=waited_s,
            broken=batch.tile_id[broken].tolist(),
        )

    def _without_sync(self, number: int) -> contextlib.AbstractContextManager[object]:
        """Return the context in which gradients of all but the last part stay on their worker."""
        if number < self.recipe.schedule.accumulate - 1 and hasattr(self._model, "no_sync"):
            return self._model.no_sync()  # type: ignore[no-any-return, operator]
        return contextlib.nullcontext()

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.recipe.schedule.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _refuse_not_finite(self, gradient: float, broken: Sequence[int]) -> None:
        if math.isfinite(gradient):
            return
        tiles = f"of tiles {broken[:LISTED]}" if broken else "of another worker, or the gradient,"
        msg = (
            f"the loss {tiles} is not finite at step {self.state.step}: look at their features "
            "(slidelake verify), or take a smaller learning rate"
        )
        raise NotFiniteError(msg, tiles=tuple(broken))


class NotFiniteError(DistillError):
    """Raised if a loss or a gradient is not finite.

    Attributes:
        tiles: keys of the tiles without a finite loss; empty if they are another worker's tiles.
    """

    def __init__(self, message: str, *, tiles: tuple[int, ...]) -> None:
        super().__init__(message)
        self.tiles = tiles


@dataclass(frozen=True, kw_only=True)
class _Part:
    losses: dict[str, float]
    tiles: int
    waited_s: float
    broken: list[int]


def _means(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}


def measure(
    task: TrainingTask,
    streams: Sequence[Stream],
    *,
    device: torch.device | str = "cpu",
    tiles: int | None = None,
) -> dict[str, dict[float, Fidelity]]:
    """Measure the fidelity by prediction and mpp over the tiles of (held-out) streams.

    Args:
        task: the task, which is put in evaluation mode.
        streams: one stream for each mpp.
        device: device of the task.
        tiles: number of first tiles of each stream that are measured; all if None.
    """
    task.eval()
    fidelity: dict[str, dict[float, Fidelity]] = {}
    for stream in streams:
        stream.set_epoch(0)
        measured_tiles = 0
        with contextlib.closing(iter(stream)) as batches, torch.inference_mode():
            for batch in batches:
                for name, prediction in task.predict(on_device(batch, device)).items():
                    part = fidelity.setdefault(name, {}).setdefault(prediction.mpp, Fidelity())
                    part.add(prediction.predicted, prediction.features, prediction.norm)
                measured_tiles += len(batch.tile_id)
                if tiles is not None and measured_tiles >= tiles:
                    break
    return fidelity
