"""Extract for every kind of name: encoders of pixels, and students that see other columns."""

from collections.abc import Sequence
from typing import Any

from featurestore import free_old_versions, open_lake
from ingest import sees_features
from ingest.teachers.ray_extract import ExtractResult, count_slides
from ingest.teachers.ray_extract import extract as extract_pixels


def extract(
    lake_uri: str,
    teachers: Sequence[str],
    *,
    mpps: Sequence[float] | None = None,
    auto_vacuum: bool = False,
    **how: Any,  # noqa: ANN401 - as ingest.teachers.ray_extract.extract has them
) -> ExtractResult:
    """Run teachers on every tile that lacks their features; students of features come last.

    Args:
        lake_uri: the lake.
        teachers: as `ingest.teachers.ray_extract.extract` takes them, and students of features.
        mpps: where to run them; everywhere if None, a student of features where it was trained.
        auto_vacuum: whether old versions are freed in the end; see `free_old_versions`.
        **how: the other arguments of `ingest.teachers.ray_extract.extract`, which students of
            features, small and run in this process, have no use for.

    Raises:
        LakeError, TeacherError, IdentityError: as `ingest.teachers.ray_extract.extract` does.
        DistillError: a student of features lacks what it sees.
    """
    lake = open_lake(lake_uri)
    store = lake.store
    of_features = [name for name in dict.fromkeys(teachers) if sees_features(store, name)]
    of_pixels = [name for name in teachers if name not in of_features]
    result = ExtractResult()
    if of_pixels or not of_features:
        result = extract_pixels(lake_uri, of_pixels, mpps=mpps, **how)
    for name in of_features:
        # Torch takes seconds to import, which an extract of pixels does in its workers alone.
        from distill.students.feature_columns import make_columns

        made = make_columns(lake_uri, name, mpps=mpps)
        result.seconds = round(result.seconds + made["seconds"], 3)
        result.teachers[name] = {
            "tiles": made["tiles"],
            "seconds": made["seconds"],
            "stall": 0.0,
            "tiles_per_s": round(made["tiles"] / max(made["seconds"], 1e-9), 1),
        }
    count_slides(lake, result)
    if auto_vacuum:
        result.freed = free_old_versions(open_lake(lake_uri))
    return result
