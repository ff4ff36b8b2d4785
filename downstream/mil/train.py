"""Training a MIL model on the bags of one split, and predicting bags.

Validation patients decide when to stop; nothing here reads test patients.

Shape letters: P patients, B bags of a batch, N tiles, D feature width, C outputs.
"""

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from downstream.mil.aggregators.experts import Experts
from downstream.mil.bag_feed import BagFeed, Room, SentBag, sent_ahead
from downstream.mil.bag_sequence import BagSequence, tile_statistics
from downstream.mil.build import build_model
from downstream.mil.losses import balanced_order
from downstream.mil.padded_bags import MilError, PaddedBags, pad_bags, plan_batches
from downstream.mil.predict import device_of, predict_feed

if TYPE_CHECKING:
    from downstream.mil.model import MilModel
    from downstream.mil.objective import Objective
    from downstream.run.feature_bags import PatientBag
    from downstream.run.fit_settings import MilSettings
    from downstream.run.study_spec import CovariateFusionName

Floats = NDArray[np.float64]

_TERM_RATE, _JOINT_TERM_RATE = 5e-3, 2.5e-2
"""Least step size of covariates' terms and of thresholds, and that under a joint objective."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Bags of patients and their targets.

    Attributes:
        bags: one bag per patient.
        target: targets: [P] class indices or numbers, [P, C] labels, probabilities, or (time,
            event).
        covariates: encoded covariates of each patient [P, K]; None without any.
    """

    bags: BagSequence
    target: NDArray[np.float64]
    covariates: Floats | None = None

    def __post_init__(self) -> None:
        """Raise MilError unless each bag has one target, and covariates if there are any."""
        beside = len(self.bags) if self.covariates is None else len(self.covariates)
        if not len(self.bags) == len(self.target) == beside:
            msg = f"{len(self.bags)} bags with {len(self.target)} targets; give one target per bag"
            msg += "" if self.covariates is None else f", and covariates, not {beside} rows"
            raise MilError(msg)

    @cached_property
    def tiles(self) -> NDArray[np.int64]:
        """Return the number of tiles of each bag [P], cached because it may read the bags."""
        return np.array([len(self.bags[at]) for at in range(len(self.bags))], dtype=np.int64)

    @property
    def classes(self) -> NDArray[np.int64]:
        """Return the class of each patient [P], the likeliest class of a soft label."""
        hard_P = self.target if self.target.ndim == 1 else self.target.argmax(axis=1)
        return hard_P.astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A trained model, with the losses of its training.

    Attributes:
        model: the model in evaluation mode, with the weights of the best epoch.
        epochs: number of the best epoch, from 1 on; of the last epoch without validation.
        train_loss: training loss of each epoch.
        validation_loss: validation loss of each epoch; empty without validation.
    """

    model: "MilModel"
    epochs: int
    train_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]


def train_mil(
    name: str,
    train: Examples,
    validation: Examples | None,
    objective: "Objective",
    settings: "MilSettings",
    *,
    widths: tuple[int, ...],
    seed: int,
    ratios: tuple[int, ...] = (),
    covariate_fusion: "CovariateFusionName" = "late",
    device: str = "cpu",
) -> TrainedModel:
    """Train a MIL model with AdamW; return the weights of the least validation loss.

    The result is a function of examples, settings and seed on one machine; the caller's random
    state is left as it was. Without validation it trains for all its epochs.

    Args:
        name: name of the aggregator.
        train: TRAINING patients; features are standardised by their tiles alone.
        validation: other patients, who decide when to stop; None, or no patients, for no early
            stop.
        objective: training objective, fitted on the training patients.
        settings: settings of the model and of its training.
        widths: feature width of each teacher of the feature set.
        seed: seed of initialisation, order, dropout and tile subsets.
        ratios: ratios between the mpps, coarse to fine.
        covariate_fusion: how covariates of the examples meet the tiles, see `make_fusion`.
        device: Torch device to train on.

    Raises:
        MilError: No patients, an unknown aggregator, or a loss that is not finite.
    """
    if not len(train.bags):
        msg = "no training patients; give at least one"
        raise MilError(msg)
    mean_D, std_D = tile_statistics(train.bags)
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(
            name,
            objective.task,
            settings,
            widths=widths,
            ratios=ratios,
            mean_D=mean_D,
            std_D=std_D,
            covariates=0 if train.covariates is None else train.covariates.shape[1],
            covariate_fusion=covariate_fusion,
        ).to(device)
        return _train_epochs(model, train, validation, objective, settings, rng)


def _train_epochs(
    model: "MilModel",
    train: Examples,
    validation: Examples | None,
    objective: "Objective",
    settings: "MilSettings",
    rng: np.random.Generator,
) -> TrainedModel:
    """Train for all epochs, or until validation has not improved for `patience` epochs."""
    optimiser = torch.optim.AdamW(
        _parameter_groups(model, settings, is_joint=objective.joint),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    device = device_of(model)
    room = Room.of(device)
    feed = BagFeed(train.bags, device, room=room)
    watched = validation if validation is not None and len(validation.bags) else None
    watched_feed = None if watched is None else BagFeed(watched.bags, device, room=room)
    losses: list[float] = []
    validation_losses: list[float] = []
    best, kept = 0, copy.deepcopy(model.state_dict())
    for epoch in range(settings.epochs):
        batches = _batches(feed, train, objective, settings, rng)
        losses.append(_train_epoch(model, batches, objective, settings, optimiser))
        if watched is None or watched_feed is None:
            continue
        validation_losses.append(
            _whole_loss(model, watched_feed, watched.target, watched.covariates, objective)
        )
        if validation_losses[-1] <= min(validation_losses):
            best, kept = epoch, copy.deepcopy(model.state_dict())
        if epoch - best >= settings.patience:
            break
    if watched is not None:
        model.load_state_dict(kept)
    return TrainedModel(
        model=model.eval(),
        epochs=best + 1 if watched is not None else len(losses),
        train_loss=tuple(losses),
        validation_loss=tuple(validation_losses),
    )


def _parameter_groups(
    model: "MilModel", settings: "MilSettings", *, is_joint: bool
) -> list[dict[str, Any]]:
    """Return the parameters of the network, and those of few terms with a step of their own.

    These are of covariates, which are standardised, and the thresholds of ordered classes. At the
    step of the tiles' network, a thousand steps would not bring them to where they belong. A joint
    objective has few steps, of many patients each, and takes longer ones.
    """
    beside = [] if model.covariates is None else list(model.covariates.parameters())
    beside += list(model.link.parameters())
    numbers = {id(part) for part in beside}
    groups: list[dict[str, Any]] = [
        {"params": [part for part in model.parameters() if id(part) not in numbers]}
    ]
    if beside:
        least = _JOINT_TERM_RATE if is_joint else _TERM_RATE
        rate = max(settings.learning_rate, least)
        groups.append({"params": beside, "lr": rate})
    return groups


def _train_epoch(
    model: "MilModel",
    batches: Iterator["TrainBatch"],
    objective: "Objective",
    settings: "MilSettings",
    optimiser: torch.optim.Optimizer,
) -> float:
    """Train for one pass over the training patients; return the mean loss of its steps.

    Losses are fetched after the last step, so that a GPU need not wait for the host in between.
    """
    model.train()
    losses, rows_of_losses = [], []
    with contextlib.closing(sent_ahead(batches, device_of(model))) as sent:
        for batch in sent:
            loss = _batch_loss(model, batch, objective, settings)
            if objective.joint and bool(loss.isnan()):
                continue  # a risk set without an event says nothing
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimiser.step()
            losses.append(loss.detach())
            rows_of_losses.append(batch.rows)
    step_losses = torch.stack(losses).tolist() if losses else []
    for step_loss, rows in zip(step_losses, rows_of_losses, strict=True):
        if not math.isfinite(step_loss):
            msg = (
                f"the loss of patients number {rows.tolist()} is {step_loss}; lower the learning "
                "rate"
            )
            raise MilError(msg)
    return float(np.mean(step_losses)) if step_losses else float("nan")


def _batch_loss(
    model: "MilModel", batch: "TrainBatch", objective: "Objective", settings: "MilSettings"
) -> Tensor:
    """Return the loss of a batch, a scalar."""
    with _autocast(settings, batch.target.device):
        if isinstance(model, Experts):
            if batch.balanced is None or batch.labels is None:
                msg = "a model of two experts needs patients class by class; set `experts`"
                raise MilError(msg)
            return model.pair_loss(batch.padded, batch.target, batch.balanced, batch.labels)
        # a mask of one bag hides nothing; looking whether it does makes a GPU wait
        mask = None if len(batch.rows) == 1 else batch.padded.mask
        prediction = model(batch.padded.x, mask, batch.padded.coords, batch.padded.covariates)
    return model.whole_loss(
        lambda logits_BC: objective.loss(logits_BC, batch.target), prediction, batch.target
    ).mean()


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """The input of one training step, on the device of the model.

    Attributes:
        rows: rows of the patients among the training patients.
        padded: their bags.
        target: their targets.
        balanced: bags of the second expert's patients, as many; None without experts.
        labels: targets of these.
    """

    rows: NDArray[np.int64]
    padded: PaddedBags
    target: Tensor
    balanced: PaddedBags | None = None
    labels: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """Return the tensors on the device."""
        parts = [self.target, self.labels]
        for bags in (self.padded, self.balanced):
            parts += [] if bags is None else [bags.x, bags.mask, bags.coords, bags.covariates]
        return [part for part in parts if part is not None]


def _batches(
    feed: BagFeed,
    train: Examples,
    objective: "Objective",
    settings: "MilSettings",
    rng: np.random.Generator,
) -> Iterator[TrainBatch]:
    """Yield the batches of one epoch; all that is drawn at random is drawn here, in this order."""
    # the second expert's patients, class by class, as many a step as the first one's
    order = np.empty(0, dtype=np.int64)
    if settings.experts:
        order = balanced_order(train.classes, seed=int(rng.integers(2**31)))
    at = 0
    for rows in _patient_batches(train, objective, settings, rng):
        padded, target = _padded_batch(feed, train, rows, settings, rng)
        others = order[at : at + len(rows)]
        at += len(rows)
        if not len(others):
            yield TrainBatch(rows=rows, padded=padded, target=target)
            continue
        balanced, labels = _padded_batch(feed, train, others, settings, rng)
        yield TrainBatch(rows=rows, padded=padded, target=target, balanced=balanced, labels=labels)


def _patient_batches(
    train: Examples, objective: "Objective", settings: "MilSettings", rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield rows of patients, in a new order each epoch.

    A step has one patient, as in most MIL code, or several of similar size padded together; a joint
    objective has at least `joint_patients`, so that its risk set is informative.
    """
    patients = len(train.bags)
    size = max(settings.batch_patients, settings.joint_patients if objective.joint else 1)
    if size == 1:
        yield from rng.permutation(patients)[:, None]
        return
    if objective.joint:
        # risk sets are drawn at random: patients of like size would be alike in more than that
        order = rng.permutation(patients)
        yield from np.array_split(order, max(1, patients // size))
        return
    seed = int(rng.integers(2**31))
    tiles_P = np.minimum(train.tiles, settings.max_tiles)
    for rows in plan_batches(tiles_P, most_rows=settings.batch_rows, seed=seed):
        yield from np.array_split(rows, -(-len(rows) // size))


def _padded_batch(
    feed: BagFeed,
    examples: Examples,
    rows: NDArray[np.int64],
    settings: "MilSettings",
    rng: np.random.Generator,
) -> tuple[PaddedBags, Tensor]:
    """Return padded bags, with at most `max_tiles` tiles of each, and their targets."""
    bags = [feed.bag(int(row)) for row in rows]
    share = max(1, settings.batch_rows // len(bags))
    most = min(settings.max_tiles, share)
    tiles = [feed.tiles(bag, _tile_subset(bag, most, rng)) for bag in bags]
    padded = pad_bags([x_ND for x_ND, _ in tiles], [places_NK for _, places_NK in tiles])
    if examples.covariates is not None:
        beside = feed.send(torch.from_numpy(examples.covariates[rows]).float())
        padded = replace(padded, covariates=beside)
    return padded, feed.send(torch.from_numpy(examples.target[rows]).float())


def _tile_subset(
    bag: "PatientBag | SentBag", most: int, rng: np.random.Generator
) -> slice | NDArray[np.int64] | NDArray[np.bool_]:
    """Return a fresh random subset of a bag's tiles, whole families; at least one."""
    if len(bag) <= most:
        return slice(None)
    count = int(bag.family.max()) + 1
    if count == len(bag):
        return np.sort(rng.choice(len(bag), size=most, replace=False))
    order = rng.permutation(count)
    sizes = np.bincount(bag.family, minlength=count)[order]
    return np.isin(bag.family, order[: max(1, int((sizes.cumsum() <= most).sum()))])


@torch.no_grad()
def _whole_loss(
    model: "MilModel",
    feed: BagFeed,
    target: NDArray[np.float64],
    covariates_PK: Floats | None,
    objective: "Objective",
) -> float:
    """Return the mean loss of the logits over patients, whole bags, no dropout."""
    logits, _ = predict_feed(model, feed, covariates_PK, with_attention=False)
    target_P = torch.from_numpy(target).float()
    return float(objective.loss(torch.from_numpy(logits).float(), target_P).mean())


def _autocast(settings: "MilSettings", device: torch.device) -> torch.autocast:
    """Return the precision of the forward pass; losses and statistics are float32."""
    on = settings.precision == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=on)
