"""Whole-slide classification and survival from a lake's features.

Importing this package imports neither torch, ray, lance, scikit-learn nor matplotlib: the command
starts fast, and what is heavy is imported by the function that needs it.
"""

from downstream.bags import BagError
from downstream.cohort import Cohort, CohortError, patient_table, read_labels
from downstream.metrics import Estimate, UndefinedMetricError, auroc, bootstrap, concordance
from downstream.plots import attention_png, km_png, roc_png
from downstream.report import write_report
from downstream.runs import run_mil, run_survival
from downstream.settings import AbmilSettings, CoxSettings
from downstream.splits import LeakageError, SplitError, assert_disjoint, patient_folds
from downstream.study import StudyError
from downstream.survival import SurvivalError

__all__ = [
    "AbmilSettings",
    "BagError",
    "Cohort",
    "CohortError",
    "CoxSettings",
    "Estimate",
    "LeakageError",
    "SplitError",
    "StudyError",
    "SurvivalError",
    "UndefinedMetricError",
    "assert_disjoint",
    "attention_png",
    "auroc",
    "bootstrap",
    "concordance",
    "km_png",
    "patient_folds",
    "patient_table",
    "read_labels",
    "roc_png",
    "run_mil",
    "run_survival",
    "write_report",
]
