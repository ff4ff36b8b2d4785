"""Protocols of other tools: their folds, model and measures, and what is not as there.

Read in the tools' sources (2026-11): Patho-Bench `LinearProbeExperiment.py`, `CoxNetExperiment.py`
and `advanced_usage/configs`, STAMP `modeling/crossval.py` and `config.py`, CLAM `main.py` and
`create_splits_seq.py`. What a tool leaves to the reader (which encoder, which task) is the study's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from downstream.run.study_errors import StudyError


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The protocol of a tool.

    Attributes:
        title: name of the tool, with what of it this is.
        settings: fields of a study's settings that it sets, by path, for each kind of study.
        prints: how the tool prints a measure over folds: `se` (mean and standard error), `t` (mean
            and 95 % t interval) or `sd` (mean and standard deviation).
        needs_folds: whether its folds come with the task, in a file.
        differs: sentences on what is not as in the tool.
    """

    title: str
    settings: Mapping[str, Mapping[str, Any]]
    prints: str
    needs_folds: bool = False
    differs: tuple[str, ...] = field(default=())


_ONE_TRAINING: dict[str, Any] = {"models.seeds": 1, "models.tune": 0}
_STAMP: dict[str, Any] = {
    **_ONE_TRAINING,
    "folds.folds": 5,
    "folds.inner": 1,
    "folds.repeats": 1,
    "models.names": ("transformer",),
    "fit.hidden": 512,
    "fit.dropout": 0.0,
    "fit.learning_rate": 1e-4,
    "fit.weight_decay": 0.01,
    "fit.epochs": 32,
    "fit.patience": 16,
    "fit.batch_patients": 64,
    "fit.max_tiles": 512,
    "fit.weighted": True,
}
PROTOCOLS: dict[str, Protocol] = {
    "patho-bench": Protocol(
        title="Patho-Bench: linear probe, or elastic-net Cox regression, on mean features",
        settings={
            "mil": {
                **_ONE_TRAINING,
                "folds.validation": False,
                "models.names": ("logistic",),
                "fit.inverse_penalty": 0.5,
            },
            "survival": {
                **_ONE_TRAINING,
                "folds.validation": False,
                "models.names": ("coxnet_fixed",),
                "pooled.penalty": 0.07,
                "pooled.l1_ratio": 0.5,
            },
        },
        prints="se",
        needs_folds=True,
        differs=(
            (
                "features are the mean over a patient's slides of mean tiles "
                "(combine_slides_per_patient=False); Patho-Bench pools by a slide encoder that is "
                "chosen, of which this is the mean"
            ),
            (
                "with one fold Patho-Bench prints a 95 % interval of 100 bootstraps over samples; "
                "here the interval over patients stands beside"
            ),
        ),
    ),
    "stamp": Protocol(
        title="STAMP: five stratified folds, a transformer on 512 random tiles",
        settings={"mil": _STAMP, "survival": {**_STAMP, "models.head": "cox"}},
        prints="t",
        differs=(
            (
                "STAMP's crossval keeps the epoch with the least loss on the test fold; here a "
                "validation part of the training patients decides, and no test patient"
            ),
            "the transformer has two layers and a bias by distance, and no class token",
            "the learning rate is constant, where STAMP's rises and falls (one cycle)",
            (
                "folds are drawn with another random number; STAMP's own are read by --splits "
                "splits.json"
            ),
        ),
    ),
    "clam": Protocol(
        title="CLAM: ten random splits of 80, 10 and 10 %, one attention branch",
        settings={
            "mil": {
                **_ONE_TRAINING,
                "folds.split": "monte-carlo",
                "folds.folds": 10,
                "folds.inner": 1,
                "folds.repeats": 1,
                "models.names": ("clam_sb",),
                "fit.hidden": 512,
                "fit.dropout": 0.25,
                "fit.learning_rate": 1e-4,
                "fit.weight_decay": 1e-5,
                "fit.epochs": 200,
                "fit.patience": 20,
                "fit.batch_patients": 1,
                "fit.max_tiles": 1_000_000,
                "fit.weighted": False,
            }
        },
        prints="sd",
        differs=(
            (
                "CLAM does not stop before epoch 50; here training stops after 20 epochs without a "
                "better validation loss"
            ),
            "weight decay is AdamW's, where CLAM adds an L2 penalty to Adam",
            "splits are drawn with another random number; CLAM's own are read by --splits FOLDER",
        ),
    ),
}
"""By name the protocols of other tools."""


def protocol_settings(name: str, kind: str) -> Mapping[str, Any]:
    """Return the fields of a study's settings that a protocol sets, by path.

    Args:
        name: name of the protocol.
        kind: kind of study, `mil` or `survival`.

    Raises:
        StudyError: There is no such protocol, or it has none for this kind of study.
    """
    names = [one for one, entry in PROTOCOLS.items() if kind in entry.settings]
    if name not in names:
        msg = f"protocol {name!r}; of `slidelake {kind}` there are {', '.join(names)}"
        raise StudyError(msg)
    return PROTOCOLS[name].settings[kind]


def protocol_facts(spec: Any) -> dict[str, Any]:  # noqa: ANN401 - a StudySpec, which names this
    """Return what a run says of its protocol: title, changed settings, and what is not as there.

    Args:
        spec: settings of a study with a protocol.

    Raises:
        StudyError: The protocol needs folds that no file gives.
    """
    protocol = PROTOCOLS[spec.protocol]
    settings = protocol_settings(spec.protocol, spec.kind)
    if protocol.needs_folds and spec.folds.file is None and spec.labels.test_table is None:
        msg = (
            f"protocol {spec.protocol!r} takes the folds that come with a task; name its folder "
            "by --task-folder, or its k=all.tsv by --splits"
        )
        raise StudyError(msg)
    replaced = _FOLDS if spec.folds.file is not None else ()
    changed = [
        f"{path} is {_value(spec, path)}, {protocol.title.partition(':')[0]}'s is {setting}"
        for path, setting in settings.items()
        if path not in replaced and _value(spec, path) != setting
    ]
    return {
        "name": spec.protocol,
        "title": protocol.title,
        "prints": protocol.prints,
        "changed": changed,
        "differs": list(protocol.differs),
    }


_FOLDS = ("folds.folds", "folds.inner", "folds.repeats", "folds.split")
"""Settings that a file of folds replaces."""


def _value(spec: Any, path: str) -> Any:  # noqa: ANN401 - any field of a study's settings
    """Return the field at a path."""
    for name in path.split("."):
        spec = getattr(spec, name)
    return spec
