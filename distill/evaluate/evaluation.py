"""Evaluate students beside what they have to be better than, on patients that no training used.

Assembly alone: tiles are read in `sampled_tiles`, embedded in `embeddings`, measured in `one_split`
and the modules of `measures`. Runs in one process, without Ray.

`report.json` holds the following. Keys are stable, `schema` is raised when they change; a number
that is not known is null. A SPREAD is `{"mean", "min", "max"}` over the members of a group (seeds
of a student, splits for a teacher); with an interval also `low` and `high`.

- `schema`, `run`, `lake`, `lake_version`, `settings`, `machine`
- `students`: name -> `run`, `recipe`, `seed`, `teachers`, `held_out_slides` (a number),
  `head_fidelity`: the fidelity of its heads, from the student's own report
- `splits`: per split `students`, `held_out_slides`, `train_slides`, `held_out_patients`,
  and `tiles`: mpp -> `train`, `held_out`, `labelled_train`, `labelled_held_out`
- `classes`: names of the labels' classes
- `embeddings`: a list, students first, of `name`, `kind` (student, single_teacher,
  undistilled, pca, teacher), `members`, `seeds`, and SPREADs:
  `width`;
  `fidelity`: teacher -> mpp or `all` -> `cosine`, `baseline`, `centred`, `r2`, `cka`,
  `cka_debiased`, `knn_overlap`, `knn_chance`, `tiles` (see `fidelity`);
  `mode_switching`: teacher -> `best_mpp`, `worst_mpp`, `gap`, `flagged`;
  `probe`: mpp -> `linear`, `knn1`, `knn10`, `knn20` -> `balanced_accuracy`, `macro_f1`;
  `retrieval`: mpp -> `acc@1`, `acc@3`, `acc@5`, `map`, `queries`;
  `robustness`: `all`, `cross_scanner`, `cross_stain`, `cross_both`, `stain NAME`,
  `scanner NAME`, `chance`, `board` (see `robustness`);
  `throughput`: mpp (`network` for a teacher) -> `parameters`, `network_tiles_s`,
  `end_to_end_tiles_s`, `slides_min`, `tiles_per_slide`, `tiles`
- `amortisation`: see `amortisation`; null if no teacher could be timed
- `verdicts`: a sentence on each student beside each teacher, with its numbers, see
  `student_verdicts`
- `used_by`: runs of `mil`, `survival` and others on features of a student: `student`, `run`,
  `kind`, `target`, `arm`, `measure`, `estimate`, `low`, `high`
- `left_out`: a sentence for each measure that was left out, with the reason
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from cluster import progress
from distill.errors import DistillError
from distill.evaluate.compared_students import EvaluationSplit, StudentRecord, evaluation_splits
from distill.evaluate.cost import machine_facts
from distill.evaluate.evaluation_page import evaluation_page
from distill.evaluate.evaluation_spec import EvaluationSpec
from distill.evaluate.one_split import SplitTiles, measure_split, read_split, subject_count
from distill.evaluate.seed_summary import Tree, group_name, merged_numbers, strict_json
from distill.evaluate.student_verdict import student_verdicts
from distill.evaluate.subjects import Subject
from distill.evaluate.tile_labels import read_labels, refuse_unmet
from downstream import run_table
from featurestore import Lake, mpp_name, open_lake
from featurestore.storage import json_bytes, sealed

Report = dict[str, Any]
SCHEMA = 1


def evaluate(
    lake_uri: str,
    students: Sequence[str],
    spec: EvaluationSpec | None = None,
    *,
    version: int | str | None = None,
) -> Report:
    """Evaluate students, and write `runs/evaluate-<hash>/report.json` and `report.html`.

    Each student is evaluated on tiles of its own held-out patients; read-outs and probes are
    fitted on tiles of all other patients. Nothing is chosen on held-out tiles. The same call gives
    the same numbers, times apart, and writes over what it wrote before.

    Args:
        lake_uri: the lake.
        students: names of the students; students that differ in their seed alone are merged.
        spec: settings; the defaults if None.
        version: version of the lake, or a snapshot; the newest if None.

    Returns:
        The content of `report.json`, see the docstring of this module.

    Raises:
        DistillError: a student or a label is not as it must be; nothing was written.
        LakeError: there is no lake, or no such mpp.
    """
    lake = open_lake(lake_uri, version=version)
    spec = (spec or EvaluationSpec()).on_this_machine()
    if not students:
        msg = "no student given; name one or more with --student"
        raise DistillError(msg)
    parts, notes = evaluation_splits(lake, students, single=spec.single, mpps=spec.mpps)
    labels, classes = _labels(lake, spec)
    report = _report(lake, parts, spec, labels)
    report["classes"], report["left_out"] = classes, [*notes, *report["left_out"]]
    report["verdicts"] = student_verdicts(report)
    names = list(dict.fromkeys(students))
    report["settings"] = {"students": names, **spec.to_json(), "mpps": report.pop("mpps")}
    return _write_report(lake, report, labels)


def _labels(lake: Lake, spec: EvaluationSpec) -> tuple[pl.DataFrame | None, list[str]]:
    """Return the labels of tiles and the names of the classes; None and [] without a table."""
    if spec.labels is None:
        return None, []
    return read_labels(spec.labels, lake, column=spec.label_column, distinct_ids=spec.distinct_ids)


def _report(
    lake: Lake, parts: Sequence[EvaluationSplit], spec: EvaluationSpec, labels: pl.DataFrame | None
) -> Report:
    """Measure all splits, one after the other, and gather their numbers."""
    measured: list[tuple[Subject, Tree]] = []
    amortisations, split_reports, notes = [], [], []
    with progress("evaluate", total=sum(map(subject_count, parts)), unit="embeddings") as bar:
        for split in parts:
            # One split's tiles are in memory at a time.
            tiles = read_split(lake, split, labels, spec)
            if labels is not None and not (tiles.label_train or tiles.label_held):
                refuse_unmet(str(spec.labels), labels)
            split_numbers, amortised = measure_split(lake, split, tiles, spec, bar)
            measured += split_numbers
            amortisations.append(amortised)
            split_reports.append(_split_report(split, tiles))
            notes += tiles.notes
    report: Report = {
        "schema": SCHEMA,
        "lake": lake.uri,
        "lake_version": lake.version,
        "machine": machine_facts(**spec.runs_on),
        "students": {s.name: _student_report(s) for split in parts for s in split.runnable},
        "splits": split_reports,
        "embeddings": merged_subjects(measured),
        "amortisation": next((costs for costs in amortisations if costs), None),
        "left_out": list(dict.fromkeys(notes)),
        "mpps": sorted({mpp for split in parts for mpp in split.mpps}),
    }
    report["used_by"] = list(runs_of_students(lake, list(report["students"])))
    return report


def runs_of_students(lake: Lake, students: Sequence[str]) -> Iterator[Report]:
    """Yield the main measure of each arm of the lake's runs that reads a student's column."""
    rows = run_table(lake).filter(pl.col("main"))
    for row in rows.iter_rows(named=True):
        columns = (row["features"] or "").split("+")
        for student in students:
            if student in columns:
                names = ("run", "kind", "target", "arm", "measure", "estimate", "low", "high")
                yield {"student": student, **{name: row[name] for name in names}}


def _student_report(student: StudentRecord) -> Report:
    """Return the report's entry of a student."""
    return {
        "run": student.report.get("run"),
        "recipe": student.recipe.get("name"),
        "seed": student.recipe.get("seed"),
        "teachers": list(student.recipe["teachers"]),
        "held_out_slides": len(student.held_out),
        "head_fidelity": student.report["fidelity"],
    }


def _split_report(split: EvaluationSplit, tiles: SplitTiles) -> Report:
    """Return the report's entry of a split: its students, slides and numbers of tiles."""
    parts = {
        "train": tiles.train,
        "held_out": tiles.held,
        "labelled_train": tiles.label_train,
        "labelled_held_out": tiles.label_held,
    }
    return {
        "students": [student.name for student in split.students],
        "held_out_slides": len(split.held_out),
        "held_out_patients": len({split.patient[slide] for slide in split.held_out}),
        "train_slides": len(split.train),
        "tiles": {
            mpp_name(mpp): {name: len(part.get(mpp, ())) for name, part in parts.items()}
            for mpp in sorted({*tiles.train, *tiles.label_train, *tiles.label_held})
        },
    }


def merged_subjects(measured: Sequence[tuple[Subject, Tree]]) -> list[Report]:
    """Merge numbers of subjects that differ in their seed alone; students come first."""
    order = ("student", "single_teacher", "undistilled", "pca", "teacher")
    alike: dict[tuple[str, str], list[tuple[Subject, Tree]]] = {}
    for subject, tree in measured:
        alike.setdefault((subject.kind, subject.alike), []).append((subject, tree))
    merged_groups = [_group(kind, members) for (kind, _), members in alike.items()]
    return sorted(merged_groups, key=lambda group: order.index(group["kind"]))


def _group(kind: str, members: Sequence[tuple[Subject, Tree]]) -> Report:
    """Merge the numbers of a group of subjects."""
    names = list(dict.fromkeys(subject.name for subject, _ in members))
    seeds = [subject.seed for subject, _ in members if subject.seed is not None]
    return {
        "name": group_name(sorted(names)),
        "kind": kind,
        "members": names,
        "runs": len(members),
        "seeds": sorted(set(seeds)),
        **merged_numbers([tree for _, tree in members]),
    }


def _write_report(lake: Lake, report: Report, labels: pl.DataFrame | None) -> Report:
    """Write the page, then the report, so that the page is complete if the JSON is there."""
    students = {name: student["run"] for name, student in report["students"].items()}
    text = json.dumps([report["settings"], report["lake_version"], students], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    if labels is not None:
        digest.update(labels.write_csv().encode())
    run = f"evaluate-{digest.hexdigest()[:12]}"
    written: Report = strict_json({"schema": report["schema"], "run": run, **report})
    lake.write_bytes(f"runs/{run}/report.html", evaluation_page(written).encode())
    written = sealed(written, {})
    lake.write_bytes(f"runs/{run}/report.json", json_bytes(written))
    return written
