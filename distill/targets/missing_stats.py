"""Statistics of teachers for a run, on the slides of all patients that are not held out."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import polars as pl

from cluster import joins_cluster, progress, ray_session
from distill.errors import DistillError
from distill.targets.ray_stats import map_on_ray
from featurestore import (
    Lake,
    ResultDict,
    fit_stats,
    holdout_patients,
    mpp_name,
    open_lake,
    patient_of,
)
from featurestore.stats import map_here, read_card


def split_slides(
    lake: Lake, *, holdout: float, seed: int, slides: Sequence[str] | None = None
) -> tuple[list[str], list[str]]:
    """Return the ready slides for training, and the slides of the held-out patients.

    Args:
        lake: the lake that has the slides.
        holdout: share of the patients that is held out.
        seed: seed of the split.
        slides: ids of the slides to split; all ready slides if None.

    Raises:
        DistillError: a slide is not in the lake, or not ready.
    """
    ready = patient_of(lake.slides().collect()).sort("slide_id").filter(pl.col("state") == "ready")
    if slides is not None:
        missing = sorted(set(slides) - set(ready["slide_id"]))
        if missing:
            msg = f"not among the ready slides of {lake.uri}: {', '.join(missing[:5])}"
            raise DistillError(msg)
        ready = ready.filter(pl.col("slide_id").is_in(list(slides)))
    return _split_by_patient(ready, holdout=holdout, seed=seed)


def _split_by_patient(
    slides: pl.DataFrame, *, holdout: float, seed: int
) -> tuple[list[str], list[str]]:
    held = holdout_patients(slides, share=holdout, seed=seed)
    is_held_out = slides["patient"].is_in(sorted(held))
    return slides.filter(~is_held_out)["slide_id"].to_list(), slides.filter(is_held_out)[
        "slide_id"
    ].to_list()


# Long for its documentation: the public function of a command.
def stats(
    lake_uri: str,
    teachers: Sequence[str],
    *,
    mpps: Sequence[float] | None = None,
    holdout: float = 0.25,
    seed: int = 0,
    version: int | str | None = None,
    tiles: int | None = None,
    address: str | None = None,
    cpus_per_worker: float | None = None,
) -> dict[str, Any]:
    """Fit moments and PHI-S of teachers on the slides of all patients that are not held out.

    Statistics that the lake has for the same features of the same slides are not fitted again.

    Args:
        lake_uri: the lake.
        teachers: columns of features.
        mpps: mpps of the tiles; if None, all at which a teacher has a column.
        holdout: share of the patients that is held out.
        seed: seed of the choice of held-out patients.
        version: version of the lake, or a snapshot; the newest if None.
        tiles: number of tiles of a sample at each mpp, spread evenly over the slides; None for all.
        address: a Ray cluster to fit on; None, and no RAY_ADDRESS: this process.
        cpus_per_worker: CPUs that each task on a cluster reserves; 1 if None.

    Returns:
        `teachers`; `slides` and `held_out_slides`; `fitted`, the number of sets that were fitted
        now; `sets`, for each teacher and mpp the `path` in the lake, the `rows` and the
        `lake_version` of the fit; `lake_version` and `seconds`.

    Raises:
        ClusterError: no node of the cluster holds such a task.
        LakeError: a training slide lacks features of a teacher; the message names the slide.

    Examples:
        >>> fitted = sl.stats("my-lake", ["student"], mpps=[0.5])
        >>> fitted["fitted"], fitted["held_out_slides"]
        (1, ['s02a', 's03a', 's10a'])
    """
    start = time.perf_counter()
    lake = open_lake(lake_uri, version=version)
    train, held = split_slides(lake, holdout=holdout, seed=seed)
    pairs = [(name, mpp) for name in teachers for mpp in _mpps_of(lake, name, mpps)]
    missing = fit_missing(
        lake, pairs, train, tiles=tiles, address=address, cpus_per_worker=cpus_per_worker
    )
    cards = {
        pair: read_card(lake, pair[0], mpp=pair[1], slide_ids=train, tiles=tiles) for pair in pairs
    }
    counts = {
        "teachers": list(teachers),
        "slides": len(train),
        "held_out_slides": held,
        "fitted": len(missing),
        "sets": [_set_row(card, new=pair in missing) for pair, card in cards.items() if card],
        "lake_version": lake.version,
        "seconds": round(time.perf_counter() - start, 3),
    }
    return ResultDict(counts, name="stats", uri=lake.uri)


def _mpps_of(lake: Lake, teacher: str, mpps: Sequence[float] | None) -> list[float]:
    """Return the requested mpps, or all mpps at which the teacher has a column.

    Raises:
        LakeError: there is no such mpp, or the lake has no tiles at an mpp.
    """
    candidates = lake.config.mpps if mpps is None else [lake.known_mpp(mpp) for mpp in mpps]
    mpps_with_column = [mpp for mpp in candidates if teacher in lake.teachers(mpp=mpp)]
    if mpps is not None or not mpps_with_column:
        for mpp in candidates:
            lake.check_teacher(teacher, mpp=mpp)
    return mpps_with_column


def fit_missing(
    lake: Lake,
    pairs: Sequence[tuple[str, float]],
    train: Sequence[str],
    *,
    tiles: int | None = None,
    address: str | None = None,
    cpus_per_worker: float | None = None,
) -> list[tuple[str, float]]:
    """Fit the statistics of these slides that are missing; return their (teacher, mpp) pairs.

    Args:
        lake: the lake.
        pairs: teachers and mpps.
        train: ids of the slides.
        tiles: number of tiles of a sample; None for all, where there is no sample either.
        address: a Ray cluster to fit on; None, and no RAY_ADDRESS: this process.
        cpus_per_worker: CPUs that each task on a cluster reserves; 1 if None.

    Raises:
        ClusterError: no node of the cluster holds such a task.
    """
    missing = [
        pair
        for pair in pairs
        if read_card(lake, pair[0], mpp=pair[1], slide_ids=train, tiles=tiles) is None
    ]
    if not missing:
        return []
    count = sum(_tiles_to_read(lake, mpp, train, tiles) for _, mpp in missing)
    on_cluster = joins_cluster(address)
    session = ray_session(address=address, ray_data=False) if on_cluster else nullcontext()
    on_ray = partial(map_on_ray, num_cpus=cpus_per_worker or 1.0)
    part_map = on_ray if on_cluster else map_here
    with session, progress("stats", total=count, unit="tiles") as bar:
        for name, mpp in missing:
            fit_stats(
                lake,
                name,
                mpp=mpp,
                slide_ids=train,
                tiles=tiles,
                part_map=part_map,
                on_tiles=bar.advance,
            )
            bar.note(f"{name} at {mpp_name(mpp)} mpp fitted")
    return missing


def _tiles_to_read(lake: Lake, mpp: float, train: Sequence[str], tiles: int | None) -> int:
    whole = int(lake.tiles_of(mpp=mpp, slide_ids=train)["tiles"].sum())
    return whole if tiles is None else min(tiles, whole)


def _set_row(card: dict[str, Any], *, new: bool) -> dict[str, Any]:
    row = {key: card[key] for key in ("teacher", "mpp", "path", "key", "lake_version")}
    sample = {"sample": card["sample"]} if "sample" in card else {}
    return {**row, **sample, "rows": card["n"], "slides": len(card["slides"]), "new": new}
