"""Probes of frozen features: a linear one and nearest neighbours; no network is trained.

Features are standardised by the training rows alone, and the one free number of a probe is chosen
on the validation rows, on which it is never fitted: their scores may choose a threshold too. All
classes weigh the same, however rare. Shape letters: P patients (or tiles) of training, Q others,
D width of the features, C classes or numbers, K neighbours.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from downstream.probes.probe_spec import ProbeError
from downstream.run.model_tables import PROBES, load

if TYPE_CHECKING:
    from downstream.cohorts.outcomes import TaskKind
    from downstream.probes.heads import Linear, Nearest
    from downstream.probes.ordinal_head import Ordinal

Floats = NDArray[np.float64]
Rows = tuple[NDArray[Any], NDArray[Any]]


_CONSTANT = 1e-12
_ORDINAL = "downstream.probes.ordinal_head:fit_ordinal"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A fitted probe.

    Attributes:
        name: name of the probe in `PROBES`.
        task: task that the probe predicts.
        chosen: chosen inverse penalty, penalty or number of neighbours; one per label.
        mean: mean of the training rows [D].
        spread: standard deviation of the training rows [D]; 1 for channels that do not vary.
        heads: one fitted head, or one per label of several.
        is_flat: whether the targets were one number per row.
    """

    name: str
    task: "TaskKind"
    chosen: tuple[float, ...]
    mean: Floats
    spread: Floats
    heads: "tuple[Linear | Nearest | Ordinal, ...]"
    is_flat: bool = False

    def scores(self, x_QD: NDArray[Any]) -> Floats:
        """Return the probability of class 1 [Q] for `binary`, probabilities [Q, C], or numbers.

        Numbers have the form of the targets that the probe was fitted on, [Q] or [Q, C].
        """
        z_QD = (_checked_features(x_QD) - self.mean) / self.spread
        outputs = [head.outputs(z_QD) for head in self.heads]
        if self.task == "multilabel":
            return np.stack([output_Q2[:, 1] for output_Q2 in outputs], axis=1)
        if self.task == "binary":
            return outputs[0][:, 1]
        return outputs[0][:, 0] if self.is_flat else outputs[0]


# Long by its docstring: each argument says what it is for which of the probes.
def fit_probe(
    name: str,
    x_PD: NDArray[Any],
    y: NDArray[Any],
    *,
    validation: Rows | None,
    task: "TaskKind",
    classes: int,
    seed: int = 0,
    inverse_penalty: float = 0.5,
    covariates: int = 0,
    is_ordered: bool = False,
) -> Probe:
    """Fit a probe on training rows.

    Args:
        name: name in `PROBES`: `linear` (logistic regression; ridge for numbers), `knn` (by
            cosine), or `logistic` (regression of fixed penalty on features as they are).
        x_PD: features of the training rows.
        y: targets: class indices [P]; several labels [P, C] of 0 and 1; or numbers [P] or [P, C].
        validation: features and targets of the validation rows; None, or no rows, for `DEFAULTS`.
            The least loss is chosen, of equals the stronger penalty or the more neighbours: log
            loss with all classes weighing the same, or squared error.
        task: task that the probe predicts.
        classes: number of classes, including those without a training row; for
            `binary` 2. Several labels and numbers do not need it.
        seed: seed of the solvers; no probe depends on it.
        inverse_penalty: inverse penalty of `logistic`.
        covariates: number of last columns that are standardised covariates. Each is given as much
            variance as all features together, so that the penalty on many features hardly shrinks
            the few covariates; not in `logistic`, which takes all columns as they are.
        is_ordered: whether the classes of `multiclass` are in an order: `linear` is then an
            ordinal logistic regression.

    Returns:
        The probe. A label of several that all training rows have, or none, gets the same score in
        all rows.

    Raises:
        ProbeError: Another name, rows that do not fit, features that are not finite, or training
            rows of one class.
    """
    if name not in PROBES:
        msg = f"there is no probe {name!r}; there are {', '.join(PROBES)}"
        raise ProbeError(msg)
    x_PD, y = _checked_features(x_PD), np.asarray(y)
    others = None if validation is None or not len(validation[0]) else validation
    x_QD, y_Q = (x_PD[:0], y[:0]) if others is None else (_checked_features(others[0]), others[1])
    _check(x_PD, y, x_QD, np.asarray(y_Q), task)
    mean, spread = x_PD.mean(axis=0), x_PD.std(axis=0)
    spread[spread < _CONSTANT] = 1.0
    if covariates:
        mean[-covariates:] = 0.0
        spread[-covariates:] = (x_PD.shape[1] - covariates) ** -0.5
    is_ordinal = is_ordered and name == "linear" and task == "multiclass"
    fit = load(_ORDINAL if is_ordinal else PROBES[name].loader)
    if PROBES[name].is_raw:
        mean, spread = np.zeros_like(mean), np.ones_like(spread)
        fit = partial(fit, inverse=inverse_penalty)
    z_PD, z_QD = (x_PD - mean) / spread, (x_QD - mean) / spread
    columns = range(y.shape[1]) if task == "multilabel" else [slice(None)]
    width = {"binary": 2, "multilabel": 2, "multiclass": classes}.get(task)
    fitted = [fit(z_PD, y[..., c], z_QD, np.asarray(y_Q)[..., c], width, seed) for c in columns]
    return Probe(
        name=name,
        task=task,
        chosen=tuple(float(chosen) for _, chosen in fitted),
        mean=mean,
        spread=spread,
        heads=tuple(head for head, _ in fitted),
        is_flat=task == "regression" and y.ndim == 1,
    )


def _checked_features(x_PD: NDArray[Any]) -> Floats:
    """Return features as float64; raise ProbeError unless they are finite and have two axes."""
    x = np.asarray(x_PD, np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        msg = f"features of shape {x.shape}; give finite numbers [rows, width]"
        raise ProbeError(msg)
    return x


def _check(
    x_PD: Floats, y: NDArray[Any], x_QD: Floats, y_Q: NDArray[Any], task: "TaskKind"
) -> None:
    """Refuse arrays that do not fit each other or the task."""
    dimensions = {"multilabel": {2}, "regression": {1, 2}}.get(task, {1})
    if len(x_PD) != len(y) or len(x_QD) != len(y_Q) or not len(y) or y.ndim not in dimensions:
        msg = (
            f"{task} with features {x_PD.shape} and {x_QD.shape}, labels {y.shape} and "
            f"{y_Q.shape}; give a row each, at least one to fit on"
        )
        raise ProbeError(msg)
    if x_PD.shape[1] != x_QD.shape[1] or y.shape[1:] != y_Q.shape[1:]:
        msg = f"training features {x_PD.shape}, labels {y.shape}; validation {x_QD.shape}, "
        msg += f"{y_Q.shape}: give the same widths"
        raise ProbeError(msg)
    if task in ("binary", "multiclass") and len(np.unique(y)) < 2:
        msg = f"all training rows ({len(y)}) are of one class; a probe needs two"
        raise ProbeError(msg)
