"""A user's script: type checkers read it against the installed package, and a test runs it.

`assert_type` fails a type checker where a type of the front door is another one, or `Any`.
"""

from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt
import polars as pl

import slidelake as sl


def fill(uri: str) -> sl.Lake:
    """Cut the slide that is shipped, and run a teacher on its tiles."""
    config = sl.LakeConfig(tile_px=256, mpps=(1.0,))
    try:
        cut = sl.ingest(uri, [sl.sample_slide()], config, limit=1)
        done = sl.extract(uri, ["efficientnet_lite0"], mpps=[1.0])
    except (sl.InputError, sl.TeacherError, sl.LakeError) as error:
        raise SystemExit(str(error)) from error
    assert_type(cut, sl.IngestResult)
    assert_type(cut.failed, list[dict[str, str]])
    assert_type(done.teachers, dict[str, dict[str, float]])
    for slide in cut.failed:
        print(slide["slide"], slide["reason"])
    return sl.open_lake(uri)


def look(lake: sl.Lake) -> pl.DataFrame:
    """Ask a lake what it has, in frames and in SQL."""
    assert_type(lake.version, int)
    assert_type(lake.teachers(mpp=0.5), dict[str, int])
    assert_type(lake.slides(), pl.LazyFrame)
    features = lake.features("uni2_h", mpp=0.5)
    assert_type(features, pl.LazyFrame)
    per_slide = features.filter(pl.col("tissue") > 0.5).group_by("slide_id").len().collect()
    assert_type(per_slide, pl.DataFrame)
    counts = sl.query(
        lake, "SELECT slide_id, count(*) AS tiles FROM tiles_mpp0_5 GROUP BY slide_id"
    )
    assert_type(counts, pl.DataFrame)
    return counts.join(per_slide, on="slide_id")


def mean_of(bag: sl.Bag) -> npt.NDArray[np.float64]:
    """Return the mean of a bag's features."""
    assert_type(bag.slide_id, str)
    assert_type(bag.features, npt.NDArray[np.float16])
    assert_type(bag.tile_id, npt.NDArray[np.int64])
    assert_type(bag.by_teacher, dict[str, npt.NDArray[np.float16]])
    mean: npt.NDArray[np.float64] = bag.features.astype(np.float64).mean(axis=0)
    return mean


def read(lake: sl.Lake) -> int:
    """Read bags, a stream and pairs, as a training does."""
    bag = lake.bag("s01a", ["uni2_h", "student"], mpp=0.5)
    assert_type(bag, sl.Bag)
    bags = lake.bags("student", mpp=0.5, by="patient")
    assert_type(bags, sl.Bags)
    assert_type(bags.ids, list[str])
    tiles = 0
    for batch in lake.stream("student", mpp=0.5, batch_tiles=64):
        assert_type(batch, sl.TileBatch)
        assert_type(batch.features, dict[str, npt.NDArray[np.float16]])
        tiles += len(batch.tile_id)
    pairs = lake.pairs("s01a", coarse=2.0, fine=0.5, teachers="student")
    assert_type(pairs, sl.Pairs)
    assert_type(pairs.mask, npt.NDArray[np.bool_])
    nearest = lake.nearest(mean_of(lake.bag("s01a", "student", mpp=0.5)), "student", mpp=0.5, k=3)
    assert_type(nearest, pl.DataFrame)
    return tiles


def study(uri: str, labels: Path) -> dict[str, float | None]:
    """Train on a lake and look for what is similar."""
    plan = sl.Plan(folds=2)
    try:
        grade = sl.run_mil(
            uri,
            labels,
            "grade",
            ["student"],
            mpps=[0.5],
            plan=plan,
            settings=sl.MilSettings(epochs=1),
        )
        death = sl.run_survival(
            uri, labels, "months", "dead", ["student"], mpps=[0.5], plan=sl.Plan(folds=3)
        )
    except (sl.CohortError, sl.SplitError, sl.StudyError) as error:
        raise SystemExit(str(error)) from error
    assert_type(grade, dict[str, Any])
    hits = sl.run_search(uri, "s01a:256,0", "student", k=2)
    assert_type(hits, dict[str, Any])
    runs = {"grade": grade, "death": death}
    return {name: run["metrics"]["student"]["estimate"] for name, run in runs.items()}


def keep(lake: sl.Lake, regions: pl.DataFrame) -> bool:
    """Add a column of one's own, check the lake, and handle damage."""
    annotated = sl.annotate(lake, regions, "region", mpp=0.5)
    assert_type(annotated.annotation, sl.Annotation)
    lake = lake.refreshed()
    assert_type(lake.annotations(), dict[str, sl.Annotation])
    lake.snapshot("before-the-paper")
    try:
        verdict = sl.verify(lake)
    except sl.AccessError as error:
        print("try again later:", error)
        return False
    assert_type(verdict, sl.Verdict)
    assert_type(verdict.ok, bool)
    recipe = sl.make_recipe("agglomerate", ("uni2_h", "virchow2"), epochs=5)
    assert_type(recipe, sl.Recipe)
    return verdict.ok


def main() -> None:
    """Do all of it in the folder of examples."""
    print(fill("new-lake").info()["tiles"])
    lake = sl.open_lake("my-lake")
    print(look(lake).height, read(lake))
    print(study("my-lake", Path("labels.csv")))
    print(keep(lake, pl.read_csv("regions.csv")))
    try:
        sl.open_lake("no-such-lake")
    except sl.LakeMissingError as error:
        print(error)


if __name__ == "__main__":
    main()
