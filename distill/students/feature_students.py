"""Students of features as column makers, and the `extract` of the front door, which has them.

`ingest` runs encoders of pixels and does not depend on students; this module adds the students of
the lake that read other columns.
"""

from collections.abc import Sequence
from functools import partial, update_wrapper

from featurestore import Store
from ingest import sees_features
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
