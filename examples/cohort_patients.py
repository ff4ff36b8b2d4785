"""The patients of the synthetic cohort: hidden state, class and survival.

Grade, lymphocytes and tumour share are spread evenly and dealt at random, so that two dozen
patients cover the range, the classes are equal in number and no site has more of one of them.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

#: Microns per pixel of the scanner of each site.
SITE_MPP = {"A": 0.4990, "B": 0.5030}
LABELS = ("grade_1", "grade_3")

_FOLLOW_UP_MONTHS = 60.0
_EVENT_SHARE = 0.65


@dataclass(frozen=True, kw_only=True)
class CohortPatient:
    """One patient: the hidden state, and the label and survival that follow from it.

    Attributes:
        patient_id: name of the patient in the table.
        site: name of the site, a key of `SITE_MPP`; independent of the state.
        label: label of the patient, one of `LABELS`.
        high_grade_share: share of the tumour that grows in sheets; above 0.5 is high grade.
        tumour_share: share of the tissue that is tumour.
        lymphocytes: density of lymphocytes, from 0 to 1; many protect.
        log_hazard: logarithm of the hazard; higher is worse.
        time_months: months until the event or the end of observation.
        event: 1 if the event was observed, 0 if censored.
    """

    patient_id: str
    site: str
    label: str
    high_grade_share: float
    tumour_share: float
    lymphocytes: float
    log_hazard: float
    time_months: float
    event: int


def _spread(
    rng: np.random.Generator, count: int, low: float, high: float
) -> npt.NDArray[np.float64]:
    """Return evenly spaced values in random order: a small cohort also covers the range."""
    return low + (high - low) * (rng.permutation(count) + rng.uniform(0.2, 0.8, count)) / count


def _scored(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    scored: npt.NDArray[np.float64] = (values - values.mean()) / max(values.std(), 1e-9)
    return scored


def _outcomes(
    rng: np.random.Generator, log_hazard: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Draw exponential times after a first month, censored at the end of follow-up and by drop-out.

    The baseline hazard is the value that comes nearest to the wanted share of events.
    """
    count = len(log_hazard)
    waiting = -np.log1p(-_spread(rng, count, 0, 1)) * np.exp(-log_hazard)
    censored = np.minimum(_FOLLOW_UP_MONTHS, _spread(rng, count, 8, 110))
    baselines = np.geomspace(1, 500, 200)
    shares = [(1 + waiting * months <= censored).mean() for months in baselines]
    time = 1 + waiting * baselines[np.argmin(np.abs(np.array(shares) - _EVENT_SHARE))]
    return np.minimum(time, censored), (time <= censored).astype(np.int64)


def draw_patients(count: int, seed: int) -> list[CohortPatient]:
    """Draw the patients of a cohort.

    Half of them (rounded down) are high grade, and the sites alternate within each class.

    Args:
        count: number of patients.
        seed: the seed of the cohort.
    """
    rng = np.random.default_rng([seed, 0])
    high_count = count // 2
    high_share = np.concatenate(
        [_spread(rng, count - high_count, 0.05, 0.42), _spread(rng, high_count, 0.58, 0.95)]
    )
    names = sorted(SITE_MPP)
    within_class = [*range(count - high_count), *range(high_count)]
    sites = [names[i % len(names)] for i in within_class]
    order = rng.permutation(count)
    high_share = high_share[order]
    tumour = _spread(rng, count, 0.30, 0.70)
    lymphocytes = _spread(rng, count, 0.0, 1.0)
    log_hazard = 1.8 * _scored(high_share) + 0.3 * _scored(tumour) - 1.4 * _scored(lymphocytes)
    time, event = _outcomes(rng, log_hazard)
    return [
        CohortPatient(
            patient_id=f"P{i:03d}",
            site=sites[order[i]],
            label=LABELS[int(high_share[i] > 0.5)],
            high_grade_share=round(float(high_share[i]), 4),
            tumour_share=round(float(tumour[i]), 4),
            lymphocytes=round(float(lymphocytes[i]), 4),
            log_hazard=round(float(log_hazard[i]), 4),
            time_months=round(float(time[i]), 2),
            event=int(event[i]),
        )
        for i in range(count)
    ]
