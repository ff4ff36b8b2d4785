"""One worker of a distillation on Ray Train: its rank, its device, and how gradients travel."""

import ray.train
from ray.train.torch import get_device, prepare_model
from torch import nn

from cluster import Placement
from distill.train import worker
from distill.train.distill_run import DistillRun


def work(
    run: DistillRun, *, placement: Placement, checkpoint_s: float, cache_pixels_gb: float = 0.0
) -> None:
    """Train as one worker of Ray's.

    Args:
        run: the run with student, recipe and slides.
        placement: size of this worker, and of all others.
        checkpoint_s: least number of seconds between checkpoints.
        cache_pixels_gb: greatest size of the file of decoded tiles on its node; 0 for none.
    """
    context = ray.train.get_context()
    world = context.get_world_size()
    worker.work(
        run,
        placement=placement,
        checkpoint_s=checkpoint_s,
        rank=context.get_world_rank(),
        world=world,
        device=get_device(),
        wrap=_wrapped if world > 1 else None,
        cache_pixels_gb=cache_pixels_gb,
    )


def _wrapped(task: nn.Module) -> nn.Module:
    # Running statistics of the first worker are kept; no step reads them, so none are sent.
    wrapped: nn.Module = prepare_model(task, parallel_strategy_kwargs={"broadcast_buffers": False})
    return wrapped
