"""Students of features as column makers; `extract` and `build_lake` of the front door have them.

`ingest` runs encoders of pixels and does not depend on students; this module adds the students of
the lake that read other columns.
"""

from collections.abc import Sequence
from typing import Unpack

from cluster import WorkerSettings, joins_cluster
from featurestore import LakeConfig, Store
from ingest import BuildOptions, BuildResult, sees_features
from ingest import build_lake as build_columns
from ingest.teachers import Engine, ExtractResult, FovMode, MadeColumn, Precision
from ingest.teachers import extract as extract_columns


class FeatureStudents:
    """The column maker of a lake's students of features."""

    def makes(self, store: Store, name: str) -> bool:
        """Return whether the lake has a student of features of that name."""
        return sees_features(store, name)

    def make(
        self,
        lake_uri: str,
        name: str,
        *,
        mpps: Sequence[float] | None = None,
        address: str | None = None,
        workers: WorkerSettings = WorkerSettings(),  # noqa: B008 - it is frozen
    ) -> MadeColumn:
        """Write a student's column for every tile that lacks it.

        On a cluster one worker does it: the head, where drivers live, may be small.

        Args:
            lake_uri: the lake.
            name: name of the student.
            mpps: mpps of the tiles; all mpps of the student if None.
            address: a Ray cluster; None, and no RAY_ADDRESS: this process.
            workers: CPUs of the worker; such students need no GPU.

        Raises:
            ClusterError: no node of the cluster holds such a worker.
            DistillError: the student lacks a column that it reads, or was not trained at an mpp.
            LakeError: a slide lacks features that the student reads; the message names the slide.
        """
        if joins_cluster(address):
            from distill.students.ray_columns import make_there

            return make_there(lake_uri, name, mpps=mpps, address=address, workers=workers)
        # Torch takes seconds to import, which an extract of pixels does in its workers alone.
        from distill.students.feature_columns import make_columns

        return make_columns(lake_uri, name, mpps=mpps)


# Long, with twelve parameters: the public function names every setting that users change.
def extract(
    lake_uri: str,
    teachers: str | Sequence[str],
    *,
    mpps: Sequence[float] | None = None,
    weights: str | None = None,
    precision: Precision | None = None,
    engine: Engine | None = None,
    where: str | None = None,
    share: float | None = None,
    fov: FovMode | None = None,
    address: str | None = None,
    workers: WorkerSettings = WorkerSettings(),  # noqa: B008 - it is frozen
    auto_vacuum: bool = False,
) -> ExtractResult:
    """Run teachers on every tile that lacks their features; students of features come last.

    What the lake has is not computed again: call it again after a kill, or with more slides.

    Examples:
        >>> import slidelake as sl
        >>> done = sl.extract("my-lake", ["efficientnet_lite0"], mpps=[2.0])
        >>> done.teachers["efficientnet_lite0"]["tiles"], done.failed
        (13, [])
        >>> sl.open_lake("my-lake").teachers(mpp=2.0)["efficientnet_lite0"]
        1280

    Args:
        lake_uri: folder or URL of the lake.
        teachers: NAME or NAME:POOLING of `list_teachers`, students of the lake, or paths of users'
            own encoders (.py).
        mpps: mpps to run them at; if None all, or a student of features' training mpps.
        weights: a folder in which weights are looked for first, on each machine.
        precision: precision of new columns. None: float32 on CPUs, the card's own on GPUs; columns
            that exist keep theirs.
        engine: engine of new columns. None: ONNX Runtime for convolutional networks on CPUs where
            it is installed and there are 5,000 tiles or more (an export takes 10-20 s), else torch.
        where: a predicate on the tiles' columns; tiles for which it does not hold get NaN.
        share: share of the tiles, drawn by their keys; the others get NaN.
        fov: field of view of new columns. None: the row's tile where it is about the card's field,
            else that field from finer tiles or a crop. "exact": the card's field to the pixel.
            "nearest": the row's tile where its mpp does not have the card's field.
        address: a Ray cluster; a local Ray is started if None.
        workers: device and size of the workers; precision and engine follow the device.
        auto_vacuum: whether old versions are freed in the end; see `free_old_versions`.

    Raises:
        ClusterError: no node of the cluster holds such a worker.
        LakeError: `where` is no predicate on the tiles' columns.
        TeacherError: a teacher is not known, its weights are missing, or the tiles at an mpp do not
            have its field of view (without `mpps`: at every mpp).
        IdentityError: a column of that name holds another encoder's features.
    """
    return extract_columns(
        lake_uri,
        teachers,
        mpps=mpps,
        weights=weights,
        precision=precision,
        engine=engine,
        where=where,
        share=share,
        fov=fov,
        address=address,
        workers=workers,
        auto_vacuum=auto_vacuum,
        column_makers=(FeatureStudents(),),
    )


# Long for its documentation: the public function of the first two stages.
def build_lake(
    lake_uri: str,
    slides: str | Sequence[str],
    teachers: str | Sequence[str],
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

    Examples:
        >>> import slidelake as sl
        >>> slides = [sl.sample_slide()]
        >>> built = sl.build_lake("new-lake", slides, ["efficientnet_lite0"], mpps=[1.0])
        >>> built.ingested.tiles, built.failed
        ({'1.0': 17}, [])
        >>> lake = sl.open_lake("new-lake")

        What is wrong is refused before a slide is opened.

        >>> sl.build_lake("new-lake", slides, ["uni3_h"])
        Traceback (most recent call last):
            ...
        ingest.errors.TeacherError: no teacher 'uni3_h': did you mean uni2_h or uni? ...

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
