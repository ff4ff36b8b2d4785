"""A MIL model from a name and settings: fusion of teachers, aggregator, head, standardisation.

Shape letters: D feature width of all teachers together.
"""

from typing import TYPE_CHECKING

import torch

from downstream.mil.aggregators.experts import Experts
from downstream.mil.aggregators.fusion import Concat, FusedAggregator, ShazamGate
from downstream.mil.covariate_fusion import make_fusion
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
    from downstream.run.study_spec import CovariateFusionName


def build_model(
    name: str,
    task: "BagTask",
    settings: "MilSettings",
    *,
    widths: tuple[int, ...],
    ratios: tuple[int, ...],
    mean_D: "NDArray[np.float64]",
    std_D: "NDArray[np.float64]",
    covariates: int = 0,
    covariate_fusion: "CovariateFusionName" = "late",
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
        covariates: number of encoded covariates of a patient; 0 for none.
        covariate_fusion: how they meet the tiles, see `make_fusion`.

    Raises:
        MilError: No such aggregator, one that does not fit the task or the mpps, or covariates
            with experts.
    """
    if name in AGGREGATORS and bool(ratios) != AGGREGATORS[name].several_mpps:
        several = ", ".join(n for n, entry in AGGREGATORS.items() if entry.several_mpps)
        msg = (
            f"model {name!r} with {len(ratios) + 1} mpps; `{several}` takes several, from "
            "coarse to fine, and all others one"
        )
        raise MilError(msg)
    aggregator = _aggregator(name, task, settings, widths, ratios)
    mean, std = torch.from_numpy(mean_D).float(), torch.from_numpy(std_D).float()
    if settings.experts:
        if covariates:
            msg = "experts take no covariates; leave out one of the two"
            raise MilError(msg)
        return Experts(aggregator, task, mean_D=mean, std_D=std)
    fusion = None
    if covariates:
        fusion = make_fusion(
            covariate_fusion, covariates, width=aggregator.width, outputs=task.scores_of_head
        )
    return MilModel(aggregator, task, mean_D=mean, std_D=std, covariates=fusion)


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
