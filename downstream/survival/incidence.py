"""Cumulative incidence of competing events, by the Aalen-Johansen estimator.

One minus Kaplan-Meier takes patients who had another event for patients who may still have this
one, and is too high.

Shape letters: P patients, C causes, K times.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Incidence:
    """Cumulative incidence of each cause.

    Attributes:
        times: [K] times of events and of the end of follow-up, ascending, each once.
        estimate: [C, K] share of patients with the event of a cause until each time.
        low: [C, K] lower 95 % limit (log-log, Aalen's variance).
        high: [C, K] upper 95 % limit.
    """

    times: Floats
    estimate: Floats
    low: Floats
    high: Floats

    def at(self, time: float, cause: int) -> tuple[float, float, float]:
        """Return the estimate of a cause and its limits at a time; 0 before the first event.

        Args:
            time: time.
            cause: number of the cause, from 1 on.
        """
        last = int(np.searchsorted(self.times, time, side="right")) - 1
        if last < 0:
            return 0.0, 0.0, 0.0
        parts = (self.estimate, self.low, self.high)
        estimate, low, high = (float(part[cause - 1, last]) for part in parts)
        return estimate, low, high


def cumulative_incidence(time_P: Floats, cause_P: NDArray[np.int64], causes: int) -> Incidence:
    """Return the Aalen-Johansen estimate of each cause, by scikit-survival.

    Args:
        time_P: times to the first event of any kind, or to the end of follow-up.
        cause_P: 0 for censored, else the number of the cause, 1 to C.
        causes: number of causes C; one that none of the patients has stays at 0.
    """
    from sksurv.nonparametric import (
        cumulative_incidence_competing_risks,
        kaplan_meier_estimator,
    )

    present = [cause for cause in range(1, causes + 1) if (cause_P == cause).any()]
    times = np.unique(time_P)
    whole, low, high = (np.zeros((causes, len(times))) for _ in range(3))
    if len(present) == 1:  # of which scikit-survival's function makes an error
        _, survival, limits = kaplan_meier_estimator(cause_P > 0, time_P, conf_type="log-log")
        row = present[0] - 1
        whole[row], low[row], high[row] = 1 - survival, 1 - limits[1], 1 - limits[0]
    elif present:
        # it wants the numbers of the causes without a gap
        number = np.zeros(causes + 1, dtype=np.int64)
        number[present] = np.arange(1, len(present) + 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            _, estimate, limits = cumulative_incidence_competing_risks(
                number[cause_P], time_P, conf_type="log-log"
            )
        rows = np.array(present) - 1
        # before the first event of a cause there is nothing to be unsure of
        low[rows], high[rows] = (np.nan_to_num(limits[1:, side]) for side in (0, 1))
        whole[rows] = estimate[1:]
    return Incidence(times=times, estimate=whole, low=low, high=high)
