"""All measures of all subjects on one split; the tiles are read once, subjects come one by one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from cluster import Progress
from distill.errors import DistillError
from distill.evaluate.compared_students import EvaluationSplit
from distill.evaluate.cost import (
    amortisation,
    kept_seconds,
    read_seconds,
    throughput,
    training_numbers,
)
from distill.evaluate.evaluation_spec import EvaluationSpec
from distill.evaluate.measures.embedding_measures import (
    EmbeddedTiles,
    LabelledEmbeddings,
    fidelity,
    mode_switching,
    probes,
    retrieval_scores,
)
from distill.evaluate.measures.stain_robustness import VARIANTS, embed_variants, robustness
from distill.evaluate.sampled_tiles import (
    SampledTiles,
    readable_slides,
    sample_labelled_tiles,
    sample_tiles,
)
from distill.evaluate.seed_summary import Tree, spread
from distill.evaluate.subjects import Subject, gather_subjects
from featurestore import Lake, mpp_name

Sampled = dict[float, SampledTiles]


@dataclass(kw_only=True)
class SplitTiles:
    """The tiles of a split, as they are read from the lake.

    Attributes:
        train: tiles that read-outs are fitted on, per mpp.
        held: tiles that are evaluated, per mpp.
        label_train: labelled tiles of training slides, per mpp.
        label_held: labelled tiles of held-out slides, per mpp.
        notes: a sentence for each part that was left out, with the reason.
    """

    train: Sampled
    held: Sampled
    label_train: Sampled = field(default_factory=dict)
    label_held: Sampled = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_split(
    lake: Lake, split: EvaluationSplit, labels: pl.DataFrame | None, spec: EvaluationSpec
) -> SplitTiles:
    """Read the tiles of a split.

    Raises:
        DistillError: no mpp has tiles of both training and held-out slides.
    """
    split_tiles, bound = SplitTiles(train={}, held={}), {"most": spec.tiles, "seed": spec.seed}
    for mpp in split.mpps:
        train = sample_tiles(lake, split, split.train, mpp=mpp, **bound)
        held = sample_tiles(lake, split, split.held_out, mpp=mpp, **bound)
        if train is None or held is None:
            kind = "training" if train is None else "held-out"
            split_tiles.notes.append(f"no {kind} tiles with all features at {mpp_name(mpp)} mpp")
        else:
            split_tiles.train[mpp], split_tiles.held[mpp] = train, held
    if not split_tiles.train:
        msg = (
            f"nothing to evaluate: {'; '.join(split_tiles.notes)}. Held-out and training slides "
            f"need pixels and features of {', '.join(split.teachers)}: run slidelake extract"
        )
        raise DistillError(msg)
    parts = ((split_tiles.label_train, split.train), (split_tiles.label_held, split.held_out))
    for (mpp,), rows in [] if labels is None else labels.group_by("mpp", maintain_order=True):
        for into, slides in parts:
            labelled_tiles = sample_labelled_tiles(
                lake, split, slides, rows, mpp=float(str(mpp)), **bound
            )
            if labelled_tiles is not None:
                into[float(str(mpp))] = labelled_tiles
    return split_tiles


def subject_count(split: EvaluationSplit) -> int:
    """Return about how many subjects a split has, plus one for the perturbed tiles."""
    return len(split.runnable) + len(split.students) + 2 + len(split.teachers)


def measure_split(
    lake: Lake, split: EvaluationSplit, split_tiles: SplitTiles, spec: EvaluationSpec, bar: Progress
) -> tuple[list[tuple[Subject, Tree]], Tree | None]:
    """Measure every subject of a split.

    Returns:
        Each subject with its numbers, and the cost of training the first student with cached and
        with recomputed teachers (see `amortisation`), None if it is not known.
    """
    split_subjects, notes = gather_subjects(lake, split, split_tiles.train, spec)
    split_tiles.notes += notes
    trees = []
    for subject in split_subjects:
        trees.append(_measure_subject(lake, split, split_tiles, subject))
        bar.advance()
    for tree, numbers in zip(
        trees, _measured_robustness(split_subjects, trees, split_tiles, spec), strict=True
    ):
        tree["robustness"] = numbers
    bar.advance()
    return list(zip(split_subjects, trees, strict=True)), _amortisation(
        lake, split, split_tiles, split_subjects, trees, device=str(spec.runs_on["device"])
    )


def _measure_subject(
    lake: Lake, split: EvaluationSplit, split_tiles: SplitTiles, subject: Subject
) -> Tree:
    train, held = (
        _embedded_tiles(subject, tiles, split) for tiles in (split_tiles.train, split_tiles.held)
    )
    by_teacher = fidelity(train, held)
    switching = {t: mode_switching(by_mpp) for t, by_mpp in by_teacher.items()}
    return {
        "width": float(next(iter(held.values())).x.shape[1]),
        "fidelity": {t: _by_mpp_name(by_mpp) for t, by_mpp in by_teacher.items()},
        "mode_switching": {t: numbers for t, numbers in switching.items() if numbers},
        **_label_scores(split_tiles, subject),
        "throughput": _measured_throughput(lake, split, split_tiles, subject),
    }


def _embedded_tiles(
    subject: Subject, tiles: Mapping[float, SampledTiles], split: EvaluationSplit
) -> dict[float, EmbeddedTiles]:
    return {
        mpp: EmbeddedTiles(
            x=subject.embed(sampled),
            features={name: sampled.features[name] for name in split.teachers},
            patient=sampled.patient,
        )
        for mpp, sampled in tiles.items()
    }


def _by_mpp_name(by_mpp: Mapping[float, Mapping[str, float]]) -> Tree:
    """Return the numbers by name of the mpp, and under `all` their mean over the mpps."""
    names = next(iter(by_mpp.values()))
    mean = {name: spread([n[name] for n in by_mpp.values()])["mean"] for name in names}
    mean["tiles"] = sum(numbers["tiles"] for numbers in by_mpp.values())
    return {**{mpp_name(mpp): dict(n) for mpp, n in by_mpp.items()}, "all": mean}


# ---------------------------------------------------------------------- labels


def _label_scores(split_tiles: SplitTiles, subject: Subject) -> Tree:
    tree: Tree = {"probe": {}, "retrieval": {}}
    for mpp, tiles in split_tiles.label_held.items():
        name = mpp_name(mpp)
        try:
            held = _labelled_embeddings(subject, tiles)
        except DistillError as error:
            _note(split_tiles, f"{name} mpp: {error}")
            continue
        try:
            tree["retrieval"][name] = retrieval_scores(held)
        except DistillError as error:
            _note(split_tiles, f"{name} mpp: {error}")
        try:
            tree["probe"][name] = probes(_labelled_train(subject, split_tiles, mpp), held)
        except DistillError as error:
            _note(split_tiles, f"{name} mpp: {error}")
    return tree


def _labelled_train(subject: Subject, split_tiles: SplitTiles, mpp: float) -> LabelledEmbeddings:
    if mpp not in split_tiles.label_train:
        msg = "no labelled tiles of training slides, so no probe can be fitted"
        raise DistillError(msg)
    return _labelled_embeddings(subject, split_tiles.label_train[mpp])


def _labelled_embeddings(subject: Subject, tiles: SampledTiles) -> LabelledEmbeddings:
    if tiles.label is None:
        msg = "tiles without labels can't be classified"
        raise DistillError(msg)
    return LabelledEmbeddings(x=subject.embed(tiles), label=tiles.label, patient=tiles.patient)


def _note(split_tiles: SplitTiles, text: str) -> None:
    if text not in split_tiles.notes:
        split_tiles.notes.append(text)


# ---------------------------------------------------------------------- on pixels


def _measured_robustness(
    split_subjects: Sequence[Subject],
    trees: Sequence[Tree],
    split_tiles: SplitTiles,
    spec: EvaluationSpec,
) -> list[Tree | None]:
    """Measure robustness on held-out tiles of the finest mpp; None for subjects that can't run."""
    tiles = split_tiles.held[min(split_tiles.held)].first(spec.robust_tiles)
    encoders = {
        str(at): subject.runner
        for at, (subject, tree) in enumerate(zip(split_subjects, trees, strict=True))
        if subject.runner is not None and _within_time(subject, tree, len(tiles), split_tiles, spec)
    }
    by_subject = embed_variants(encoders, tiles.batches())
    numbers = {at: robustness(by_variant) for at, by_variant in by_subject.items()}
    return [numbers.get(str(at)) for at in range(len(split_subjects))]


def _within_time(
    subject: Subject, tree: Tree, tiles: int, split_tiles: SplitTiles, spec: EvaluationSpec
) -> bool:
    """Return whether a subject can be run on perturbed tiles in the seconds that are allowed.

    Only teachers are limited.
    """
    if subject.kind != "teacher":
        return True
    needed_s = tiles * len(VARIANTS) / tree["throughput"]["network"]["network_tiles_s"]
    if needed_s > spec.teacher_seconds:
        _note(
            split_tiles,
            f"{subject.name}: {tiles} tiles in {len(VARIANTS)} variants would take about "
            f"{needed_s:.0f} s, more than the {spec.teacher_seconds:.0f} s that were allowed",
        )
    return bool(needed_s <= spec.teacher_seconds)


def _measured_throughput(
    lake: Lake, split: EvaluationSplit, split_tiles: SplitTiles, subject: Subject
) -> Tree | None:
    """Measure tiles per second: of a student end to end at each mpp, of a teacher its network only.

    None for subjects without a network to time.
    """
    runner = subject.runner
    if runner is None or subject.kind in {"undistilled", "pca"}:
        return None
    alone_s = runner.seconds_per_tile(next(iter(split_tiles.held.values())))
    if subject.kind == "teacher":
        unknown = dict.fromkeys(("end_to_end_tiles_s", "slides_min", "tiles_per_slide", "tiles"))
        numbers = {"parameters": float(runner.parameters), "network_tiles_s": 1 / alone_s}
        return {"network": {**numbers, **unknown}}
    slides = {
        mpp: readable_slides(lake, [], mpp=mpp, slides=split.held_out) for mpp in split_tiles.held
    }
    return {
        mpp_name(mpp): throughput(lake, runner, mpp=mpp, slides=slide_ids, alone_s=alone_s)
        for mpp, slide_ids in slides.items()
    }


def _amortisation(
    lake: Lake,
    split: EvaluationSplit,
    split_tiles: SplitTiles,
    split_subjects: Sequence[Subject],
    trees: Sequence[Tree],
    *,
    device: str,
) -> dict[str, Any] | None:
    """Return the cost of training with cached and with recomputed teachers; None if not known.

    A teacher that can't be timed here counts with the rate that its extract left in the lake.
    """
    student = split.students[0]
    trained = training_numbers(lake, student, split, list(split_tiles.train))
    seconds = {
        subject.name: 1 / tree["throughput"]["network"]["network_tiles_s"]
        for subject, tree in zip(split_subjects, trees, strict=True)
        if subject.kind == "teacher" and tree["throughput"]
    }
    untimed = [name for name in split.teachers if name not in seconds]
    kept = kept_seconds(lake.store, untimed, device)
    seconds |= kept
    if trained is None:
        split_tiles.notes.append(f"{student.name}: its report has no steps and seconds of training")
    if trained is None or not seconds:
        split_tiles.notes.append(
            "the cost saved by caching was not computed: no teacher could be timed here, and no "
            "extract left its times in the lake"
        )
        return None
    if missing := [name for name in split.teachers if name not in seconds]:
        split_tiles.notes.append(
            f"the cost saved by caching is without {', '.join(missing)}: not timed here"
        )
    decode_s = read_seconds(next(iter(split_tiles.held.values())))
    costs = amortisation(trained, seconds, decode_s)
    return {"student": student.name, "kept_at_extract": list(kept), **costs}
