"""The folder in which the examples of docstrings run: a small lake, labels, and no Ray.

Examples call what users call. Where a job would spread its work over Ray, the same work is done
here one piece after the other, in this process: a Ray takes ten seconds to start.
"""

import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import polars as pl

from cluster import Placement, machine_shapes
from downstream.run import run_study
from downstream.run.study_spec import Resources
from featurestore import LakeConfig, SlideCut, Store, open_lake
from ingest import lake_building, ray_ingest
from ingest.cut import cut_or_reason
from ingest.teachers import ray_extract
from ingest.teachers.extract_here import outcomes_here
from ingest.teachers.work.unit_queue import UnitQueue
from ingest.teachers.work.units import Outcome
from tests.worlds.painted_lake import painted_lake
from tests.worlds.small_lake import add_teacher

PATIENTS = 12
COLUMNS = {"uni2_h": 1536, "virchow2": 2560, "student": 64}


def make_folder(folder: Path) -> None:
    """Make a lake and the tables of a study.

    `my-lake` has 13 slides of 12 patients, the second of whom has two, with 24 tiles each at 0.5
    mpp and one at 2.0, and the columns of `COLUMNS`; `labels.csv` tells patients' grade,
    survival and hospital, `regions.csv` the tissue of each tile.
    """
    lake = painted_lake(folder / "my-lake", patients=PATIENTS, mpps=(0.5, 2.0))
    for name, dim in COLUMNS.items():
        lake = add_teacher(lake, name, dim)
    patients = np.arange(PATIENTS)
    pl.DataFrame(
        {
            "patient_id": [f"p{n:02d}" for n in patients],
            "grade": ["high" if n % 2 else "low" for n in patients],
            "months": (patients * 7 % 60 + 3).astype(float),
            "dead": (patients % 3 > 0).astype(int),
            "hospital": ["north" if n < PATIENTS // 2 else "south" for n in patients],
        }
    ).write_csv(folder / "labels.csv")
    tiles = open_lake(folder / "my-lake").tiles(mpp=0.5).select("slide_id", "x", "y")
    tiles.with_columns(
        tissue=pl.when(pl.col("x") < 700).then(pl.lit("tumour")).otherwise(pl.lit("stroma"))
    ).collect().write_csv(folder / "regions.csv")


@contextmanager
def without_ray() -> Iterator[None]:
    """Do in this process what ingest, extract and studies do on Ray."""
    with (
        mock.patch.object(ray_ingest, "local_workers", _one_worker),
        mock.patch.object(ray_ingest, "cut_here", _cut_all),
        mock.patch.object(ray_extract, "WorkerPool", _PoolHere),
        mock.patch.object(ray_extract, "ray_session", _no_session),
        mock.patch.object(ray_extract, "node_shapes", machine_shapes),
        mock.patch.object(ray_extract, "announced", _no_session),
        mock.patch.object(lake_building, "shared_ray_session", _no_session),
        mock.patch.object(run_study, "on_ray", _run_all),
    ):
        yield


def _no_session(*_: object, **__: object) -> AbstractContextManager[None]:
    return nullcontext()


def _one_worker(*_: object, **__: object) -> int:
    return 1


def _cut_all(
    store: Store, config: LakeConfig, todo: Sequence[dict[str, Any]], *_: object, workers: int
) -> Iterator[SlideCut | dict[str, Any]]:
    for row in todo:
        yield cut_or_reason(store, config, row)


class _PoolHere:
    """A pool of no workers: the units are computed in this process."""

    def __init__(self, settings: dict[str, Any], _: Placement, **__: object) -> None:
        self._settings = settings

    def outcomes(self, tasks: UnitQueue) -> Generator[Outcome]:
        teachers = pickle.loads(self._settings["teachers"])
        return outcomes_here(Store(self._settings["store"]), teachers, tasks, threads=1)


def _run_all(resources: Resources) -> Callable[..., None]:
    def run_tasks(
        run: Callable[[Any], float], tasks: Sequence[Any], *, title: str, finished: int
    ) -> None:
        for task in tasks:
            run(task)

    return run_tasks
