"""The training loop in plain torch: what one worker does between two checkpoints. No Ray in here.

Letters in names: B samples, C channels, H W pixels.
"""

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from distill.data import mixed
from distill.errors import DistillError
from distill.fidelity import Fidelity
from distill.losses import match_loss
from distill.recipes import Recipe
from distill.student import INTERPOLATION, MEAN, STD
from distill.targets import Standardiser
from featurestore import TileBatch
from featurestore.stream import Stream
from ingest.encoder import preprocess, resized

Norms = Mapping[tuple[str, float], Standardiser]


@dataclass(kw_only=True)
class State:
    """What a checkpoint holds.

    Attributes:
        model: the student with its heads.
        optimiser: AdamW over all its parameters.
        step: steps done.
        epoch: epochs done.
        history: per epoch, the mean loss per teacher and the held-out cosines.
    """

    model: nn.Module
    optimiser: torch.optim.Optimizer
    step: int = 0
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        """The state as a file; `load` reads it without unpickling objects."""
        file = io.BytesIO()
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "step": self.step,
                "epoch": self.epoch,
                "history": self.history,
            },
            file,
        )
        return file.getvalue()

    def load(self, data: bytes) -> None:
        """Go on from a checkpoint's file."""
        found = torch.load(io.BytesIO(data), weights_only=True)
        self.model.load_state_dict(found["model"])
        self.optimiser.load_state_dict(found["optimiser"])
        self.step, self.epoch = found["step"], found["epoch"]
        self.history = found["history"]


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine decay to zero at the last step."""
    warmup = max(1, round(recipe.warmup_share * steps))
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def student_pixels(
    batch: TileBatch, input_px: int, generator: torch.Generator | None = None
) -> Tensor:
    """Normalised pixels [B, C, H, W]; with a generator, each turned and flipped at random.

    They are resized just as `extract` will do it when the student is run. The target stays that of
    the tile as it lies: tissue has no upright, so this teaches the student an invariance that
    costs no teacher.
    """
    if batch.pixels is None:
        msg = "a student needs pixels: make the stream with pixels='uint8'"
        raise DistillError(msg)
    x_BCHW = preprocess(resized(batch.pixels, input_px, INTERPOLATION), MEAN, STD)
    if generator is None:
        return x_BCHW
    turns = torch.randint(0, 8, (len(x_BCHW),), generator=generator).tolist()
    turned = [_dihedral(x, turn) for x, turn in zip(x_BCHW, turns, strict=True)]
    return torch.stack(turned).contiguous(memory_format=torch.channels_last)


def _dihedral(x_CHW: Tensor, turn: int) -> Tensor:
    flipped = x_CHW.flip(2) if turn >= 4 else x_CHW
    return torch.rot90(flipped, turn % 4, (1, 2))


def train_epoch(
    state: State, recipe: Recipe, streams: Sequence[Stream], norms: Norms
) -> dict[str, float]:
    """One epoch; the mean loss per teacher.

    Raises:
        DistillError: a loss is not finite; the tiles of the step are named.
    """
    state.model.train()
    in_epoch = sum(stream.steps for stream in streams)
    generator = torch.Generator().manual_seed(recipe.seed * 100_003 + state.epoch)
    sums: dict[str, float] = dict.fromkeys(recipe.teachers, 0.0)
    for batch in mixed(streams, epoch=state.epoch, seed=recipe.seed):
        for group in state.optimiser.param_groups:
            group["lr"] = learning_rate(recipe, state.step, in_epoch * recipe.epochs)
        losses = step_losses(state.model, batch, recipe, norms, generator)
        loss = torch.stack(list(losses.values())).mean()
        if not torch.isfinite(loss):
            msg = f"the loss is {float(loss)} at step {state.step}, tiles {batch.tile_id.tolist()}"
            raise DistillError(msg)
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
        state.optimiser.step()
        state.step += 1
        for name, value in losses.items():
            sums[name] += float(value.detach()) / in_epoch
    state.epoch += 1
    return sums


def step_losses(
    model: nn.Module,
    batch: TileBatch,
    recipe: Recipe,
    norms: Norms,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    """Mean loss of a batch per teacher."""
    predictions = model(student_pixels(batch, recipe.input_px, generator))
    return {
        name: match_loss(
            predictions[name],
            norms[name, batch.mpp](torch.from_numpy(batch.features[name])),
            cosine_weight=recipe.cosine_weight,
        ).mean()
        for name in recipe.teachers
    }


def measure(
    model: nn.Module, recipe: Recipe, streams: Sequence[Stream], norms: Norms
) -> dict[str, dict[float, Fidelity]]:
    """Fidelity per teacher and mpp over all tiles of the given (held-out) streams."""
    model.eval()
    found = {name: {tiles.mpp: Fidelity() for tiles in streams} for name in recipe.teachers}
    with torch.inference_mode():
        for batch in itertools.chain.from_iterable(streams):
            predictions = model(student_pixels(batch, recipe.input_px))
            for name in recipe.teachers:
                raw = torch.from_numpy(batch.features[name])
                found[name][batch.mpp].add(predictions[name], raw, norms[name, batch.mpp])
    return found
