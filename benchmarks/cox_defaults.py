"""Which ridge Cox regression finds a planted signal: the choice of `survival`'s defaults.

    python -m benchmarks.cox_defaults --work /tmp/cox

Cohorts with a known hazard: the signal in one strong direction, in one feature of many, in the
first ten components of a falling spectrum (as encoders' features have), or spread over all
features; few and many patients; narrow and wide features. Each candidate is fitted on the training
patients of 5 folds, with the validation patients of the study's own splits; the figure is the mean
over cohorts of Harrell's C within folds. `signal` is the C of the true hazard. Cohorts that are
done are kept.
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.metrics import concordance_index_censored
from sksurv.util import Surv

from benchmarks.report import RESULTS, table, write_report
from downstream.run.fit_settings import SurvivalSettings
from downstream.splits.folds import nested_folds
from downstream.survival.pooled_models import fit_pooled

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

FOLDS = 5
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Patients with features, and times of known hazard.

    Attributes:
        x: [P, D] features.
        log_hazard: [P] the true log hazard.
        time: [P] times to the event or to the end of follow-up.
        event: [P] true where the event was seen.
    """

    x: Floats
    log_hazard: Floats
    time: Floats
    event: Flags


def draw(signal: str, patients: int, width: int, seed: int) -> Cohort:
    """Return a cohort with about two events in three patients."""
    rng = np.random.default_rng([seed, patients, width, list(SIGNALS).index(signal)])
    x, score = SIGNALS[signal](rng, patients, width)
    log_hazard = score / score.std()
    death = rng.exponential(np.exp(-log_hazard))
    left = rng.exponential(2.0, patients)
    return Cohort(x=x, log_hazard=log_hazard, time=np.minimum(death, left), event=death <= left)


def _strong(rng: np.random.Generator, patients: int, width: int) -> tuple[Floats, Floats]:
    x = rng.standard_normal((patients, width))
    x[:, 0] *= 5
    return x, x[:, 0]


def _single(rng: np.random.Generator, patients: int, width: int) -> tuple[Floats, Floats]:
    x = rng.standard_normal((patients, width))
    return x, x[:, 0]


def _leading(rng: np.random.Generator, patients: int, width: int) -> tuple[Floats, Floats]:
    spread = 1 / np.sqrt(1 + np.arange(width))
    z = rng.standard_normal((patients, width)) * spread
    turn = np.linalg.qr(rng.standard_normal((width, width)))[0]
    return z @ turn, z[:, :10] @ (rng.standard_normal(10) / spread[:10])


def _dense(rng: np.random.Generator, patients: int, width: int) -> tuple[Floats, Floats]:
    x = rng.standard_normal((patients, width))
    return x, x @ rng.standard_normal(width)


SIGNALS: dict[str, Callable[[np.random.Generator, int, int], tuple[Floats, Floats]]] = {
    "one strong direction": _strong,
    "one feature": _single,
    "ten leading components": _leading,
    "all features": _dense,
}

Rows = tuple[Floats, Floats, Flags]
Candidate = Callable[[Rows, Rows, Floats], Floats]
"""(training rows, validation rows, test features) -> risks of the test."""


def ridge(
    train: Rows,
    validation: Rows,
    test: Floats,
    *,
    each: bool,
    components: int | None,
    alpha: float | None,
) -> Floats:
    """Return the risks of a ridge Cox regression.

    Args:
        train: features, times and events.
        validation: the same of the validation patients, who choose the penalty.
        test: features of the test patients.
        each: whether each feature has variance 1; else all together have mean variance 1.
        components: principal components that are kept; None for all.
        alpha: penalty per unit of total variance; None to choose it on the validation patients.
    """  # fmt: skip
    x, time, event = train
    centre, spread = x.mean(axis=0), x.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0) if each else np.sqrt((spread**2).mean())
    turn = np.linalg.svd((x - centre) / scale, full_matrices=False)[2]
    turn = turn[: min(len(x) - 1, components or len(turn))].T

    def seen(part: Floats) -> Floats:
        return np.asarray((part - centre) / scale @ turn)

    outcome, risks, losses = Surv.from_arrays(event, time), [], []
    for penalty in PENALTIES if alpha is None else (alpha,):
        model = CoxPHSurvivalAnalysis(alpha=penalty * x.shape[1])
        model.fit(seen(x), outcome)
        risks.append(model.predict(seen(test)))
        losses.append(_loss(model.predict(seen(validation[0])), validation[1], validation[2]))
    return np.asarray(risks[int(np.argmin(losses))])


def _loss(risk: Floats, time: Floats, event: Flags) -> float:
    """Return the negative log partial likelihood per event (Breslow)."""
    at_risk = time[None] >= time[:, None]
    log_sum = np.log((np.exp(risk - risk.max())[None] * at_risk).sum(axis=1)) + risk.max()
    return float((log_sum - risk)[event].mean())


def packaged(train: Rows, validation: Rows, test: Floats, *, name: str) -> Floats:
    """Return the risks of one of our own models, as `survival` fits it."""
    model = fit_pooled(name, *train, validation=validation, settings=SurvivalSettings(), seed=0)
    return model.risk(test)


CANDIDATES: dict[str, Candidate] = {
    "each, 16, 0.1": partial(ridge, each=True, components=16, alpha=0.1),
    "whole, 16, 0.1": partial(ridge, each=False, components=16, alpha=0.1),
    "whole, 16, chosen": partial(ridge, each=False, components=16, alpha=None),
    "whole, all, chosen": partial(ridge, each=False, components=None, alpha=None),
    "our cox": partial(packaged, name="cox"),
    "our coxnet": partial(packaged, name="coxnet"),
}
"""By scaling (each feature, or the whole), components and penalty: the first is how `cox` was."""


def within_folds(cohort: Cohort, risk_of: Candidate, seed: int) -> float:
    """Return Harrell's C over pairs of the same fold."""
    ids = np.array([f"p{at:04d}" for at in range(len(cohort.time))])
    splits = nested_folds(ids.tolist(), cohort.event.tolist(), folds=FOLDS, inner=1, seed=seed)
    right = pairs = 0.0
    for split in splits:
        parts = (split.train, split.validation, split.test)
        train, validation, test = (np.flatnonzero(np.isin(ids, part)) for part in parts)
        rows = [(cohort.x[at], cohort.time[at], cohort.event[at]) for at in (train, validation)]
        risk = risk_of(rows[0], rows[1], cohort.x[test])
        _, concordant, discordant, tied, _ = concordance_index_censored(
            cohort.event[test], cohort.time[test], risk
        )
        right += concordant + tied / 2
        pairs += concordant + discordant + tied
    return right / pairs


def measured(signal: str, patients: int, width: int, cohorts: int, work: Path) -> dict[str, Any]:
    """Return the mean C of each candidate; cohorts that `work` has are not run again."""
    path = work / f"{signal.replace(' ', '-')}-{patients}-{width}.jsonl"
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    with path.open("a") as file:
        for seed in range(len(known), cohorts):
            cohort = draw(signal, patients, width, seed)
            found = {name: within_folds(cohort, one, seed) for name, one in CANDIDATES.items()}
            truth = concordance_index_censored(cohort.event, cohort.time, cohort.log_hazard)[0]
            known.append({"signal": truth, **found})
            file.write(json.dumps(known[-1]) + "\n")
            file.flush()
    means = {name: float(np.mean([row[name] for row in known])) for name in known[0]}
    return {"planted": signal, "patients": patients, "features": width, **means}


def main(
    work: Annotated[Path, typer.Option(help="Folder for cohorts that are done.")],
    cohorts: Annotated[int, typer.Option(help="Cohorts of each situation.")] = 12,
) -> None:
    """Run the grid; print the table and write it to `benchmarks/results/`."""
    warnings.filterwarnings("ignore")
    work.mkdir(parents=True, exist_ok=True)
    grid = product(SIGNALS, (54, 200), (64, 768, 2560))
    lines = [measured(*situation, cohorts, work) for situation in grid]
    typer.echo(table(lines))
    settings = {"cohorts": cohorts, "folds": FOLDS, "penalties": list(PENALTIES)}
    typer.echo(write_report(RESULTS, lines, settings, name="cox-defaults"))


if __name__ == "__main__":
    typer.run(main)
