"""Every model by name, with its properties that a study needs without importing torch.

One more aggregator is a module in `mil/aggregators` and an entry here; checks, help and docs follow
from the entry. What is heavy is named by `module:attribute` and imported on use.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from downstream.run.study_errors import StudyError

TileClasses = Literal["none", "outputs", "at least two"]


@dataclass(frozen=True, kw_only=True)
class AggregatorEntry:
    """A MIL model, as a study lists it.

    Attributes:
        loader: `module:class`, imported on use.
        summary: Short description of the model.
        options: Options of the class for this name.
        tile_classes: The option `classes` of a class with classifiers of tiles or of parts of a
            bag: as many as the model has `outputs`, or `at least two` (a binary model has one
            output); `none` without.
        labels_tiles: Whether it has a loss on labels of tiles, which needs classes: it serves no
            number and no survival.
        several_mpps: Whether it needs tiles at several nested mpps.
    """

    loader: str
    summary: str
    options: Mapping[str, Any] = field(default_factory=dict)
    tile_classes: TileClasses = "none"
    labels_tiles: bool = False
    several_mpps: bool = False


@dataclass(frozen=True, kw_only=True)
class PooledEntry:
    """A model on pooled features, one vector per patient, as a study lists it.

    Attributes:
        loader: `module:function` that fits it, imported on use.
        summary: Short description of the model.
        is_reduced: For survival, whether its inputs are principal components, not all features.
        chooses: For survival, the number that it chooses on validation patients; else empty.
        may_have_nobody: Whether it has a value for that number where there is nobody to choose on.
        is_raw: Whether it sees the features as they are, neither scaled nor reduced.
    """

    loader: str
    summary: str
    is_reduced: bool = True
    chooses: str = ""
    may_have_nobody: bool = False
    is_raw: bool = False


_POOLING = "downstream.mil.aggregators.pooling"
AGGREGATORS: dict[str, AggregatorEntry] = {
    "abmil": AggregatorEntry(loader=f"{_POOLING}:Abmil", summary="gated attention"),
    "acmil": AggregatorEntry(
        loader="downstream.mil.aggregators.acmil:Acmil",
        summary="ACMIL, several attention branches and masked tiles",
        tile_classes="outputs",
    ),
    "clam_mb": AggregatorEntry(
        loader="downstream.mil.aggregators.clam:Clam",
        summary="CLAM with an attention branch for each class",
        options={"multi_branch": True},
        tile_classes="at least two",
        labels_tiles=True,
    ),
    "clam_sb": AggregatorEntry(
        loader="downstream.mil.aggregators.clam:Clam",
        summary="CLAM with one attention branch",
        tile_classes="at least two",
        labels_tiles=True,
    ),
    "dsmil": AggregatorEntry(
        loader="downstream.mil.aggregators.dsmil:Dsmil",
        summary="attention to the most critical tile",
        tile_classes="outputs",
        labels_tiles=True,
    ),
    "dtfd": AggregatorEntry(
        loader="downstream.mil.aggregators.dtfd:Dtfd",
        summary="DTFD-MIL, two tiers of attention over pseudo-bags",
        tile_classes="outputs",
    ),
    "hierarchical": AggregatorEntry(
        loader="downstream.mil.aggregators.hierarchy:Hierarchical",
        summary="attention over nested mpps (PatHME)",
        several_mpps=True,
    ),
    "ilra": AggregatorEntry(
        loader="downstream.mil.aggregators.ilra:Ilra",
        summary="ILRA, low-rank attention through latent vectors",
    ),
    "max": AggregatorEntry(loader=f"{_POOLING}:MaxPool", summary="maximum over tiles"),
    "mean": AggregatorEntry(loader=f"{_POOLING}:MeanPool", summary="mean over tiles"),
    "rrt": AggregatorEntry(
        loader="downstream.mil.aggregators.rrt:Rrt",
        summary="RRT-MIL, attention within regions and across them",
    ),
    "transformer": AggregatorEntry(
        loader="downstream.mil.aggregators.transformer:PositionTransformer",
        summary="transformer with a distance bias",
    ),
    "transmil": AggregatorEntry(
        loader="downstream.mil.aggregators.transmil:TransMil",
        summary="TransMIL, Nystrom attention on the grid",
    ),
    "wikg": AggregatorEntry(
        loader="downstream.mil.aggregators.wikg:WiKG",
        summary="WiKG, attention over a graph of like tiles",
    ),
}
"""Models of bags, of all tasks."""

PROBES: dict[str, PooledEntry] = {
    "linear": PooledEntry(
        loader="downstream.probes.heads:fit_linear", summary="logistic or ridge regression"
    ),
    "knn": PooledEntry(
        loader="downstream.probes.heads:fit_nearest", summary="nearest neighbours by cosine"
    ),
    "logistic": PooledEntry(
        loader="downstream.probes.heads:fit_plain_logistic",
        summary="logistic regression as Patho-Bench fits it",
        is_raw=True,
    ),
}
"""Models of classes and numbers on pooled features."""

_SURVIVAL = "downstream.survival.pooled_models"
POOLED: dict[str, PooledEntry] = {
    "boosting": PooledEntry(
        loader=f"{_SURVIVAL}:fit_boosting", summary="boosted trees", chooses="number of trees"
    ),
    "cox": PooledEntry(
        loader=f"{_SURVIVAL}:fit_cox",
        summary="ridge Cox regression",
        chooses="penalty",
        may_have_nobody=True,
    ),
    "coxnet": PooledEntry(
        loader=f"{_SURVIVAL}:fit_coxnet",
        summary="elastic-net Cox regression",
        is_reduced=False,
        chooses="penalty",
    ),
    "coxnet_fixed": PooledEntry(
        loader=f"{_SURVIVAL}:fit_fixed_coxnet",
        summary="elastic-net Cox regression as Patho-Bench fits it",
        is_reduced=False,
        is_raw=True,
    ),
    "forest": PooledEntry(loader=f"{_SURVIVAL}:fit_forest", summary="random survival forest"),
}
"""Models of survival on pooled features."""

CLINICAL: dict[str, PooledEntry] = {
    "covariates": PooledEntry(
        loader="downstream.cells.cell_models:fit_covariate_member",
        summary="logistic, ridge or Cox regression of the covariates alone",
    ),
}
"""Models that see no tile: what the tiles add is told by comparing with them."""

_Table = Mapping[str, AggregatorEntry] | Mapping[str, PooledEntry]
TRAINERS: dict[str, tuple[tuple[_Table, str], ...]] = {
    "mil": (
        (AGGREGATORS, "downstream.cells.cell_models:fit_mil_member"),
        (PROBES, "downstream.cells.cell_models:fit_probe_member"),
        (CLINICAL, "downstream.cells.cell_models:fit_covariate_member"),
    ),
    "survival": (
        (POOLED, "downstream.survival.survival_cell_models:fit_pooled_member"),
        (AGGREGATORS, "downstream.survival.survival_cell_models:fit_survival_member"),
        (CLINICAL, "downstream.survival.survival_cell_models:fit_covariate_member"),
    ),
}
"""By kind of study the tables of its models, each with the function that trains one on a split."""


def models_of(kind: str) -> dict[str, str]:
    """Return the models of a kind of study, by name, with their summaries; for checks and help.

    >>> sorted(models_of("survival"))[:3], models_of("mil")["abmil"]
    (['abmil', 'acmil', 'boosting'], 'gated attention')
    """
    return {name: table[name].summary for table, _ in TRAINERS[kind] for name in table}


def trainer_of(kind: str, model: str) -> Callable[..., Any]:
    """Return the function that trains a model of a study on one split.

    Raises:
        StudyError: The kind of study has no such model.
    """
    for table, loader in TRAINERS[kind]:
        if model in table:
            return load(loader)
    msg = f"model {model!r}; a {kind} study has {', '.join(sorted(models_of(kind)))}"
    raise StudyError(msg)


def load(loader: str) -> Callable[..., Any]:
    """Return the imported attribute of a loader, `module:attribute`."""
    module, _, attribute = loader.partition(":")
    loaded: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return loaded
