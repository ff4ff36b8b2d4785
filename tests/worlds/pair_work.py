"""What a pair of workers computes for tests of trainings by several workers."""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distill.losses.acquisition_losses import acquisition_nce_loss
from distill.losses.angle_losses import Dispersion, angle_loss
from distill.losses.feature_losses import info_nce_loss
from distill.losses.logit_losses import decoupled_levels_loss, multi_level_loss
from distill.losses.over_workers import loss_over_workers, mean_over_workers
from distill.losses.relation_losses import batch_relation_loss
from distill.losses.self_losses import koleo_loss
from distill.losses.vicreg import vicreg_loss
from distill.losses.weighting import self_paced_weights
from distill.recipes.recipe import Recipe
from distill.students.heads import NormedHead
from distill.students.task import TrainingTask
from distill.train.loop import Loop, State, TrainingStep
from tests.worlds.recipe_cases import CASES, STEPS, CaseStream, rows

Numbers = dict[str, Tensor]
SAMPLES, DIM, OTHER_DIM = 12, 6, 5


class StoppedError(Exception):
    """Stands for a kill."""


def trained(name: str, *, kill_after: int | None = None, rank: int = 0, world: int = 1) -> Numbers:
    """Return the state of a case's task after all steps, with the kept average.

    Args:
        name: name of the case.
        kill_after: number of steps after which it is killed and goes on from the checkpoint of the
            first worker; not killed if None.
        rank: number of this worker.
        world: number of all workers.
    """
    recipe = CASES[name].made()
    loop = _loop(name, recipe, None, rank, world)
    if kill_after is not None:
        _run(loop, until=kill_after)
        checkpoint = _of_first_worker(loop.state.to_bytes(), world)
        torch.manual_seed(1234 + rank)  # of another process
        loop = _loop(name, recipe, checkpoint, rank, world)
    _run(loop)
    assert loop.state.step == STEPS
    average = loop.state.average
    kept = {} if average is None else {f"kept.{k}": x for k, x in average.state_dict().items()}
    return {**loop.state.task.state_dict(), **kept}


def _loop(name: str, recipe: Recipe, checkpoint: bytes | None, rank: int, world: int) -> Loop:
    task = CASES[name].task(recipe)
    state = State.fresh(task, recipe.schedule)
    if checkpoint is not None:
        state.load(checkpoint)
    parts = recipe.schedule.accumulate
    stream = CaseStream(CASES[name], parts=parts, rank=rank, world=world)
    return Loop(recipe, state, [stream], model=_wrapped(task, world), rank=rank)  # type: ignore[list-item]


def _wrapped(task: TrainingTask, world: int) -> nn.Module:
    return task if world == 1 else DistributedDataParallel(task, broadcast_buffers=False)


def _run(loop: Loop, *, until: int | None = None) -> None:
    def after(step: TrainingStep) -> None:
        if step.number == until:
            raise StoppedError

    with contextlib.suppress(StoppedError):
        loop.run(after)


def _of_first_worker(checkpoint: bytes, world: int) -> bytes:
    if world == 1:
        return checkpoint
    all_checkpoints: list[bytes] = [b""] * world
    torch.distributed.all_gather_object(all_checkpoints, checkpoint)
    return all_checkpoints[0]


def trained_pair() -> dict[str, tuple[Numbers, Numbers]]:
    """Return the state of each case, undisturbed and killed after half of its steps."""
    place = {"rank": torch.distributed.get_rank(), "world": torch.distributed.get_world_size()}
    return {
        name: (trained(name, **place), trained(name, kill_after=STEPS // 2, **place))
        for name in CASES
    }


# ---------------------------------------------------------------------- losses

LOSSES = (
    "koleo",
    "contrast",
    "relation",
    "multi-level",
    "decoupled-levels",
    "acquisition",
    "angle",
    "self-paced",
    "vicreg",
    "normed",
)


def inputs(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a student's and a teacher's samples."""
    drawn = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(SAMPLES, DIM, generator=drawn) for _ in range(2))
    return student, teacher


def losses_and_gradient(
    name: str, student: Tensor, teacher: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Return a loss's values [B], and the gradient of this worker's samples as DDP averages it."""
    x = student.clone().requires_grad_()
    if name == "koleo":
        loss = loss_over_workers(koleo_loss, x)
    elif name == "contrast":
        loss = loss_over_workers(info_nce_loss, x, teacher)
    elif name == "relation":
        loss = loss_over_workers(batch_relation_loss, x, teacher[:, :OTHER_DIM])
    elif name == "multi-level":
        loss = loss_over_workers(multi_level_loss, x, teacher)
    elif name == "decoupled-levels":
        loss = loss_over_workers(
            lambda s, t: decoupled_levels_loss(s, t, t.argmax(dim=1)), x, teacher
        )
    elif name == "acquisition":
        variants = torch.stack([x, x.tanh() + teacher], dim=1)
        slide = (teacher[:, 0] > 0) + 2.0 * (teacher[:, 1] > 0)
        loss = loss_over_workers(acquisition_nce_loss, variants, slide > 1, slide)
    elif name == "angle":
        loss = angle_loss(x, teacher, Dispersion(DIM).train()(teacher))
    elif name == "self-paced":
        loss = (x - teacher).square().mean(dim=1)
        loss = loss * self_paced_weights(loss, 0.4)
    elif name == "vicreg":
        loss = loss_over_workers(lambda *branches: vicreg_loss(branches), x, x.tanh(), teacher)
    else:
        torch.manual_seed(0)
        head = NormedHead(DIM, OTHER_DIM).train()
        loss = (head(x) - teacher[:, :OTHER_DIM]).square().mean(dim=1)
    # Each worker's mean weighs as many samples as it has.
    (loss.sum() / SAMPLES).backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert len(loss) == count
    return loss.detach(), x.grad


def pair_losses() -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """Return losses and gradients of this worker's samples, in equal and in unequal parts."""
    rank = torch.distributed.get_rank()
    student, teacher = inputs()
    return {
        kind: {
            name: losses_and_gradient(name, student[part], teacher[part], part.stop - part.start)
            for name in LOSSES
        }
        for kind, parts in (("equal", PARTS), ("unequal", UNEQUAL))
        for part in parts[rank : rank + 1]
    }


PARTS = (slice(0, 6), slice(6, SAMPLES))
UNEQUAL = (slice(0, 9), slice(9, SAMPLES))

#: Settings without random views or dropout, so that workers see what one worker sees.
QUIET = {"dihedral": False, "stain": 0.0, "weighting": "static", "accumulate": 1}
#: Cases without a batch norm in the network, and without random crops or masks.
ALIKE: dict[str, dict[str, Any]] = {
    "agglomerate-vit": {"arguments": {"patch_size": 8}},
    "g2l": {"architecture": "test_vit", "arguments": {"patch_size": 8}},
    "shazam": {},
    "robust": {},
    "terms": {"arguments": {"patch_size": 8}},
}


def case_losses(name: str, rank: int, world: int) -> tuple[dict[str, float], Numbers]:
    """Return the mean loss of each term over all workers, and the common gradient of a step."""
    case = CASES[name]
    changes = QUIET | ALIKE[name]
    if name in ("shazam", "robust"):
        changes = {"weighting": "static"}
    if name == "terms":
        # "self" draws crops and masks for each worker.
        case = type(case)(
            recipe=case.recipe,
            teachers=case.teachers,
            settings=case.settings,
            terms=tuple(term for term in case.terms if not term.startswith("self")),
        )
    task = case.task(case.made(**changes)).train()
    model = _wrapped(task, world)
    losses = model(rows(case.batch(0), rank, world), torch.Generator().manual_seed(0))
    torch.stack(list(losses.values())).sum(dim=0).mean().backward()  # type: ignore[no-untyped-call]
    means = {key: float(mean_over_workers(loss.detach().mean())) for key, loss in losses.items()}
    return means, {k: p.grad for k, p in task.named_parameters() if p.grad is not None}


def pair_case_losses() -> dict[str, tuple[dict[str, float], Numbers]]:
    """Return `case_losses` of each case."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return {name: case_losses(name, rank, world) for name in ALIKE}


def everything() -> dict[str, object]:
    """Return all of the above from one pair of processes, whose start is dear."""
    return {"trained": trained_pair(), "losses": pair_losses(), "cases": pair_case_losses()}
