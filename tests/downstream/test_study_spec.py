"""Settings of a study: JSON there and back, names and types that are refused, what is saved."""

import json
from dataclasses import replace
from typing import Any, cast

import pytest

from downstream import (
    ComparisonOptions,
    FeatureOptions,
    LabelOptions,
    MilSettings,
    ModelOptions,
    Plan,
    SpecError,
    StudyError,
    StudySpec,
    SurvivalSettings,
)

MIL_SPEC = StudySpec(
    labels=LabelOptions(table="labels.csv", target=("grade",), distinct_ids=True),
    features=FeatureOptions(names=("uni2_h", "uni2_h+virchow2"), mpps=(0.5, 2.0), version="first"),
    models=ModelOptions(names=("hierarchical",), seeds=2, tune=3),
    folds=Plan(folds=3, inner=2, sites="hospital", shots=4),
    fit=MilSettings(epochs=3, fusion="shazam"),
    comparison=ComparisonOptions(margin=0.05),
    seed=7,
)
SURVIVAL_SPEC = StudySpec(
    kind="survival",
    labels=LabelOptions(table="lake:follow-up", time="months", event="dead"),
    features=FeatureOptions(names=("uni2_h",), version=4),
    models=ModelOptions(head="cox"),
    pooled=SurvivalSettings(trees=10),
)


@pytest.mark.parametrize("spec", [MIL_SPEC, SURVIVAL_SPEC])
def test_a_spec_comes_back_from_json(spec: StudySpec) -> None:
    text = json.dumps(spec.to_json(), allow_nan=False)
    assert StudySpec.from_json(json.loads(text)) == spec


def test_a_spec_has_the_columns_and_models_of_its_kind() -> None:
    assert (MIL_SPEC.label_columns, MIL_SPEC.model_names) == (("grade",), ("hierarchical",))
    assert SURVIVAL_SPEC.label_columns == ("months", "dead")
    assert SURVIVAL_SPEC.model_names == ("cox",)
    assert replace(MIL_SPEC, models=ModelOptions()).model_names == ("abmil",)


def test_fields_that_are_left_out_keep_their_defaults() -> None:
    content = {
        "labels": {"table": "labels.csv", "target": ["grade"]},
        "features": {"names": ["uni2_h"]},
        "fit": {"epochs": 2, "dropout": 0},
    }
    spec = StudySpec.from_json(content)
    assert spec.fit == MilSettings(epochs=2, dropout=0.0)
    assert (spec.kind, spec.folds, spec.features.mpps) == ("mil", Plan(), (0.5,))


WRONG: dict[str, tuple[str, Any, str]] = {
    "an unknown group": ("training", {}, "StudySpec has no field 'training'; its fields are kind"),
    "an unknown field": ("fit", {"epoch": 3}, "fit has no field 'epoch'; its fields are hidden"),
    "a missing field": ("labels", {"target": ["grade"]}, "labels lacks 'table'"),
    "a text for a number": ("seed", "1", "seed is '1'; it is a whole number"),
    "a boolean for a number": ("seed", True, "seed is True; it is a whole number"),
    "a word that is not allowed": ("kind", "mill", "kind is 'mill'; it is one of mil, survival"),
    "a number for a group": ("folds", 5, "folds is 5; write an object with the fields folds"),
    "a number in a list of texts": ("features", {"names": [1]}, "names is 1; it is a text"),
    "a fraction for a count": ("models", {"seeds": 1.5}, "models.seeds is 1.5"),
    "a boolean for a text": ("folds", {"sites": False}, "sites is False; it is a text or null"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_spec_is_named(case: str) -> None:
    name, content, message = WRONG[case]
    with pytest.raises(SpecError) as raised:
        StudySpec.from_json({**MIL_SPEC.to_json(), name: content})
    assert message in str(raised.value)


def test_settings_keep_their_own_checks() -> None:
    with pytest.raises(ValueError, match="counts are at least 1"):
        StudySpec.from_json({**MIL_SPEC.to_json(), "fit": {"epochs": 0}})
    with pytest.raises(StudyError, match=r"labels\.target is empty"):
        replace(SURVIVAL_SPEC, kind="mil")
    with pytest.raises(StudyError, match="needs the column of the time and that of the event"):
        replace(MIL_SPEC, kind="survival")
    with pytest.raises(StudyError, match="predicts hazards or cox"):
        replace(ModelOptions(), head=cast("Any", "risk"))
