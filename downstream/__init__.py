"""Whole-slide classification and survival from a lake's features.

A name is imported when it is first used: this package costs nothing to import, so that commands can
read the fields of its settings at their start.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from downstream.cohorts.cohort import Cohort, CohortError, patient_table
    from downstream.cohorts.label_tables import load_labels, read_labels
    from downstream.measures.class_measures import UndefinedMetricError
    from downstream.measures.intervals import Comparison, Interval, compare, interval
    from downstream.probes.probe_spec import ProbeError, ProbeOptions, ProbeSpec
    from downstream.probes.tile_probe import run_tile_probe
    from downstream.report.lake_page import write_report
    from downstream.report.plots.plots_attention import attention_png
    from downstream.report.plots.plots_classes import roc_svg
    from downstream.report.plots.plots_outcomes import km_svg
    from downstream.retrieval.labelled_search import evaluate_search
    from downstream.retrieval.search import search_lake
    from downstream.retrieval.search_options import LabelledSearchOptions, SearchOptions
    from downstream.run.feature_bags import BagError
    from downstream.run.fit_settings import MilSettings, SurvivalSettings
    from downstream.run.run_study import run_mil, run_study, run_survival
    from downstream.run.run_table import run_table
    from downstream.run.saved_specs import saved_settings, saved_spec
    from downstream.run.spec_json import SpecError
    from downstream.run.study_errors import StudyError
    from downstream.run.study_spec import (
        ComparisonOptions,
        FeatureOptions,
        LabelOptions,
        ModelOptions,
        Resources,
        StudySpec,
    )
    from downstream.splits.fold_plan import Plan
    from downstream.splits.folds import Split, nested_folds
    from downstream.splits.site_folds import leave_site_out, preserved_site_folds
    from downstream.splits.split import LeakageError, SplitError, assert_disjoint
    from downstream.survival.risks import SurvivalError

MODULES = {
    "BagError": "downstream.run.feature_bags",
    "Cohort": "downstream.cohorts.cohort",
    "CohortError": "downstream.cohorts.cohort",
    "Comparison": "downstream.measures.intervals",
    "ComparisonOptions": "downstream.run.study_spec",
    "FeatureOptions": "downstream.run.study_spec",
    "Interval": "downstream.measures.intervals",
    "LabelOptions": "downstream.run.study_spec",
    "LabelledSearchOptions": "downstream.retrieval.search_options",
    "LeakageError": "downstream.splits.split",
    "MilSettings": "downstream.run.fit_settings",
    "ModelOptions": "downstream.run.study_spec",
    "Plan": "downstream.splits.fold_plan",
    "ProbeError": "downstream.probes.probe_spec",
    "ProbeOptions": "downstream.probes.probe_spec",
    "ProbeSpec": "downstream.probes.probe_spec",
    "Resources": "downstream.run.study_spec",
    "SearchOptions": "downstream.retrieval.search_options",
    "SpecError": "downstream.run.spec_json",
    "Split": "downstream.splits.folds",
    "SplitError": "downstream.splits.split",
    "StudyError": "downstream.run.study_errors",
    "StudySpec": "downstream.run.study_spec",
    "SurvivalError": "downstream.survival.risks",
    "SurvivalSettings": "downstream.run.fit_settings",
    "UndefinedMetricError": "downstream.measures.class_measures",
    "assert_disjoint": "downstream.splits.split",
    "attention_png": "downstream.report.plots.plots_attention",
    "compare": "downstream.measures.intervals",
    "evaluate_search": "downstream.retrieval.labelled_search",
    "interval": "downstream.measures.intervals",
    "km_svg": "downstream.report.plots.plots_outcomes",
    "leave_site_out": "downstream.splits.site_folds",
    "load_labels": "downstream.cohorts.label_tables",
    "nested_folds": "downstream.splits.folds",
    "preserved_site_folds": "downstream.splits.site_folds",
    "patient_table": "downstream.cohorts.cohort",
    "read_labels": "downstream.cohorts.label_tables",
    "roc_svg": "downstream.report.plots.plots_classes",
    "run_table": "downstream.run.run_table",
    "run_mil": "downstream.run.run_study",
    "run_study": "downstream.run.run_study",
    "run_survival": "downstream.run.run_study",
    "run_tile_probe": "downstream.probes.tile_probe",
    "saved_settings": "downstream.run.saved_specs",
    "saved_spec": "downstream.run.saved_specs",
    "search_lake": "downstream.retrieval.search",
    "write_report": "downstream.report.lake_page",
}
"""The module of every name on the door."""

__all__ = [
    "BagError",
    "Cohort",
    "CohortError",
    "Comparison",
    "ComparisonOptions",
    "FeatureOptions",
    "Interval",
    "LabelOptions",
    "LabelledSearchOptions",
    "LeakageError",
    "MilSettings",
    "ModelOptions",
    "Plan",
    "ProbeError",
    "ProbeOptions",
    "ProbeSpec",
    "Resources",
    "SearchOptions",
    "SpecError",
    "Split",
    "SplitError",
    "StudyError",
    "StudySpec",
    "SurvivalError",
    "SurvivalSettings",
    "UndefinedMetricError",
    "assert_disjoint",
    "attention_png",
    "compare",
    "evaluate_search",
    "interval",
    "km_svg",
    "leave_site_out",
    "load_labels",
    "nested_folds",
    "patient_table",
    "preserved_site_folds",
    "read_labels",
    "roc_svg",
    "run_mil",
    "run_study",
    "run_survival",
    "run_table",
    "run_tile_probe",
    "saved_settings",
    "saved_spec",
    "search_lake",
    "write_report",
]


def __getattr__(name: str) -> object:
    """Import a name of the door when it is first used."""
    if name not in MODULES:
        msg = f"module 'downstream' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(MODULES[name]), name)
