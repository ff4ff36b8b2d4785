"""What an evaluation says of a student in a sentence that a person can use.

It is made of the report alone, see `distill.evaluate.evaluation`. A student's share of a teacher is
the centred cosine of the read-out (0: the mean feature, 1: the teacher), or, with labels, the share
of the teacher's balanced accuracy above chance that a linear probe on the student reaches.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]
ADVICE = "train longer (--epochs) or on more slides before you use it"


def student_verdicts(report: Report) -> list[dict[str, Any]]:
    """Return what holds of each student beside each of its teachers.

    Returns:
        A dict for each student and teacher: `student`, `teacher`; `kept`, the centred cosine;
        `kept_probe`, the share of the teacher's balanced accuracy above chance, by mpp; `speed`,
        how often the teacher's network fits into the student's time; `smaller`, the ratio of their
        parameters; each None where it was not measured; `speed_kept_at_extract`, whether the
        teacher was timed by its extract alone; `is_useful`, whether it is better than the
        teacher's mean feature and than the same network untrained; and `text`, the sentence.
    """
    embeddings = report["embeddings"]
    return [
        _verdict(report, embedding, teacher)
        for embedding in embeddings
        if embedding["kind"] == "student"
        for teacher in embedding["fidelity"]
    ]


def _verdict(report: Report, student: Report, teacher: str) -> dict[str, Any]:
    """Return the verdict on one student of one teacher."""
    numbers = student["fidelity"][teacher]["all"]
    kept, cosine, baseline = (_mean(numbers[name]) for name in ("centred", "cosine", "baseline"))
    untrained = _mean(_of_kind(report, "undistilled", teacher, "centred"))
    is_useful = kept is not None and kept > 0 and (untrained is None or kept > untrained)
    verdict = {
        "student": student["name"],
        "teacher": teacher,
        "kept": kept,
        "kept_probe": dict(_kept_probe(report, student, teacher)),
        "speed": _ratio(_network_rate(student), _teacher_rate(report, teacher)),
        "speed_kept_at_extract": teacher in _kept(report),
        "smaller": _ratio(_parameters(_named(report, teacher)), _parameters(student)),
        "is_useful": is_useful,
    }
    if is_useful:
        return {**verdict, "text": _useful_text(verdict)}
    if kept is not None and kept > 0:
        reason = f"keeps no more of {teacher} than the same network untrained"
        values = f"centred cosine {kept:.2f} against {untrained:.2f}"
    else:
        reason = f"is no better than the mean feature of {teacher}"
        values = f"cosine {cosine:.3f} against {baseline:.3f}"
    text = f"{student['name']} {reason} on held-out patients ({values}): {ADVICE}"
    return {**verdict, "text": text}


def _useful_text(verdict: Mapping[str, Any]) -> str:
    """Return the sentence on a student that is worth using."""
    probe = verdict["kept_probe"]
    mpp, share = next(iter(probe.items()), (None, None))
    kept = (
        f"keeps {share:.0%} of {verdict['teacher']}'s accuracy above chance (linear probe at {mpp} "
        f"mpp) and {verdict['kept']:.0%} of its features (centred cosine)"
        if share is not None
        else f"keeps {verdict['kept']:.0%} of {verdict['teacher']} (centred cosine)"
    )
    parts = [f"{verdict['student']} {kept} on held-out patients"]
    if verdict["speed"] is not None:
        source = " (by the times of its extract)" if verdict["speed_kept_at_extract"] else ""
        parts.append(f"at {_times(verdict['speed'])} its speed{source}")
    if verdict["smaller"] is not None:
        larger = verdict["smaller"] < 1
        size = 1 / verdict["smaller"] if larger else verdict["smaller"]
        parts.append(f"{_times(size)} {'larger' if larger else 'smaller'}")
    return ", ".join(parts)


def _times(ratio: float) -> str:
    """Return a ratio in words.

    >>> _times(38.2), _times(1.44)
    ('38 x', '1.4 x')
    """
    return f"{ratio:.0f} x" if ratio >= 10 else f"{ratio:.1f} x"


def _kept_probe(report: Report, student: Report, teacher: str) -> Iterator[tuple[str, float]]:
    """Yield by mpp the share of a teacher's balanced accuracy above chance that a student keeps.

    A teacher that is at chance itself has no share to keep.
    """
    chance = 1 / max(1, len(report["classes"]))
    other = _named(report, teacher).get("probe") or {}
    for mpp, scores in (student.get("probe") or {}).items():
        own = _mean(scores.get("linear", {}).get("balanced_accuracy"))
        best = _mean(other.get(mpp, {}).get("linear", {}).get("balanced_accuracy"))
        if own is not None and best is not None and best > chance:
            yield mpp, (own - chance) / (best - chance)


def _named(report: Report, teacher: str) -> Report:
    """Return a teacher's own entry; an empty one where it is not there under its name."""
    return next(
        (e for e in report["embeddings"] if e["kind"] == "teacher" and e["name"] == teacher), {}
    )


def _of_kind(report: Report, kind: str, teacher: str, measure: str) -> Report | None:
    """Return a measure of the first embedding of a kind, or None."""
    fidelities = (e["fidelity"].get(teacher, {}) for e in report["embeddings"] if e["kind"] == kind)
    return next((f["all"][measure] for f in fidelities if f), None)


def _network_rate(embedding: Report) -> float | None:
    """Return the tiles per second of a network; the slowest over the mpps."""
    return _least(embedding, "network_tiles_s")


def _teacher_rate(report: Report, teacher: str) -> float | None:
    """Return a teacher's tiles per second: timed here, or as its extract left them in the lake."""
    rate = _network_rate(_named(report, teacher))
    if rate is None and teacher in _kept(report):
        return 1 / float(report["amortisation"]["teacher_seconds_per_tile"][teacher])
    return rate


def _kept(report: Report) -> Sequence[str]:
    """Return the teachers whose times are those of their extract."""
    kept: Sequence[str] = (report.get("amortisation") or {}).get("kept_at_extract", [])
    return kept


def _parameters(embedding: Report) -> float | None:
    return _least(embedding, "parameters")


def _least(embedding: Report, name: str) -> float | None:
    rates = [_mean(speed.get(name)) for speed in (embedding.get("throughput") or {}).values()]
    return min((rate for rate in rates if rate is not None), default=None)


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one and other else None


def _mean(spread: Any) -> float | None:  # noqa: ANN401 - JSON: a spread, or null
    return spread["mean"] if spread else None
