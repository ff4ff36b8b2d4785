"""Every recipe, and options of agglomerate, on one lake of generated slides: a table for the docs.

    python -m benchmarks.recipes LAKE [CASE...] [--small] [--again] [--out FILE]

Makes the lake if it is not there (24 patients, 32 slides of 2,560 x 2,304 px, mpps 0.5, 1 and 2),
distils each case with three seeds, evaluates them, and prints Markdown tables. A case whose result
is in the file is not run again, and a student that is in the lake is not trained again, so a run
that was stopped goes on. `--small` runs one seed of one epoch on 4 patients, to see that it works.

Expected on two quiet cores: 3 to 5 minutes a case of `agglomerate` (three trainings of about a
minute and the evaluation), 10 to 15 of xmag, gpfm, pathme and context: about 2.5 hours for all.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

import slidelake
from benchmarks.report import RESULTS
from cluster import ray_session
from distill.evaluate.evaluation import evaluate
from distill.evaluate.evaluation_spec import EvaluationSpec
from distill.recipes.recipe import Term
from examples.cohort import make_cohort
from featurestore import annotate, open_lake

SEEDS = (0, 1, 2)
LITE0, LITE1 = "efficientnet_lite0", "efficientnet_lite1"
TOKENS, STAINED = f"{LITE0}:patches12", f"{LITE0}@S1"
BOTH, ONE = (0.5, 2.0), (0.5,)
TWO = (LITE0, LITE1)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A recipe as it is run here.

    Attributes:
        recipe: name of the recipe.
        teachers: the teachers, in the recipe's order.
        mpps: mpps of the tiles, among the lake's three.
        epochs: number of epochs of training.
        untrained: whether an untrained student of the same kind is made too: `evaluate` builds one
            itself where the student sees pixels.
        more: other settings of the recipe.
        against: the case without the option that this one measures; none if empty.
    """

    recipe: str
    teachers: tuple[str, ...] = TWO
    mpps: tuple[float, ...] = BOTH
    epochs: int = 6
    untrained: bool = False
    more: dict[str, Any] = field(default_factory=dict)
    against: str = ""


def option(*, against: str = "agglomerate", **more: Any) -> Case:  # noqa: ANN401
    """Return agglomerate with an option."""
    teachers, epochs = more.pop("teachers", TWO), 6
    if "share" in more:
        # As many steps as with all tiles.
        epochs = round(epochs / more["share"])
    return Case(recipe="agglomerate", teachers=teachers, epochs=epochs, more=more, against=against)


def match(**settings: float) -> tuple[Term, ...]:
    """Return the terms of agglomerate with other settings of `match`."""
    return (Term(kind="match", settings=settings),)


def extra(kind: str, weight: float = 1.0, **fields: Any) -> tuple[Term, ...]:  # noqa: ANN401
    """Return one further term."""
    return (Term(kind=kind, weight=weight, **fields),)


PATCHES = f"{LITE0}:patches"
WITH_PATCHES = (LITE0, PATCHES, LITE1)
OPTIONS = {
    "angle": option(terms=match(angle=1.0)),
    "average": option(extra_terms=extra("average")),
    "patches": option(teachers=WITH_PATCHES),
    "patches-shift": option(teachers=WITH_PATCHES, shift=0.5, against="patches"),
    "patches-neighbours": option(
        teachers=WITH_PATCHES, shift=0.5, neighbours=True, against="patches"
    ),
    "sizes": option(sizes=(96, 160)),
    "sizes-by-tokens": option(sizes=(96, 160), size_balance="tokens"),
    "no-dropping": option(weighting="static"),
    "mutual": option(extra_terms=extra("mutual")),
    "label": option(extra_terms=extra("label", 0.1, labels="clinical.label")),
    "self-paced": option(self_paced=0.5),
    "cluster-balance": option(balance="cluster", clusters=16),
    **{
        f"{kind}-{round(100 * share)}": option(coreset=kind, share=share)
        for share in (0.4, 0.1)
        for kind in ("coverage", "hard", "easy", "random")
    },
}
CASES = {
    "agglomerate": Case(recipe="agglomerate"),
    **OPTIONS,
    "single": Case(recipe="agglomerate", teachers=(LITE0,)),
    "g2l": Case(recipe="g2l", teachers=(LITE0,)),
    "h0": Case(recipe="h0", teachers=(LITE0, TOKENS)),
    "xmag": Case(recipe="xmag", epochs=120),
    "shazam": Case(recipe="shazam", epochs=20, untrained=True),
    "pathme": Case(recipe="pathme", mpps=(0.5, 1.0, 2.0), epochs=20, untrained=True),
    "context": Case(recipe="context", epochs=20, untrained=True, more={"width": 192, "depth": 4}),
    "robust": Case(recipe="robust", teachers=(LITE0, STAINED), epochs=20, untrained=True,
        more={"site": "clinical.site"}),
    "gpfm": Case(recipe="gpfm"),
}  # fmt: skip


def make_lake(lake: Path, *, patients: int, slides: int) -> None:
    """Write slides, tiles, teachers and labels; parts that exist are not written again."""
    labels = make_cohort(
        lake.parent / f"{lake.name}-cohort",
        patients=patients,
        slides=slides,
        width_px=2560,
        height_px=2304,
    )
    config = slidelake.LakeConfig(tile_px=256, mpps=(0.5, 1.0, 2.0))
    slidelake.ingest(str(lake), [str(labels)], config, commit_slides=8)
    slidelake.extract(str(lake), [LITE0, TOKENS, PATCHES, LITE1, STAINED])
    opened = open_lake(str(lake))
    if "clinical" not in opened.annotations():
        table = pl.read_csv(labels).select("slide_id", "label", "site")
        annotate(opened, table, "clinical")


def train(lake: str, name: str, case: Case, *, seed: int, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    """Train one student and return its report."""
    settings = {"mpps": case.mpps, "epochs": case.epochs, "seed": seed, **case.more, **more}
    recipe = slidelake.make_recipe(case.recipe, case.teachers, **settings)
    report: dict[str, Any] = slidelake.distill(lake, recipe, name=name)
    if case.untrained:
        slidelake.extract(lake, [name])
    return report


def run(lake: str, name: str, case: Case, seeds: Sequence[int]) -> dict[str, Any]:
    """Train all seeds of a case and evaluate them together."""
    students = [f"{name}-{seed}" for seed in seeds]
    reports = [train(lake, f"{name}-{seed}", case, seed=seed) for seed in seeds]
    others = []
    if case.untrained:
        # A learning rate of nearly nothing: the weights stay where they began.
        train(lake, f"{name}-untrained", case, seed=0, epochs=1, learning_rate=1e-12)
        others = [f"{name}-untrained"]
    spec = EvaluationSpec(teacher_seconds=0.0, robust_tiles=64)
    report = evaluate(lake, [*students, *others], spec)
    return {
        "recipe": name,
        "against": case.against,
        "settings": reports[0]["recipe"],
        "chosen_tiles": reports[0].get("tiles", {}),
        "heads": [report["fidelity"] for report in reports],
        "per_mpp": [report["fidelity_per_mpp"] for report in reports],
        "per_size": [report.get("fidelity_per_size", {}) for report in reports],
        "seconds": [report["train_seconds"] for report in reports],
        "steps": reports[0]["steps"],
        "tiles": report["splits"][0]["tiles"],
        "embeddings": [kept(embedding) for embedding in report["embeddings"]],
        **({"robustness": passport(lake, students)} if name == "robust" else {}),
    }


def passport(lake: str, students: Sequence[str]) -> dict[str, Any]:
    """Return the measures of robustness of a teacher's column and of the robust ones beside it."""
    names = [LITE0, *students]
    result = slidelake.run_robustness(lake, "lake:clinical", "label", names, sites="site", mpp=0.5)
    return {name: result["metrics"][name]["measures"] for name in names}


def kept(embedding: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of an embedding that are compared; the run's report has the rest."""
    keys = ("name", "kind", "members", "runs", "seeds", "width", "fidelity")
    return {key: embedding[key] for key in keys} | {"robustness": embedding.get("robustness")}


def table(runs: dict[str, dict[str, Any]]) -> str:
    """Write all recipes as Markdown: mean over seeds (least - greatest), one line a teacher."""
    rows = [
        "| recipe | teacher | heads | read-out | undistilled | mean feature | beats both |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in runs.items():
        student, untrained = student_of(one), undistilled_of(one)
        for teacher, by_mpp in student["fidelity"].items():
            heads = [seed[teacher] for seed in one["heads"] if teacher in seed]
            other = untrained["fidelity"][teacher]["all"]["cosine"]
            cosine, mean = by_mpp["all"]["cosine"], by_mpp["all"]["baseline"]["mean"]
            beats = cosine["min"] > max(other["max"], mean)
            beats = beats and all(seed["cosine"] > seed["baseline"] for seed in heads)
            heads_text = spread(summed([seed["cosine"] for seed in heads])) if heads else "none"
            rows.append(
                f"| {name} | {teacher} | {heads_text} | {spread(cosine)} | {other['mean']:.3f} | "
                f"{mean:.3f} | {'yes' if beats else 'no'} |"
            )
    return "\n".join(rows)


def spread(cosine: dict[str, float]) -> str:
    """Return the text "mean (least - greatest)"."""
    return f"{cosine['mean']:.3f} ({cosine['min']:.3f}-{cosine['max']:.3f})"


def summed(numbers: list[float]) -> dict[str, float]:
    """Return the mean, least and greatest of some numbers."""
    return {"mean": sum(numbers) / len(numbers), "min": min(numbers), "max": max(numbers)}


def option_table(runs: dict[str, dict[str, Any]]) -> str:
    """Write the options of agglomerate as Markdown, each against the case without it.

    The change is that of the read-out's cosine, mean over teachers and seeds. "yes" where the worst
    seed is better than the other case's best, "no" where the best is worse than its worst.
    """
    rows = [
        "| option | tiles | read-out | without it | change | better | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in runs.items():
        other = runs.get(one.get("against", ""))
        if other is None:
            continue
        with_it, without = read_out(one), read_out(other)
        better = "in between"
        if with_it["min"] > without["max"]:
            better = "yes"
        elif with_it["max"] < without["min"]:
            better = "no"
        seen = sum(part["chosen"] for part in one["chosen_tiles"].values()) or "all"
        rows.append(
            f"| {name} | {seen} | {spread(with_it)} | {spread(without)} | "
            f"{with_it['mean'] - without['mean']:+.3f} | {better} | "
            f"{sum(one['seconds']) / len(one['seconds']):.0f} |"
        )
    return "\n".join(rows)


def read_out(one: dict[str, Any]) -> dict[str, float]:
    """Return the read-out's cosine, mean over the teachers that all cases have."""
    fidelity = student_of(one)["fidelity"]
    cosines = [fidelity[name]["all"]["cosine"] for name in TWO]
    return {key: sum(cosine[key] for cosine in cosines) / len(cosines) for key in cosines[0]}


def student_of(one: dict[str, Any]) -> dict[str, Any]:
    """Return the embedding of a recipe's seeds."""
    embedding: dict[str, Any] = next(
        e
        for e in one["embeddings"]
        if e["kind"] == "student" and not e["name"].endswith("-untrained")
    )
    return embedding


def undistilled_of(one: dict[str, Any]) -> dict[str, Any]:
    """Return the untrained embedding: of `evaluate`, or of a student without learning rate."""
    embedding: dict[str, Any] = next(
        e
        for e in one["embeddings"]
        if e["kind"] == "undistilled" or e["name"].endswith("-untrained")
    )
    return embedding


def small(case: Case) -> Case:
    """Return a case with one epoch of a small network's steps."""
    more = {**case.more, "batch_tiles": 16}
    if case.recipe in ("context", "pathme"):
        more |= {"width": 48, "depth": 1, "heads": 4}
    return replace(case, epochs=1, more=more)


def main(words: Sequence[str] | None = None) -> None:
    """Run the cases on LAKE, all if none is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lake", type=Path)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], default=[])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--again", action="store_true", help="run cases that have a result, too")
    parser.add_argument("--out", type=Path, default=RESULTS / "recipes.json")
    options = parser.parse_args(words)
    patients, slides, seeds = (4, 4, (0,)) if options.small else (24, 32, SEEDS)
    path: Path = options.out
    with ray_session():
        make_lake(options.lake, patients=patients, slides=slides)
        for name in options.cases or CASES:
            runs = json.loads(path.read_text()) if path.exists() else {}
            # Results of earlier versions have no fidelity at each mpp.
            if "per_mpp" in runs.get(name, {}) and not options.again:
                continue
            case = small(CASES[name]) if options.small else CASES[name]
            runs[name] = run(str(options.lake), name, case, seeds)
            path.write_text(json.dumps(runs, indent=1) + "\n")
            sys.stderr.write(f"recipes: {name} done\n")
    runs = json.loads(path.read_text())
    sys.stdout.write(f"{table(runs)}\n\n{option_table(runs)}\n")


if __name__ == "__main__":
    main()
