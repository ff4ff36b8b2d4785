"""The tables of annotations and slide encodings that kept versions of a lake name, and strays."""

from collections.abc import Iterable

from featurestore.storage.store import FileInfo, Store
from featurestore.tables import lance_annotations, lance_slide_encodings
from featurestore.tables.lance_tables import open_table
from featurestore.tables.schema import SLIDES


def named_tables(store: Store, slides_versions: Iterable[int]) -> set[str]:
    """Return the paths of the tables that versions of `slides` name."""
    paths = set()
    for version in slides_versions:
        slides = open_table(store, SLIDES, version)
        paths |= {str(one.path) for one in lance_annotations.tables_of(slides).values()}
        paths |= {one.path for one in lance_slide_encodings.encodings_of(slides).values()}
    return paths


def stray_files(store: Store, slides_versions: Iterable[int]) -> list[FileInfo]:
    """List files of tables that no kept version names.

    Args:
        store: the lake's files; its committer's lock is held, so that no edit is half done.
        slides_versions: versions of `slides` that are kept.
    """
    folders = (lance_annotations.FOLDER, lance_slide_encodings.FOLDER)
    files = [file for folder in folders for file in store.walk(folder)]
    if not files:
        return []
    named = named_tables(store, slides_versions)
    return [file for file in files if "/".join(file.path.split("/")[:2]) not in named]
