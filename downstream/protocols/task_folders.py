"""Task folders of Patho-Bench: `config.yaml` beside `k=all.tsv`, which holds labels and folds.

A task that is trained on one source and tested on another is written as there,
`TRAIN==TEST--TASK`: two folders of one root, `<root>/<source>/<task>`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from downstream.cohorts.cohort_errors import CohortError

CONFIG, TABLE = "config.yaml", "k=all.tsv"
_KEYS: dict[str, type] = {"sample_col": str, "task_col": str, "extra_cols": list}


@dataclass(frozen=True, kw_only=True)
class TaskFolder:
    """A task of Patho-Bench.

    Attributes:
        table: path of its `k=all.tsv`.
        sample_column: column of a sample, `case_id` or `slide_id`.
        target: column of the label.
        class_names: names of the label's values, each as VALUE=NAME.
        time: survival: column of the time; empty for classes.
        event: survival: column that is 1 where the event was seen; empty for classes.
        test_table: `k=all.tsv` of the source that is tested, of a task `TRAIN==TEST--TASK`; else
            empty.
    """

    table: str
    sample_column: str
    target: str
    class_names: tuple[str, ...] = ()
    time: str = ""
    event: str = ""
    test_table: str = ""

    def changes(self, kind: str) -> dict[str, object]:
        """Return the fields of a study's settings that the task sets, by path.

        Args:
            kind: kind of study, `mil` or `survival`.

        Raises:
            CohortError: A task of survival in a study of classes, or the other way round.
        """
        is_survival = bool(self.time)
        if is_survival != (kind == "survival"):
            fits = "survival" if is_survival else "mil"
            msg = (
                f"task {self.target!r} of {self.table} is one of `slidelake {fits}`: its columns "
                f"are {', '.join(self.columns)}"
            )
            raise CohortError(msg)
        changes: dict[str, object] = {"labels.table": self.table}
        if is_survival:
            changes |= {"labels.time": self.time, "labels.event": self.event}
            changes["labels.event_means"] = "event"
        else:
            changes |= {"labels.target": (self.target,), "labels.class_names": self.class_names}
        if self.test_table:
            return {**changes, "labels.test_table": self.test_table}
        return {**changes, "folds.file": self.table}

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns that are predicted."""
        return (self.time, self.event) if self.time else (self.target,)


def read_task_folder(path: str) -> TaskFolder:
    """Return the task of a folder, or of two: `<root>/<train>==<test>--<task>`.

    `<root>/<source>--<task>` is the folder `<root>/<source>/<task>`, as in Patho-Bench's lists of
    tasks.

    Raises:
        CohortError: There is no such folder, it is no task, or the two tasks differ.
    """
    folder = Path(path)
    if folder.is_dir() or "--" not in folder.name:
        return _task_of(folder)
    sources, task = folder.name.split("--", 1)
    train, _, test = sources.partition("==")
    trained = _task_of(folder.parent / train / task)
    if not test:
        return trained
    if test == train:
        msg = f"task {folder.name!r} is trained and tested on {train!r}; write {train}--{task}"
        raise CohortError(msg)
    tested = _task_of(folder.parent / test / task)
    if (trained.columns, trained.class_names) != (tested.columns, tested.class_names):
        msg = (
            f"task {folder.name!r}: {trained.table} has {', '.join(trained.columns)} of "
            f"{', '.join(trained.class_names) or 'survival'}, {tested.table} "
            f"{', '.join(tested.columns)} of {', '.join(tested.class_names) or 'survival'}; "
            "both must be the same task"
        )
        raise CohortError(msg)
    return TaskFolder(**{**vars(trained), "test_table": tested.table})


def _task_of(folder: Path) -> TaskFolder:
    """Return the task of one folder."""
    if not (folder / CONFIG).is_file() or not (folder / TABLE).is_file():
        msg = (
            f"task folder {str(folder)!r}: it has no {CONFIG} beside a {TABLE}; give a folder of "
            "Patho-Bench's splits, such as splits/cptac_ccrcc/BAP1_mutation, or two sources as "
            "splits/cptac_ccrcc==mut-het-rcc--BAP1_mutation"
        )
        raise CohortError(msg)
    config = _config(folder / CONFIG)
    target, extra = config["task_col"], [str(one) for one in config["extra_cols"]]
    days, event = f"{target}_days", f"{target}_event"
    is_survival = {days, event} <= set(extra)
    names = config.get("label_dict") or {}
    return TaskFolder(
        table=str(folder / TABLE),
        sample_column=config["sample_col"],
        target=target,
        class_names=() if is_survival else tuple(f"{key}={name}" for key, name in names.items()),
        time=days if is_survival else "",
        event=event if is_survival else "",
    )


def _config(path: Path) -> Mapping[str, Any]:
    """Return the content of a task's `config.yaml`, checked; nothing in it is run."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        msg = f"{path}: it cannot be read as YAML: {error}"
        raise CohortError(msg) from error
    content = content if isinstance(content, dict) else {}
    wrong = [key for key, kind in _KEYS.items() if not isinstance(content.get(key), kind)]
    if wrong or not isinstance(content.get("label_dict") or {}, dict):
        msg = (
            f"{path}: {', '.join(wrong) or 'label_dict'} is not there, or of another type; a task "
            "of Patho-Bench has sample_col and task_col (texts), extra_cols (a list) and "
            "label_dict (value: name)"
        )
        raise CohortError(msg)
    return content
