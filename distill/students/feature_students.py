"""Students of features as column makers; `extract` and `build_lake` of the front door have them.

`ingest` runs encoders of pixels and does not depend on students; this module adds the students of
the lake that read other columns.
"""

from collections.abc import Sequence
from functools import partial, update_wrapper
from typing import Unpack

from featurestore import LakeConfig, Store
from ingest import BuildOptions, BuildResult, sees_features
from ingest import build_lake as build_columns
from ingest.teachers import MadeColumn
from ingest.teachers import extract as extract_columns


class FeatureStudents:
    """The column maker of a lake's students of features."""

    def makes(self, store: Store, name: str) -> bool:
        """Return whether the lake has a student of features of that name."""
        return sees_features(store, name)

    def make(self, lake_uri: str, name: str, *, mpps: Sequence[float] | None = None) -> MadeColumn:
        """Write a student's column for every tile that lacks it.

        Raises:
            DistillError: the student lacks a column that it reads, or was not trained at an mpp.
            LakeError: a slide lacks features that the student reads; the message names the slide.
        """
        # Torch takes seconds to import, which an extract of pixels does in its workers alone.
        from distill.students.feature_columns import make_columns

        return make_columns(lake_uri, name, mpps=mpps)


#: `ingest.teachers.extract` for every kind of name, students of features included.
extract = partial(extract_columns, column_makers=(FeatureStudents(),))
update_wrapper(extract, extract_columns)


def build_lake(
    lake_uri: str,
    slides: Sequence[str],
    teachers: Sequence[str],
    *,
    mpps: Sequence[float] | None = None,
    config: LakeConfig | None = None,
    **options: Unpack[BuildOptions],
) -> BuildResult:
    """Cut slides into a lake and run teachers on every tile: `slidelake build` in Python.

    It is an `ingest` and an `extract` in one Ray session. The teachers are checked first, so a
    wrong name or missing weights cost no time. Call it again after a kill or with more slides:
    what the lake has is not made again. A slide that fails does not stop the others; look at
    `result.failed`, and open `result.page`, which shows every slide with its tissue and tiles.

        import slidelake as sl

        built = sl.build_lake("my-lake", ["slides/"], ["uni2_h", "virchow2"], mpps=[0.5, 2.0])
        print(built.page, built.failed)
        lake = sl.open_lake("my-lake")

    Example: what is wrong is refused before a slide is opened.
        >>> build_lake("no-lake", ["slides/"], ["uni3_h"])
        Traceback (most recent call last):
            ...
        ingest.errors.TeacherError: no teacher 'uni3_h': did you mean uni2_h? ...

    Args:
        lake_uri: folder or URL of the lake; it is made if it is new.
        slides: files, folders, globs, URLs, or manifests (CSV, TSV, XLSX, Parquet) with a column
            `uri`.
        teachers: NAME or NAME:POOLING of `list_teachers`, students of the lake, or paths of users'
            own encoders (.py).
        mpps: microns per pixel of the tiles of a new lake, as multiples of the finest; 0.5 if None.
        config: all settings of a new lake, in place of `mpps`; None for the lake's own.
        **options: which slides, how tissue is found, how teachers are run, and where: `only`,
            `limit`, `retry_failed`, `masks`, `tissue`, `mpp_override`, `weights`, `precision`,
            `where`, `share`, `address` and more; see `ingest.BuildOptions`.

    Returns:
        The outcome of both stages, the page's path and the seconds taken.

    Raises:
        InputError: the inputs name no slide; or both `mpps` and `config` were given.
        LakeError: the lake exists with other settings, or `where` is no predicate on its tiles.
        TeacherError: a teacher is not known or its weights are missing; no slide was cut.
        IdentityError: a column of that name holds another encoder's features; no slide was cut.
    """
    return build_columns(
        lake_uri,
        slides,
        teachers,
        mpps=mpps,
        config=config,
        column_makers=(FeatureStudents(),),
        **options,
    )
