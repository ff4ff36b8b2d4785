"""Whole-slide classification and survival from a lake's features.

Importing this package imports neither torch, ray, lance, scikit-learn nor matplotlib: the command
starts fast, and what is heavy is imported by the function that needs it.
"""

from downstream.cohorts.cohort import Cohort, CohortError, patient_table
from downstream.cohorts.label_tables import load_labels, read_labels
from downstream.measures.class_measures import UndefinedMetricError
from downstream.measures.intervals import Comparison, Interval, compare, interval
from downstream.report.lake_page import write_report
from downstream.report.plots.plots_attention import attention_png
from downstream.report.plots.plots_classes import roc_png
from downstream.report.plots.plots_outcomes import km_png
from downstream.run.feature_bags import BagError
from downstream.run.fit_settings import MilSettings, SurvivalSettings
from downstream.run.run_study import run_mil, run_survival
from downstream.run.study import StudyError
from downstream.splits.folds import Split, leave_site_out, nested_folds
from downstream.splits.plans import Plan
from downstream.splits.split import LeakageError, SplitError, assert_disjoint
from downstream.survival.risks import SurvivalError

__all__ = [
    "BagError",
    "Cohort",
    "CohortError",
    "Comparison",
    "Interval",
    "LeakageError",
    "MilSettings",
    "Plan",
    "Split",
    "SplitError",
    "StudyError",
    "SurvivalError",
    "SurvivalSettings",
    "UndefinedMetricError",
    "assert_disjoint",
    "attention_png",
    "compare",
    "interval",
    "km_png",
    "leave_site_out",
    "load_labels",
    "nested_folds",
    "patient_table",
    "read_labels",
    "roc_png",
    "run_mil",
    "run_survival",
    "write_report",
]
