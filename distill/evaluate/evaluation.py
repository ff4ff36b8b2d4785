"""How good a student is, beside what it has to be better than, on patients that nothing saw.

Assembly alone: tiles are read in `evaluate_tiles`, embedded in `evaluate_embed`, measured in
`evaluate_measures`, `evaluate_robust` and `evaluate_cost`. Runs in one process, without Ray.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import polars as pl
import torch

from cluster import progress
from distill.errors import DistillError
from distill.evaluate.compared_students import Found, Split, splits
from distill.evaluate.cost import machine
from distill.evaluate.evaluation_page import page
from distill.evaluate.one_split import Seen, measure_split, read_split, steps
from distill.evaluate.seed_summary import Tree, group_name, merged, plain
from distill.evaluate.subjects import How, Subject
from distill.evaluate.tile_labels import read_labels, refuse_unmet
from featurestore import Lake, mpp_name, open_lake

Report = dict[str, Any]
SCHEMA = 1


def evaluate(
    lake_uri: str,
    students: Sequence[str],
    *,
    labels: str | None = None,
    label_column: str | None = None,
    distinct_ids: bool = False,
    single: str | None = None,
    mpps: Sequence[float] | None = None,
    tiles: int = 2048,
    robust_tiles: int = 256,
    teacher_seconds: float = 300.0,
    seed: int = 0,
    device: str | None = None,
    threads: int | None = None,
    version: int | str | None = None,
) -> Report:
    """Evaluate students, and write `runs/evaluate-<hash>/report.json` and `report.html`.

    Each student is evaluated on tiles of its own held-out patients; read-outs and probes are
    fitted on tiles of all other patients. Nothing is chosen on held-out tiles. The same call gives
    the same numbers, times apart, and writes over what it wrote before.

    Args:
        lake_uri: the lake.
        students: their names. Those that differ in their seed alone are shown together.
        labels: a table of tile labels, see `read_labels`; without one, no probe and no retrieval.
        label_column: of the classes.
        distinct_ids: see `read_labels`.
        single: the student of one teacher to compare with; the best of the same network if None.
        mpps: of the tiles; the students' if None.
        tiles: most tiles per mpp, of training slides and of held-out ones each.
        robust_tiles: most held-out tiles that are perturbed; each makes 16.
        teacher_seconds: a teacher that would take longer than this on them is left out there.
        seed: of all that is drawn.
        device: torch's name of it; a GPU if there is one and None is given.
        threads: of the CPU; all if None.
        version: of the lake, or a snapshot; the newest if None.

    Returns:
        What `report.json` holds. Keys are stable, `schema` is raised when they change; a number
        that is not known is null. A SPREAD is `{"mean", "min", "max"}` over the members of a group
        (seeds of a student, splits for a teacher); with an interval also `low` and `high`.

        - `schema`, `run`, `lake`, `lake_version`, `settings`, `machine`
        - `students`: name -> `run`, `recipe`, `seed`, `teachers`, `held_out_slides` (a number),
          `head_fidelity`: what the heads reached, as the student's own report tells it
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
        - `left_out`: what was not measured, and why

    Raises:
        DistillError: a student or a label is not as it must be; nothing was written.
        LakeError: there is no lake, or no such mpp.
    """
    lake = open_lake(lake_uri, version=version)
    how = How(
        tiles=tiles,
        robust_tiles=robust_tiles,
        teacher_seconds=teacher_seconds,
        seed=seed,
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        threads=threads or os.cpu_count() or 1,
    )
    if not students:
        msg = "no student given; name one or more with --student"
        raise DistillError(msg)
    parts, notes = splits(lake, students, single=single, mpps=mpps)
    table, classes = (
        (None, [])
        if labels is None
        else read_labels(labels, lake, column=label_column, distinct_ids=distinct_ids)
    )
    report = _report(lake, parts, how, (labels, table))
    report["classes"], report["left_out"] = classes, [*notes, *report["left_out"]]
    asked = list(dict.fromkeys(students))
    settings = {"students": asked, **asdict(how), "single": single, "mpps": report.pop("mpps")}
    report["settings"] = {**settings, "labels": labels, "label_column": label_column}
    return _written(lake, report, table)


def _report(
    lake: Lake,
    parts: Sequence[Split],
    how: How,
    labels: tuple[str | None, pl.DataFrame | None],
) -> Report:
    measured: list[tuple[Subject, Tree]] = []
    saved, told, notes = [], [], []
    with progress("evaluate", total=sum(map(steps, parts)), unit="embeddings") as bar:
        for split in parts:
            # One split's tiles are in memory at a time.
            seen = read_split(lake, split, labels[1], how)
            if labels[1] is not None and not (seen.label_train or seen.label_held):
                refuse_unmet(str(labels[0]), labels[1])
            found, amortised = measure_split(lake, split, seen, how, bar)
            measured += found
            saved.append(amortised)
            told.append(_split_told(split, seen))
            notes += seen.notes
    return {
        "schema": SCHEMA,
        "lake": lake.uri,
        "lake_version": lake.version,
        "machine": machine(how.device, how.threads),
        "students": {f.name: _told(f) for split in parts for f in split.runnable},
        "splits": told,
        "embeddings": groups(measured),
        "amortisation": next((one for one in saved if one), None),
        "left_out": list(dict.fromkeys(notes)),
        "mpps": sorted({mpp for split in parts for mpp in split.mpps}),
    }


def _told(found: Found) -> Report:
    return {
        "run": found.report.get("run"),
        "recipe": found.recipe.get("name"),
        "seed": found.recipe.get("seed"),
        "teachers": list(found.recipe["teachers"]),
        "held_out_slides": len(found.held_out),
        "head_fidelity": found.report["fidelity"],
    }


def _split_told(split: Split, seen: Seen) -> Report:
    parts = {
        "train": seen.train,
        "held_out": seen.held,
        "labelled_train": seen.label_train,
        "labelled_held_out": seen.label_held,
    }
    return {
        "students": [found.name for found in split.students],
        "held_out_slides": len(split.held_out),
        "held_out_patients": len({split.patient[slide] for slide in split.held_out}),
        "train_slides": len(split.train),
        "tiles": {
            mpp_name(mpp): {name: len(part.get(mpp, ())) for name, part in parts.items()}
            for mpp in sorted({*seen.train, *seen.label_train, *seen.label_held})
        },
    }


def groups(measured: Sequence[tuple[Subject, Tree]]) -> list[Report]:
    """Numbers of subjects that are alike as one, in the order of kinds and then as they came."""
    order = ("student", "single_teacher", "undistilled", "pca", "teacher")
    alike: dict[tuple[str, str], list[tuple[Subject, Tree]]] = {}
    for subject, tree in measured:
        alike.setdefault((subject.kind, subject.alike), []).append((subject, tree))
    found = [_group(kind, members) for (kind, _), members in alike.items()]
    return sorted(found, key=lambda group: order.index(group["kind"]))


def _group(kind: str, members: Sequence[tuple[Subject, Tree]]) -> Report:
    names = list(dict.fromkeys(subject.name for subject, _ in members))
    seeds = [subject.seed for subject, _ in members if subject.seed is not None]
    return {
        "name": group_name(sorted(names)),
        "kind": kind,
        "members": names,
        "runs": len(members),
        "seeds": sorted(set(seeds)),
        **merged([tree for _, tree in members]),
    }


def _written(lake: Lake, report: Report, labels: pl.DataFrame | None) -> Report:
    """Write the report and the page; the JSON last: where it is, the page is whole."""
    students = {name: told["run"] for name, told in report["students"].items()}
    text = json.dumps([report["settings"], report["lake_version"], students], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    if labels is not None:
        digest.update(labels.write_csv().encode())
    run = f"evaluate-{digest.hexdigest()[:12]}"
    found: Report = plain({"schema": report["schema"], "run": run, **report})
    lake.write_bytes(f"runs/{run}/report.html", page(found).encode())
    lake.write_json(f"runs/{run}/report.json", found)
    return found
