"""Every recipe on one lake of generated slides with real teachers: a table for the docs.

    python -m benchmarks.recipes LAKE [RECIPE...]

Makes the lake if it is not there (24 patients, 32 slides of 2,560 x 2,304 px, mpps 0.5, 1 and 2),
distils each recipe with three seeds, evaluates them, and prints a Markdown table. What is done is
not done again.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import slidelake
from benchmarks.report import RESULTS
from cluster import ray_session
from distill.evaluate.evaluation import evaluate
from distill.evaluate.evaluation_spec import EvaluationSpec
from examples.cohort import make_cohort

SEEDS = (0, 1, 2)
LITE0, LITE1 = "efficientnet_lite0", "efficientnet_lite1"
TOKENS = f"{LITE0}:patches12"
BOTH, ONE = (0.5, 2.0), (0.5,)


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
    """

    recipe: str
    teachers: tuple[str, ...]
    mpps: tuple[float, ...]
    epochs: int
    untrained: bool = False
    more: dict[str, Any] = field(default_factory=dict)


CASES = {
    "agglomerate": Case(recipe="agglomerate", teachers=(LITE0, LITE1), mpps=BOTH, epochs=6),
    "single": Case(recipe="agglomerate", teachers=(LITE0,), mpps=BOTH, epochs=6),
    "g2l": Case(recipe="g2l", teachers=(LITE0,), mpps=BOTH, epochs=6),
    "h0": Case(recipe="h0", teachers=(LITE0, TOKENS), mpps=BOTH, epochs=6),
    "xmag": Case(recipe="xmag", teachers=(LITE0, LITE1), mpps=BOTH, epochs=120),
    "shazam": Case(recipe="shazam", teachers=(LITE0, LITE1), mpps=BOTH, epochs=20, untrained=True),
    "pathme": Case(
        recipe="pathme", teachers=(LITE0, LITE1), mpps=(0.5, 1.0, 2.0), epochs=20, untrained=True
    ),
    "gpfm": Case(recipe="gpfm", teachers=(LITE0, LITE1), mpps=BOTH, epochs=6),
}


def make_lake(lake: Path) -> None:
    """Write slides, tiles and teachers; parts that exist are not written again."""
    labels = make_cohort(
        lake.parent / "recipes-cohort", patients=24, slides=32, width_px=2560, height_px=2304
    )
    config = slidelake.LakeConfig(tile_px=256, mpps=(0.5, 1.0, 2.0))
    slidelake.ingest(str(lake), [str(labels)], config, commit_slides=8)
    slidelake.extract(str(lake), [LITE0, TOKENS, LITE1])


def train(lake: str, name: str, case: Case, *, seed: int, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    """Train one student and return its report."""
    settings = {"mpps": case.mpps, "epochs": case.epochs, "seed": seed, **case.more, **more}
    recipe = slidelake.make_recipe(case.recipe, case.teachers, **settings)
    report: dict[str, Any] = slidelake.distill(lake, recipe, name=name)
    if case.untrained:
        slidelake.extract(lake, [name])
    return report


def run(lake: str, name: str) -> dict[str, Any]:
    """Train all seeds of a recipe and evaluate them together."""
    case = CASES[name]
    students = [f"{name}-{seed}" for seed in SEEDS]
    reports = [train(lake, f"{name}-{seed}", case, seed=seed) for seed in SEEDS]
    others = []
    if case.untrained:
        # A learning rate of nearly nothing: the weights stay where they began.
        train(lake, f"{name}-untrained", case, seed=0, epochs=1, learning_rate=1e-12)
        others = [f"{name}-untrained"]
    spec = EvaluationSpec(teacher_seconds=0.0, robust_tiles=64)
    report = evaluate(lake, [*students, *others], spec)
    return {
        "recipe": name,
        "settings": reports[0]["recipe"],
        "heads": [report["fidelity"] for report in reports],
        "seconds": [report["train_seconds"] for report in reports],
        "steps": reports[0]["steps"],
        "tiles": report["splits"][0]["tiles"],
        "embeddings": [kept(embedding) for embedding in report["embeddings"]],
    }


def kept(embedding: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of an embedding that are compared; the run's report has the rest."""
    keys = ("name", "kind", "members", "runs", "seeds", "width", "fidelity")
    return {key: embedding[key] for key in keys}


def table(runs: dict[str, dict[str, Any]]) -> str:
    """Write all recipes as Markdown: mean over seeds (least - greatest), one line a teacher."""
    rows = [
        "| recipe | teacher | heads | read-out | undistilled | mean feature | beats both |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in runs.items():
        student, untrained = student_of(one, name), undistilled_of(one)
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


def student_of(one: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the embedding of a recipe's seeds."""
    members = {f"{name}-{seed}" for seed in SEEDS}
    embedding: dict[str, Any] = next(e for e in one["embeddings"] if set(e["members"]) == members)
    return embedding


def undistilled_of(one: dict[str, Any]) -> dict[str, Any]:
    """Return the untrained embedding: of `evaluate`, or of a student without learning rate."""
    embedding: dict[str, Any] = next(
        e
        for e in one["embeddings"]
        if e["kind"] == "undistilled" or e["name"].endswith("-untrained")
    )
    return embedding


def main() -> None:
    """Run the recipes on LAKE, all if none is named."""
    lake, names = Path(sys.argv[1]), sys.argv[2:] or list(CASES)
    path = RESULTS / "recipes.json"
    with ray_session():
        if not (lake / "lake.json").exists():
            make_lake(lake)
        for name in names:
            runs = json.loads(path.read_text()) if path.exists() else {}
            runs[name] = run(str(lake), name)
            path.write_text(json.dumps(runs, indent=1) + "\n")
            sys.stderr.write(f"recipes: {name} done\n")
    sys.stdout.write(table(json.loads(path.read_text())) + "\n")


if __name__ == "__main__":
    main()
