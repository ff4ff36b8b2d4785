"""Students of features as column makers, and the `extract` of the front door, which has them.

`ingest` runs encoders of pixels and does not depend on students; this module adds the students of
the lake that read other columns.
"""

from collections.abc import Sequence

from featurestore import Store
from ingest import sees_features
from ingest.teachers import Engine, ExtractResult, MadeColumn, Precision
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


# Long, with ten parameters: the public function names every setting that users change.
def extract(
    lake_uri: str,
    teachers: Sequence[str],
    *,
    mpps: Sequence[float] | None = None,
    weights: str | None = None,
    precision: Precision | None = None,
    engine: Engine | None = None,
    where: str | None = None,
    share: float | None = None,
    address: str | None = None,
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
        address: a Ray cluster; a local Ray is started if None.
        auto_vacuum: whether old versions are freed in the end; see `free_old_versions`.

    Raises:
        LakeError: `where` is no predicate on the tiles' columns.
        TeacherError: a teacher is not known or its weights are missing.
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
        address=address,
        auto_vacuum=auto_vacuum,
        column_makers=(FeatureStudents(),),
    )
