"""A run's numbers as its pages show them: measures, comparisons, the question, what was left out.

Everything here comes from `result.json`; nothing is computed but its wording.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from downstream.measures.measure_names import MEASURE_NAMES

if TYPE_CHECKING:
    from downstream.report.finished_run import Json, Run

MOST_LISTED = 100
FEW = 20
"""Shares of fewer are told as numbers."""
_MANY_REDRAWN = 0.01

_QUESTIONS = {
    "binary": "Which of two classes",
    "multiclass": "Which of several classes",
    "multilabel": "Which of several labels, each yes or no",
    "regression": "A number",
    "survival": "How soon the event comes",
}


def shown_name(measure: str) -> str:
    """Return a measure's name as people write it.

    >>> shown_name("auprc"), shown_name("balanced_accuracy")
    ('AUPRC', 'balanced accuracy')
    """
    entry = MEASURE_NAMES.get(measure)
    return entry.shown if entry else measure.replace("_", " ")


def chance(run: "Run") -> float | None:
    """Return the value of the main measure at chance, or None where that depends on the cohort."""
    entry = MEASURE_NAMES.get(run.metric)
    return entry.chance if entry else None


def title(run: "Run") -> str:
    """Return the title of a run's page in words."""
    columns = [str(column) for column in run.result["config"]["columns"]]
    if run.task == "survival":
        return f"Survival: {columns[0]} to {columns[-1]}"
    of = "Tiles" if run.unit == "tile" else "Prediction"
    return f"{of}: {', '.join(columns)}"


def question_of(run: "Run") -> str:
    """Return the question of a run in a sentence."""
    run_result = run.result
    columns = " and ".join(str(column) for column in run_result["config"]["columns"])
    question = _QUESTIONS.get(run.task, run.task)
    counts = f"{run_result['patients']:,} patients with {run_result['slides']:,} slides"
    return f"{question}: {columns}, of {counts}"


def how_tested(run: "Run") -> str:
    """Return a sentence on how patients were split into folds."""
    run_result = run.result
    parts = [f"{run_result['folds']} folds over patients"]
    if run_result["folds"] == 1 and run_result["repeats"] > 1:
        parts = [f"{run_result['repeats']} random splits of patients"]
    elif run_result["folds"] == 1:
        parts = ["one split of patients"]
    elif run_result["repeats"] > 1:
        parts.append(f"repeated {run_result['repeats']} times with other folds")
    if run_result["inner"] > 1:
        parts.append(f"{run_result['inner']} inner splits a fold, whose models are averaged")
    if run_result["seeds"] > 1:
        parts.append(f"{run_result['seeds']} trainings with different random numbers")
    return ", ".join(parts)


def measure_heads(run: "Run") -> list["Json"]:
    """Return the measures of the table of arms: name, and whether higher is better."""
    heads = []
    for name in run.measures:
        measured = [part for arm in run.arms if (part := run.measure(arm, name)) is not None]
        # a measure without a direction, such as observed over expected, is best at 1
        higher = all(part.get("higher_is_better", True) is not False for part in measured)
        heads.append({"name": shown_name(name), "higher_is_better": higher})
    return heads


def arm_rows(run: "Run") -> list["Json"]:
    """Return rows of the table of arms: name, features, model, and one cell per measure."""
    described = run.result.get("arms", {})
    return [
        {
            "arm": arm,
            **described.get(arm, {"features": arm, "model": ""}),
            "cells": [_cell(run.measure(arm, name)) for name in run.measures],
        }
        for arm in run.arms
    ]


def _cell(part: Mapping[str, Any] | None) -> "Json":
    """Return a table cell of a measure: its estimate with interval, or why it is undefined."""
    if part is None:
        return {"estimate": None, "why": "not measured"}
    if part.get("estimate") is None:
        return {"estimate": None, "why": str(part.get("undefined", "undefined on these patients"))}
    return {"estimate": part["estimate"], "low": part["low"], "high": part["high"], "why": ""}


def fold_rows(run: "Run") -> list["Json"]:
    """Return for each measure its mean and standard deviation over test parts, a cell per arm.

    Measures within folds are those over test parts already, and are left out.
    """
    rows = []
    for name in run.measures:
        cells = [(run.measure(arm, name) or {}).get("folds") for arm in run.arms]
        if name.endswith("_folds") or all(not cell or cell["mean"] is None for cell in cells):
            continue
        rows.append({"name": shown_name(name), "cells": cells})
    return rows


def protocol_rows(run: "Run") -> list["Json"]:
    """Return the measures of the run's protocol, by the tool's names, as the tool prints them."""
    protocol = run.result.get("protocol")
    if not protocol:
        return []
    names = dict.fromkeys(name for arm in run.arms for name in protocol["measures"][arm])
    return [
        {
            "name": name,
            "cells": [_printed(protocol["measures"][arm][name], protocol["prints"])
                      for arm in run.arms],
        }
        for name in names
    ]  # fmt: skip


def _printed(part: Mapping[str, Any], prints: str) -> str:
    """Return a measure over test parts as a tool prints it.

    >>> _printed({"mean": 0.8, "sd": 0.1, "se": 0.05, "parts": 5, "left_out": 0}, "se")
    '0.800 ± 0.050 (standard error) of 5 test parts'
    """
    if part["mean"] is None:
        return "undefined on every test part"
    mean, count = f"{part['mean']:.3f}", f" of {part['parts']} test parts"
    if part["left_out"]:
        count += f", {part['left_out']} without it"
    if part["sd"] is None:
        return f"{mean}{count}"
    if prints == "t":
        return f"{mean} ({part['low']:.3f} to {part['high']:.3f}, 95 % of t){count}"
    spread, name = ("se", "standard error") if prints == "se" else ("sd", "standard deviation")
    return f"{mean} \N{PLUS-MINUS SIGN} {part[spread]:.3f} ({name}){count}"


def warnings(run: "Run") -> list[str]:
    """Return warnings beside the numbers: undefined measures, many resamples drawn again."""
    sentences, rough = [], []
    for arm in run.arms:
        parts = {name: run.measure(arm, name) or {} for name in run.measures}
        for name, part in parts.items():
            if "undefined" in part:
                sentences.append(f"{shown_name(name)} of {arm}: {part['undefined']}.")
        again = {
            name: part["redrawn"]
            for name, part in parts.items()
            if part.get("redrawn", 0) > _MANY_REDRAWN * max(part.get("resamples", 0), 1000)
        }
        if again:
            names = ", ".join(shown_name(name) for name in again)
            rough.append(f"{names} of {arm} (up to {max(again.values()):,} resamples)")
    if rough:
        sentences.append(
            "Undefined on some resamples, which were drawn again, so that the interval is rough: "
            f"{'; '.join(rough)}. There are few patients of some class or with an event."
        )
    return sentences


def comparison_rows(run: "Run") -> list["Json"]:
    """Return the run's comparisons of arms, each with a verdict in words."""
    return [
        {**row, "name": shown_name(row["measure"]), "verdict": _verdict(row)}
        for row in map(_tested_row, run.result.get("comparisons", []))
    ]


def _tested_row(row: Mapping[str, Any]) -> "Json":
    """Return a comparison; that of an older run, which has no test, as one of fitted models."""
    if "test" in row:
        return dict(row)
    fitted = {key: row[key] for key in ("estimate", "low", "high", "p_value")}
    untested = dict.fromkeys(("low", "high", "p_value", "p_holm", "p_worse", "not_inferior"))
    why = "not tested: the run is older than the test; run the study again"
    return {**row, **untested, "why": why, "parts": "", "fitted_models": fitted}


def _verdict(row: Mapping[str, Any]) -> str:
    """Return the verdict of the non-inferiority test, or an empty string without a margin."""
    if row.get("margin") is None or row["not_inferior"] is None:
        return ""
    if row["not_inferior"]:
        return f"yes: less than {row['margin']:g} worse"
    return f"not shown: it may be {row['margin']:g} worse or more"


def share_text(share: float, of: int) -> str:
    """Return a share as a percentage, of few as the numbers themselves.

    A percentage of seven patients claims more than seven patients can say.

    >>> share_text(0.9512, 200), share_text(2 / 3, 6)
    ('95%', '4 of 6')
    """
    return f"{share:.0%}" if of >= FEW else f"{round(share * of)} of {of}"


def p_text(p_value: float | None) -> str:
    """Return a p value as text.

    >>> p_text(0.0312), p_text(0.0002), p_text(None)
    ('0.031', '< 0.001', '–')
    """  # noqa: RUF002 - an en dash is what tables show
    if p_value is None:
        return "\N{EN DASH}"
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def signed_text(number: float | None) -> str:
    """Return a difference as text, with its sign.

    >>> signed_text(0.0312), signed_text(-0.2), signed_text(None)
    ('+0.031', '-0.200', '–')
    """  # noqa: RUF002 - an en dash is what tables show
    return "\N{EN DASH}" if number is None else f"{number:+.3f}"


def listed(ids: Sequence[str]) -> "Json":
    """Return the first hundred ids, and the number of the others, for a list on a page."""
    shown = [str(one) for one in ids[:MOST_LISTED]]
    return {"ids": shown, "left": len(ids) - len(shown), "all": len(ids)}


def setting_rows(run: "Run") -> list[tuple[str, Any]]:
    """Return the settings of a run as (name, setting), nested settings one row each."""
    shown: list[tuple[str, Any]] = []
    for key, setting in run.result["config"].items():
        if isinstance(setting, dict):
            shown += [(f"{key}: {name}", part) for name, part in setting.items()]
        elif setting is not None and setting != "" and setting != []:
            shown.append((key, setting))
    return [(name.replace("_", " "), setting) for name, setting in shown]
