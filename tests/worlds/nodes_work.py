"""The slides, labels and encoder of a user whose cluster has several nodes, and a lake made alone.

The cluster's lake lies in a bucket and the other in a folder; both hold the same afterwards.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from cluster import WorkerSettings
from distill.recipes.recipe_table import make_recipe
from distill.targets.missing_stats import stats
from distill.train.ray_train import distill
from downstream import run_mil, run_survival
from downstream.splits.fold_plan import Plan
from examples.cohort import make_cohort
from featurestore import Lake, LakeConfig
from ingest.ray_ingest import ingest
from ingest.teachers.ray_extract import extract

MPPS = (0.5, 2.0)
TEACHER, STUDENT = "slow-moments", "tiny"
SLIDES = 12
TINY = {"architecture": "test_efficientnet", "input_px": 32, "batch_tiles": 16, "epochs": 6}
#: The folds, models and times of both studies.
MODELS, SEEDS, FOLDS = ("linear", "knn"), 2, 2

#: An own encoder that takes its time where SLOW_S is set, so that a node can be lost in it.
ENCODER = '''
"""Colour moments that take their time."""
import os, time
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from slidelake import Card

CARD = Card(
    name="slow-moments", architecture="colour moments", dim=24, input_px=64,
    mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), licence="Apache-2.0", source="a test",
)

class Moments(nn.Module):
    def forward(self, x_BCHW: Tensor) -> Tensor:
        time.sleep(float(os.environ.get("SLOW_S", 0)) * len(x_BCHW))
        mean = F.adaptive_avg_pool2d(x_BCHW, 2).flatten(1)
        square = F.adaptive_avg_pool2d(x_BCHW**2, 2).flatten(1)
        return torch.cat([mean, square], dim=1)

def build() -> nn.Module:
    return Moments()
'''


@dataclass(frozen=True, kw_only=True)
class UserFiles:
    """The files of a user.

    Attributes:
        slides: folder of the slides.
        later: folder of slides that come later.
        labels: table of labels and survival.
        encoder: file of an own encoder.
    """

    slides: Path
    later: Path
    labels: Path
    encoder: Path


def make_files(folder: Path) -> UserFiles:
    """Write the files of a user into a folder."""
    table = make_cohort(
        folder / "cohort", patients=SLIDES + 1, slides=SLIDES + 1, width_px=1024, height_px=768,
        workers=1,
    )  # fmt: skip
    files = UserFiles(
        slides=folder / "slides",
        later=folder / "later",
        labels=folder / "labels.csv",
        encoder=folder / "slow_moments.py",
    )
    cohort = pl.read_csv(table, schema_overrides={"patient_id": pl.String}).sort("slide_id")
    for place in (files.slides, files.later):
        place.mkdir()
    for number, path in enumerate(sorted(table.parent.rglob("*.svs"))):
        path.rename((files.slides if number < SLIDES else files.later) / path.name)
    row = pl.int_range(pl.len())
    cohort.head(SLIDES).select(
        "slide_id",
        "patient_id",
        (row % 2).alias("grade"),
        (row * 7 % 5 + 10.5 + row).alias("months"),
        (row % 3 != 2).cast(pl.Int64).alias("dead"),
    ).write_csv(files.labels)
    files.encoder.write_text(ENCODER)
    shutil.rmtree(folder / "cohort")
    return files


def study_words(labels: str) -> dict[str, list[object]]:
    """Return the commands of both studies, without the lake."""
    models = [word for model in MODELS for word in ("--model", model)]
    shared = ["--labels", labels, "--features", TEACHER, "--folds", FOLDS, "--seeds", SEEDS]
    return {
        "mil": [*shared, "--target", "grade", *models, "--json"],
        "survival": [*shared, "--time", "months", "--event", "dead", "--json"],
    }


def make_alone(lake: str, files: UserFiles) -> dict[str, Any]:
    """Make the lake on this machine, with the Ray that is up; return the reports by stage."""
    ingest(lake, [str(files.slides)], LakeConfig(mpps=MPPS))
    assert not extract(lake, [str(files.encoder)]).failed
    fitted = stats(lake, [TEACHER])
    student = distill(
        lake,
        make_recipe("agglomerate", (TEACHER,), **TINY, mpps=(0.5,)),
        name=STUDENT,
        workers=WorkerSettings(workers=2),
    )
    assert not extract(lake, [STUDENT], mpps=[0.5]).failed
    plan = Plan(folds=FOLDS)
    mil = run_mil(
        lake, files.labels, "grade", [TEACHER], mpps=[0.5], models=MODELS, plan=plan, seeds=SEEDS
    )
    survival = run_survival(
        lake, files.labels, "months", "dead", [TEACHER], mpps=[0.5], plan=plan, seeds=SEEDS
    )
    return {"stats": fitted, "student": student, "mil": mil, "survival": survival}


def tables_of(lake: Lake, slides: int = SLIDES) -> dict[str, pl.DataFrame]:
    """Return what a lake holds of its first slides, but for names of files and times."""
    slide_rows = lake.slides().filter(pl.col("slide") < slides).select("slide_id", "state")
    catalog = lake.catalog().filter(pl.col("slide") < slides)
    names = ["slide_id", "mpp", "teacher", "tiles", "crc32", "shard_crc32"]
    tables = {
        "slides": slide_rows.collect().sort("slide_id"),
        "catalog": catalog.select(names).collect().sort("slide_id", "mpp", "teacher"),
    }
    for mpp in MPPS:
        frame = lake.tiles(mpp=mpp).filter(pl.col("slide") < slides).collect()
        tables[f"tiles {mpp}"] = frame.select(sorted(frame.columns)).sort("tile_id")
    return tables


def features(lake: Lake, teacher: str) -> pl.DataFrame:
    """Return the features of a teacher at 0.5 mpp in the order of their tiles."""
    return lake.features(teacher, mpp=0.5).collect().sort("tile_id")
