"""Survival models on pooled features, by name; each predicts a risk and a curve.

Scaling and PCA see training patients only. PCA takes features as they are: standardised first, a
strong direction is one of many alike, and the signal in it is lost (`benchmarks/cox_defaults.py`).
Validation patients choose a penalty or a number
of trees and nothing else. Risks point one way: HIGHER = WORSE.

Shape letters: P patients, D feature width, C components, T times.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cluster import counted
from downstream.run.model_tables import POOLED, load
from downstream.survival.curves import at_times
from downstream.survival.risks import SurvivalError

if TYPE_CHECKING:
    from downstream.run.fit_settings import SurvivalSettings

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Ridge penalties of `cox` per unit of total variance, of which validation patients choose one."""
_ALPHA = 0.1
_COVARIATE_PENALTY = 0.01
"""Penalty of `coxnet` on a covariate as a share of that on a feature."""


@dataclass(frozen=True, kw_only=True)
class PooledModel:
    """A fitted model, with the scaling and PCA of its training patients.

    Attributes:
        name: name of the model in `POOLED`.
        pipeline: scikit-learn pipeline from raw pooled features to the estimator's inputs.
        estimator: the scikit-survival estimator.
        options: options of its predictions: the chosen penalty of `coxnet`.
        covariates: number of last columns of the inputs that are covariates.
        covariate_scale: number that they are multiplied by.
    """

    name: str
    pipeline: Any
    estimator: Any
    options: Mapping[str, float] = field(default_factory=dict)
    covariates: int = 0
    covariate_scale: float = 1.0

    def inputs(self, x_PD: Floats) -> Floats:
        """Return the estimator's inputs: scaled features or components, then covariates."""
        width = x_PD.shape[1] - self.covariates
        x_PC: Floats = self.pipeline.transform(x_PD[:, :width])
        return np.hstack([x_PC, x_PD[:, width:] * self.covariate_scale])

    def risk(self, x_PD: Floats) -> Floats:
        """Return the risks of patients float64[P], HIGHER = WORSE.

        Log hazard ratios against the mean training patient (`cox`, `coxnet`), up to a constant
        (`boosting`), or expected numbers of events over the training times (`forest`).
        """
        x_PC = self.inputs(x_PD)
        return np.asarray(self.estimator.predict(x_PC, **self.options), dtype=np.float64)

    def survival(self, x_PD: Floats, times_T: Floats) -> Floats:
        """Return S(t) float64[P, T] in 0..1, never rising; flat after the last training time."""
        x_PC = self.inputs(x_PD)
        ask = self.estimator.predict_survival_function
        # a patient far outside the training patients may have an infinite hazard, and then S = 0
        with np.errstate(over="ignore"):
            curves_PK = ask(x_PC, return_array=True, **self.options)
        return at_times(self.estimator.unique_times_, curves_PK, times_T)


@dataclass(frozen=True, kw_only=True)
class PooledRows:
    """Features and outcomes of patients, as inputs of an estimator.

    Attributes:
        x: [P, C] standardised features, or their principal components.
        time: [P] times to the event or to the end of follow-up.
        event: [P] true where the event was seen.
        covariates: number of last columns of `x` that are covariates.
    """

    x: Floats
    time: Floats
    event: Flags
    covariates: int = 0

    @property
    def outcome(self) -> Any:  # noqa: ANN401
        """Return events and times as the structured array of scikit-survival."""
        from sksurv.util import Surv

        return Surv.from_arrays(self.event, self.time)


def fit_pooled(
    name: str,
    x_PD: Floats,
    time_P: Floats,
    event_P: Flags,
    *,
    validation: tuple[Floats, Floats, Flags] | None,
    settings: "SurvivalSettings",
    seed: int,
    covariates: int = 0,
) -> PooledModel:
    """Fit a model on one training fold; equal arguments yield equal models.

    Args:
        name: name of the model in `POOLED`.
        x_PD: pooled features of the TRAINING patients.
        time_P: times to the event or to the end of follow-up.
        event_P: true where the event was seen.
        validation: (features, times, events) of the inner validation patients, who are not among
            the training patients; for models that choose something, see `POOLED`.
        settings: settings of the models.
        seed: seed of the forest and the boosting.
        covariates: number of last columns that are standardised covariates: linear terms of `cox`
            and `coxnet`, which shrink them least (each counts as a direction that held all
            variance of the features, `coxnet` has a hundredth of its penalty on them), and
            further inputs of trees.

    Raises:
        SurvivalError: An unknown name; training patients without an event or a feature that varies;
            validation patients that nothing can be chosen on; a fit that does not converge.
    """
    if name not in POOLED:
        msg = f"unknown survival model {name!r}; allowed are {', '.join(sorted(POOLED))}"
        raise SurvivalError(msg)
    entry = POOLED[name]
    features_PD = x_PD[:, : x_PD.shape[1] - covariates]
    varying = _count_varying(features_PD, time_P, event_P)
    components = min(settings.components, len(x_PD) - 1, varying) if entry.is_reduced else None
    variance = float(features_PD.var(axis=0).sum())
    blank = PooledModel(
        name=name,
        pipeline=_fit_pipeline(features_PD, components, is_raw=entry.is_raw),
        estimator=None,
        covariates=covariates,
        covariate_scale=variance**0.5 if name == "cox" else 1.0,
    )
    train = PooledRows(x=blank.inputs(x_PD), time=time_P, event=event_P, covariates=covariates)
    held = None
    if entry.chooses and not (entry.may_have_nobody and _has_no_event(validation)):
        held = _validation_rows(blank.inputs, name, entry.chooses, validation)
    estimator, options = load(entry.loader)(train, held, settings, variance, seed)
    return replace(blank, estimator=estimator, options=options)


def _count_varying(x_PD: Floats, time_P: Floats, event_P: Flags) -> int:
    """Return the number of features that vary over the training patients."""
    varying = int((np.ptp(x_PD, axis=0) > 0).sum()) if len(x_PD) else 0
    same = len(x_PD) == len(time_P) == len(event_P)
    if not same or not event_P.any() or not varying:
        msg = (
            f"{counted(len(x_PD), 'training patient', 'have')} {int(event_P.sum())} events, "
            f"{len(time_P)} times "
            f"and {varying} features that vary; a survival model needs a time each, an event and "
            "a feature that varies: use fewer folds or more patients"
        )
        raise SurvivalError(msg)
    return varying


def _fit_pipeline(x_PD: Floats, components: int | None, *, is_raw: bool) -> Any:  # noqa: ANN401
    """Return a fitted scaling of each feature, or PCA of them all if components are given.

    Raw features are passed on as they are.
    """
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    step = StandardScaler(with_mean=not is_raw, with_std=not is_raw)
    if components is not None:
        step = PCA(n_components=components, svd_solver="full")
    return make_pipeline(step).fit(x_PD)


def _has_no_event(validation: tuple[Floats, Floats, Flags] | None) -> bool:
    """Whether there is no validation patient with an event, on whom to choose."""
    return validation is None or not bool(validation[2].any())


def _validation_rows(
    inputs: Callable[[Floats], Floats],
    name: str,
    chooses: str,
    validation: tuple[Floats, Floats, Flags] | None,
) -> PooledRows:
    """Return the validation patients, if there is anything to choose on."""
    if validation is None or _has_no_event(validation):
        patients = 0 if validation is None else len(validation[2])
        msg = (
            f"{name} chooses its {chooses} on validation patients, and {patients} without an event "
            "were given; name validation patients with events, or take cox or forest, which choose "
            "nothing"
        )
        raise SurvivalError(msg)
    x_PD, time_P, event_P = validation
    return PooledRows(x=inputs(x_PD), time=time_P, event=event_P)


def fit_cox(
    train: PooledRows,
    held: PooledRows | None,
    settings: "SurvivalSettings",
    variance: float,
    _seed: int,
) -> tuple[Any, dict[str, float]]:
    """Fit a ridge Cox regression, its penalty chosen on validation patients where there are any.

    The penalty is per unit of the features' total variance: without it a wide teacher would be
    shrunk less than a narrow one.
    """
    from sksurv.linear_model import CoxPHSurvivalAnalysis

    penalties = [settings.alpha or _ALPHA]
    if settings.alpha is None and held is not None:
        penalties = list(PENALTIES)
    fits = [
        CoxPHSurvivalAnalysis(alpha=penalty * variance).fit(train.x, train.outcome)
        for penalty in penalties
    ]
    if held is None or len(fits) == 1:
        return fits[0], {}
    losses = [_loss(cox.predict(held.x), held) for cox in fits]
    return fits[int(np.argmin(losses))], {}


def fit_coxnet(
    train: PooledRows, held: PooledRows, settings: "SurvivalSettings", _variance: float, _seed: int
) -> tuple[Any, dict[str, float]]:
    """Fit an elastic-net Cox regression; the greatest penalty leaves no feature."""
    from sksurv.linear_model import CoxnetSurvivalAnalysis

    factors = np.ones(train.x.shape[1])
    factors[len(factors) - train.covariates :] = _COVARIATE_PENALTY
    net = CoxnetSurvivalAnalysis(
        penalty_factor=factors if train.covariates else None,
        l1_ratio=settings.l1_ratio,
        n_alphas=settings.penalties,
        alpha_min_ratio=settings.least_penalty,
        fit_baseline_model=True,
    )
    try:
        net.fit(train.x, train.outcome)
    except ArithmeticError as error:
        msg = (
            f"coxnet does not converge on {counted(len(train.x), 'training patient')}: {error}; "
            f"raise least_penalty={settings.least_penalty}, or take cox"
        )
        raise SurvivalError(msg) from error
    losses = [_loss(net.predict(held.x, alpha=alpha), held) for alpha in net.alphas_]
    return net, {"alpha": float(net.alphas_[np.argmin(losses)])}


def fit_fixed_coxnet(
    train: PooledRows,
    _: PooledRows | None,
    settings: "SurvivalSettings",
    _variance: float,
    _seed: int,
) -> tuple[Any, dict[str, float]]:
    """Fit an elastic-net Cox regression of one penalty, which chooses nothing.

    Settings are those of Patho-Bench's `CoxNetExperiment`.
    """
    from sksurv.linear_model import CoxnetSurvivalAnalysis

    net = CoxnetSurvivalAnalysis(
        alphas=[settings.penalty],
        l1_ratio=settings.l1_ratio,
        max_iter=100_000,
        fit_baseline_model=True,
    )
    try:
        net.fit(train.x, train.outcome)
    except ArithmeticError as error:
        msg = (
            f"coxnet_fixed does not converge on {counted(len(train.x), 'training patient')}: "
            f"{error}; raise pooled.penalty={settings.penalty}, or take cox"
        )
        raise SurvivalError(msg) from error
    return net, {}


def fit_forest(
    train: PooledRows,
    _: PooledRows | None,
    settings: "SurvivalSettings",
    _variance: float,
    seed: int,
) -> tuple[Any, dict[str, float]]:
    """Fit a random survival forest, which chooses nothing."""
    from sksurv.ensemble import RandomSurvivalForest

    forest = RandomSurvivalForest(
        n_estimators=settings.trees, min_samples_leaf=settings.leaf, random_state=seed
    )
    return forest.fit(train.x, train.outcome), {}


def fit_boosting(
    train: PooledRows, held: PooledRows, settings: "SurvivalSettings", _variance: float, seed: int
) -> tuple[Any, dict[str, float]]:
    """Fit boosted trees, as many as have the least validation loss.

    All trees are fitted once to find out; then the first of them again, with the same draws, so
    that the baseline hazard is that of the model which is kept.
    """
    from sksurv.ensemble import GradientBoostingSurvivalAnalysis

    whole = GradientBoostingSurvivalAnalysis(
        n_estimators=settings.most_trees,
        learning_rate=settings.learning_rate,
        max_depth=settings.depth,
        min_samples_leaf=settings.leaf,
        subsample=settings.subsample,
        random_state=seed,
    ).fit(train.x, train.outcome)
    losses = [_loss(risk_P, held) for risk_P in whole.staged_predict(held.x)]
    kept = whole.set_params(n_estimators=int(np.argmin(losses)) + 1)
    return kept.fit(train.x, train.outcome), {}


def _loss(risk_P: Floats, held: PooledRows) -> float:
    """Return the negative log partial likelihood per event: less noisy than a concordance."""
    import torch

    from downstream.survival.survival_losses import cox_loss

    arrays = (torch.from_numpy(np.array(part)) for part in (risk_P, held.time, held.event))
    return float(cox_loss(*arrays, ties="breslow"))
