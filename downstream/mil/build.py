"""A MIL model from a name and settings: fusion of teachers, aggregator, head, standardisation.

Shape letters: D feature width of all teachers together.
"""

from typing import TYPE_CHECKING

import torch

from downstream.mil.aggregators.experts import Experts
from downstream.mil.aggregators.fusion import Concat, FusedAggregator, ShazamGate
from downstream.mil.model import MilModel, make_aggregator
from downstream.mil.padded_bags import MilError
from downstream.mil.pseudo import PseudoTiles
from downstream.run.model_tables import AGGREGATORS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from downstream.mil.losses import BagTask
    from downstream.mil.padded_bags import Aggregator
    from downstream.run.fit_settings import MilSettings


def build_model(
    name: str,
    task: "BagTask",
    settings: "MilSettings",
    *,
    widths: tuple[int, ...],
    ratios: tuple[int, ...],
    mean_D: "NDArray[np.float64]",
    std_D: "NDArray[np.float64]",
) -> MilModel:
    """Return a MIL model with new weights, drawn from torch's random state.

    Args:
        name: name of the aggregator.
        task: task that the model predicts.
        settings: settings of the model: widths, dropout and fusion.
        widths: feature width of each teacher.
        ratios: ratios between the mpps, coarse to fine; empty for one mpp.
        mean_D: mean of the TRAINING tiles.
        std_D: standard deviation of the TRAINING tiles.

    Raises:
        MilError: No such aggregator, or one that does not fit the task or the mpps.
    """
    if name in AGGREGATORS and bool(ratios) != AGGREGATORS[name].several_mpps:
        several = ", ".join(n for n, entry in AGGREGATORS.items() if entry.several_mpps)
        msg = (
            f"model {name!r} with {len(ratios) + 1} mpps; `{several}` takes several, from "
            "coarse to fine, and all others one"
        )
        raise MilError(msg)
    kind = Experts if settings.experts else MilModel
    return kind(
        _aggregator(name, task, settings, widths, ratios),
        task,
        mean_D=torch.from_numpy(mean_D).float(),
        std_D=torch.from_numpy(std_D).float(),
    )


def _aggregator(
    name: str,
    task: "BagTask",
    settings: "MilSettings",
    widths: tuple[int, ...],
    ratios: tuple[int, ...],
) -> "Aggregator":
    """Return the aggregator of a name, behind the fusion of teachers of the settings."""
    fused = settings.fusion != "none" and len(widths) > 1
    # Mean and max get the layer that the others have, so that they differ in the pooling alone;
    # without it they are the probe `linear`.
    options: dict[str, object] = {"dropout": settings.dropout, "hidden": settings.hidden}
    if ratios:
        options["ratios"] = ratios
    width = settings.hidden if fused else sum(widths)
    aggregator = make_aggregator(name, width, task, **options)
    if settings.pseudo_tiles:
        aggregator = PseudoTiles(aggregator, width, task, tiles=settings.pseudo_tiles)
    if not fused:
        return aggregator
    if settings.fusion == "concat":
        return FusedAggregator(Concat(widths, settings.hidden), aggregator)
    gate = ShazamGate(widths, settings.hidden)
    return FusedAggregator(gate, aggregator, reconstruct=settings.reconstruct)
